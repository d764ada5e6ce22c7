//! Probabilities and gradients of scores of a block of rows and a block of keys.

#![allow(clippy::needless_range_loop, reason = "iterator adaptors would leave the instruction set")]

use crate::kernel::attention::AttentionShape;
use crate::kernel::attention::block::dots;
use crate::kernel::kv_cache::PAGE;
use crate::kernel::math::lanes;
use crate::kernel::simd::SimdFma;

/// Rows of a block.
pub const BLOCK_ROWS: usize = 64;
/// Positions of a block of keys: whole pages.
pub const BLOCK_KEYS: usize = 64;

/// Rows of a block and what is known of each; queries and gradients are `[n_rows][width]`.
pub struct Rows<'a> {
    pub n_rows: usize,
    pub width: usize,
    pub q: &'a [f32],
    pub dout: &'a [f32],
    pub lse: &'a [f32],
    pub delta: &'a [f32],
    /// The first position that each row sees, and the one behind the last.
    pub seen: &'a [(usize, usize)],
}

/// Tiles of keys and values, `[page][head_dim][PAGE]` each, of at most [`BLOCK_KEYS`] positions from `first` on.
pub struct Tiles<'a> {
    pub first: usize,
    pub keys: &'a [f32],
    pub values: &'a [f32],
}

/// Where results go, `[n_rows][BLOCK_KEYS]`; those of pages that a row sees nothing of stay as they were.
pub struct Scores<'a> {
    pub p: &'a mut [f32],
    pub ds: &'a mut [f32],
}

/// Computes p and ds. What stands at positions that a row does not see is of no use.
#[inline(always)]
pub fn score<S: SimdFma>(s: S, shape: &AttentionShape, rows: &Rows, tiles: &Tiles, scores: &mut Scores) {
    let mut first = 0;
    while first < rows.n_rows {
        if S::LANES == PAGE {
            score_rows::<S, 8>(s, shape, rows, first, tiles, scores);
            first += 8;
        } else {
            score_rows::<S, 4>(s, shape, rows, first, tiles, scores);
            first += 4;
        }
    }
}

/// Rows `first .. first + R`; where they are fewer, the last one is repeated.
#[inline(always)]
fn score_rows<S: SimdFma, const R: usize>(
    s: S,
    shape: &AttentionShape,
    rows: &Rows,
    first: usize,
    tiles: &Tiles,
    scores: &mut Scores,
) {
    let last = rows.n_rows - 1;
    let (mut q, mut dout): ([&[f32]; R], [&[f32]; R]) = ([&[]; R], [&[]; R]);
    for r in 0..R {
        let at = (first + r).min(last) * rows.width;
        q[r] = &rows.q[at..at + shape.head_dim];
        dout[r] = &rows.dout[at..at + shape.head_dim];
    }
    // rows ascend in position, so these see the first and the last key of all
    let (from, to) = (rows.seen[first].0, rows.seen[(first + R - 1).min(last)].1);
    let tile_len = shape.head_dim * PAGE;
    let n_pages = tiles.keys.len() / tile_len;
    let page = n_pages.min(from.saturating_sub(tiles.first) / PAGE);
    let end_page = n_pages.min(to.saturating_sub(tiles.first).div_ceil(PAGE));
    let at = first * BLOCK_KEYS;
    multiply::<S, R>(s, q, tiles.keys, page..end_page, &mut scores.p[at..]);
    multiply::<S, R>(s, dout, tiles.values, page..end_page, &mut scores.ds[at..]);
    for row in first..rows.n_rows.min(first + R) {
        let columns = row * BLOCK_KEYS + page * PAGE..row * BLOCK_KEYS + end_page.max(page) * PAGE;
        let (p, ds) = (&mut scores.p[columns.clone()], &mut scores.ds[columns]);
        let (lse, delta) = (s.splat(rows.lse[row]), s.splat(rows.delta[row]));
        match shape.softcap {
            None => probabilities::<S>(s, shape.scale, lse, delta, p, ds),
            Some(cap) => capped_probabilities::<S>(s, (shape.scale, cap), lse, delta, p, ds),
        }
    }
}

/// Writes the dots of R rows with the keys of some pages, `[R][BLOCK_KEYS]`.
#[inline(always)]
fn multiply<S: SimdFma, const R: usize>(
    s: S,
    rows: [&[f32]; R],
    tiles: &[f32],
    pages: std::ops::Range<usize>,
    out: &mut [f32],
) {
    let tile_len = rows[0].len() * PAGE;
    let mut page = pages.start;
    while page < pages.end {
        let tile = &tiles[page * tile_len..][..tile_len];
        if S::LANES < PAGE {
            let sums = dots::<S, R, 2>(s, rows, [(tile, 0), (tile, S::LANES)]);
            store(s, sums, page * PAGE, out);
            page += 1;
        } else if page + 1 < pages.end {
            // two tiles share every broadcast value
            let next = &tiles[(page + 1) * tile_len..][..tile_len];
            store(s, dots::<S, R, 2>(s, rows, [(tile, 0), (next, 0)]), page * PAGE, out);
            page += 2;
        } else {
            store(s, dots::<S, R, 1>(s, rows, [(tile, 0)]), page * PAGE, out);
            page += 1;
        }
    }
}

#[inline(always)]
fn store<S: SimdFma, const R: usize, const V: usize>(
    s: S,
    sums: [[S::F32; V]; R],
    column: usize,
    out: &mut [f32],
) {
    for r in 0..R {
        let row = &mut out[r * BLOCK_KEYS + column..][..V * S::LANES];
        for i in 0..V {
            s.store(sums[r][i], &mut row[i * S::LANES..]);
        }
    }
}

/// Replaces the dots with keys by p, and those with values by ds.
#[inline(always)]
fn probabilities<S: SimdFma>(s: S, scale: f32, lse: S::F32, delta: S::F32, p: &mut [f32], ds: &mut [f32]) {
    for at in (0..p.len()).step_by(S::LANES) {
        let x = s.load(&p[at..]) * s.splat(scale);
        let weight = lanes::exp_nonpositive(s, x - lse);
        let slope = weight * (s.load(&ds[at..]) - delta);
        s.store(weight, &mut p[at..]);
        s.store(slope, &mut ds[at..]);
    }
}

/// [`probabilities`] of capped scores.
#[inline(always)]
fn capped_probabilities<S: SimdFma>(
    s: S,
    (scale, cap): (f32, f32),
    lse: S::F32,
    delta: S::F32,
    p: &mut [f32],
    ds: &mut [f32],
) {
    for at in (0..p.len()).step_by(S::LANES) {
        let x = s.load(&p[at..]) * s.splat(scale);
        let t = lanes::tanh(s, x / s.splat(cap));
        let weight = lanes::exp_nonpositive(s, s.splat(cap) * t - lse);
        let slope = weight * (s.load(&ds[at..]) - delta) * s.mul_add(-t, t, s.splat(1.0));
        s.store(weight, &mut p[at..]);
        s.store(slope, &mut ds[at..]);
    }
}
