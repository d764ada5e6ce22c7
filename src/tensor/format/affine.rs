//! Scale and offset searches for formats whose sub-blocks are `scale * level - min`, one sub-block per SIMD lane.
//!
//! Vectors hold one element of every sub-block, so each lane sums its own sub-block in order and no bit
//! depends on the width. [`super::oracle_affine`] has the same searches one sub-block at a time.

use crate::kernel::simd::Simd;

/// Inverse scales to try: `(start + step * k + nmax) / range` for k in 0..=last.
#[derive(Clone, Copy)]
pub(super) struct Scan {
    pub start: f32,
    pub step: f32,
    pub last: i32,
}

/// What distinguishes the searches of the formats.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// Levels run from 0 to nmax.
    pub nmax: i32,
    pub scan: Scan,
    /// Clamp before rounding, as every search with importance does; else after, so that
    /// values far out of range wrap.
    pub saturates: bool,
    /// Absolute errors instead of squares.
    pub absolute: bool,
}

/// Most values a sub-block has.
pub(super) const MAX_SUB_LEN: usize = 32;

/// A fit in every lane: x ~ scale * level - min.
#[derive(Clone, Copy)]
pub(super) struct Fit<S: Simd> {
    pub scale: S::F32,
    /// Not below 0 (but -0.0 occurs).
    pub min: S::F32,
    pub rule: LevelRule<S::F32>,
}

/// How the levels of a fit came to be, for sub-blocks whose stored scale is 0: they keep the search's levels.
#[derive(Clone, Copy)]
pub(super) struct LevelRule<T> {
    /// The level is round(inverse * (x - offset)), clamped to 0..=nmax; NaN means that all are 0.
    pub inverse: T,
    pub offset: T,
    /// Not 0 if the value is clamped before it is rounded: what lies out of range then
    /// saturates, where otherwise the rounding wraps.
    pub saturates: T,
}

impl<S: Simd> Fit<S> {
    /// Returns the fit with the lanes of `other` where `mask` says so.
    #[inline(always)]
    fn replaced(self, s: S, mask: S::Mask, other: Fit<S>) -> Fit<S> {
        let pick = |new, old| s.select(mask, new, old);
        Fit {
            scale: pick(other.scale, self.scale),
            min: pick(other.min, self.min),
            rule: LevelRule {
                inverse: pick(other.rule.inverse, self.rule.inverse),
                offset: pick(other.rule.offset, self.rule.offset),
                saturates: pick(other.rule.saturates, self.rule.saturates),
            },
        }
    }
}

/// Returns v clamped to 0..=nmax, then rounded; NaN gives 0.
#[inline(always)]
fn saturated<S: Simd>(s: S, v: S::F32, nmax: i32) -> S::F32 {
    s.round_small(s.min(s.max(v, s.splat(0.0)), s.splat(nmax as f32)))
}

/// Returns v rounded as [`Simd::nearest_int`] does, then clamped to 0..=nmax: [`saturated`] if |v| <= 4194303.
#[inline(always)]
fn wrapped<S: Simd>(s: S, v: S::F32, nmax: i32) -> S::F32 {
    s.to_f32(s.max_i32(s.min_i32(s.nearest_int(v), s.splat_i32(nmax)), s.splat_i32(0)))
}

/// Returns the levels of `x` by `rule`, as integers.
#[inline(always)]
pub(super) fn levels_by_rule<S: Simd>(s: S, x: S::F32, rule: LevelRule<f32>, nmax: i32) -> S::I32 {
    let v = s.splat(rule.inverse) * (x - s.splat(rule.offset));
    let level = if rule.saturates != 0.0 { saturated(s, v, nmax) } else { wrapped(s, v, nmax) };
    s.trunc_i32(level)
}

/// Returns the levels of `x`, each lane's by its own rule, as integers.
#[inline(always)]
pub(super) fn levels_by_lane<S: Simd>(s: S, x: S::F32, rule: LevelRule<S::F32>, nmax: i32) -> S::I32 {
    let v = rule.inverse * (x - rule.offset);
    let wraps = s.eq(rule.saturates, s.splat(0.0));
    s.trunc_i32(s.select(wraps, wrapped(s, v, nmax), saturated(s, v, nmax)))
}

/// The inputs of a search, one sub-block per lane.
struct Problem<'a, S: Simd> {
    x: &'a [S::F32],
    w: &'a [S::F32],
    nmax: i32,
    absolute: bool,
}

