//! Student's t distribution.

use super::normal;
use crate::kernel::math64::{exp, ln};

/// Returns P(T > t) for `df` degrees of freedom (> 0); NaN of NaN.
pub fn sf(t: f64, df: f64) -> f64 {
    if t < 0.0 {
        return 1.0 - sf(-t, df);
    }
    // P(|T| > t) = I_x(df/2, 1/2) at x = df / (df + t^2)
    let square = t * t;
    let (x, rest) = (df / (df + square), square / (df + square));
    let a = 0.5 * df;
    // x^a sqrt(1 - x) / B(a, 1/2)
    let front = exp(-a * ln_1p(square / df)) * rest.sqrt() * gamma_ratio(a) / std::f64::consts::PI.sqrt();
    let both = if x < (a + 1.0) / (a + 2.5) {
        front * beta_fraction(x, a, 0.5) / a
    } else {
        1.0 - front * beta_fraction(rest, 0.5, a) / 0.5
    };
    0.5 * both
}

/// Returns the t with P(T <= t) = p, for 0 < p < 1.
pub fn quantile(p: f64, df: f64) -> f64 {
    if p < 0.5 {
        return -quantile(1.0 - p, df);
    }
    let tail = 1.0 - p;
    // The normal quantile lies left of the root and the tail is convex: Newton's steps approach it from the left.
    let mut t = normal::quantile(p);
    for _ in 0..200 {
        let density = gamma_ratio(0.5 * df) / (df * std::f64::consts::PI).sqrt()
            * exp(-0.5 * (df + 1.0) * ln_1p(t * t / df));
        let step = (sf(t, df) - tail) / density;
        t += step;
        if step.abs() <= 1e-15 * t {
            break;
        }
    }
    t
}

/// ln(1 + y) of y >= 0, accurate near 0 (Kahan).
fn ln_1p(y: f64) -> f64 {
    let u = 1.0 + y;
    if u == 1.0 { y } else { ln(u) * y / (u - 1.0) }
}

/// Returns gamma(a + 1/2) / gamma(a) of a > 0.
fn gamma_ratio(a: f64) -> f64 {
    // gamma(a + 3/2) / gamma(a + 1) is (a + 1/2) / a times that of a
    let (mut shifted, mut factor) = (a, 1.0);
    while shifted < 30.0 {
        factor *= shifted / (shifted + 0.5);
        shifted += 1.0;
    }
    // DLMF 5.11.13
    let w = 1.0 / shifted;
    let series =
        [-1.0 / 8.0, 1.0 / 128.0, 5.0 / 1024.0, -21.0 / 32768.0, -399.0 / 262_144.0, 869.0 / 4_194_304.0];
    let sum = series.iter().rev().fold(0.0, |sum, coefficient| (sum + coefficient) * w);
    factor * shifted.sqrt() * (1.0 + sum)
}

/// The continued fraction of the incomplete beta function (DLMF 8.17.22) by Lentz's method.
fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    let guard = |value: f64| if value.abs() < 1e-300 { 1e-300 } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / guard(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for m in 1..2000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for coefficient in [even, odd] {
            d = 1.0 / guard(1.0 + coefficient * d);
            c = guard(1.0 + coefficient / c);
            change = c * d;
            fraction *= change;
        }
        if (change - 1.0).abs() < 1e-16 {
            break;
        }
    }
    fraction
}
