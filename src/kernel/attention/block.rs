//! A few query rows that read the same KV head: the micro-kernels.
//!
//! Keys lie with positions in lanes, so a tile of scores is [`PAGE`] positions wide, and scores of a block lie as
//! `[tile][row][PAGE]`. How many rows a block has changes no bit: no value crosses rows.

use super::AttentionShape;
use crate::kernel::activation::SoftCap;
use crate::kernel::kv_cache::PAGE;
use crate::kernel::lane_sum::tree;
use crate::kernel::math::{Unary, lanes};
use crate::kernel::simd::{FmaKernel, SimdFma};

/// Keys `[head_dim][PAGE]` and values `[PAGE][head_dim rounded up to 16]` of one head in one page.
pub type Tile<'a> = (&'a [f32], &'a [f32]);

/// The most rows a block can have.
pub const MAX_ROWS: usize = 8;

/// One query: its values and the positions it sees, `first .. end`.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    pub q: &'a [f32],
    pub first: usize,
    pub end: usize,
}

/// Attention of at most [`MAX_ROWS`] rows.
pub struct Block<'a> {
    pub shape: &'a AttentionShape,
    pub rows: &'a [Row<'a>],
    /// Tiles from page `first_page` on, up to the last one any row sees.
    pub tiles: &'a [Tile<'a>],
    pub first_page: usize,
    /// At least [`Block::scratch_len`] values of any content.
    pub scratch: &'a mut [f32],
    /// `[rows][head_dim]`
    pub out: &'a mut [f32],
}

impl Block<'_> {
    /// Returns the scratch that `n_tiles` tiles need.
    pub fn scratch_len(head_dim: usize, n_tiles: usize) -> usize {
        MAX_ROWS * (head_dim + n_tiles * PAGE)
    }
}

impl FmaKernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) {
        match self.rows.len() {
            0 => {}
            1 => run::<S, 1>(s, self),
            2 => run::<S, 2>(s, self),
            3 | 4 => run::<S, 4>(s, self),
            _ => run::<S, MAX_ROWS>(s, self),
        }
    }
}

/// The rows of a block as the kernels see them: spare ones repeat the last.
struct Ranges<const R: usize> {
    first: [usize; R],
    end: [usize; R],
}

impl<const R: usize> Ranges<R> {
    #[inline(always)]
    fn new(rows: &[Row]) -> Self {
        let mut ranges = Ranges { first: [0; R], end: [0; R] };
        for r in 0..R {
            let row = rows[r.min(rows.len() - 1)];
            (ranges.first[r], ranges.end[r]) = (row.first, row.end);
        }
        ranges
    }

    /// Returns the part of `base .. base + PAGE` that every row sees, as offsets from `base`.
    #[inline(always)]
    fn common(&self, base: usize) -> (usize, usize) {
        let (mut first, mut end) = (self.first[0], self.end[0]);
        for r in 1..R {
            first = first.max(self.first[r]);
            end = end.min(self.end[r]);
        }
        let first = first.saturating_sub(base).min(PAGE);
        (first, end.saturating_sub(base).clamp(first, PAGE))
    }
}

#[inline(always)]
fn run<S: SimdFma, const R: usize>(s: S, block: Block) {
    let Block { shape, rows, tiles, first_page, scratch, out } = block;
    let (q, scores) = scratch.split_at_mut(R * shape.head_dim);
    let scores = &mut scores[..tiles.len() * R * PAGE];
    for r in 0..R {
        let row = rows[r.min(rows.len() - 1)].q;
        for (q, value) in q[r..].iter_mut().step_by(R).zip(row) {
            *q = *value;
        }
    }
    for (scores, (keys, _)) in scores.chunks_exact_mut(R * PAGE).zip(tiles) {
        score_tile::<S, R>(s, q, keys, shape.scale, scores);
        if let Some(cap) = shape.softcap {
            for at in (0..R * PAGE).step_by(S::LANES) {
                let capped = SoftCap(cap).apply(s, s.load(&scores[at..]));
                s.store(capped, &mut scores[at..]);
            }
        }
    }
    let ranges = Ranges::<R>::new(rows);
    let sums = softmax::<S, R>(s, &ranges, first_page * PAGE, scores);
    let mut column = 0;
    while column < shape.head_dim {
        if shape.head_dim - column > S::LANES {
            weighted_sum::<S, R, 2>(
                s,
                &ranges,
                first_page * PAGE,
                scores,
                tiles,
                &sums,
                column,
                out,
                rows.len(),
            );
            column += 2 * S::LANES;
        } else {
            weighted_sum::<S, R, 1>(
                s,
                &ranges,
                first_page * PAGE,
                scores,
                tiles,
                &sums,
                column,
                out,
                rows.len(),
            );
            column += S::LANES;
        }
    }
}

/// Writes `scores[r][j] = dot(q[r], keys[j]) * scale`; q is `[head_dim][R]`, keys `[head_dim][PAGE]`.
#[inline(always)]
fn score_tile<S: SimdFma, const R: usize>(s: S, q: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
    // one vector of 16 lanes, or two of 8
    let mut sums = [[s.splat(0.0); 2]; R];
    for (q, keys) in q.chunks_exact(R).zip(keys.chunks_exact(PAGE)) {
        for i in 0..PAGE / S::LANES {
            let keys = s.load(&keys[i * S::LANES..]);
            for r in 0..R {
                sums[r][i] = s.mul_add(s.splat(q[r]), keys, sums[r][i]);
            }
        }
    }
    for r in 0..R {
        for i in 0..PAGE / S::LANES {
            s.store(sums[r][i] * s.splat(scale), &mut scores[r * PAGE + i * S::LANES..]);
        }
    }
}