/// Weighted sums over the levels: w l, w l l, w l x.
struct Moments<S: Simd> {
    l: S::F32,
    ll: S::F32,
    lx: S::F32,
}

impl<S: Simd> Problem<'_, S> {
    /// Writes the levels for `inverse` and `offset` and returns their sums.
    #[inline(always)]
    fn moments(
        &self,
        s: S,
        saturate: bool,
        (inverse, offset): (S::F32, S::F32),
        levels: &mut [S::F32],
    ) -> Moments<S> {
        let zero = s.splat(0.0);
        let mut sums = Moments { l: zero, ll: zero, lx: zero };
        for ((x, w), level) in self.x.iter().zip(self.w).zip(levels) {
            let v = inverse * (*x - offset);
            let l = if saturate { saturated(s, v, self.nmax) } else { wrapped(s, v, self.nmax) };
            *level = l;
            let wl = *w * l;
            sums.l = sums.l + wl;
            sums.ll = sums.ll + wl * l;
            sums.lx = sums.lx + wl * *x;
        }
        sums
    }

    /// Returns the weighted sum of errors of `scale * level + offset`: squared, or absolute.
    #[inline(always)]
    fn error(&self, s: S, scale: S::F32, offset: S::F32, levels: &[S::F32]) -> S::F32 {
        let mut sum = s.splat(0.0);
        for ((x, w), l) in self.x.iter().zip(self.w).zip(levels) {
            let difference = scale * *l + offset - *x;
            let error = if self.absolute { s.abs(difference) } else { difference * difference };
            sum = sum + *w * error;
        }
        sum
    }
}

/// Returns true where |v| <= 4194303, so that rounding does not wrap; false for NaN.
#[inline(always)]
fn in_range<S: Simd>(s: S, v: S::F32) -> S::Mask {
    s.le(s.abs(v), s.splat(4_194_303.0))
}

/// Returns the best fit of every lane to `x` under weights `w`; `x.len() <= MAX_SUB_LEN`.
///
/// For each inverse scale of the scan: levels, a two-variable weighted least squares for them, and the error
/// of that. The offset of the best fit so far is the offset of the next levels.
#[inline(always)]
pub(super) fn search<S: Simd>(s: S, x: &[S::F32], w: &[S::F32], search: Search) -> Fit<S> {
    let Search { nmax, scan, saturates, absolute } = search;
    let problem = Problem::<S> { x, w, nmax, absolute };
    let zero = s.splat(0.0);
    let (mut low, mut high, mut sum_w, mut sum_x) = (x[0], x[0], w[0], w[0] * x[0]);
    for (x, w) in x.iter().zip(w).skip(1) {
        low = s.min(*x, low);
        high = s.max(*x, high);
        sum_w = sum_w + *w;
        sum_x = sum_x + *w * *x;
    }
    let mut offset = s.select(s.gt(low, zero), zero, low);
    let flat = s.le(high, offset);
    // a flat lane's result is fixed: this range only keeps the lane from looking out of range
    high = s.select(flat, offset + s.splat(1.0), high);

    let mut levels = [zero; MAX_SUB_LEN];
    let levels = &mut levels[..x.len()];
    let inverse = s.splat(nmax as f32) / (high - offset);
    let scale = s.splat(1.0) / inverse;
    problem.moments(s, false, (inverse, offset), levels);
    let mut best = problem.error(s, scale, offset, levels);
    let mut fit = Fit { scale, min: -offset, rule: LevelRule { inverse, offset, saturates: zero } };

    for k in 0..=scan.last {
        let inverse = s.splat(scan.start + scan.step * k as f32 + nmax as f32) / (high - offset);
        let fast = saturates
            || s.all(in_range(s, inverse * (low - offset)) & in_range(s, inverse * (high - offset)));
        let sums = if fast {
            problem.moments(s, true, (inverse, offset), levels)
        } else {
            problem.moments(s, false, (inverse, offset), levels)
        };
        let determinant = sum_w * sums.ll - sums.l * sums.l;
        let mut scale = (sum_w * sums.lx - sum_x * sums.l) / determinant;
        let mut new_offset = (sums.ll * sum_x - sums.l * sums.lx) / determinant;
        let positive = s.gt(new_offset, zero);
        if s.any(positive) {
            new_offset = s.select(positive, zero, new_offset);
            scale = s.select(positive, sums.lx / sums.ll, scale);
        }
        let error = problem.error(s, scale, new_offset, levels);
        let better = s.gt(determinant, zero) & s.lt(error, best);
        best = s.select(better, error, best);
        let rule = LevelRule { inverse, offset, saturates: s.splat(if saturates { 1.0 } else { 0.0 }) };
        fit = fit.replaced(s, better, Fit { scale, min: -new_offset, rule });
        offset = s.select(better, new_offset, offset);
    }
    let nan = s.splat(f32::NAN);
    let fixed = Fit { scale: zero, rule: LevelRule { inverse: nan, ..fit.rule }, ..fit };
    fit.replaced(s, flat, fixed)
}

