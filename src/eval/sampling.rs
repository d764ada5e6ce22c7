//! The next token from a row of logits.
//!
//! Filters apply in llama.cpp's order: the `top_k` most likely, of these the fewest that reach `top_p`, of
//! these those at least `min_p` times as likely as the first; the temperature comes last, so it decides how
//! one of them is drawn and not which there are. (transformers applies the temperature first.) Of equally
//! likely tokens the lower id counts as the more likely one.
//!
//! Sums are f64, in a fixed order, with this crate's own exponential: the same token everywhere.

use std::cmp::Ordering;

use super::request::Sampling;
use crate::kernel::math64::exp;

/// Returns the token that `draw`, in [0, 1), picks; `None` if a logit is NaN or +infinity, or if all are
/// -infinity.
///
/// With temperature 0 it is the first of the largest logits, whatever `draw` is.
pub fn sample(sampling: &Sampling, logits: &[f32], draw: f64) -> Option<u32> {
    let first = first_largest(logits)?;
    if sampling.temperature == 0.0 {
        return Some(first as u32);
    }
    let max = logits[first];
    let is_possible = |id: &u32| logits[*id as usize] > f32::NEG_INFINITY;
    let mut kept: Vec<u32> = (0..logits.len() as u32).filter(is_possible).collect();
    keep_top_k(&mut kept, logits, sampling.top_k);
    keep_top_p(&mut kept, logits, max, sampling.top_p);
    if sampling.min_p > 0.0 {
        let least = f64::from(sampling.min_p);
        kept.retain(|id| weight(logits[*id as usize], max, 1.0) >= least);
    }
    kept.sort_unstable();
    Some(drawn(&kept, logits, max, sampling.temperature, draw))
}

/// Returns the first index of the largest value, `None` if there is no finite largest one.
fn first_largest(logits: &[f32]) -> Option<usize> {
    let mut first = 0;
    for (index, logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if *logit > logits[first] {
            first = index;
        }
    }
    logits.get(first).filter(|logit| logit.is_finite()).map(|_| first)
}

/// Returns e^((logit - max) / temperature).
fn weight(logit: f32, max: f32, temperature: f32) -> f64 {
    exp((f64::from(logit) - f64::from(max)) / f64::from(temperature))
}

/// More likely first, then the lower id.
fn by_likelihood(logits: &[f32]) -> impl Fn(&u32, &u32) -> Ordering {
    // a sum with 0 makes -0 and 0 the same
    |a, b| (logits[*b as usize] + 0.0).total_cmp(&(logits[*a as usize] + 0.0)).then(a.cmp(b))
}

fn keep_top_k(kept: &mut Vec<u32>, logits: &[f32], top_k: usize) {
    if top_k > 0 && top_k < kept.len() {
        kept.select_nth_unstable_by(top_k - 1, by_likelihood(logits));
        kept.truncate(top_k);
    }
}

/// Keeps the fewest most likely tokens whose probabilities sum to at least `top_p`, at least one.
fn keep_top_p(kept: &mut Vec<u32>, logits: &[f32], max: f32, top_p: f32) {
    if top_p >= 1.0 || kept.is_empty() {
        return;
    }
    kept.sort_unstable();
    let total: f64 = kept.iter().map(|id| weight(logits[*id as usize], max, 1.0)).sum();
    let enough = f64::from(top_p) * total;
    // Mostly a few tokens are enough: only so many are put in order, then twice as many.
    let mut n_sorted = 0;
    let mut sum = 0.0;
    while n_sorted < kept.len() {
        let end = kept.len().min((2 * n_sorted).max(64));
        let rest = &mut kept[n_sorted..];
        if end - n_sorted < rest.len() {
            rest.select_nth_unstable_by(end - n_sorted - 1, by_likelihood(logits));
        }
        rest[..end - n_sorted].sort_unstable_by(by_likelihood(logits));
        for index in n_sorted..end {
            sum += weight(logits[kept[index] as usize], max, 1.0);
            if sum >= enough {
                kept.truncate(index + 1);
                return;
            }
        }
        n_sorted = end;
    }
}

