//! How two runs of a task, or of several as a pool, differ.

use std::collections::HashMap;

use serde::Serialize;

use super::pair::{Figure, Pair};
use super::policy::Policy;
use crate::eval::stats::power::design_effect;
use crate::eval::stats::{
    Interval, PValues, Sum, bca, cluster_sums, clustered_tango_interval, normal, observed_design_effect,
    sign_flip, tango_interval, variance,
};
use crate::eval::stats::{SignFlip, SignFlipMethod};

/// Fewest clusters whose resampling says something about the tails of an unbounded figure.
pub const FEWEST_CLUSTERS: usize = 10;

/// How two runs differ. Differences are the candidate's, positive if it is better; in the figure's unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    pub items: usize,
    /// As many as items if none belong together.
    pub clusters: usize,
    pub baseline: f64,
    pub candidate: f64,
    pub difference: f64,
    /// The one-sided bound that decisions stand on; minus infinity (null) if there is none.
    pub lower: f64,
    /// The one-sided bound that the changes there were show by themselves, which a loss has to reach its margin by: `lower`
    /// without what is allowed for changes that were not seen. Where there is no bound, the difference.
    pub lower_of_changes: f64,
    /// The two-sided interval, for information.
    pub interval: Interval,
    pub interval_method: &'static str,
    pub p: PValues,
    pub test: String,
    /// Items on which the candidate is worse and better.
    pub lost: usize,
    pub gained: usize,
    /// Share of items that changed.
    pub flips: f64,
    /// Of the difference, clustered.
    pub standard_error: f64,
    /// How much wider clusters make the variance.
    pub design_effect: f64,
    /// The smallest loss that would be seen with the policy's power; of at least one changed item.
    pub detectable: f64,
    /// Of one item's difference, clusters allowed for; with at least one changed item.
    #[serde(skip)]
    pub variance_of_one: f64,
    /// The design effect that the policy's correlation gives clusters of these sizes.
    #[serde(skip)]
    pub planned_design_effect: f64,
    #[serde(skip)]
    pub is_binary: bool,
    #[serde(skip)]
    pub is_bounded: bool,
    /// The largest change that one item can have, as far as its unit or the results say; `None` if nothing does.
    #[serde(skip)]
    pub largest_change: Option<f64>,
}

impl Measured {
    /// Returns the items that would decide with the policy's power if the difference is what it seems: shown to be
    /// within `margin`, or shown to be a loss, whichever is the nearer; never less than bounds of the figure take at all.
    pub fn deciding_items(&self, margin: f64, policy: &Policy) -> f64 {
        // at least half the margin
        let distance = (margin + self.difference).max(-self.difference);
        let z = normal::quantile(1.0 - policy.alpha);
        let quantiles = z + normal::quantile(policy.power);
        let of_changes = quantiles * quantiles * self.variance_of_one / (distance * distance);
        // the bound of yes or no counts items, that of other scores clusters
        let of_one = if self.is_binary { 1.0 } else { self.items as f64 / self.clusters as f64 };
        // no change at all shows a margin from z^2 (largest / margin - 1) of them on, and not by exactly as many
        let unchanged = |largest: f64| (z * z * (largest / margin - 1.0)).floor() + 1.0;
        let fewest = if self.is_bounded { 1.0 } else { FEWEST_CLUSTERS as f64 };
        let at_least = self.largest_change.map_or(fewest, |largest| unchanged(largest).max(fewest));
        of_changes.max(at_least * of_one).ceil()
    }
}

