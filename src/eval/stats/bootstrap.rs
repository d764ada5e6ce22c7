//! Bootstrap intervals of a mean or a ratio over clusters.

use rayon::prelude::*;

use super::cluster::{Sum, variance};
use super::normal;
use crate::kernel::philox::{Philox, Purpose};

/// How many random draws, and from which seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws {
    pub n: usize,
    pub seed: u64,
}

/// Returns the percentile bootstrap's bounds: the quantiles `levels` of the figure (sum of values over sum of weights)
/// of clusters drawn again with replacement. There is at least one cluster.
pub fn cluster_bootstrap(clusters: &[Sum], levels: &[f64], draws: Draws) -> Vec<f64> {
    let figures = resampled(clusters, draws);
    levels.iter().map(|level| percentile(&figures, *level)).collect()
}

/// Returns the bias-corrected and accelerated bootstrap's bounds at `levels` (Efron 1987, JASA 82:171): percentiles
/// moved by the share of draws below the figure and by the skewness that leaving out one cluster at a time shows.
/// Items that stand alone are clusters of one. There is at least one cluster.
pub fn bca(clusters: &[Sum], levels: &[f64], draws: Draws) -> Vec<f64> {
    let figures = resampled(clusters, draws);
    let figure = variance(clusters).mean;
    let below = figures.partition_point(|other| *other < figure);
    let not_above = figures.partition_point(|other| *other <= figure);
    // a figure outside of all draws would have an infinite quantile
    let n = figures.len() as f64;
    let share = ((below + not_above) as f64 / (2.0 * n)).clamp(0.5 / n, 1.0 - 0.5 / n);
    let bias = normal::quantile(share);
    let acceleration = acceleration(clusters);
    let bound = |level: &f64| {
        let moved = bias + normal::quantile(*level);
        percentile(&figures, normal::cdf(bias + moved / (1.0 - acceleration * moved)))
    };
    levels.iter().map(bound).collect()
}

/// Returns the figures of all draws, ascending. Draw r takes as its i-th cluster the word i % 4 of block (r, i / 4);
/// the bias of scaling 32 bits to the number of clusters is below that number / 2^32.
fn resampled(clusters: &[Sum], draws: Draws) -> Vec<f64> {
    let stream = Philox::new(draws.seed, Purpose::Bootstrap);
    let n = clusters.len() as u64;
    let figure = |draw: u32| {
        let mut sum = Sum::default();
        for block in 0..n.div_ceil(4) {
            let words = stream.block(draw, block);
            for word in &words[..4.min((n - 4 * block) as usize)] {
                let taken = clusters[((u64::from(*word) * n) >> 32) as usize];
                sum.value += taken.value;
                sum.weight += taken.weight;
            }
        }
        sum.value / sum.weight
    };
    let mut figures: Vec<f64> = (0..draws.n as u32).into_par_iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures
}

/// Returns the quantile of ascending values, between two of them by interpolation (Hyndman and Fan's type 7).
fn percentile(ascending: &[f64], level: f64) -> f64 {
    let at = level * (ascending.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let next = ascending[(low + 1).min(ascending.len() - 1)];
    ascending[low] + part * (next - ascending[low])
}

/// A sixth of the skewness of the figures without one cluster each; 0 if they are all the same.
fn acceleration(clusters: &[Sum]) -> f64 {
    let weight: f64 = clusters.iter().map(|sum| sum.weight).sum();
    let value: f64 = clusters.iter().map(|sum| sum.value).sum();
    let without: Vec<f64> = clusters.iter().map(|sum| (value - sum.value) / (weight - sum.weight)).collect();
    let mean = without.iter().sum::<f64>() / without.len() as f64;
    let (mut squares, mut cubes) = (0.0, 0.0);
    for figure in without {
        let deviation = mean - figure;
        squares += deviation * deviation;
        cubes += deviation * deviation * deviation;
    }
    let found = cubes / (6.0 * squares * squares.sqrt());
    if found.is_finite() { found } else { 0.0 }
}