/// Returns the token at `draw` of the kept ones' probabilities, laid end to end by id.
fn drawn(kept: &[u32], logits: &[f32], max: f32, temperature: f32, draw: f64) -> u32 {
    let total: f64 = kept.iter().map(|id| weight(logits[*id as usize], max, temperature)).sum();
    let target = draw * total;
    let (mut sum, mut last) = (0.0, 0);
    for id in kept {
        let weight = weight(logits[*id as usize], max, temperature);
        sum += weight;
        if sum > target {
            return *id;
        }
        // what has no weight is never drawn, not even by rounding
        if weight > 0.0 {
            last = *id;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::philox::{Philox, Purpose};

    fn uniform(seed: u64, index: u64, step: u32) -> f64 {
        Philox::new(seed, Purpose::Sampling).uniform_f64(step, index)
    }

    /// The same by full sorts, in the words of the documentation.
    fn naive(sampling: &Sampling, logits: &[f32], draw: f64) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap().then(a.cmp(b)));
        let max = logits[order[0] as usize];
        if sampling.temperature == 0.0 {
            return order[0];
        }
        let p = |id: u32, t: f32| exp((f64::from(logits[id as usize]) - f64::from(max)) / f64::from(t));
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k);
        }
        if sampling.top_p < 1.0 {
            let mut by_id = order.clone();
            by_id.sort();
            let total: f64 = by_id.iter().map(|id| p(*id, 1.0)).sum();
            let mut sum = 0.0;
            let reached = |id: &u32| {
                sum += p(*id, 1.0);
                sum >= f64::from(sampling.top_p) * total
            };
            if let Some(at) = order.iter().position(reached) {
                order.truncate(at + 1);
            }
        }
        order.retain(|id| p(*id, 1.0) >= f64::from(sampling.min_p));
        order.sort();
        let total: f64 = order.iter().map(|id| p(*id, sampling.temperature)).sum();
        let mut sum = 0.0;
        for id in &order {
            sum += p(*id, sampling.temperature);
            if sum > draw * total {
                return *id;
            }
        }
        *order.last().unwrap()
    }

    #[test]
    fn tokens_are_those_of_the_naive_form() {
        let mut n_cases = 0;
        for n in [1, 2, 63, 64, 65, 500] {
            // few levels, so that there are ties
            let level = |id| (uniform(u64::from(n), 0, id) * 40.0).floor() as f32 / 4.0;
            let row: Vec<f32> = (0..n).map(level).collect();
            for top_k in [0, 1, 3, 40, 1000] {
                for top_p in [0.0, 0.3, 0.9, 0.999, 1.0] {
                    for min_p in [0.0, 0.05, 0.5, 1.0] {
                        for temperature in [0.0, 0.3, 1.0, 2.5] {
                            let sampling = Sampling { temperature, top_k, top_p, min_p };
                            let draw = uniform(1, 1, n_cases);
                            let expected = Some(naive(&sampling, &row, draw));
                            assert_eq!(sample(&sampling, &row, draw), expected, "{sampling:?} {n}");
                            n_cases += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(n_cases, 2400);
    }

    #[test]
    fn frequencies_are_the_probabilities() {
        let row = [0.0, 2.0_f32.ln(), 3.0_f32.ln(), 4.0_f32.ln()];
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
        let mut counts = [0; 4];
        for step in 0..10_000 {
            let token = sample(&sampling, &row, uniform(1, 0, step));
            counts[token.unwrap() as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([1000, 2000, 3000, 4000]) {
            // four standard deviations, at most 49 each
            assert!((expected - 200..expected + 200).contains(&count), "{counts:?}");
        }
    }

    #[test]
    fn logits_without_a_largest_give_no_token() {
        let inf = f32::INFINITY;
        for row in [&[][..], &[0.0, f32::NAN], &[inf, 0.0], &[-inf, -inf]] {
            assert_eq!(sample(&Sampling::GREEDY, row, 0.0), None, "{row:?}");
        }
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
        assert_eq!(sample(&sampling, &[-inf, 1.0, -inf], 0.999_999), Some(1));
        assert_eq!(sample(&Sampling::GREEDY, &[1.0, 3.0, 3.0], 0.9), Some(1));
    }
}
