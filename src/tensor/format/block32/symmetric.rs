//! Q4_0 and Q5_0: x = d * (q - 2^(BITS-1)). Block: d (f16), fifth bits (Q5_0), 16 bytes of nibbles.

use super::super::symmetric::{level_of_small, search_scale, signed_max};
use super::{Block32, LEN, half_at, inverse, put_fifth_bits, put_halves, put_nibbles, quants, word_at};
use crate::kernel::simd::Simd;

pub struct Symmetric<const BITS: u32>;

impl<const BITS: u32> Symmetric<BITS> {
    /// Where nibbles begin.
    const NIBBLES: usize = if BITS == 5 { 6 } else { 2 };
    /// Levels run from -NMAX to NMAX - 1.
    const NMAX: i32 = 1 << (BITS - 1);

    #[inline(always)]
    fn put<S: Simd>(s: S, d: S::F32, q: &[S::I32; LEN], out: &mut [u8]) {
        put_halves(s, d, out, Self::BYTES);
        if BITS == 5 {
            put_fifth_bits(s, q, &mut out[2..], Self::BYTES);
        }
        put_nibbles(s, q, &mut out[Self::NIBBLES..], Self::BYTES);
    }
}

impl<const BITS: u32> Block32 for Symmetric<BITS> {
    const NAME: &'static str = if BITS == 5 { "Q5_0" } else { "Q4_0" };
    const GGML_ID: u32 = if BITS == 5 { 6 } else { 2 };
    const BYTES: usize = Self::NIBBLES + LEN / 2;
    const WEIGHTED: bool = true;

    #[inline(always)]
    fn encode<S: Simd>(s: S, x: &[S::F32; LEN], out: &mut [u8]) {
        let nmax = Self::NMAX as f32;
        let d = signed_max(s, x) / s.splat(-nmax);
        let id = inverse(s, d);
        let (byte, top) = (s.splat_i32(255), s.splat_i32(2 * Self::NMAX - 1));
        // an overflowing product (d below 2^-128) truncates to i32::MIN, whose low byte is 0
        let mut q = [byte; LEN];
        for i in 0..LEN {
            q[i] = s.min_i32(s.trunc_i32(x[i] * id + s.splat(nmax + 0.5)) & byte, top);
        }
        Self::put(s, d, &q, out);
    }

    #[inline(always)]
    fn encode_weighted<S: Simd>(s: S, x: &[S::F32; LEN], weights: &[S::F32; LEN], out: &mut [u8]) {
        let fit = search_scale::<S, true, LEN>(s, x, weights, Self::NMAX);
        let negligible = !s.eq(fit.inverse, fit.inverse); // NaN
        let mut q = [s.splat_i32(0); LEN];
        for i in 0..LEN {
            let level = s.trunc_i32(level_of_small(s, fit.inverse * x[i], Self::NMAX));
            q[i] = s.select_i32(negligible, q[i], level + s.splat_i32(Self::NMAX));
        }
        Self::put(s, fit.scale, &q, out);
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8], out: &mut [f32]) {
        let d = s.splat(half_at(block));
        let fifth_bits = (BITS == 5).then(|| word_at(&block[2..]));
        for i in (0..LEN).step_by(S::LANES) {
            let q = quants(s, &block[Self::NIBBLES..], fifth_bits, i);
            s.store(s.to_f32(q - s.splat_i32(Self::NMAX)) * d, &mut out[i..]);
        }
    }
}
