//! What an importance matrix says of its tensors, in figures.

use serde::Serialize;

use super::ImportanceSums;
use super::sums::Sums;
use crate::kernel::math64;

/// Figures of one tensor's weights: the mean squares of its input columns. Experts that have seen no token are left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statistics {
    pub tensor: String,
    /// Weights; those of all experts.
    pub columns: usize,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub mean: f64,
    /// Standard deviation, of all weights.
    pub deviation: f64,
    /// Entropy of the weights' shares in their sum, by that of equal ones: 1 if all weigh the same, near 0 if few columns
    /// have all the weight.
    pub evenness: f64,
    /// Cosine of the angle to the weights of the same tensor in the layer before, if it has as many.
    pub cosine: Option<f64>,
}

impl ImportanceSums {
    /// Returns the figures of every tensor that has seen tokens, by layer and name; tensors outside the layers come last.
    pub fn statistics(&self) -> Vec<Statistics> {
        let mut found: Vec<(usize, Statistics)> = Vec::new();
        for (name, sums) in &self.entries {
            let weights = weights(sums);
            if weights.is_empty() {
                continue;
            }
            let layer = layer_of(name);
            let before = layer.and_then(|(layer, rest)| {
                let sums = self.entries.get(&format!("blk.{}.{rest}", layer.checked_sub(1)?))?;
                cosine(&weights, &self::weights(sums))
            });
            let order = layer.map_or(usize::MAX, |(layer, _)| layer);
            found.push((order, Statistics { cosine: before, ..figures(name, &weights) }));
        }
        // stable: names are sorted
        found.sort_by_key(|(layer, _)| *layer);
        found.into_iter().map(|(_, statistics)| statistics).collect()
    }
}

/// Returns the layer of a tensor of a block, and the name behind it.
fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// Returns the mean squares of experts that have seen tokens.
fn weights(sums: &Sums) -> Vec<f64> {
    let columns = sums.squares.len() / sums.counts.len().max(1);
    let experts = sums.squares.chunks_exact(columns.max(1)).zip(&sums.counts).filter(|(_, rows)| **rows > 0);
    experts.flat_map(|(squares, rows)| squares.iter().map(|sum| sum / *rows as f64)).collect()
}

fn figures(name: &str, weights: &[f64]) -> Statistics {
    let n = weights.len() as f64;
    let sum: f64 = weights.iter().sum();
    let mean = sum / n;
    let variance = weights.iter().map(|weight| (weight - mean) * (weight - mean)).sum::<f64>() / n;
    let shares = weights.iter().map(|weight| weight / sum).filter(|share| *share > 0.0);
    let entropy: f64 = shares.map(|share| -share * math64::ln(share)).sum();
    Statistics {
        tensor: name.to_owned(),
        columns: weights.len(),
        sum,
        min: weights.iter().copied().fold(f64::INFINITY, f64::min),
        max: weights.iter().copied().fold(0.0, f64::max),
        mean,
        deviation: variance.sqrt(),
        evenness: if weights.len() > 1 && sum > 0.0 { entropy / math64::ln(n) } else { 1.0 },
        cosine: None,
    }
}

/// Returns the cosine of the angle between two vectors; `None` if they differ in length, or one is zero.
fn cosine(a: &[f64], b: &[f64]) -> Option<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let lengths = dot(a, a).sqrt() * dot(b, b).sqrt();
    (a.len() == b.len() && lengths > 0.0).then(|| (dot(a, b) / lengths).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(squares: &[f64], counts: &[u64]) -> Sums {
        Sums { squares: squares.to_vec(), values: None, counts: counts.to_vec() }
    }

    #[test]
    fn figures_are_those_of_the_definitions() {
        let mut all = ImportanceSums::default();
        let mut insert = |name: &str, sums| all.entries.insert(name.to_owned(), sums);
        insert("output.weight", sums(&[0.0, 8.0], &[2]));
        insert("blk.10.a.weight", sums(&[2.0, 2.0, 2.0, 2.0], &[2]));
        insert("blk.9.a.weight", sums(&[3.0, 0.0, 0.0, 0.0], &[1]));
        insert("blk.2.a.weight", sums(&[5.0], &[0]));
        // the second expert has seen nothing
        insert("blk.2.e.weight", sums(&[4.0, 12.0, 0.0, 0.0], &[4, 0]));
        let found = all.statistics();
        let names: Vec<&str> = found.iter().map(|statistics| statistics.tensor.as_str()).collect();
        assert_eq!(names, ["blk.2.e.weight", "blk.9.a.weight", "blk.10.a.weight", "output.weight"]);
        let [expert, single, even, output] = found.try_into().unwrap();
        assert_eq!((expert.columns, expert.sum, expert.min, expert.max), (2, 4.0, 1.0, 3.0));
        assert_eq!((expert.mean, expert.deviation, expert.cosine), (2.0, 1.0, None));
        // shares of 1/4 and 3/4: 2 - 3/4 log2(3) bits of 1
        assert!((expert.evenness - (2.0 - 0.75 * 3f64.log2())).abs() < 1e-12);
        assert_eq!((single.evenness, output.evenness), (0.0, 0.0));
        assert!((even.evenness - 1.0).abs() < 1e-12);
        // (1, 1, 1, 1) and (3, 0, 0, 0)
        assert_eq!(even.cosine, Some(0.5));
    }
}
