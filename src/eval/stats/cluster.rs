//! Items that come in clusters.

/// What a cluster, or an item that stands alone, adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    pub value: f64,
    /// Number of items, or their sizes where a figure is a ratio.
    pub weight: f64,
}

/// Returns each cluster's sum of values and of weights, in order of cluster. `clusters` holds each item's cluster,
/// from 0, none left out.
pub fn cluster_sums(values: &[f64], weights: &[f64], clusters: &[usize]) -> Vec<Sum> {
    let n_clusters = clusters.iter().max().map_or(0, |last| last + 1);
    let mut sums = vec![Sum::default(); n_clusters];
    for ((value, weight), cluster) in values.iter().zip(weights).zip(clusters) {
        sums[*cluster].value += value;
        sums[*cluster].weight += weight;
    }
    sums
}

/// How far a mean is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variance {
    /// Sum of values over sum of weights.
    pub mean: f64,
    /// Of the mean, over clusters (Miller, arXiv:2411.00640, eq. 4): the sum of squared sums of deviations over the
    /// squared sum of weights.
    pub clustered: f64,
    /// G / (G - 1), which makes up for the deviations being from the clusters' own mean; infinite for one cluster.
    pub correction: f64,
}

/// Returns mean and variance of clusters with these sums; there is at least one, and their weights are above 0.
pub fn variance(sums: &[Sum]) -> Variance {
    let weight: f64 = sums.iter().map(|sum| sum.weight).sum();
    let mean = sums.iter().map(|sum| sum.value).sum::<f64>() / weight;
    let squares: f64 = sums.iter().map(|sum| (sum.value - mean * sum.weight).powi(2)).sum();
    let n = sums.len() as f64;
    Variance { mean, clustered: squares / (weight * weight), correction: n / (n - 1.0) }
}

/// Returns the clustered standard error of a mean (Miller, arXiv:2411.00640, eq. 4); `None` below 2 clusters.
///
/// With `correction` the variance is multiplied by G / (G - 1), as statsmodels does unless told otherwise.
pub fn clustered_se(values: &[f64], clusters: &[usize], correction: bool) -> Option<f64> {
    let sums = cluster_sums(values, &vec![1.0; values.len()], clusters);
    if sums.len() < 2 {
        return None;
    }
    let found = variance(&sums);
    Some((found.clustered * if correction { found.correction } else { 1.0 }).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published vector of shared notes: n = 2500, lost 357, gained 246: 0.978 points.
    #[test]
    fn published_vector_reproduces() {
        let mut values = vec![0.0; 2500];
        values[..357].fill(-1.0);
        values[357..603].fill(1.0);
        let alone: Vec<usize> = (0..2500).collect();
        assert_eq!(format!("{:.3}", 100.0 * clustered_se(&values, &alone, true).unwrap()), "0.978");
        assert_eq!(clustered_se(&values, &[0; 2500], true), None);
    }
}
