//! The normal distribution.

use crate::kernel::math64::{exp, ln};

const SQRT_PI: f64 = 1.772_453_850_905_516;
const SQRT_2_PI: f64 = 2.506_628_274_631_000_5;

/// Returns P(X > x), with a relative error below 1e-12 down to the smallest numbers.
pub fn sf(x: f64) -> f64 {
    if x < 0.0 { 1.0 - half_erfc(-x) } else { half_erfc(x) }
}

/// Returns P(X <= x).
pub fn cdf(x: f64) -> f64 {
    sf(-x)
}

/// Returns erfc(x / sqrt 2) / 2 of x >= 0.
fn half_erfc(x: f64) -> f64 {
    let y = x * std::f64::consts::FRAC_1_SQRT_2;
    let square = 0.5 * x * x;
    if y < 1.5 {
        // erf y = 2 / sqrt pi * exp(-y^2) * sum of 2^n y^(2n+1) / (1 * 3 * .. (2n+1)): no term is negative
        let (mut term, mut sum, mut odd) = (y, y, 1.0);
        while term > 1e-17 * sum {
            odd += 2.0;
            term *= 2.0 * square / odd;
            sum += term;
        }
        return 0.5 - sum * exp(-square) / SQRT_PI;
    }
    // the continued fraction of erfc, evaluated from far enough inside (Abramowitz and Stegun 7.1.14)
    let fraction = (1..=120).rev().fold(y, |rest, n| y + 0.5 * f64::from(n) / rest);
    0.5 * exp(-square) / (SQRT_PI * fraction)
}

/// Returns the x with P(X <= x) = p, for 0 < p < 1; infinities at 0 and 1, NaN outside.
pub fn quantile(p: f64) -> f64 {
    if p.is_nan() || !(0.0..=1.0).contains(&p) {
        return f64::NAN;
    }
    if p > 0.5 {
        return -quantile(1.0 - p);
    }
    if p == 0.0 {
        return f64::NEG_INFINITY;
    }
    // Abramowitz and Stegun 26.2.23, within 4.5e-4, then Halley's method
    let t = (-2.0 * ln(p)).sqrt();
    let top = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let mut x = top / (1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308))) - t;
    for _ in 0..3 {
        let step = (cdf(x) - p) * SQRT_2_PI * exp(0.5 * x * x);
        x -= step / (1.0 + 0.5 * x * step);
    }
    x
}
