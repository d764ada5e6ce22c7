//! Bootstrap intervals of a mean, a ratio, or any figure of sums over clusters.

use rayon::prelude::*;

use super::cluster::Sum;
use super::normal;
use crate::kernel::philox::{Philox, Purpose};

/// How many random draws, and from which seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws {
    pub n: usize,
    pub seed: u64,
}

/// Numbers of a cluster that add up over clusters.
pub trait Addends: Clone + Sync {
    /// Returns zeros of this shape.
    fn zero(&self) -> Self;
    fn add(&mut self, other: &Self);
    fn subtract(&mut self, other: &Self);
}

impl Addends for Sum {
    fn zero(&self) -> Sum {
        Sum::default()
    }

    fn add(&mut self, other: &Sum) {
        self.value += other.value;
        self.weight += other.weight;
    }

    fn subtract(&mut self, other: &Sum) {
        self.value -= other.value;
        self.weight -= other.weight;
    }
}

/// All clusters' are of one length.
impl Addends for Vec<f64> {
    fn zero(&self) -> Vec<f64> {
        vec![0.0; self.len()]
    }

    fn add(&mut self, other: &Vec<f64>) {
        self.iter_mut().zip(other).for_each(|(sum, addend)| *sum += addend);
    }

    fn subtract(&mut self, other: &Vec<f64>) {
        self.iter_mut().zip(other).for_each(|(sum, addend)| *sum -= addend);
    }
}

fn ratio(sum: &Sum) -> f64 {
    sum.value / sum.weight
}

/// Returns the percentile bootstrap's bounds: the quantiles `levels` of the figure (sum of values over sum of weights)
/// of clusters drawn again with replacement. There is at least one cluster.
pub fn cluster_bootstrap(clusters: &[Sum], levels: &[f64], draws: Draws) -> Vec<f64> {
    let figures = resampled(clusters, &ratio, draws);
    levels.iter().map(|level| percentile(&figures, *level)).collect()
}

/// Returns the bias-corrected and accelerated bootstrap's bounds at `levels` (Efron 1987, JASA 82:171): percentiles
/// moved by the share of draws below the figure and by the skewness that leaving out one cluster at a time shows.
/// Items that stand alone are clusters of one. There is at least one cluster.
pub fn bca(clusters: &[Sum], levels: &[f64], draws: Draws) -> Vec<f64> {
    bca_of(clusters, &ratio, levels, draws)
}

/// Returns the bounds of [`bca`] for another figure of the clusters' sums; it must not depend on the clusters' order.
pub fn bca_of<A: Addends>(
    clusters: &[A],
    figure: &(impl Fn(&A) -> f64 + Sync + ?Sized),
    levels: &[f64],
    draws: Draws,
) -> Vec<f64> {
    let figures = resampled(clusters, figure, draws);
    let acceleration = acceleration(clusters, figure);
    let figure = total(clusters).map_or(f64::NAN, |total| figure(&total));
    let below = figures.partition_point(|other| *other < figure);
    let not_above = figures.partition_point(|other| *other <= figure);
    // a figure outside of all draws would have an infinite quantile
    let n = figures.len() as f64;
    let share = ((below + not_above) as f64 / (2.0 * n)).clamp(0.5 / n, 1.0 - 0.5 / n);
    let bias = normal::quantile(share);
    let bound = |level: &f64| {
        let moved = bias + normal::quantile(*level);
        percentile(&figures, normal::cdf(bias + moved / (1.0 - acceleration * moved)))
    };
    levels.iter().map(bound).collect()
}

/// Returns the figures of all draws, ascending. Draw r takes as its i-th cluster the word i % 4 of block (r, i / 4);
/// the bias of scaling 32 bits to the number of clusters is below that number / 2^32.
fn resampled<A: Addends>(
    clusters: &[A],
    figure: &(impl Fn(&A) -> f64 + Sync + ?Sized),
    draws: Draws,
) -> Vec<f64> {
    let stream = Philox::new(draws.seed, Purpose::Bootstrap);
    let n = clusters.len() as u64;
    let drawn = |draw: u32| {
        let mut sum = clusters[0].zero();
        for block in 0..n.div_ceil(4) {
            let words = stream.block(draw, block);
            for word in &words[..4.min((n - 4 * block) as usize)] {
                sum.add(&clusters[((u64::from(*word) * n) >> 32) as usize]);
            }
        }
        figure(&sum)
    };
    let mut figures: Vec<f64> = (0..draws.n as u32).into_par_iter().map(drawn).collect();
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

/// Returns the sum over all clusters; `None` if there is none.
fn total<A: Addends>(clusters: &[A]) -> Option<A> {
    let mut total = clusters.first()?.zero();
    clusters.iter().for_each(|cluster| total.add(cluster));
    Some(total)
}

/// A sixth of the skewness of the figures without one cluster each; 0 if they are all the same.
fn acceleration<A: Addends>(clusters: &[A], figure: &(impl Fn(&A) -> f64 + ?Sized)) -> f64 {
    let Some(total) = total(clusters) else { return 0.0 };
    let without = |cluster: &A| {
        let mut rest = total.clone();
        rest.subtract(cluster);
        figure(&rest)
    };
    let without: Vec<f64> = clusters.iter().map(without).collect();
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
