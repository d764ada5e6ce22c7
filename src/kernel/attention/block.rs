//! A few query rows that read the same KV head: the micro-kernels.
//!
//! Keys lie with positions in lanes, so a tile of scores is [`PAGE`] positions wide, and scores of a block lie as
//! `[tile][row][PAGE]`. How many rows a block has changes no bit: no value crosses rows.

#![allow(
    clippy::needless_range_loop,
    clippy::explicit_counter_loop,
    reason = "iterator adaptors would leave the instruction set that kernels are compiled for"
)]

use super::AttentionShape;
use crate::kernel::Isa;
use crate::kernel::activation::SoftCap;
use crate::kernel::kv_cache::PAGE;
use crate::kernel::lane_sum::tree;
use crate::kernel::math::{Unary, lanes};
use crate::kernel::simd::{FmaKernel, SimdFma};

/// Keys `[head_dim][PAGE]` and values `[PAGE][head_dim rounded up to 16]` of one head in one page.
pub type Tile<'a> = (&'a [f32], &'a [f32]);

/// The most rows a block can have on any ISA.
pub const MAX_ROWS: usize = 8;

/// Returns the most rows a block can have.
pub fn max_rows(isa: Isa) -> usize {
    if isa == Isa::Avx512 { MAX_ROWS } else { 6 }
}

/// One query: its values and the positions it sees, `first .. end`.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    pub q: &'a [f32],
    pub first: usize,
    pub end: usize,
}

/// Attention of at most [`max_rows`] rows.
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
    /// Where every row's logarithm of the sum of exponentials goes, if it's wanted.
    pub lse: Option<&'a mut [f32; MAX_ROWS]>,
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
            // two vectors of sums per row, of 32 registers or of 16
            _ if S::LANES == PAGE => run::<S, MAX_ROWS>(s, self),
            _ => run::<S, 6>(s, self),
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

    /// Returns the positions that every row sees; if there are none, an empty range that ends where some row's begins.
    #[inline(always)]
    fn common(&self) -> (usize, usize) {
        let (mut first, mut end) = (self.first[0], self.end[0]);
        for r in 1..R {
            first = first.max(self.first[r]);
            end = end.min(self.end[r]);
        }
        (first, end.max(first))
    }
}

#[inline(always)]
fn run<S: SimdFma, const R: usize>(s: S, block: Block) {
    let Block { shape, rows, tiles, first_page, scratch, out, lse } = block;
    // side by side: rows of q a power of two apart would compete for the same cache sets
    let (packed, scores) = scratch.split_at_mut(MAX_ROWS * shape.head_dim);
    let scores = &mut scores[..tiles.len() * R * PAGE];
    let mut q: [&[f32]; R] = [&[]; R];
    let mut packed = packed.chunks_exact_mut(shape.head_dim);
    for r in 0..R {
        let row = packed.next().expect("the scratch has MAX_ROWS rows");
        row.copy_from_slice(rows[r.min(rows.len() - 1)].q);
        q[r] = row;
    }
    score_tiles::<S, R>(s, q, tiles, shape, scores);
    let ranges = Ranges::<R>::new(rows);
    mask(s, &ranges, first_page * PAGE, scores);
    let (max, sums) = softmax::<S, R>(s, scores);
    if let Some(lse) = lse {
        *lse = log_sum_exp(s, max, sums);
    }
    let weights = Weights { ranges, sums, base: first_page * PAGE, p: scores, tiles };
    let mut column = 0;
    while column < shape.head_dim {
        if shape.head_dim - column > S::LANES {
            store_columns::<S, R, 2>(s, weights.sum_values::<S, 2>(s, column), column, rows.len(), out);
            column += 2 * S::LANES;
        } else {
            store_columns::<S, R, 1>(s, weights.sum_values::<S, 1>(s, column), column, rows.len(), out);
            column += S::LANES;
        }
    }
}

/// Writes the scores of all tiles, `[tile][R][PAGE]`.
#[inline(always)]
fn score_tiles<S: SimdFma, const R: usize>(
    s: S,
    q: [&[f32]; R],
    tiles: &[Tile],
    shape: &AttentionShape,
    scores: &mut [f32],
) {
    let tile_len = R * PAGE;
    if S::LANES == PAGE {
        // two tiles share every broadcast query
        for (pair, scores) in tiles.chunks(2).zip(scores.chunks_mut(2 * tile_len)) {
            if let [(keys, _), (more_keys, _)] = pair {
                let sums = dots::<S, R, 2>(s, q, [(keys, 0), (more_keys, 0)]);
                store_scores(s, sums, shape.scale, [0, tile_len], scores);
            } else {
                let sums = dots::<S, R, 1>(s, q, [(pair[0].0, 0)]);
                store_scores(s, sums, shape.scale, [0], scores);
            }
        }
    } else {
        for ((keys, _), scores) in tiles.iter().zip(scores.chunks_exact_mut(tile_len)) {
            let sums = dots::<S, R, 2>(s, q, [(keys, 0), (keys, S::LANES)]);
            store_scores(s, sums, shape.scale, [0, S::LANES], scores);
        }
    }
    if let Some(cap) = shape.softcap {
        for scores in scores.chunks_exact_mut(S::LANES) {
            s.store(SoftCap(cap).apply(s, s.load(scores)), scores);
        }
    }
}

