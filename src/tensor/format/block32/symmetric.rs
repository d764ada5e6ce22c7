//! Q4_0 and Q5_0: x = d * (q - 2^(BITS-1)). Block: d (f16), fifth bits (Q5_0), 16 bytes of nibbles.

use super::{
    Block32, LEN, half_at, inverse, largest, put_fifth_bits, put_halves, put_nibbles, quants, word_at,
};
use crate::kernel::simd::Simd;

pub struct Symmetric<const BITS: u32>;

/// Blocks whose magnitudes all lie below this are all zero for the weighted search.
const ZERO_BLOCK: f32 = 1e-15;

impl<const BITS: u32> Symmetric<BITS> {
    /// Where nibbles begin.
    const NIBBLES: usize = if BITS == 5 { 6 } else { 2 };
    const HALF_RANGE: f32 = (1 << (BITS - 1)) as f32;

    #[inline(always)]
    fn put<S: Simd>(s: S, d: S::F32, q: &[S::I32; LEN], out: &mut [u8]) {
        put_halves(s, d, out, Self::BYTES);
        if BITS == 5 {
            put_fifth_bits(s, q, &mut out[2..], Self::BYTES);
        }
        put_nibbles(s, q, &mut out[Self::NIBBLES..], Self::BYTES);
    }

    /// Returns the signed level of `x`, as a float: iscale * x rounded, within -HALF_RANGE..HALF_RANGE.
    /// |iscale * x| is at most HALF_RANGE + 1.
    #[inline(always)]
    fn level<S: Simd>(s: S, iscale: S::F32, x: S::F32) -> S::F32 {
        let rounded = s.round_small(iscale * x);
        s.max(s.min(rounded, s.splat(Self::HALF_RANGE - 1.0)), s.splat(-Self::HALF_RANGE))
    }

    /// Returns sum w x l and sum w l^2 for the levels that `iscale` gives.
    #[inline(always)]
    fn fit<S: Simd>(
        s: S,
        iscale: S::F32,
        x: &[S::F32; LEN],
        weights: &[S::F32; LEN],
        weighted: &[S::F32; LEN],
    ) -> (S::F32, S::F32) {
        let mut sum_lx = s.splat(0.0);
        let mut sum_l2 = s.splat(0.0);
        for i in 0..LEN {
            let l = Self::level(s, iscale, x[i]);
            sum_lx = sum_lx + weighted[i] * l;
            sum_l2 = sum_l2 + weights[i] * l * l;
        }
        (sum_lx, sum_l2)
    }
}

impl<const BITS: u32> Block32 for Symmetric<BITS> {
    const NAME: &'static str = if BITS == 5 { "Q5_0" } else { "Q4_0" };
    const GGML_ID: u32 = if BITS == 5 { 6 } else { 2 };
    const BYTES: usize = Self::NIBBLES + LEN / 2;
    const WEIGHTED: bool = true;

    #[inline(always)]
    fn encode<S: Simd>(s: S, x: &[S::F32; LEN], out: &mut [u8]) {
        let (_, max) = largest(s, x);
        let d = max / s.splat(-Self::HALF_RANGE);
        let id = inverse(s, d);
        let (byte, top) = (s.splat_i32(255), s.splat_i32((1 << BITS) - 1));
        // an overflowing product (d below 2^-128) truncates to i32::MIN, whose low byte is 0
        let mut q = [byte; LEN];
        for i in 0..LEN {
            q[i] = s.min_i32(s.trunc_i32(x[i] * id + s.splat(Self::HALF_RANGE + 0.5)) & byte, top);
        }
        Self::put(s, d, &q, out);
    }

    /// Tries the plain inverse scale and 18 around it; each gets its least-squares scale, the best fit wins.
    #[inline(always)]
    fn encode_weighted<S: Simd>(s: S, x: &[S::F32; LEN], weights: &[S::F32; LEN], out: &mut [u8]) {
        let zero = s.splat(0.0);
        let (magnitude, max) = largest(s, x);
        let mut weighted = *x;
        for (weighted, w) in weighted.iter_mut().zip(weights) {
            *weighted = *w * *weighted;
        }
        let mut iscale = s.splat(-Self::HALF_RANGE) / max;
        let (sum_lx, sum_l2) = Self::fit(s, iscale, x, weights, &weighted);
        let mut scale = s.select(s.eq(sum_l2, zero), zero, sum_lx / sum_l2);
        let mut best = scale * sum_lx;
        for step in (-9i8..=9).filter(|step| *step != 0) {
            let this = s.splat(-(Self::HALF_RANGE + 0.1 * f32::from(step))) / max;
            let (sum_lx, sum_l2) = Self::fit(s, this, x, weights, &weighted);
            let better = s.gt(sum_l2, zero) & s.gt(sum_lx * sum_lx, best * sum_l2);
            scale = s.select(better, sum_lx / sum_l2, scale);
            best = s.select(better, scale * sum_lx, best);
            iscale = s.select(better, this, iscale);
        }
        let empty = s.lt(magnitude, s.splat(ZERO_BLOCK));
        let mut q = [s.splat_i32(0); LEN];
        for i in 0..LEN {
            let level = s.trunc_i32(Self::level(s, iscale, x[i]) + s.splat(Self::HALF_RANGE));
            q[i] = s.select_i32(empty, s.splat_i32(0), level);
        }
        Self::put(s, s.select(empty, zero, scale), &q, out);
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8], out: &mut [f32]) {
        let d = s.splat(half_at(block));
        let fifth_bits = (BITS == 5).then(|| word_at(&block[2..]));
        for i in (0..LEN).step_by(S::LANES) {
            let q = quants(s, &block[Self::NIBBLES..], fifth_bits, i);
            s.store(s.to_f32(q - s.splat_i32(1 << (BITS - 1))) * d, &mut out[i..]);
        }
    }
}
