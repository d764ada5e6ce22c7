//! Elementary functions over vectors: polynomials with fused multiply-adds, lane by lane.
//!
//! The coefficients are minimax fits (Remez, weighted for relative error) rounded to f32. The errors stated are
//! the largest found by the tests, in units of the last place of the f32 result.

use crate::kernel::simd::{ROUND_MAGIC, SimdFma};

/// ln 2 in two parts; the first has 10 bits, so that products with an exponent are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Below this, e^x would be denormal.
const EXP_LOWEST: f32 = -87.3365;
/// Above this, e^x overflows.
const EXP_HIGHEST: f32 = 88.722_83;

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

#[inline(always)]
fn polynomial<S: SimdFma, const N: usize>(s: S, x: S::F32, coefficients: [f32; N]) -> S::F32 {
    let mut sum = s.splat(coefficients[N - 1]);
    for i in 1..N {
        sum = s.mul_add(sum, x, s.splat(coefficients[N - 1 - i]));
    }
    sum
}

/// Returns (e^r, m) with x = n ln 2 + r, |r| <= ln 2 / 2, and n in the low bits of m, an offset of 1.5 * 2^23.
#[inline(always)]
fn exp_parts<S: SimdFma>(s: S, x: S::F32) -> (S::F32, S::F32) {
    let magic = s.splat(ROUND_MAGIC);
    let shifted = s.mul_add(x, s.splat(std::f32::consts::LOG2_E), magic);
    let n = shifted - magic;
    let r = s.mul_add(n, s.splat(-LN_2_HIGH), x);
    let r = s.mul_add(n, s.splat(-LN_2_LOW), r);
    let q = polynomial(s, r, [0.499_999_94, 0.166_665_21, 0.041_668_367, 0.008_368_64, 0.001_381_519_4]);
    let power = s.mul_add(s.mul_add(q, r, s.splat(1.0)), r, s.splat(1.0));
    (power, shifted)
}

/// Returns 2^n, for n in the low bits of `shifted` and -126 <= n <= 127.
#[inline(always)]
fn power_of_two<S: SimdFma>(s: S, shifted: S::I32) -> S::F32 {
    s.from_bits(s.shl::<23>(shifted) + s.splat_i32(0x3f80_0000))
}

/// Returns e^x, within 0.9 ulp; 0 for x < -87.3365 (no denormal results), infinity for x > 88.72283.
#[inline(always)]
pub fn exp<S: SimdFma>(s: S, x: S::F32) -> S::F32 {
    let (power, shifted) = exp_parts(s, x);
    // 2^n in two factors: 2^128 is no f32
    let n = (s.to_bits(shifted) & s.splat_i32(0x007f_ffff)) - s.splat_i32(0x0040_0000);
    let half = s.sar::<1>(n);
    let y = power * power_of_two(s, half) * power_of_two(s, n - half);
    let y = s.select(s.lt(x, s.splat(EXP_LOWEST)), s.splat(0.0), y);
    s.select(s.gt(x, s.splat(EXP_HIGHEST)), s.splat(f32::INFINITY), y)
}

/// Returns [`exp`] of an x that is not positive, or NaN: the same bits, in fewer steps.
#[inline(always)]
pub fn exp_nonpositive<S: SimdFma>(s: S, x: S::F32) -> S::F32 {
    let (power, shifted) = exp_parts(s, x);
    let y = power * power_of_two(s, s.to_bits(shifted));
    s.select(s.lt(x, s.splat(EXP_LOWEST)), s.splat(0.0), y)
}

