//! Q4_1 and Q5_1: x = d * q + m. Block: d, m (f16), fifth bits (Q5_1), 16 bytes of nibbles.

use super::{Block32, LEN, half_at, inverse, put_fifth_bits, put_halves, put_nibbles, quants, word_at};
use crate::kernel::simd::Simd;

pub struct Affine<const BITS: u32>;

/// The candidate inverse scales of the weighted search: (FIRST + STEP * k + nmax) / (max - min), k <= STEPS.
const FIRST: f32 = -0.9;
const STEP: f32 = 0.05;
const STEPS: u8 = 36;

/// Weighted sums over a block that no candidate changes.
struct Totals<F> {
    w: F,
    wx: F,
}

/// A candidate's levels are min(max(iscale * (x - min), 0), nmax), rounded.
#[derive(Clone, Copy)]
struct Candidate<F> {
    iscale: F,
    min: F,
}

/// The best scale and minimum so far, with the candidate that gave their levels.
struct Best<F, M> {
    scale: F,
    min: F,
    error: F,
    from: Candidate<F>,
    /// Lanes whose levels are still those of the plain fit.
    initial: M,
}

impl<const BITS: u32> Affine<BITS> {
    /// Where nibbles begin.
    const NIBBLES: usize = if BITS == 5 { 8 } else { 4 };
    const TOP: i32 = (1 << BITS) - 1;

    #[inline(always)]
    fn put<S: Simd>(s: S, d: S::F32, min: S::F32, q: &[S::I32; LEN], out: &mut [u8]) {
        put_halves(s, d, out, Self::BYTES);
        put_halves(s, min, &mut out[2..], Self::BYTES);
        if BITS == 5 {
            put_fifth_bits(s, q, &mut out[4..], Self::BYTES);
        }
        put_nibbles(s, q, &mut out[Self::NIBBLES..], Self::BYTES);
    }

    /// Returns the candidate's level as a float. `min` is the best fit so far and may lie at max, so the
    /// scaled value can be anything, NaN included: that and negative values give 0.
    #[inline(always)]
    fn level<S: Simd>(s: S, candidate: Candidate<S::F32>, x: S::F32) -> S::F32 {
        let scaled = s.max(candidate.iscale * (x - candidate.min), s.splat(0.0));
        s.round_small(s.min(scaled, s.splat(Self::TOP as f32)))
    }

    /// Returns the level of the plain fit, where the reference rounds first and clamps then: an infinite
    /// product (max - min below 2^-123) gives 0, not the top.
    #[inline(always)]
    fn initial_level<S: Simd>(s: S, candidate: Candidate<S::F32>, x: S::F32) -> S::I32 {
        let rounded = s.nearest_int(candidate.iscale * (x - candidate.min));
        s.max_i32(s.min_i32(rounded, s.splat_i32(Self::TOP)), s.splat_i32(0))
    }

    #[inline(always)]
    fn initial_fit<S: Simd>(
        s: S,
        x: &[S::F32; LEN],
        weights: &[S::F32; LEN],
        from: Candidate<S::F32>,
    ) -> Best<S::F32, S::Mask> {
        let scale = s.splat(1.0) / from.iscale;
        let mut error = s.splat(0.0);
        for i in 0..LEN {
            let level = s.to_f32(Self::initial_level(s, from, x[i]));
            let diff = scale * level + from.min - x[i];
            error = error + weights[i] * (diff * diff);
        }
        let all = s.eq(s.splat(0.0), s.splat(0.0));
        Best { scale, min: from.min, error, from, initial: all }
    }

