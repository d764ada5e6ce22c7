//! Q8_0: x = d * q, q in -127..=127. Block: d (f16), 32 bytes of q.

use super::{Block32, LEN, half_at, inverse, put_halves};
use crate::kernel::simd::Simd;

pub struct Q8;

/// The float below one half. Adding it before truncation rounds half away from zero without carrying
/// 0.49999997 up, for any |x| < 2^23.
const BELOW_HALF: f32 = 0.499_999_97;

impl Block32 for Q8 {
    const NAME: &'static str = "Q8_0";
    const GGML_ID: u32 = 8;
    const BYTES: usize = 34;
    const WEIGHTED: bool = false;

    #[inline(always)]
    fn encode<S: Simd>(s: S, x: &[S::F32; LEN], out: &mut [u8]) {
        let mut amax = s.splat(0.0);
        for x in x {
            amax = s.max(s.abs(*x), amax);
        }
        let d = amax / s.splat(127.0);
        let id = inverse(s, d);
        put_halves(s, d, out, Self::BYTES);
        // a product that overflows (d below 2^-128) truncates to i32::MIN, whose low byte is 0
        let mut q = [s.splat_i32(0); LEN];
        for i in 0..LEN {
            let scaled = x[i] * id;
            q[i] = s.trunc_i32(scaled + s.copysign(s.splat(BELOW_HALF), scaled));
        }
        s.store_bytes_by_lane(&q, &mut out[2..], Self::BYTES);
    }

    #[inline(always)]
    fn encode_weighted<S: Simd>(s: S, x: &[S::F32; LEN], _weights: &[S::F32; LEN], out: &mut [u8]) {
        Self::encode(s, x, out);
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8], out: &mut [f32]) {
        let d = s.splat(half_at(block));
        for i in (0..LEN).step_by(S::LANES) {
            s.store(s.to_f32(s.load_i8(&block[2 + i..])) * d, &mut out[i..]);
        }
    }
}