/// Returns the dots of every query with V vectors of keys: each the lanes from its offset on of the rows of a tile.
#[inline(always)]
pub(super) fn dots<S: SimdFma, const R: usize, const V: usize>(
    s: S,
    mut q: [&[f32]; R],
    vectors: [(&[f32], usize); V],
) -> [[S::F32; V]; R] {
    let mut sums = [[s.splat(0.0); V]; R];
    let head_dim = q[0].len();
    for r in 0..R {
        q[r] = &q[r][..head_dim];
    }
    let mut keys: [&[[f32; PAGE]]; V] = [&[]; V];
    for i in 0..V {
        keys[i] = &vectors[i].0.as_chunks().0[..head_dim];
    }
    for d in 0..head_dim {
        let mut k = [s.splat(0.0); V];
        for i in 0..V {
            k[i] = s.load(&keys[i][d][vectors[i].1..]);
        }
        for r in 0..R {
            let q = s.splat(q[r][d]);
            for i in 0..V {
                sums[r][i] = s.mul_add(q, k[i], sums[r][i]);
            }
        }
    }
    sums
}

/// Writes `sum * scale`: vector i of row r goes to `r * PAGE + at[i]`.
#[inline(always)]
fn store_scores<S: SimdFma, const R: usize, const V: usize>(
    s: S,
    sums: [[S::F32; V]; R],
    scale: f32,
    at: [usize; V],
    scores: &mut [f32],
) {
    for r in 0..R {
        for i in 0..V {
            s.store(sums[r][i] * s.splat(scale), &mut scores[r * PAGE + at[i]..]);
        }
    }
}

const OFFSETS: [i32; PAGE] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Makes the scores of positions that a row does not see -infinity, whose weight is exactly zero.
#[inline(always)]
fn mask<S: SimdFma, const R: usize>(s: S, ranges: &Ranges<R>, base: usize, scores: &mut [f32]) {
    let (common, common_end) = ranges.common();
    for (tile, scores) in scores.chunks_exact_mut(R * PAGE).enumerate() {
        let base = base + tile * PAGE;
        if common <= base && base + PAGE <= common_end {
            continue;
        }
        for (i, scores) in scores.chunks_exact_mut(S::LANES).enumerate() {
            let (r, at) = (i * S::LANES / PAGE, i * S::LANES % PAGE);
            let positions = s.load_i32(&OFFSETS) + s.splat_i32((base + at) as i32);
            let is_before = s.gt_i32(s.splat_i32(ranges.first[r] as i32), positions);
            let is_seen = s.gt_i32(s.splat_i32(ranges.end[r] as i32), positions) & !is_before;
            s.store(s.select(is_seen, s.load(scores), s.splat(f32::NEG_INFINITY)), scores);
        }
    }
}

/// Replaces scores by `exp(s - max)` and returns every row's maximum and sum.
#[inline(always)]
fn softmax<S: SimdFma, const R: usize>(s: S, scores: &mut [f32]) -> ([f32; R], [f32; R]) {
    // a row has one vector of 16 lanes per tile, or two of 8
    let mut largest = [[s.splat(f32::NEG_INFINITY); 2]; R];
    for scores in scores.chunks_exact(R * PAGE) {
        for r in 0..R {
            for i in 0..PAGE / S::LANES {
                largest[r][i] = s.max(s.load(&scores[r * PAGE + i * S::LANES..]), largest[r][i]);
            }
        }
    }
    let mut max = [0.0; R];
    for r in 0..R {
        max[r] = largest_lane(s, &largest[r][..PAGE / S::LANES]);
    }
    let mut lane_sums = [[s.splat(0.0); 2]; R];
    for scores in scores.chunks_exact_mut(R * PAGE) {
        for r in 0..R {
            for i in 0..PAGE / S::LANES {
                let score = &mut scores[r * PAGE + i * S::LANES..];
                let p = lanes::exp_nonpositive(s, s.load(score) - s.splat(max[r]));
                s.store(p, score);
                lane_sums[r][i] = lane_sums[r][i] + p;
            }
        }
    }
    let mut sums = [0.0; R];
    for r in 0..R {
        let mut lanes = [0.0; PAGE];
        for i in 0..PAGE / S::LANES {
            s.store(lane_sums[r][i], &mut lanes[i * S::LANES..]);
        }
        sums[r] = tree(&mut lanes);
    }
    (max, sums)
}

/// Returns `max + ln(sum)` of every row.
#[inline(always)]
fn log_sum_exp<S: SimdFma, const R: usize>(s: S, max: [f32; R], sums: [f32; R]) -> [f32; MAX_ROWS] {
    let mut lanes = [1.0; PAGE];
    lanes[..R].copy_from_slice(&sums);
    let logs = lanes::log(s, s.load(&lanes));
    s.store(logs, &mut lanes);
    let mut lse = [0.0; MAX_ROWS];
    for r in 0..R {
        lse[r] = max[r] + lanes[r];
    }
    lse
}

