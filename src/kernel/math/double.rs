//! Elementary functions of one f64, from additions, multiplications and divisions alone (none fused).
//!
//! They serve tables whose entries are rounded to f32: all are within 4 ulp of f64.

/// 1.5 * 2^52: adding it rounds |v| < 2^51 to an integer, half to even.
const ROUND_MAGIC: f64 = 6_755_399_441_055_744.0;

/// ln 2 in two parts, the first of 32 bits.
const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// pi / 2 in three parts, the first two of 33 bits: their products with |n| < 2^20 are exact.
const HALF_PI: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_6e-21];

fn round(x: f64) -> f64 {
    (x + ROUND_MAGIC) - ROUND_MAGIC
}

/// Returns 1 + x c[0] + x^2 c[0] c[1] + ...: a Taylor series by the ratios of its terms.
fn series<const N: usize>(x: f64, ratios: [f64; N]) -> f64 {
    ratios.iter().rev().fold(1.0, |sum, ratio| 1.0 + x * ratio * sum)
}

/// Returns e^x; 0 below -708, infinity above 709.
pub fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x < -708.0 {
        return 0.0;
    }
    if x > 709.0 {
        return f64::INFINITY;
    }
    let n = round(x * std::f64::consts::LOG2_E);
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let ratios: [f64; 14] = std::array::from_fn(|i| 1.0 / (i + 1) as f64);
    let power = f64::from_bits(((1023 + n as i64) as u64) << 52);
    series(r, ratios) * power
}

/// Returns the natural logarithm of a positive, finite, normal x; NaN for any other.
pub fn ln(x: f64) -> f64 {
    if !(f64::MIN_POSITIVE..=f64::MAX).contains(&x) {
        return f64::NAN;
    }
    // x = 2^e m with sqrt(1/2) <= m < sqrt(2)
    let bits = x.to_bits() as i64;
    let e = (bits - std::f64::consts::FRAC_1_SQRT_2.to_bits() as i64) >> 52;
    let m = f64::from_bits((bits - (e << 52)) as u64);
    // ln m = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.172
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let tail = (1..13).rev().fold(0.0, |sum, k| (sum + 1.0 / (2 * k + 1) as f64) * square);
    e as f64 * LN_2_HIGH + (2.0 * s + (2.0 * s * tail + e as f64 * LN_2_LOW))
}

/// Returns `base^exponent` of a positive, finite, normal base; the relative error grows with the
/// logarithm of the result: 1e-14 at 1e6.
pub fn pow(base: f64, exponent: f64) -> f64 {
    exp(exponent * ln(base))
}

/// Returns (sin x, cos x), within 1e-15 for |x| < 1.6e6, NaN for |x| >= 2^50.
pub fn sin_cos(x: f64) -> (f64, f64) {
    const LIMIT: f64 = (1u64 << 50) as f64;
    if x.is_nan() || x.abs() >= LIMIT {
        return (f64::NAN, f64::NAN);
    }
    let n = round(x * std::f64::consts::FRAC_2_PI);
    let r = ((x - n * HALF_PI[0]) - n * HALF_PI[1]) - n * HALF_PI[2];
    let square = -(r * r);
    let ratio = |k: usize| 1.0 / (k * (k + 1)) as f64;
    let sine = r * series(square, std::array::from_fn::<f64, 9, _>(|i| ratio(2 * i + 2)));
    let cosine = series(square, std::array::from_fn::<f64, 9, _>(|i| ratio(2 * i + 1)));
    match n as i64 & 3 {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}
