//! MXFP4 (OCP Microscaling): x = 2^(e-127) * E2M1. Block: e (E8M0), 16 bytes of nibbles.

use super::{Block32, LEN, MAX_LANES, put_nibbles, quants};
use crate::kernel::simd::Simd;

pub struct Mxfp4;

/// The E2M1 values, doubled so that all are integers; bit 3 of the index is the sign.
const DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// Returns 2^(e-128), the scale of [`DOUBLED`].
#[inline(always)]
pub(crate) fn half_scale(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e), // denormal
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}

/// Returns floor(log2(amax)) as a correctly rounded f32 logarithm has it; amax > 0 and finite.
///
/// Close below a power of two 2^n the logarithm rounds up to n. The floats there are 2^-k * 2^n apart
/// (k = 24, fewer among denormals), those around n are 2^(g-23) apart, so the j-th float below 2^n rounds
/// up iff j * 2^-k / ln 2 <= 2^(g-24), with g the binade that n is reached from.
fn floor_of_rounded_log2(amax: f32) -> i32 {
    const LN2_Q32: u64 = 0xb172_17f7;
    let bits = amax.to_bits();
    let (n, next_power_bits) = if bits >= 1 << 23 {
        ((bits >> 23) as i32 - 126, ((bits >> 23) + 1) << 23)
    } else {
        let above = u32::BITS - bits.leading_zeros();
        (above as i32 - 149, 1 << above)
    };
    let g = match n {
        ..=-1 => n.unsigned_abs().ilog2() as i32,
        0 | 1 => return n - 1,
        _ => (n as u32 - 1).ilog2() as i32,
    };
    let shift = g - 24 + (n + 149).min(24);
    let rounding_up = if shift < 0 { 0 } else { (LN2_Q32 << shift) >> 32 };
    if u64::from(next_power_bits - bits) <= rounding_up { n } else { n - 1 }
}

/// Returns the exponent byte for a block's largest magnitude. Below 2^-125 it wraps round, as the
/// reference's does on x86: the scale is then huge and every weight 0.
fn exponent_byte(amax: f32) -> u8 {
    if amax > 0.0 { (floor_of_rounded_log2(amax) - 2 + 127) as u8 } else { 0 }
}

impl Block32 for Mxfp4 {
    const NAME: &'static str = "MXFP4";
    const GGML_ID: u32 = 39;
    const BYTES: usize = 17;
    const WEIGHTED: bool = false;

    #[inline(always)]
    fn encode<S: Simd>(s: S, x: &[S::F32; LEN], out: &mut [u8]) {
        let mut amax = s.splat(0.0);
        for x in x {
            amax = s.max(s.abs(*x), amax);
        }
        let mut of_lane = [0.0; MAX_LANES];
        s.store(amax, &mut of_lane);
        for lane in 0..S::LANES {
            let e = exponent_byte(of_lane[lane]);
            out[lane * Self::BYTES] = e;
            of_lane[lane] = half_scale(e);
        }
        let d = s.load(&of_lane);
        // A magnitude becomes the next value when it is beyond the middle; a tie stays below. A value that
        // overflows has an infinite middle, so it is never taken.
        let half = s.splat(0.5);
        let mut middles = [half; 7];
        for i in 0..7 {
            middles[i] = s.splat(DOUBLED[i]) * d * half + s.splat(DOUBLED[i + 1]) * d * half;
        }
        let zero = s.splat_i32(0);
        let mut q = [zero; LEN];
        for i in 0..LEN {
            let magnitude = s.abs(x[i]);
            for (below, middle) in middles.iter().enumerate() {
                q[i] = s.select_i32(s.gt(magnitude, *middle), s.splat_i32(below as i32 + 1), q[i]);
            }
            let sign = s.shl::<3>(s.shr::<31>(s.to_bits(x[i])));
            // -0 is the second name of 0
            q[i] = s.select_i32(s.eq_i32(q[i], zero), zero, q[i] | sign);
        }
        put_nibbles(s, &q, &mut out[1..], Self::BYTES);
    }

    #[inline(always)]
    fn encode_weighted<S: Simd>(s: S, x: &[S::F32; LEN], _weights: &[S::F32; LEN], out: &mut [u8]) {
        Self::encode(s, x, out);
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8], out: &mut [f32]) {
        let d = s.splat(half_scale(block[0]));
        for i in (0..LEN).step_by(S::LANES) {
            let q = quants(s, &block[1..], None, i);
            s.store(s.lookup16(&DOUBLED, q) * d, &mut out[i..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_round_up_just_below_powers_of_two() {
        // counts of floats below 2^n whose glibc log2f is n
        let counts = [
            (128, 44),
            (65, 44),
            (64, 22),
            (33, 22),
            (32, 11),
            (17, 11),
            (16, 5),
            (9, 5),
            (8, 2),
            (5, 2),
            (4, 1),
            (3, 1),
            (2, 0),
            (1, 0),
            (0, 0),
            (-1, 0),
            (-2, 1),
            (-3, 1),
            (-4, 2),
            (-7, 2),
            (-8, 5),
            (-15, 5),
            (-16, 11),
            (-31, 11),
            (-32, 22),
            (-63, 22),
            (-64, 44),
            (-125, 44),
            (-126, 22),
            (-127, 11),
            (-128, 11),
            (-129, 5),
            (-130, 2),
            (-131, 1),
            (-132, 0),
            (-148, 0),
        ];
        for (n, count) in counts {
            let power_bits = if n >= -126 { ((n + 127) as u32) << 23 } else { 1 << (n + 149) };
            let at = |below: u32| floor_of_rounded_log2(f32::from_bits(power_bits - below));
            assert_eq!(at(count + 1), n - 1, "2^{n}");
            if count > 0 {
                assert_eq!(at(count), n, "2^{n}");
                assert_eq!(at(1), n, "2^{n}");
            }
            if n < 128 {
                assert_eq!(at(0), n, "2^{n}");
            }
        }
    }
}