    /// Gives the candidate's levels their least-squares scale and minimum (<= 0), and keeps them where better.
    #[inline(always)]
    fn try_candidate<S: Simd>(
        s: S,
        x: &[S::F32; LEN],
        weights: &[S::F32; LEN],
        totals: &Totals<S::F32>,
        from: Candidate<S::F32>,
        best: &mut Best<S::F32, S::Mask>,
    ) {
        let zero = s.splat(0.0);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        let mut levels = [zero; LEN];
        for i in 0..LEN {
            levels[i] = Self::level(s, from, x[i]);
            let wl = weights[i] * levels[i];
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * levels[i];
            sum_xl = sum_xl + wl * x[i];
        }
        let determinant = totals.w * sum_l2 - sum_l * sum_l;
        let scale = (totals.w * sum_xl - totals.wx * sum_l) / determinant;
        let min = (sum_l2 * totals.wx - sum_l * sum_xl) / determinant;
        let positive = s.gt(min, zero);
        let scale = s.select(positive, sum_xl / sum_l2, scale);
        let min = s.select(positive, zero, min);
        let mut error = zero;
        for i in 0..LEN {
            let diff = scale * levels[i] + min - x[i];
            error = error + weights[i] * (diff * diff);
        }
        let better = s.gt(determinant, zero) & s.lt(error, best.error);
        best.error = s.select(better, error, best.error);
        best.scale = s.select(better, scale, best.scale);
        best.min = s.select(better, min, best.min);
        best.from.iscale = s.select(better, from.iscale, best.from.iscale);
        best.from.min = s.select(better, from.min, best.from.min);
        best.initial = best.initial & !better;
    }
}

impl<const BITS: u32> Block32 for Affine<BITS> {
    const NAME: &'static str = if BITS == 5 { "Q5_1" } else { "Q4_1" };
    const GGML_ID: u32 = if BITS == 5 { 7 } else { 3 };
    const BYTES: usize = Self::NIBBLES + LEN / 2;
    const WEIGHTED: bool = true;

    #[inline(always)]
    fn encode<S: Simd>(s: S, x: &[S::F32; LEN], out: &mut [u8]) {
        let mut min = s.splat(f32::MAX);
        let mut max = s.splat(-f32::MAX);
        for x in x {
            min = s.min(*x, min);
            max = s.max(*x, max);
        }
        let d = (max - min) / s.splat(Self::TOP as f32);
        let id = inverse(s, d);
        let (byte, top) = (s.splat_i32(255), s.splat_i32(Self::TOP));
        // what is no number (max - min overflows, or d lies below 2^-128) truncates to i32::MIN: low byte 0
        let mut q = [byte; LEN];
        for i in 0..LEN {
            q[i] = s.min_i32(s.trunc_i32((x[i] - min) * id + s.splat(0.5)) & byte, top);
        }
        Self::put(s, d, min, &q, out);
    }

    #[inline(always)]
    fn encode_weighted<S: Simd>(s: S, x: &[S::F32; LEN], weights: &[S::F32; LEN], out: &mut [u8]) {
        let zero = s.splat(0.0);
        let (mut min, mut max) = (x[0], x[0]);
        let mut totals = Totals { w: weights[0], wx: weights[0] * x[0] };
        for i in 1..LEN {
            min = s.min(x[i], min);
            max = s.max(x[i], max);
            totals.w = totals.w + weights[i];
            totals.wx = totals.wx + weights[i] * x[i];
        }
        let min = s.select(s.gt(min, zero), zero, min);
        let top = s.splat(Self::TOP as f32);
        let mut best = Self::initial_fit(s, x, weights, Candidate { iscale: top / (max - min), min });
        for step in 0..=STEPS {
            let range = s.splat(FIRST + STEP * f32::from(step) + Self::TOP as f32);
            let from = Candidate { iscale: range / (max - best.min), min: best.min };
            Self::try_candidate(s, x, weights, &totals, from, &mut best);
        }
        let flat = s.le(max, min);
        let mut q = [s.splat_i32(0); LEN];
        for i in 0..LEN {
            let level = s.trunc_i32(Self::level(s, best.from, x[i]));
            let level = s.select_i32(best.initial, Self::initial_level(s, best.from, x[i]), level);
            q[i] = s.select_i32(flat, s.splat_i32(0), level);
        }
        let d = s.select(flat, zero, best.scale);
        Self::put(s, d, s.select(flat, min, best.min), &q, out);
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8], out: &mut [f32]) {
        let (d, min) = (s.splat(half_at(block)), s.splat(half_at(&block[2..])));
        let fifth_bits = (BITS == 5).then(|| word_at(&block[4..]));
        for i in (0..LEN).step_by(S::LANES) {
            let q = quants(s, &block[Self::NIBBLES..], fifth_bits, i);
            s.store(s.to_f32(q) * d + min, &mut out[i..]);
        }
    }
}