/// Returns how the candidate differs over all items of `pairs`; there is at least one, and several are pooled item by
/// item. Items of one document or one cluster of a data set belong together, whichever task they are of.
pub fn measure(pairs: &[&Pair], policy: &Policy) -> Measured {
    let (clusters, n_clusters) = clusters_of(pairs);
    let mut sizes = vec![0; n_clusters];
    clusters.iter().for_each(|cluster| sizes[*cluster] += 1);
    let items = || pairs.iter().flat_map(|pair| pair.items.iter().map(|item| (*pair, item)));
    let deltas: Vec<f64> = items().map(|(pair, item)| pair.delta(item)).collect();
    let weights: Vec<f64> = items().map(|(_, item)| item.weight).collect();
    let weight: f64 = weights.iter().sum();
    let sums = cluster_sums(&deltas, &weights, &clusters);
    let found = variance(&sums);
    let single: Vec<Sum> =
        deltas.iter().zip(&weights).map(|(value, weight)| Sum { value: *value, weight: *weight }).collect();
    let n = deltas.len() as f64;
    let lost = deltas.iter().filter(|delta| **delta < 0.0).count();
    let gained = deltas.iter().filter(|delta| **delta > 0.0).count();
    let is_binary = pairs.iter().all(|pair| pair.is_binary());
    let is_bounded = pairs.iter().all(|pair| pair.is_bounded());
    let largest_change = largest_change(pairs);
    let (lost_items, gained_items) = (lost as f64, gained as f64);
    let flat = Flat {
        sums: &sums,
        n,
        lost: lost_items,
        gained: gained_items,
        is_binary,
        is_bounded,
        largest_change,
    };
    let (bounds, interval_method) = flat.bounds(found.mean, policy);
    let SignFlip { p, method } =
        sign_flip(&sums.iter().map(|sum| sum.value).collect::<Vec<_>>(), policy.draws);
    let is_clustered = n_clusters < deltas.len();
    let test = match method {
        SignFlipMethod::Exact if is_binary && !is_clustered => "exact McNemar".to_owned(),
        SignFlipMethod::Exact => format!("sign flips of {n_clusters} clusters, exact"),
        SignFlipMethod::Draws(draws) => format!("sign flips of {n_clusters} clusters, {draws} draws"),
    };
    // a mean of nothing but equal items has no variance: one changed item is the least there could have been
    let clustered = if n_clusters > 1 { found.clustered * found.correction } else { found.clustered };
    let variance_of_one = (clustered * n).max(if is_bounded { 1.0 / n } else { 0.0 });
    let quantiles = normal::quantile(1.0 - policy.alpha) + normal::quantile(policy.power);
    let mean = |result: fn(&super::Item) -> f64| items().map(|(_, item)| result(item)).sum::<f64>() / weight;
    let of_single = variance(&single).clustered;
    let observed = match is_binary {
        true => observed_design_effect(&sums, lost as f64, gained as f64),
        false if of_single > 0.0 => (found.clustered / of_single).max(1.0),
        false => 1.0,
    };
    Measured {
        items: deltas.len(),
        clusters: n_clusters,
        baseline: mean(|item| item.baseline),
        candidate: mean(|item| item.candidate),
        difference: found.mean,
        lower: bounds.lower,
        lower_of_changes: bounds.lower_of_changes,
        interval: bounds.interval,
        interval_method,
        p,
        test,
        lost,
        gained,
        flips: (lost + gained) as f64 / n,
        standard_error: clustered.sqrt(),
        design_effect: observed,
        detectable: quantiles * (variance_of_one / n).sqrt(),
        variance_of_one,
        planned_design_effect: design_effect(sizes, policy.correlation),
        is_binary,
        is_bounded,
        largest_change,
    }
}

/// Returns the largest change that an item can have: 1 of scores from 0 to 1, of other scores as much as the largest result of
/// either run; `None` of texts, all of which change, and if all results are 0.
fn largest_change(pairs: &[&Pair]) -> Option<f64> {
    if pairs.iter().all(|pair| pair.is_bounded()) {
        return Some(1.0);
    }
    let is_mean = pairs.iter().all(|pair| matches!(pair.figure, Figure::Mean { .. }));
    let results = pairs.iter().flat_map(|pair| &pair.items).flat_map(|item| [item.baseline, item.candidate]);
    let largest = results.fold(0.0, |largest: f64, result| largest.max(result.abs()));
    (is_mean && largest > 0.0).then_some(largest)
}

struct Bounds {
    lower: f64,
    lower_of_changes: f64,
    interval: Interval,
}

