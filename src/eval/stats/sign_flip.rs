//! The cluster sign-flip permutation test.

use serde::Serialize;

use super::{Draws, PValues, mcnemar_exact};
use crate::kernel::philox::{Philox, Purpose};

/// Clusters whose signs are enumerated: 2^20 patterns.
const MOST_ENUMERATED: usize = 20;
/// Steps that the exact distribution of whole sums may take.
const MOST_STEPS: f64 = 2e8;

/// What the test found, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignFlip {
    pub p: PValues,
    pub method: Method,
}

/// How the distribution over sign patterns was had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// All of them.
    Exact,
    /// That many at random, and the one that was found (Phipson and Smyth 2010: p is never 0).
    Draws(usize),
}

/// Tests whether clusters' sums of differences are as likely as the same with any signs, which is so if baseline and
/// candidate differ by chance alone, whatever the dependence within a cluster.
///
/// Exact where the sums are whole numbers (right and wrong answers: the distribution is built up cluster by cluster)
/// or at most 20 are not 0; otherwise by seeded draws, with (hits + 1) / (draws + 1).
pub fn sign_flip(sums: &[f64], draws: Draws) -> SignFlip {
    let mut sizes: Vec<f64> = sums.iter().map(|sum| sum.abs()).filter(|size| *size > 0.0).collect();
    // the order of clusters is of no matter
    sizes.sort_by(f64::total_cmp);
    let found: f64 = sums.iter().sum();
    let total: f64 = sizes.iter().sum();
    let exact = |p| SignFlip { p, method: Method::Exact };
    if sizes.iter().all(|size| *size == 1.0) {
        let gained = sums.iter().filter(|sum| **sum > 0.0).count() as u64;
        return exact(mcnemar_exact(sizes.len() as u64 - gained, gained));
    }
    // sums of integers in f64 are exact up to 2^53
    if sizes.iter().all(|size| size.fract() == 0.0) && sizes.len() as f64 * total <= MOST_STEPS {
        return exact(whole(&sizes, found, total));
    }
    // sums that differ by rounding alone are equal
    let slack = 1e-12 * total;
    if sizes.len() <= MOST_ENUMERATED {
        return exact(enumerated(&sizes, found, slack));
    }
    SignFlip { p: drawn(&sizes, found, slack, draws), method: Method::Draws(draws.n) }
}

/// The distribution of the sum over all sign patterns, a cluster at a time: index i is the sum i - (sum of sizes).
fn whole(sizes: &[f64], found: f64, total: f64) -> PValues {
    let mut probabilities = vec![1.0];
    for size in sizes.iter().map(|size| *size as usize) {
        let mut wider = vec![0.0; probabilities.len() + 2 * size];
        for (index, probability) in probabilities.iter().enumerate() {
            wider[index] += 0.5 * probability;
            wider[index + 2 * size] += 0.5 * probability;
        }
        probabilities = wider;
    }
    let at = (found + total) as usize;
    PValues::symmetric(probabilities[..=at].iter().sum(), probabilities[at..].iter().sum())
}

fn enumerated(sizes: &[f64], found: f64, slack: f64) -> PValues {
    /// Counts sums as low and as high as `found`.
    fn count(sizes: &[f64], sum: f64, bounds: (f64, f64), counts: &mut [u64; 2]) {
        match sizes {
            [] => {
                counts[0] += u64::from(sum <= bounds.0);
                counts[1] += u64::from(sum >= bounds.1);
            }
            [size, rest @ ..] => {
                count(rest, sum - size, bounds, counts);
                count(rest, sum + size, bounds, counts);
            }
        }
    }
    let mut counts = [0, 0];
    count(sizes, 0.0, (found + slack, found - slack), &mut counts);
    let all = (1u64 << sizes.len()) as f64;
    PValues::symmetric(counts[0] as f64 / all, counts[1] as f64 / all)
}

fn drawn(sizes: &[f64], found: f64, slack: f64, draws: Draws) -> PValues {
    let stream = Philox::new(draws.seed, Purpose::SignFlip);
    let (mut as_low, mut as_high) = (0u64, 0u64);
    for draw in 0..draws.n {
        let mut sum = 0.0;
        for (block, group) in sizes.chunks(128).enumerate() {
            let bits = stream.block(draw as u32, block as u64);
            for (index, size) in group.iter().enumerate() {
                let is_negative = bits[index / 32] >> (index % 32) & 1 == 1;
                sum += if is_negative { -size } else { *size };
            }
        }
        as_low += u64::from(sum <= found + slack);
        as_high += u64::from(sum >= found - slack);
    }
    let p = |hits: u64| (hits + 1) as f64 / (draws.n + 1) as f64;
    PValues::symmetric(p(as_low), p(as_high))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: Draws = Draws { n: 10_000, seed: 1 };

    #[test]
    fn the_three_ways_agree() {
        let sums = [-3.0, 1.0, -2.0, -2.0, 4.0, -1.0, -1.0, -5.0, 2.0, -1.0, -3.0, 0.0];
        let found = sums.iter().sum();
        let sizes: Vec<f64> = sums.iter().map(|sum: &f64| sum.abs()).filter(|size| *size > 0.0).collect();
        let exact = sign_flip(&sums, DRAWS);
        assert_eq!((exact.p, exact.method), (enumerated(&sizes, found, 0.0), Method::Exact));
        let drawn = drawn(&sizes, found, 0.0, DRAWS);
        // 4 standard deviations of 10,000 draws
        let slack = 4.0 * (exact.p.worse * (1.0 - exact.p.worse) / 1e4).sqrt();
        assert!((drawn.worse - exact.p.worse).abs() < slack, "{drawn:?} {exact:?}");
    }

    #[test]
    fn single_items_are_mcnemars_and_ties_are_counted() {
        let mut sums = vec![-1.0; 7];
        sums.extend([1.0, 1.0, 0.0]);
        assert_eq!(sign_flip(&sums, DRAWS).p, mcnemar_exact(7, 2));
        let small: Vec<f64> = sums.iter().map(|sum| 0.1 * sum).collect();
        let scaled = sign_flip(&small, DRAWS).p;
        assert!((scaled.worse - mcnemar_exact(7, 2).worse).abs() < 1e-15, "{scaled:?}");
        assert_eq!(sign_flip(&[0.0, 0.0], DRAWS).p, PValues { worse: 1.0, two_sided: 1.0 });
    }

    #[test]
    fn draws_are_many_clusters_last_resort_and_never_give_0() {
        let sums: Vec<f64> = (0..40).map(|index| -0.1 - 0.01 * f64::from(index)).collect();
        let found = sign_flip(&sums, DRAWS);
        assert_eq!(found.method, Method::Draws(10_000));
        assert_eq!(found.p.worse, 1.0 / 10_001.0);
        assert_eq!(sign_flip(&sums, DRAWS), found);
    }
}