/// Returns the largest lane of a row's vectors; none is NaN.
#[inline(always)]
fn largest_lane<S: SimdFma>(s: S, vectors: &[S::F32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; PAGE];
    for (vector, lanes) in vectors.iter().zip(lanes.chunks_exact_mut(S::LANES)) {
        s.store(*vector, lanes);
    }
    let mut width = PAGE / 2;
    while width > 0 {
        for lane in 0..width {
            // a branch here would be taken at random
            let (a, b) = (lanes[lane], lanes[lane + width]);
            lanes[lane] = if a > b { a } else { b };
        }
        width /= 2;
    }
    lanes[0]
}

/// What the values are weighted with.
struct Weights<'a, const R: usize> {
    ranges: Ranges<R>,
    /// Sum of every row's weights.
    sums: [f32; R],
    /// Position of the first tile.
    base: usize,
    /// `[tile][R][PAGE]`
    p: &'a [f32],
    tiles: &'a [Tile<'a>],
}

impl<const R: usize> Weights<'_, R> {
    /// Returns `sum over visible j of p[r][j] * v[j][d] / sums[r]` for V vectors of d from `column` on.
    #[inline(always)]
    fn sum_values<S: SimdFma, const V: usize>(&self, s: S, column: usize) -> [[S::F32; V]; R] {
        let mut totals = [[s.splat(0.0); V]; R];
        let (common, common_end) = self.ranges.common();
        for r in 0..R {
            let end = self.ranges.end[r].min(common);
            totals[r] = self.add_alone(s, totals[r], r, (self.ranges.first[r], end), column);
        }
        let mut position = common;
        while position < common_end {
            let tile = (position - self.base) / PAGE;
            let tile_end = common_end.min(self.base + (tile + 1) * PAGE);
            let p = &self.p[tile * R * PAGE..][..R * PAGE];
            let slots = (position % PAGE, tile_end - self.base - tile * PAGE);
            totals = add_values(s, totals, p, self.tiles[tile].1, slots, column);
            position = tile_end;
        }
        for r in 0..R {
            let first = self.ranges.first[r].max(common_end);
            totals[r] = self.add_alone(s, totals[r], r, (first, self.ranges.end[r]), column);
            for i in 0..V {
                totals[r][i] = totals[r][i] / s.splat(self.sums[r]);
            }
        }
        totals
    }

    /// Adds positions that not every row sees to row r.
    #[inline(always)]
    fn add_alone<S: SimdFma, const V: usize>(
        &self,
        s: S,
        mut totals: [S::F32; V],
        r: usize,
        (first, end): (usize, usize),
        column: usize,
    ) -> [S::F32; V] {
        for position in first..end {
            let (tile, slot) = ((position - self.base) / PAGE, position % PAGE);
            let p = s.splat(self.p[(tile * R + r) * PAGE + slot]);
            let values = self.tiles[tile].1;
            let row = &values[slot * (values.len() / PAGE) + column..][..V * S::LANES];
            for i in 0..V {
                totals[i] = s.mul_add(p, s.load(&row[i * S::LANES..]), totals[i]);
            }
        }
        totals
    }
}

/// Adds `p[r][j] * v[j]` for the slots `first .. end` of a tile to every row.
#[inline(always)]
fn add_values<S: SimdFma, const R: usize, const V: usize>(
    s: S,
    mut totals: [[S::F32; V]; R],
    p: &[f32],
    values: &[f32],
    (first, end): (usize, usize),
    column: usize,
) -> [[S::F32; V]; R] {
    let stride = values.len() / PAGE;
    let p = p.as_chunks::<PAGE>().0.first_chunk::<R>().expect("a tile has R rows");
    let mut slot = first;
    for row in values[first * stride..end * stride].chunks_exact(stride) {
        let row = &row[column..][..V * S::LANES];
        let mut v = [s.splat(0.0); V];
        for i in 0..V {
            v[i] = s.load(&row[i * S::LANES..]);
        }
        for r in 0..R {
            let p = s.splat(p[r][slot % PAGE]);
            for i in 0..V {
                totals[r][i] = s.mul_add(p, v[i], totals[r][i]);
            }
        }
        slot += 1;
    }
    totals
}

/// Writes V vectors of every row; lanes beyond head_dim are dropped.
#[inline(always)]
fn store_columns<S: SimdFma, const R: usize, const V: usize>(
    s: S,
    columns: [[S::F32; V]; R],
    column: usize,
    n_rows: usize,
    out: &mut [f32],
) {
    let head_dim = out.len() / n_rows;
    for r in 0..n_rows.min(R) {
        let row = &mut out[r * head_dim..(r + 1) * head_dim];
        for i in 0..V {
            let at = column + i * S::LANES;
            if at + S::LANES <= head_dim {
                s.store(columns[r][i], &mut row[at..]);
            } else if at < head_dim {
                let mut lanes = [0.0; PAGE];
                s.store(columns[r][i], &mut lanes);
                row[at..].copy_from_slice(&lanes[..head_dim - at]);
            }
        }
    }
}
