//! How fast each pair of a head turns, by the scaling a model was trained with.

use super::config::{Rope, RopeScaling};
use crate::kernel::math64::{ln, pow};

/// What rotary embedding multiplies positions by, and what the rotated vectors are scaled by.
#[derive(Clone, Debug, PartialEq)]
pub struct Frequencies {
    /// Radians per position of each rotated pair.
    pub inv_freq: Vec<f32>,
    /// Factor on cosine and sine.
    pub attention_factor: f32,
}

/// Returns the frequencies of full attention in a sequence of `length` tokens, in the arithmetic of
/// transformers (`modeling_rope_utils.py`, 5.23): single precision, every power rounded once.
///
/// Only LongRoPE depends on the length: past the original context all positions take the long factors.
pub fn frequencies(rope: &Rope, length: usize) -> Frequencies {
    let plain = |inv_freq| Frequencies { inv_freq, attention_factor: 1.0 };
    let powers = powers(rope.theta, rope.dim);
    let divided =
        |factors: &[f32]| powers.iter().zip(factors).map(|(power, by)| 1.0 / (by * power)).collect();
    match &rope.scaling {
        RopeScaling::None | RopeScaling::Unsupported(_) => plain(reciprocals(&powers)),
        RopeScaling::Linear { factor } => {
            plain(reciprocals(&powers).iter().map(|freq| freq / factor).collect())
        }
        RopeScaling::Factors(factors) => {
            plain(powers.iter().zip(factors).map(|(power, by)| 1.0 / power / by).collect())
        }
        RopeScaling::Yarn(yarn) => Frequencies {
            inv_freq: yarn.inv_freq(rope.theta, &powers),
            attention_factor: yarn.attention_factor,
        },
        RopeScaling::LongRope(long) => {
            let factors = if length > long.original_context { &long.long } else { &long.short };
            Frequencies { inv_freq: divided(factors), attention_factor: long.attention_factor }
        }
    }
}

/// Returns the frequencies of sliding attention where its base differs: never scaled (Gemma 3).
pub fn local_frequencies(theta: f32, dim: usize) -> Frequencies {
    Frequencies { inv_freq: reciprocals(&powers(theta, dim)), attention_factor: 1.0 }
}

/// YaRN (arXiv:2309.00071): slow pairs are interpolated, fast ones kept, a ramp between.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f32,
    pub original_context: usize,
    pub attention_factor: f32,
    /// Rotations within the original context above which a pair is kept.
    pub beta_fast: f32,
    /// Rotations below which a pair is interpolated.
    pub beta_slow: f32,
    /// The ramp begins and ends at whole pairs.
    pub truncate: bool,
}

impl Yarn {
    fn inv_freq(&self, theta: f32, powers: &[f32]) -> Vec<f32> {
        let dim = 2 * powers.len();
        let pair_of = |rotations: f32| {
            let turns = self.original_context as f64 / (f64::from(rotations) * std::f64::consts::TAU);
            dim as f64 * ln(turns) / (2.0 * ln(f64::from(theta)))
        };
        let (mut low, mut high) = (pair_of(self.beta_fast), pair_of(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min((dim - 1) as f64));
        if low == high {
            high += 0.001;
        }
        let interpolate = |(i, power): (usize, &f32)| {
            let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            1.0 / (self.factor * power) * (1.0 - keep) + 1.0 / power * keep
        };
        powers.iter().enumerate().map(interpolate).collect()
    }

    /// Returns the attention factor of a config that names none (the paper's section 3.4).
    pub fn default_attention_factor(factor: f64, mscales: Option<(f64, f64)>) -> f64 {
        let mscale = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * ln(factor) + 1.0 };
        match mscales {
            Some((mscale_one, mscale_all)) => mscale(mscale_one) / mscale(mscale_all),
            None => mscale(1.0),
        }
    }
}

/// LongRoPE (arXiv:2402.13753): each pair's frequency is divided by a factor found by search.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    pub original_context: usize,
    pub attention_factor: f32,
    /// Factors within the original context.
    pub short: Vec<f32>,
    /// Factors past it.
    pub long: Vec<f32>,
}

impl LongRope {
    /// Returns the attention factor of a model that reaches `factor` times its original context.
    pub fn default_attention_factor(factor: f64, original_context: usize) -> f64 {
        if factor <= 1.0 { 1.0 } else { (1.0 + ln(factor) / ln(original_context as f64)).sqrt() }
    }
}

/// Returns `theta^(2i / dim)` of each pair.
fn powers(theta: f32, dim: usize) -> Vec<f32> {
    let power = |i: usize| pow(f64::from(theta), f64::from(i as f32 / dim as f32)) as f32;
    (0..dim).step_by(2).map(power).collect()
}

fn reciprocals(powers: &[f32]) -> Vec<f32> {
    powers.iter().map(|power| 1.0 / power).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_those_of_the_base() {
        let rope = Rope { dim: 4, theta: 10000.0, theta_swa: None, scaling: RopeScaling::None };
        assert_eq!(frequencies(&rope, 9).inv_freq, [1.0, 0.01]);
        let scaling = RopeScaling::Linear { factor: 4.0 };
        assert_eq!(frequencies(&Rope { scaling, ..rope }, 9).inv_freq, [0.25, 0.0025]);
    }

    #[test]
    fn longrope_takes_the_long_factors_past_the_original_context() {
        let long = LongRope { original_context: 8, attention_factor: 1.5, short: vec![1.0], long: vec![4.0] };
        let rope = Rope { dim: 2, theta: 10000.0, theta_swa: None, scaling: RopeScaling::LongRope(long) };
        assert_eq!(frequencies(&rope, 8), Frequencies { inv_freq: vec![1.0], attention_factor: 1.5 });
        assert_eq!(frequencies(&rope, 9).inv_freq, [0.25]);
    }
}