/// What intervals need.
struct Flat<'a> {
    sums: &'a [Sum],
    n: f64,
    lost: f64,
    gained: f64,
    is_binary: bool,
    is_bounded: bool,
    largest_change: Option<f64>,
}

impl Flat<'_> {
    fn bounds(&self, difference: f64, policy: &Policy) -> (Bounds, &'static str) {
        let z = |level: f64| normal::quantile(1.0 - level);
        if self.is_binary {
            let (interval, method): (&dyn Fn(f64) -> Interval, _) = if self.sums.len() as f64 == self.n {
                (&|level| tango_interval(self.lost, self.gained, self.n, z(level)), "Tango")
            } else {
                let clustered = |level| clustered_tango_interval(self.sums, self.lost, self.gained, z(level));
                return (of(policy.alpha, &clustered), "Tango, clustered");
            };
            return (of(policy.alpha, interval), method);
        }
        if !self.is_bounded && self.sums.len() < FEWEST_CLUSTERS {
            let unknown = Interval { lower: f64::NEG_INFINITY, upper: f64::INFINITY };
            let bounds = Bounds { lower: unknown.lower, lower_of_changes: difference, interval: unknown };
            return (bounds, "none: too few clusters");
        }
        let half = policy.alpha / 2.0;
        let found = bca(self.sums, &[policy.alpha, half, 1.0 - half], policy.draws);
        // Draws know only the changes there were: the bound of no change at all, in the largest one's unit, holds, too.
        let floor = |level: f64| match self.largest_change {
            Some(largest) => {
                let of_one = tango_interval(0.0, 0.0, self.sums.len() as f64, z(level));
                Interval { lower: largest * of_one.lower, upper: largest * of_one.upper }
            }
            None => Interval { lower: f64::INFINITY, upper: f64::NEG_INFINITY },
        };
        let interval =
            Interval { lower: found[1].min(floor(half).lower), upper: found[2].max(floor(half).upper) };
        let lower = found[0].min(floor(policy.alpha).lower);
        let method = match self.largest_change {
            None if self.lost + self.gained == 0.0 => {
                "BCa over clusters; nothing changed, and changes not seen are not allowed for"
            }
            _ => "BCa over clusters",
        };
        (Bounds { lower, lower_of_changes: found[0], interval }, method)
    }
}

fn of(alpha: f64, interval: &dyn Fn(f64) -> Interval) -> Bounds {
    let lower = interval(alpha).lower;
    Bounds { lower, lower_of_changes: lower, interval: interval(alpha / 2.0) }
}

/// Returns each item's cluster, numbered from 0 in order, and how many there are.
fn clusters_of(pairs: &[&Pair]) -> (Vec<usize>, usize) {
    #[derive(PartialEq, Eq, Hash)]
    enum Key<'a> {
        Document(&'a str, usize),
        Cluster(&'a str, &'a str),
    }
    let mut parents: Vec<usize> = Vec::new();
    let mut known: HashMap<Key, usize> = HashMap::new();
    for pair in pairs {
        for item in &pair.items {
            let index = parents.len();
            parents.push(index);
            let document = Key::Document(&pair.data, item.document);
            let cluster = item.cluster.as_deref().map(|cluster| Key::Cluster(&pair.data, cluster));
            for key in [Some(document), cluster].into_iter().flatten() {
                let first = *known.entry(key).or_insert(index);
                let (a, b) = (root(&mut parents, first), root(&mut parents, index));
                parents[a.max(b)] = a.min(b);
            }
        }
    }
    let mut numbers: HashMap<usize, usize> = HashMap::new();
    let mut clusters = Vec::with_capacity(parents.len());
    for index in 0..parents.len() {
        let root = root(&mut parents, index);
        let next = numbers.len();
        clusters.push(*numbers.entry(root).or_insert(next));
    }
    (clusters, numbers.len())
}

fn root(parents: &mut [usize], mut index: usize) -> usize {
    while parents[index] != index {
        parents[index] = parents[parents[index]];
        index = parents[index];
    }
    index
}
