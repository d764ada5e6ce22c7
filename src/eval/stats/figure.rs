//! Intervals of figures that are no means of a score: ratios of sums, and other functions of sums.

use super::bootstrap::{Addends as _, Draws, bca_of};
use super::cluster::{cluster_sums, variance};
use super::{Interval, student};

/// Fewest clusters, or documents that stand alone, that are drawn again: of fewer the draws know too little.
pub const FEWEST_DRAWN: usize = 10;

/// The draws of [`sums_interval`].
const DRAWS: Draws = Draws { n: 2000, seed: 0 };

/// A figure of sums, one for each number that documents have.
pub type FigureOfSums<'a> = Box<dyn Fn(&[f64]) -> f64 + Sync + 'a>;

/// What each document adds to a figure.
pub enum Addition<'a> {
    /// The figure is `scale` of the sum of values over the sum of weights; `scale` rises with what it is given.
    Ratio { values: Vec<f64>, weights: Vec<f64>, scale: fn(f64) -> f64 },
    /// The figure is a function of the sums of numbers, of which every document has as many.
    Sums { rows: Vec<Vec<f64>>, figure: FigureOfSums<'a> },
}

/// Returns the two-sided interval at `level` of a figure; `clusters` holds each document's, from 0, none left out.
///
/// - Ratio: linearized (Cochran 1977, section 6.4), with the clustered variance and t of G - 1 degrees of freedom, on the scale below
///   `scale`. `None` below two clusters, or where a document's number is infinite.
/// - Sums: [`bca_of`] over clusters, 2000 draws from seed 0. `None` below [`FEWEST_DRAWN`] clusters, and where all draws are the
///   same: a point would say too much.
pub fn figure_interval(addition: &Addition, clusters: &[usize], level: f64) -> Option<Interval> {
    let interval = match addition {
        Addition::Ratio { values, weights, scale } => {
            ratio_interval(values, weights, clusters, level, *scale)?
        }
        Addition::Sums { rows, figure } => sums_interval(rows, figure.as_ref(), clusters, level)?,
    };
    (interval.lower.is_finite() && interval.upper.is_finite()).then_some(interval)
}

fn ratio_interval(
    values: &[f64],
    weights: &[f64],
    clusters: &[usize],
    level: f64,
    scale: fn(f64) -> f64,
) -> Option<Interval> {
    let sums = cluster_sums(values, weights, clusters);
    if sums.len() < 2 {
        return None;
    }
    let found = variance(&sums);
    let t = student::quantile(0.5 + 0.5 * level, (sums.len() - 1) as f64);
    let half = t * (found.clustered * found.correction).sqrt();
    Some(Interval { lower: scale(found.mean - half), upper: scale(found.mean + half) })
}

fn sums_interval(
    rows: &[Vec<f64>],
    figure: &(dyn Fn(&[f64]) -> f64 + Sync + '_),
    clusters: &[usize],
    level: f64,
) -> Option<Interval> {
    let mut sums = vec![rows.first()?.zero(); clusters.iter().max()? + 1];
    rows.iter().zip(clusters).for_each(|(row, cluster)| sums[*cluster].add(row));
    if sums.len() < FEWEST_DRAWN {
        return None;
    }
    let half = 0.5 * (1.0 - level);
    let bounds = bca_of(&sums, &|sums: &Vec<f64>| figure(sums), &[half, 1.0 - half], DRAWS);
    (bounds[0] < bounds[1]).then(|| Interval { lower: bounds[0], upper: bounds[1] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::stats::{Sum, bca};
    use crate::kernel::math64::exp;

    fn ratio(values: &[f64], weights: &[f64], clusters: &[usize], scale: fn(f64) -> f64) -> Option<Interval> {
        let addition = Addition::Ratio { values: values.to_vec(), weights: weights.to_vec(), scale };
        figure_interval(&addition, clusters, 0.95)
    }

    const NLL: [f64; 5] = [20.0, 31.0, 12.0, 55.0, 8.0];
    const WORDS: [f64; 5] = [10.0, 14.0, 7.0, 20.0, 5.0];
    const ALONE: [f64; 2] = [1.6152556829179376, 2.8847443170820615];
    const CLUSTERED: [f64; 2] = [1.470465974004689, 3.02953402599531];

    /// statsmodels 0.15.0: WLS of values / weights on a constant with these weights and cov_type "cluster" (its correction on),
    /// conf_int with use_t; the same with the clusters 0, 0, 1, 2, 2.
    #[test]
    fn ratios_are_those_of_a_weighted_regression() {
        let alone: Vec<usize> = (0..5).collect();
        let near = |found: Interval, [lower, upper]: [f64; 2]| {
            assert!((found.lower - lower).abs() < 1e-9 && (found.upper - upper).abs() < 1e-9, "{found:?}");
        };
        near(ratio(&NLL, &WORDS, &alone, |x| x).unwrap(), ALONE);
        near(ratio(&NLL, &WORDS, &[0, 0, 1, 2, 2], |x| x).unwrap(), CLUSTERED);
        let scaled = ratio(&NLL, &WORDS, &alone, exp).unwrap();
        near(scaled, ALONE.map(exp));
        assert_eq!(ratio(&NLL, &WORDS, &[0; 5], exp), None, "one cluster says nothing of others");
        let unknown = [20.0, f64::INFINITY, 12.0, 55.0, 8.0];
        assert_eq!(ratio(&unknown, &WORDS, &alone, exp), None);
    }

    #[test]
    fn sums_are_drawn_as_ratios_are() {
        let values: Vec<f64> = (0..40).map(|index| f64::from(index * index % 17)).collect();
        let sums: Vec<Sum> = values.iter().map(|value| Sum { value: *value, weight: 1.0 }).collect();
        let rows: Vec<Vec<f64>> = values.iter().map(|value| vec![*value, 1.0]).collect();
        let figure: FigureOfSums = Box::new(|sum| sum[0] / sum[1]);
        let alone: Vec<usize> = (0..40).collect();
        let addition = Addition::Sums { rows: rows.clone(), figure };
        let found = figure_interval(&addition, &alone, 0.9).unwrap();
        assert_eq!(vec![found.lower, found.upper], bca(&sums, &[0.05, 0.95], DRAWS));
        // four copies to a cluster are worth one
        let (copies, four): (Vec<Vec<f64>>, Vec<usize>) =
            (0..160).map(|index| (rows[index / 4].clone(), index / 4)).unzip();
        let figure: FigureOfSums = Box::new(|sum| sum[0] / sum[1]);
        let clustered = figure_interval(&Addition::Sums { rows: copies, figure }, &four, 0.9).unwrap();
        assert_eq!(clustered, found);
    }

    #[test]
    fn too_few_clusters_and_draws_without_spread_have_none() {
        let sums = |n: usize, value: f64| Addition::Sums {
            rows: (0..n).map(|index| vec![if index % 2 == 0 { 1.0 } else { value }]).collect(),
            figure: Box::new(|sum| sum[0]),
        };
        let alone: Vec<usize> = (0..FEWEST_DRAWN).collect();
        assert!(figure_interval(&sums(FEWEST_DRAWN, 2.0), &alone, 0.95).is_some());
        assert_eq!(figure_interval(&sums(FEWEST_DRAWN, 1.0), &alone, 0.95), None);
        let fewer = &alone[..FEWEST_DRAWN - 1];
        assert_eq!(figure_interval(&sums(fewer.len(), 2.0), fewer, 0.95), None);
    }
}
