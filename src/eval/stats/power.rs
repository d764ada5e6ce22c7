//! What a comparison can see: sizes, minimum detectable effects, power.
//!
//! Of n items with a share `flips` of changed answers, the difference of two equal models has variance
//! flips * design_effect / n. A one-sided test at `alpha` sees a loss with probability `power` if it is
//! (z_alpha + z_power) standard deviations.

use super::normal;

/// What a plan assumes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assumptions {
    /// Share of items whose answer changes between two equal models.
    pub flips: f64,
    /// How much clusters widen the variance; 1 for single items.
    pub design_effect: f64,
    /// Of a one-sided test.
    pub alpha: f64,
    pub power: f64,
}

impl Assumptions {
    fn quantiles(&self) -> f64 {
        normal::quantile(1.0 - self.alpha) + normal::quantile(self.power)
    }

    fn variance_of_one(&self) -> f64 {
        self.flips * self.design_effect
    }

    /// Returns the smallest loss that n items show with the power assumed.
    pub fn detectable(&self, n: f64) -> f64 {
        self.quantiles() * (self.variance_of_one() / n).sqrt()
    }

    /// Returns the items needed to show with the power assumed that an equal model is within `margin`, or a loss of
    /// `margin`.
    pub fn required(&self, margin: f64) -> f64 {
        (self.quantiles().powi(2) * self.variance_of_one() / (margin * margin)).ceil()
    }

    /// Returns how likely n items show that an equal model is within `margin`.
    pub fn power_at(&self, n: f64, margin: f64) -> f64 {
        normal::cdf(margin / (self.variance_of_one() / n).sqrt() - normal::quantile(1.0 - self.alpha))
    }
}

/// Returns the design effect of clusters of these sizes whose items correlate by `correlation`: Kish's
/// 1 + (m - 1) correlation, with m the mean size of the cluster of an item.
pub fn design_effect(sizes: impl IntoIterator<Item = usize>, correlation: f64) -> f64 {
    let (mut n, mut squares) = (0.0, 0.0);
    for size in sizes {
        n += size as f64;
        squares += (size * size) as f64;
    }
    if n == 0.0 { 1.0 } else { 1.0 + (squares / n - 1.0) * correlation }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE: Assumptions = Assumptions { flips: 0.05, design_effect: 1.0, alpha: 0.05, power: 0.8 };

    /// The published vectors of shared notes.
    #[test]
    fn published_vectors_reproduce() {
        assert_eq!(FIVE.required(0.02), 773.0);
        for (n, points) in [(80.0, "6.2"), (500.0, "2.5"), (2000.0, "1.2")] {
            assert_eq!(format!("{:.1}", 100.0 * FIVE.detectable(n)), points);
        }
        assert!((FIVE.quantiles() - 2.487).abs() < 1e-3);
        assert!((FIVE.power_at(773.0, 0.02) - 0.8).abs() < 1e-3);
    }

    #[test]
    fn clusters_widen() {
        assert_eq!(design_effect([1, 1, 1], 0.5), 1.0);
        assert_eq!(design_effect([4, 4], 0.5), 2.5);
        assert_eq!(design_effect([], 0.5), 1.0);
        let clustered = Assumptions { design_effect: 2.0, ..FIVE };
        assert_eq!(clustered.required(0.02), 1546.0);
    }
}