/// Returns which of the positions `position ..` lie in `first .. end`.
#[inline(always)]
fn visible<S: SimdFma>(s: S, position: usize, (first, end): (usize, usize)) -> S::Mask {
    let positions = s.load_i32(&OFFSETS) + s.splat_i32(position as i32);
    s.gt_i32(s.splat_i32(end as i32), positions) & !s.gt_i32(s.splat_i32(first as i32), positions)
}

/// Returns the largest of a row's visible scores; `scores` begins at the row's first tile.
#[inline(always)]
fn row_max<S: SimdFma, const R: usize>(s: S, range: (usize, usize), base: usize, scores: &[f32]) -> f32 {
    let mut largest = [s.splat(f32::NEG_INFINITY); 2];
    for (tile, scores) in scores.chunks(R * PAGE).enumerate() {
        let base = base + tile * PAGE;
        let sees_all = range.0 <= base && base + PAGE <= range.1;
        for i in 0..PAGE / S::LANES {
            let at = i * S::LANES;
            let mut score = s.load(&scores[at..]);
            if !sees_all {
                score = s.select(visible(s, base + at, range), score, s.splat(f32::NEG_INFINITY));
            }
            largest[i] = s.max(score, largest[i]);
        }
    }
    let mut all = [f32::NEG_INFINITY; PAGE];
    for i in 0..PAGE / S::LANES {
        s.store(largest[i], &mut all[i * S::LANES..]);
    }
    let mut max = f32::NEG_INFINITY;
    for x in all {
        max = if x > max { x } else { max };
    }
    max
}

/// Replaces scores by `exp(s - max)`, zero where a row does not see the position, and returns every row's sum.
#[inline(always)]
fn softmax<S: SimdFma, const R: usize>(
    s: S,
    ranges: &Ranges<R>,
    base: usize,
    scores: &mut [f32],
) -> [f32; R] {
    let mut sums = [0.0; R];
    for r in 0..R {
        let range = (ranges.first[r], ranges.end[r]);
        let scores = &mut scores[r * PAGE..];
        let max = s.splat(row_max::<S, R>(s, range, base, scores));
        let mut lane_sums = [s.splat(0.0); 2];
        for (tile, scores) in scores.chunks_mut(R * PAGE).enumerate() {
            let base = base + tile * PAGE;
            let sees_all = range.0 <= base && base + PAGE <= range.1;
            for i in 0..PAGE / S::LANES {
                let at = i * S::LANES;
                let mut p = lanes::exp_nonpositive(s, s.load(&scores[at..]) - max);
                if !sees_all {
                    p = s.select(visible(s, base + at, range), p, s.splat(0.0));
                }
                lane_sums[i] = lane_sums[i] + p;
                s.store(p, &mut scores[at..]);
            }
        }
        let mut lanes = [0.0; PAGE];
        for i in 0..PAGE / S::LANES {
            s.store(lane_sums[i], &mut lanes[i * S::LANES..]);
        }
        sums[r] = tree(&mut lanes);
    }
    sums
}

const OFFSETS: [i32; PAGE] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Writes `out[r][d] = sum over visible j of p[r][j] * v[j][d] / sums[r]` for V vectors of d from `column`.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "parts of one kernel, which must be inlined")]
fn weighted_sum<S: SimdFma, const R: usize, const V: usize>(
    s: S,
    ranges: &Ranges<R>,
    base: usize,
    scores: &[f32],
    tiles: &[Tile],
    sums: &[f32; R],
    column: usize,
    out: &mut [f32],
    n_rows: usize,
) {
    let mut totals = [[s.splat(0.0); V]; R];
    for (tile, (p, (_, values))) in scores.chunks_exact(R * PAGE).zip(tiles).enumerate() {
        let base = base + tile * PAGE;
        let stride = values.len() / PAGE;
        let (first, end) = ranges.common(base);
        for j in 0..first {
            add_visible::<S, R, V>(s, ranges, base, j, p, &values[j * stride + column..], &mut totals);
        }
        for j in first..end {
            let values = &values[j * stride + column..];
            let mut v = [s.splat(0.0); V];
            for i in 0..V {
                v[i] = s.load(&values[i * S::LANES..]);
            }
            for r in 0..R {
                let p = s.splat(p[r * PAGE + j]);
                for i in 0..V {
                    totals[r][i] = s.mul_add(p, v[i], totals[r][i]);
                }
            }
        }
        for j in end..PAGE {
            add_visible::<S, R, V>(s, ranges, base, j, p, &values[j * stride + column..], &mut totals);
        }
    }
    let head_dim = out.len() / n_rows;
    for r in 0..n_rows.min(R) {
        for i in 0..V {
            let at = column + i * S::LANES;
            let mut lanes = [0.0; 16];
            s.store(totals[r][i] / s.splat(sums[r]), &mut lanes);
            let n = S::LANES.min(head_dim.saturating_sub(at));
            out[r * head_dim + at.min(head_dim)..][..n].copy_from_slice(&lanes[..n]);
        }
    }
}

/// Adds position `base + j` to the rows that see it.
#[inline(always)]
fn add_visible<S: SimdFma, const R: usize, const V: usize>(
    s: S,
    ranges: &Ranges<R>,
    base: usize,
    j: usize,
    p: &[f32],
    values: &[f32],
    totals: &mut [[S::F32; V]; R],
) {
    for r in 0..R {
        if (ranges.first[r]..ranges.end[r]).contains(&(base + j)) {
            let p = s.splat(p[r * PAGE + j]);
            for i in 0..V {
                totals[r][i] = s.mul_add(p, s.load(&values[i * S::LANES..]), totals[r][i]);
            }
        }
    }
}
