//! Tango's score interval for the difference of paired proportions.

use super::cluster::{Sum, variance};
use super::{Interval, normal, student};

/// Returns the bounds of (gained - lost) / n at the normal quantile `z` (1.645: each bound is a one-sided 95 % one),
/// of `n` items, `lost` and `gained` of which went from right to wrong and from wrong to right (Tango 1998, Statistics
/// in Medicine 17:891). The numbers need not be whole, but 0 <= lost + gained <= n and n > 0.
///
/// The lower bound with none lost and none gained is -z^2 / (n + z^2).
pub fn tango_interval(lost: f64, gained: f64, n: f64, z: f64) -> Interval {
    let upper = |lost: f64, gained: f64| {
        let estimate = (gained - lost) / n;
        // the score falls from above 0 at the estimate to below -z at 1: halve until nothing is between
        let (mut inside, mut outside) = (estimate, 1.0);
        loop {
            let middle = 0.5 * (inside + outside);
            if middle <= inside || middle >= outside {
                return outside;
            }
            if score(lost, gained, n, middle) > -z {
                inside = middle;
            } else {
                outside = middle;
            }
        }
    };
    Interval { lower: -upper(gained, lost), upper: upper(lost, gained) }
}

/// The score statistic of a difference `delta`: normal if that is the true one.
fn score(lost: f64, gained: f64, n: f64, delta: f64) -> f64 {
    // q, the likeliest probability of a loss given the difference: 2n q^2 + b q + c = 0
    let b = (2.0 * n - gained + lost) * delta - gained - lost;
    let c = -lost * delta * (1.0 - delta);
    let root = (b * b - 8.0 * n * c).max(0.0).sqrt();
    // the form in which nothing cancels
    let loss = if b <= 0.0 { (root - b) / (4.0 * n) } else { -2.0 * c / (root + b) };
    let variance = n * (2.0 * loss + delta * (1.0 - delta));
    (gained - lost - n * delta) / variance.max(f64::MIN_POSITIVE).sqrt()
}

/// Returns Tango's bounds for items in clusters, at the normal quantile `z`: those of as many independent items as carry
/// the clusters' information, n / (D (t / z)^2), with the same shares of lost and gained (Korn and Graubard 1998, Survey
/// Methodology 24:193, for the interval of a share).
///
/// D is the design effect, the clustered variance of the difference over that of single items, but at least 1. t is
/// Student's quantile of G - 1 degrees of freedom at z's level. `sums` holds each cluster's difference (gained - lost)
/// and items. One cluster says nothing: -1 to 1.
pub fn clustered_tango_interval(sums: &[Sum], lost: f64, gained: f64, z: f64) -> Interval {
    if sums.len() < 2 {
        return Interval { lower: -1.0, upper: 1.0 };
    }
    let n: f64 = sums.iter().map(|sum| sum.weight).sum();
    let design_effect = observed_design_effect(sums, lost, gained);
    let t = student::quantile(normal::cdf(z), (sums.len() - 1) as f64);
    let worth = z * z / (t * t * design_effect);
    tango_interval(lost * worth, gained * worth, n * worth, z)
}

/// Returns how much wider the variance of the difference is than that of single items; 1 if it is narrower, or nothing
/// was lost or gained.
pub fn observed_design_effect(sums: &[Sum], lost: f64, gained: f64) -> f64 {
    let n: f64 = sums.iter().map(|sum| sum.weight).sum();
    let found = variance(sums);
    let of_single = (lost + gained - n * found.mean * found.mean) / (n * n);
    if of_single > 0.0 { (found.clustered * found.correction / of_single).max(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Z: f64 = 1.644_853_626_951_472_7;

    #[test]
    fn nothing_lost_has_its_closed_form() {
        for n in [1.0, 50.0, 133.0, 1e5] {
            let found = tango_interval(0.0, 0.0, n, Z);
            let bound = Z * Z / (n + Z * Z);
            assert!((found.lower + bound).abs() < 1e-15 && (found.upper - bound).abs() < 1e-15, "{n}");
        }
        // the smallest size at which an identical model is within 2 points
        assert!(tango_interval(0.0, 0.0, 133.0, Z).lower > -0.02);
        assert!(tango_interval(0.0, 0.0, 132.0, Z).lower < -0.02);
    }

    #[test]
    fn everything_lost_or_gained_stays_within_1() {
        let found = tango_interval(20.0, 0.0, 20.0, Z);
        assert!(found.lower == -1.0, "{found:?}");
        let closed_form = -(20.0 - Z * Z) / (20.0 + Z * Z);
        assert!((found.upper - closed_form).abs() < 1e-12, "{found:?}");
        let found = tango_interval(10.0, 10.0, 20.0, Z);
        assert!((found.lower + found.upper).abs() < 1e-15, "{found:?}");
    }

    #[test]
    fn clusters_widen_and_single_items_nearly_do_not() {
        let single: Vec<Sum> = (0..1000)
            .map(|index| Sum { value: [-1.0, 1.0, 0.0][(index / 20).min(2)], weight: 1.0 })
            .collect();
        let plain = tango_interval(20.0, 20.0, 1000.0, Z);
        let clustered = clustered_tango_interval(&single, 20.0, 20.0, Z);
        assert!((clustered.lower / plain.lower - 1.0).abs() < 0.005, "{clustered:?} {plain:?}");
        // the same items, five to a cluster: all of one sign
        let five: Vec<Sum> = single
            .chunks(5)
            .map(|five| Sum { value: five.iter().map(|sum| sum.value).sum(), weight: 5.0 })
            .collect();
        let clustered = clustered_tango_interval(&five, 20.0, 20.0, Z);
        let worth_200 = tango_interval(4.0, 4.0, 200.0, Z);
        assert!((clustered.lower / worth_200.lower - 1.0).abs() < 0.02, "{clustered:?} {worth_200:?}");
        let one = clustered_tango_interval(&[Sum { value: 0.0, weight: 500.0 }], 5.0, 5.0, Z);
        assert_eq!(one, Interval { lower: -1.0, upper: 1.0 });
    }
}