/// Values that all lie below this are stored as zeros.
const EPS: f32 = 1e-15;

/// Returns the scale for which `scale * code` fits the non-negative `x` best under weights `w`, one fit per lane, and
/// writes the codes: 0..=nmax, or from 128 up where x is negative (a byte that wrapped).
#[inline(always)]
pub(super) fn search_positive<S: Simd>(
    s: S,
    x: &[S::F32],
    w: &[S::F32],
    nmax: i32,
    codes: &mut [S::I32],
) -> S::F32 {
    let mut max = s.splat(0.0);
    for x in x {
        max = s.max(max, *x);
    }
    let empty = s.lt(max, s.splat(EPS));
    let max = s.select(empty, s.splat(1.0), max);
    let inverse = best_inverse(s, x, w, nmax, max);

    let (limit, byte) = (s.splat_i32(nmax), s.splat_i32(255));
    let (mut lx, mut ll) = (s.splat(0.0), s.splat(0.0));
    for ((x, w), code) in x.iter().zip(w).zip(codes.iter_mut()) {
        let integer = s.min_i32(limit, s.nearest_int(inverse * *x));
        *code = integer & byte;
        let l = s.to_f32(integer);
        lx = lx + *w * *x * l;
        ll = ll + *w * l * l;
    }
    for _pass in 0..5 {
        let mut changed = false;
        for ((x, w), code) in x.iter().zip(w).zip(codes.iter_mut()) {
            let l = s.to_f32(*code);
            let (lx_rest, ll_rest) = (lx - *w * *x * l, ll - *w * l * l);
            let proposal = s.min_i32(limit, s.nearest_int(*x * ll_rest / lx_rest));
            let l = s.to_f32(proposal);
            let (lx_new, ll_new) = (lx_rest + *w * *x * l, ll_rest + *w * l * l);
            let possible = s.gt(lx_rest, s.splat(0.0)) & s.gt(ll_rest, s.splat(0.0));
            let better = possible & !s.eq_i32(proposal, *code) & s.gt(lx_new * lx_new * ll, lx * lx * ll_new);
            lx = s.select(better, lx_new, lx);
            ll = s.select(better, ll_new, ll);
            *code = s.select_i32(better, proposal & byte, *code);
            changed |= s.any(better);
        }
        // a lane in which nothing changed would change nothing in another pass either
        if !changed {
            break;
        }
    }
    for code in codes.iter_mut() {
        *code = s.select_i32(empty, s.splat_i32(0), *code);
    }
    s.select(!empty & s.gt(ll, s.splat(0.0)), lx / ll, s.splat(0.0))
}

/// Returns, of nine inverse scales around nmax / max, the one with the least weighted squared error.
#[inline(always)]
fn best_inverse<S: Simd>(s: S, x: &[S::F32], w: &[S::F32], nmax: i32, max: S::F32) -> S::F32 {
    let mut best_inverse = s.splat(nmax as f32) / max;
    let mut best = s.splat(0.0);
    let scale = s.splat(1.0) / best_inverse;
    for (x, w) in x.iter().zip(w) {
        let code = s.nearest_int(best_inverse * *x) & s.splat_i32(255);
        let difference = *x - scale * s.to_f32(code);
        best = best + *w * difference * difference;
    }
    for k in (-4..=4).filter(|k| *k != 0) {
        let inverse = s.splat(0.1 * k as f32 + nmax as f32) / max;
        let scale = s.splat(1.0) / inverse;
        let mut error = s.splat(0.0);
        for (x, w) in x.iter().zip(w) {
            let code = s.min_i32(s.splat_i32(nmax), s.nearest_int(inverse * *x));
            let difference = *x - scale * s.to_f32(code);
            error = error + *w * difference * difference;
        }
        let better = s.lt(error, best);
        best = s.select(better, error, best);
        best_inverse = s.select(better, inverse, best_inverse);
    }
    best_inverse
}
