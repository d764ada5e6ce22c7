//! Scale searches for formats without an offset, one sub-block per SIMD lane.
//!
//! Vectors hold one element of every sub-block, so each lane sums its own sub-block in order and no bit
//! depends on the width. `oracle_symmetric.rs` has the same searches one sub-block at a time.

use crate::kernel::simd::{ROUND_MAGIC, Simd};

/// Weights per sub-block of Q3_K and Q6_K.
pub(super) const SUB_LEN: usize = 16;
/// Sub-blocks below this magnitude are stored as zeros.
pub(super) const EPS: f32 = 1e-15;

/// A fit in every lane: x ~ scale * level with level = round(inverse * x), clamped.
#[derive(Clone, Copy)]
pub(super) struct Fit<S: Simd> {
    pub scale: S::F32,
    /// NaN marks a sub-block that does not reach [`EPS`]: its stored levels are 0, not `nmax`.
    pub inverse: S::F32,
}

/// Returns each lane's value of largest magnitude, the first of them on ties; NaN never counts.
#[inline(always)]
pub(super) fn signed_max<S: Simd>(s: S, x: &[S::F32]) -> S::F32 {
    let (mut max, mut magnitude) = (s.splat(0.0), s.splat(0.0));
    for &v in x {
        let a = s.abs(v);
        max = s.select(s.gt(a, magnitude), v, max);
        magnitude = s.max(a, magnitude);
    }
    max
}

/// Returns the value of largest magnitude, the first of them on ties; NaN never counts.
#[inline(always)]
pub(super) fn signed_max_of(x: &[f32]) -> f32 {
    let mut max = 0.0f32;
    for &v in x {
        max = if v.abs() > max.abs() { v } else { max };
    }
    max
}

/// Returns [`Simd::nearest_int`] clamped to -nmax ..= nmax - 1, as f32.
#[inline(always)]
pub(super) fn level<S: Simd>(s: S, v: S::F32, nmax: i32) -> S::F32 {
    const MANTISSA: i32 = 0x007f_ffff;
    const ZERO: i32 = 0x0040_0000;
    const TWO_POW_23: i32 = 0x4b00_0000;
    let biased = s.to_bits(v + s.splat(ROUND_MAGIC)) & s.splat_i32(MANTISSA);
    let high = s.min_i32(biased, s.splat_i32(ZERO + nmax - 1));
    let clamped = s.max_i32(high, s.splat_i32(ZERO - nmax));
    s.from_bits(clamped | s.splat_i32(TWO_POW_23)) - s.splat(ROUND_MAGIC)
}

/// Returns [`level`] for |v| <= 4194303, faster.
#[inline(always)]
pub(super) fn level_of_small<S: Simd>(s: S, v: S::F32, nmax: i32) -> S::F32 {
    let rounded = s.round_small(v);
    s.max(s.min(rounded, s.splat((nmax - 1) as f32)), s.splat(-nmax as f32))
}

/// The inputs of a scale search.
struct Problem<'a, S: Simd, const N: usize> {
    x: &'a [S::F32; N],
    w: &'a [S::F32; N],
    /// w * x
    wx: [S::F32; N],
    nmax: i32,
}

impl<S: Simd, const N: usize> Problem<'_, S, N> {
    /// Returns the sums of w x l and of w l l, for the levels l that `inverse` gives.
    #[inline(always)]
    fn sums<const FINITE: bool>(&self, s: S, inverse: S::F32) -> (S::F32, S::F32) {
        let (mut xl, mut ll) = (s.splat(0.0), s.splat(0.0));
        for i in 0..N {
            let v = inverse * self.x[i];
            let l = if FINITE { level_of_small(s, v, self.nmax) } else { level(s, v, self.nmax) };
            xl = xl + self.wx[i] * l;
            ll = ll + self.w[i] * l * l;
        }
        (xl, ll)
    }
}

/// Returns a * b, element by element.
#[inline(always)]
pub(super) fn products<S: Simd, const N: usize>(s: S, a: &[S::F32; N], b: &[S::F32; N]) -> [S::F32; N] {
    let mut out = [s.splat(0.0); N];
    for i in 0..N {
        out[i] = a[i] * b[i];
    }
    out
}

/// Fits every lane under weights `w` by trying 19 scales around -nmax / max.
///
/// `FINITE` says that all of `x` is finite, which saves some work.
#[inline(always)]
pub(super) fn search_scale<S: Simd, const FINITE: bool, const N: usize>(
    s: S,
    x: &[S::F32; N],
    w: &[S::F32; N],
    nmax: i32,
) -> Fit<S> {
    let max = signed_max(s, x);
    let negligible = s.lt(s.abs(max), s.splat(EPS));
    let max = s.select(negligible, s.splat(1.0), max); // every level becomes 0
    let problem = Problem { x, w, wx: products(s, w, x), nmax };
    let mut inverse = s.splat(-nmax as f32) / max;
    let (xl, ll) = problem.sums::<FINITE>(s, inverse);
    let mut scale = s.select(s.eq(ll, s.splat(0.0)), s.splat(0.0), xl / ll);
    let mut best = scale * xl;
    for step in -9..=9i32 {
        if step == 0 {
            continue;
        }
        let tried = s.splat(-(nmax as f32 + 0.1 * step as f32)) / max;
        let (xl, ll) = problem.sums::<FINITE>(s, tried);
        let better = s.gt(ll, s.splat(0.0)) & s.gt(xl * xl, best * ll);
        scale = s.select(better, xl / ll, scale);
        best = s.select(better, scale * xl, best);
        inverse = s.select(better, tried, inverse);
    }
    Fit {
        scale: s.select(negligible, s.splat(0.0), scale), // not what overflowing weights make of it
        inverse: s.select(negligible, s.splat(f32::NAN), inverse),
    }
}

/// Writes the stored levels (level + nmax) of one sub-block, whose values lie in a row, for its final scale `d`.
#[inline(always)]
pub(super) fn store_levels<S: Simd>(s: S, x: &[f32], d: f32, nmax: i32, out: &mut [u8]) {
    let d = s.splat(d);
    for (x, out) in x.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
        s.store_u8(stored(s, s.load(x) / d, nmax), out);
    }
}

/// Writes the levels that a search found, for a sub-block whose final scale is 0.
#[inline(always)]
pub(super) fn store_search_levels<S: Simd>(s: S, x: &[f32], inverse: f32, nmax: i32, out: &mut [u8]) {
    if inverse.is_nan() {
        out.fill(0);
        return;
    }
    for (x, out) in x.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
        s.store_u8(stored(s, s.splat(inverse) * s.load(x), nmax), out);
    }
}

#[inline(always)]
fn stored<S: Simd>(s: S, v: S::F32, nmax: i32) -> S::I32 {
    let high = s.min_i32(s.nearest_int(v), s.splat_i32(nmax - 1));
    s.max_i32(high, s.splat_i32(-nmax)) + s.splat_i32(nmax)
}

/// Reads `LANES` sub-blocks that lie one after the other: lane j of vector i is element i of sub-block j.
#[inline(always)]
pub(super) fn sub_block_weights<S: Simd>(s: S, x: &[f32]) -> [S::F32; SUB_LEN] {
    let mut out = [s.splat(0.0); SUB_LEN];
    s.transpose(x, SUB_LEN, &mut out);
    out
}
