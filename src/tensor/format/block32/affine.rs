//! Q4_1 and Q5_1: x = d * q + m. Block: d, m (f16), fifth bits (Q5_1), 16 bytes of nibbles.

use super::super::affine::{Scan, Search, levels_by_lane, search};
use super::{Block32, LEN, half_at, inverse, put_fifth_bits, put_halves, put_nibbles, quants, word_at};
use crate::kernel::simd::Simd;

pub struct Affine<const BITS: u32>;

/// The scan with importance.
const SCAN: Scan = Scan { start: -0.9, step: 0.05, last: 36 };

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
        let options = Search { nmax: Self::TOP, scan: SCAN, saturates: true, absolute: false };
        let fit = search(s, x, weights, options);
        let mut q = [s.splat_i32(0); LEN];
        for i in 0..LEN {
            q[i] = levels_by_lane(s, x[i], fit.rule, Self::TOP);
        }
        Self::put(s, fit.scale, -fit.min, &q, out);
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
