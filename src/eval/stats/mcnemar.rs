//! McNemar's test on the items that two models disagree about.

use super::PValues;

/// Returns the exact p-values for `lost` items that only the baseline got right and `gained` that only the candidate
/// did: under the null hypothesis `lost` is binomial with probability 1/2 (McNemar 1947, in its exact form).
/// Both are 1 if there are none.
pub fn mcnemar_exact(lost: u64, gained: u64) -> PValues {
    let n = lost + gained;
    PValues::symmetric(upper_tail(n, lost), upper_tail(n, gained))
}

/// Returns P(X >= k) of X binomial over n trials with probability 1/2.
///
/// Weights go out from the middle by their ratios and are divided by their sum: no factorials, so that nothing cancels
/// for any n; tails below 1e-300 are 0.
fn upper_tail(n: u64, k: u64) -> f64 {
    let middle = n / 2;
    let (mut total, mut tail) = (1.0, if middle >= k { 1.0 } else { 0.0 });
    let mut weight = 1.0;
    for at in middle + 1..=n {
        weight *= (n - at + 1) as f64 / at as f64;
        total += weight;
        if at >= k {
            tail += weight;
        }
        if weight == 0.0 {
            break;
        }
    }
    weight = 1.0;
    for at in (0..middle).rev() {
        weight *= (at + 1) as f64 / (n - at) as f64;
        total += weight;
        if at >= k {
            tail += weight;
        }
        if weight == 0.0 {
            break;
        }
    }
    tail / total
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published vectors of shared notes: lost 357, gained 246 and lost 262, gained 254.
    #[test]
    fn published_vectors_reproduce() {
        let clear = mcnemar_exact(357, 246);
        assert_eq!(format!("{:.2e}", clear.two_sided), "7.07e-6");
        assert!((clear.worse - clear.two_sided / 2.0).abs() < 1e-18);
        assert_eq!(format!("{:.3}", mcnemar_exact(262, 254).two_sided), "0.758");
    }

    #[test]
    fn small_cases_are_fractions() {
        assert_eq!(mcnemar_exact(0, 0), PValues { worse: 1.0, two_sided: 1.0 });
        assert_eq!(mcnemar_exact(1, 0), PValues { worse: 0.5, two_sided: 1.0 });
        assert_eq!(mcnemar_exact(5, 0), PValues { worse: 1.0 / 32.0, two_sided: 1.0 / 16.0 });
        assert_eq!(mcnemar_exact(0, 5), PValues { worse: 1.0, two_sided: 1.0 / 16.0 });
        assert_eq!(mcnemar_exact(3, 3).worse, 42.0 / 64.0);
    }
}
