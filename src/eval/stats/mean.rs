//! The interval of a mean of scores.

use super::cluster::{Sum, cluster_sums, variance};
use super::{Interval, normal, student};

/// Returns the two-sided interval of the mean of `values` at `level` (0.95, say); `None` below two values or clusters.
///
/// - Right and wrong (every value is 0 or 1): Wilson's score interval (1927, JASA 22:209). It is no single point where
///   everything is right.
/// - Other scores: mean ± t * standard error, not beyond 0 and 1 if no value is.
///
/// With `clusters`, each value's from 0 and none left out, the standard error is the clustered one, t has G - 1 degrees of
/// freedom, and Wilson's interval is that of n / (D (t/z)^2) items (Korn and Graubard 1998, Survey Methodology 24:193): D is
/// the clustered variance over that of single items, but at least 1.
pub fn mean_interval(values: &[f64], clusters: Option<&[usize]>, level: f64) -> Option<Interval> {
    let n = values.len() as f64;
    let sums: Vec<Sum> = match clusters {
        Some(clusters) => cluster_sums(values, &vec![1.0; values.len()], clusters),
        None => values.iter().map(|value| Sum { value: *value, weight: 1.0 }).collect(),
    };
    if sums.len() < 2 {
        return None;
    }
    let found = variance(&sums);
    let corrected = found.clustered * found.correction;
    let upper = 0.5 + 0.5 * level;
    let (z, t) = (normal::quantile(upper), student::quantile(upper, (sums.len() - 1) as f64));
    if values.iter().all(|value| *value == 0.0 || *value == 1.0) {
        let of_single = found.mean * (1.0 - found.mean) / n;
        let design_effect = if of_single > 0.0 { (corrected / of_single).max(1.0) } else { 1.0 };
        let worth = if clusters.is_some() { z * z / (t * t * design_effect) } else { 1.0 };
        return Some(wilson(found.mean, n * worth, z));
    }
    let half = t * corrected.sqrt();
    let (lower, upper) = (found.mean - half, found.mean + half);
    Some(match values.iter().all(|value| (0.0..=1.0).contains(value)) {
        true => Interval { lower: lower.max(0.0), upper: upper.min(1.0) },
        false => Interval { lower, upper },
    })
}

/// Wilson's interval of the share `p` of `n` items, at the normal quantile `z`.
fn wilson(p: f64, n: f64, z: f64) -> Interval {
    let square = z * z / n;
    let centre = (p + 0.5 * square) / (1.0 + square);
    let half = z * (p * (1.0 - p) / n + 0.25 * square / n).sqrt() / (1.0 + square);
    // at 0 and 1 centre and half are the same number but for rounding
    Interval {
        lower: if p == 0.0 { 0.0 } else { (centre - half).max(0.0) },
        upper: if p == 1.0 { 1.0 } else { (centre + half).min(1.0) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(n: usize, n_right: usize) -> Vec<f64> {
        (0..n).map(|index| if index < n_right { 1.0 } else { 0.0 }).collect()
    }

    fn assert_near(found: Interval, lower: f64, upper: f64) {
        assert!((found.lower - lower).abs() < 1e-11 && (found.upper - upper).abs() < 1e-11, "{found:?}");
    }

    /// statsmodels 0.15.0 proportion_confint(right, n, 0.05, "wilson")
    #[test]
    fn shares_have_wilsons_interval() {
        let interval = |n, n_right| mean_interval(&right(n, n_right), None, 0.95).unwrap();
        assert_near(interval(80, 21), 0.1785740148850936, 0.36818959664428175);
        assert_near(interval(200, 200), 0.9811546736227335, 1.0);
        assert_eq!(interval(200, 0).lower, 0.0);
        assert_eq!(mean_interval(&[1.0], None, 0.95), None);
    }

    /// scipy 1.17.1 ttest_1samp([0.1, 0.4, 0.35, 0.8], 0).confidence_interval(0.95), and the same without bounds
    #[test]
    fn other_scores_have_students_interval() {
        let values = [0.1, 0.4, 0.35, 0.8];
        assert_near(mean_interval(&values, None, 0.95).unwrap(), 0.0, 0.8735658896255825);
        let values = values.map(|value| value + 2.0);
        assert_near(mean_interval(&values, None, 0.95).unwrap(), 1.9514341103744176, 2.8735658896255825);
    }

    #[test]
    fn clusters_widen_and_copies_do_not_narrow() {
        let values = right(400, 200);
        let alone = mean_interval(&values, None, 0.95).unwrap();
        // four to a cluster, all right or all wrong: worth a quarter of the items
        let four: Vec<usize> = (0..400).map(|index| index / 4).collect();
        let clustered = mean_interval(&values, Some(&four), 0.95).unwrap();
        let ratio = (clustered.upper - clustered.lower) / (alone.upper - alone.lower);
        assert!((1.98..2.05).contains(&ratio), "{ratio}");
        // clusters in which nothing correlates
        let spread: Vec<usize> = (0..400).map(|index| index % 200).collect();
        let spread = mean_interval(&values, Some(&spread), 0.95).unwrap();
        assert!((spread.upper - alone.upper).abs() < 1e-3, "{spread:?} {alone:?}");
        assert_eq!(mean_interval(&values, Some(&[0; 400]), 0.95), None);
    }
}
