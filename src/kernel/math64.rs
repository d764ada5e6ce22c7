//! Functions of f64 for reports and tables: plain IEEE additions, multiplications and divisions, so that every machine
//! gives the same bits (a C library's differ between versions).

const LN2_HI: f64 = 6.931_471_803_691_238e-1; // the last 32 bits are 0: its products with exponents are exact
const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;

/// Returns e^x, within 2 units in the last place; infinity above 709.79, and 0 below -745.14.
pub fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x > 709.8 {
        return f64::INFINITY;
    }
    if x < -745.2 {
        return 0.0;
    }
    let k = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = (x - k * LN2_HI) - k * LN2_LO; // |r| <= ln(2) / 2
    // Taylor's series to r^13: the rest is below 5e-18
    let mut sum = 1.0 / 6_227_020_800.0;
    for factor in INVERSE_FACTORIALS {
        sum = sum * r + factor;
    }
    scale(sum * r + 1.0, k as i32)
}

/// 1 / 12!, ... 1 / 1!
const INVERSE_FACTORIALS: [f64; 12] = [
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
];

/// Returns x * 2^k; halves, so that neither factor leaves the range of normal numbers.
fn scale(x: f64, k: i32) -> f64 {
    let half = k / 2;
    let power = |k: i32| f64::from_bits(((1023 + k) as u64) << 52);
    x * power(half) * power(k - half)
}

/// Returns the natural logarithm, within 2 units in the last place; -infinity for 0, NaN below.
pub fn ln(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x == f64::INFINITY {
        return x;
    }
    let (x, below) = if x < f64::MIN_POSITIVE { (x * 18_014_398_509_481_984.0, 54) } else { (x, 0) };
    // x = m * 2^k with m in [sqrt(1/2), sqrt(2))
    let bits = x.to_bits();
    let high = ((bits >> 32) as u32).wrapping_add(0x3ff0_0000 - 0x3fe6_a09e);
    let k = f64::from((high >> 20) as i32 - 1023 - below);
    let m = f64::from_bits(u64::from((high & 0xf_ffff) + 0x3fe6_a09e) << 32 | (bits & 0xffff_ffff));
    // ln m = f - (f^2/2 - s (f^2/2 + R)) with f = m - 1, s = f / (2 + f), R = the rest of 2 artanh(s) / s
    let f = m - 1.0;
    let s = f / (2.0 + f);
    let z = s * s; // <= 0.0295
    let mut rest = 0.0;
    for term in (3..=25).rev().step_by(2) {
        rest = (rest + 2.0 / f64::from(term)) * z;
    }
    let half = 0.5 * f * f;
    k * LN2_HI - ((half - (s * (half + rest) + k * LN2_LO)) - f)
}

/// Returns `base^exponent` of a base > 0; the relative error grows with the logarithm of the result: below 1e-14
/// at 1e6.
pub fn pow(base: f64, exponent: f64) -> f64 {
    exp(exponent * ln(base))
}

/// pi / 2 in three parts, the first two of 33 bits: their products with |n| < 2^20 are exact.
const HALF_PI: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_6e-21];

/// Returns 1 + x c[0] + x^2 c[0] c[1] + ...: a Taylor series by the ratios of its terms.
fn series<const N: usize>(x: f64, ratios: [f64; N]) -> f64 {
    ratios.iter().rev().fold(1.0, |sum, ratio| 1.0 + x * ratio * sum)
}

/// Returns (sin x, cos x), within 1e-15 for |x| < 1.6e6, NaN for |x| >= 2^50.
pub fn sin_cos(x: f64) -> (f64, f64) {
    const LIMIT: f64 = (1u64 << 50) as f64;
    if x.is_nan() || x.abs() >= LIMIT {
        return (f64::NAN, f64::NAN);
    }
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units in the last place.
    fn ulps(a: f64, b: f64) -> u64 {
        (a.to_bits() as i64).abs_diff(b.to_bits() as i64)
    }

    #[test]
    fn both_are_the_c_librarys_to_two_units() {
        let mut state = 1u64;
        for i in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 11) as f64 / (1u64 << 53) as f64;
            let x = (unit * 2.0 - 1.0) * [1e-9, 0.3, 20.0, 700.0][i % 4];
            assert!(ulps(exp(x), x.exp()) <= 2, "exp({x:e}) = {:e}, not {:e}", exp(x), x.exp());
            let y = [x.exp(), 1.0 + x * 1e-3, f64::from_bits(state >> 2)][i % 3];
            if y > 0.0 && y.is_finite() {
                assert!(ulps(ln(y), y.ln()) <= 2, "ln({y:e}) = {:e}, not {:e}", ln(y), y.ln());
            }
        }
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!((exp(0.0), exp(f64::NEG_INFINITY), exp(f64::INFINITY)), (1.0, 0.0, f64::INFINITY));
        assert_eq!((exp(710.0), exp(-746.0)), (f64::INFINITY, 0.0));
        assert!(ulps(exp(709.7), 709.7f64.exp()) <= 2);
        assert!(ulps(exp(-740.0), (-740.0f64).exp()) <= 2);
        assert!(exp(f64::NAN).is_nan() && ln(f64::NAN).is_nan() && ln(-1.0).is_nan());
        assert_eq!((ln(1.0), ln(0.0), ln(f64::INFINITY)), (0.0, f64::NEG_INFINITY, f64::INFINITY));
        assert!(ulps(ln(5e-324), 5e-324f64.ln()) <= 2);
    }

    #[test]
    fn bits_are_what_they_always_were() {
        assert_eq!(exp(1.0).to_bits(), std::f64::consts::E.to_bits() + 1);
        assert_eq!(ln(2.0).to_bits(), std::f64::consts::LN_2.to_bits());
        assert_eq!(ln(10.0).to_bits(), std::f64::consts::LN_10.to_bits());
    }

    #[test]
    fn powers_are_near_the_c_librarys() {
        for (base, exponent) in
            [(10_000.0, 0.984_375), (500_000.0, 0.3), (1e6, 0.99), (0.5, -20.0), (7.0, 0.0)]
        {
            let want = f64::powf(base, exponent);
            assert!((pow(base, exponent) / want - 1.0).abs() < 1e-14);
        }
    }

    #[test]
    fn sines_and_cosines_of_large_angles() {
        let mut worst = 0f64;
        for i in 0..400_000u32 {
            // f32 angles up to 1.6e6, as rope makes them
            let x = f64::from((i as f32 * 4.0).mul_add(0.999_3, i as f32 * 1e-3));
            let (sin, cos) = sin_cos(x);
            worst = worst.max((sin - x.sin()).abs()).max((cos - x.cos()).abs());
            let (minus_sin, same_cos) = sin_cos(-x);
            assert_eq!((minus_sin, same_cos), (-sin, cos));
        }
        println!("f64 sin, cos: {worst:e}");
        assert!(worst < 1e-15, "{worst:e}");
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
        assert!(sin_cos(f64::INFINITY).0.is_nan() && sin_cos(f64::NAN).1.is_nan());
    }
}