/// Returns the natural logarithm, within 0.8 ulp; -infinity for zeros, NaN for negative x.
#[inline(always)]
pub fn log<S: SimdFma>(s: S, x: S::F32) -> S::F32 {
    const TWO_TO_23: f32 = 8_388_608.0;
    let is_denormal = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let scaled = s.select(is_denormal, x * s.splat(TWO_TO_23), x);
    let bits = s.to_bits(scaled);
    // x = 2^e m with sqrt(1/2) <= m < sqrt(2)
    let e = s.sar::<23>(bits - s.splat_i32(std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32));
    let f = s.from_bits(bits - s.shl::<23>(e)) - s.splat(1.0);
    let e = s.to_f32(e - s.select_i32(is_denormal, s.splat_i32(23), s.splat_i32(0)));
    let tail = polynomial(
        s,
        f,
        [
            0.333_333_13,
            -0.250_000_1,
            0.200_021_19,
            -0.166_679_96,
            0.142_195_52,
            -0.124_055_885,
            0.118_881_59,
            -0.116_756_54,
            0.067_466_51,
        ],
    );
    let square = f * f;
    let y = s.mul_add(e, s.splat(LN_2_LOW), tail * f * square);
    let y = s.mul_add(square, s.splat(-0.5), y);
    let y = s.mul_add(e, s.splat(LN_2_HIGH), f + y);
    let y = s.select(s.eq(x, s.splat(0.0)), s.splat(f32::NEG_INFINITY), y);
    let y = s.select(s.eq(x, s.splat(f32::INFINITY)), x, y);
    s.select(s.ge(x, s.splat(0.0)), y, s.splat(f32::NAN))
}

/// Returns the hyperbolic tangent, within 1.3 ulp.
#[inline(always)]
pub fn tanh<S: SimdFma>(s: S, x: S::F32) -> S::F32 {
    let magnitude = s.abs(x);
    let square = magnitude * magnitude;
    let tail =
        polynomial(s, square, [-0.333_332_8, 0.133_314_42, -0.053_739_715, 0.020_639_088, -0.005_704_987]);
    let small = s.mul_add(magnitude * square, tail, magnitude);
    let one = s.splat(1.0);
    let large = one - s.splat(2.0) / (exp(s, magnitude + magnitude) + one);
    s.copysign(s.select(s.lt(magnitude, s.splat(0.625)), small, large), x)
}

/// Returns 1 / (1 + e^-x), within 2.1 ulp.
#[inline(always)]
pub fn sigmoid<S: SimdFma>(s: S, x: S::F32) -> S::F32 {
    s.splat(1.0) / (s.splat(1.0) + exp(s, -x))
}

/// Returns x / (1 + e^-x), within 2.3 ulp (arXiv:1702.03118).
#[inline(always)]
pub fn silu<S: SimdFma>(s: S, x: S::F32) -> S::F32 {
    x / (s.splat(1.0) + exp(s, -x))
}

/// Returns 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (arXiv:1606.08415), within 3e-7 of |x|.
#[inline(always)]
pub fn gelu_tanh<S: SimdFma>(s: S, x: S::F32) -> S::F32 {
    let cubic = s.mul_add(s.splat(0.044_715) * x * x, x, x);
    s.splat(0.5) * x * (s.splat(1.0) + tanh(s, s.splat(SQRT_2_OVER_PI) * cubic))
}

/// Returns ([`silu`] of x, its derivative `g (1 + x (1 - g))` for g = sigmoid(x)), the latter within 4e-7.
#[inline(always)]
pub fn silu_and_slope<S: SimdFma>(s: S, x: S::F32) -> (S::F32, S::F32) {
    let one = s.splat(1.0);
    let below = one + exp(s, -x);
    let g = one / below;
    (x / below, g * s.mul_add(x, one - g, one))
}

/// Returns ([`gelu_tanh`] of x, its derivative `(1 + t) / 2 + x (1 - t^2) u' / 2` for t = tanh(u),
/// u = sqrt(2 / pi) (x + 0.044715 x^3)), the latter within 6e-7.
#[inline(always)]
pub fn gelu_tanh_and_slope<S: SimdFma>(s: S, x: S::F32) -> (S::F32, S::F32) {
    let (one, half) = (s.splat(1.0), s.splat(0.5));
    let cubic = s.mul_add(s.splat(0.044_715) * x * x, x, x);
    let t = tanh(s, s.splat(SQRT_2_OVER_PI) * cubic);
    let u_slope = s.mul_add(s.splat(3.0 * 0.044_715 * SQRT_2_OVER_PI) * x, x, s.splat(SQRT_2_OVER_PI));
    let t_slope = s.mul_add(-t, t, one);
    // x^2 may overflow where the tangent is flat
    let bend = s.select(s.eq(t_slope, s.splat(0.0)), t_slope, half * x * t_slope * u_slope);
    (half * x * (one + t), s.mul_add(half, one + t, bend))
}
