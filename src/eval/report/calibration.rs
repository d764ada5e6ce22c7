//! Calibration: is a choice that the model gives 70 % right in 70 % of cases?

use serde_json::Value as Json;

use crate::eval::gate::SampleRun;
use crate::eval::score::{first_max, mean};
use crate::eval::stats::{Interval, mean_interval};
use crate::kernel::math64::exp;

/// Bins of equal width from 0 to 1.
pub const BINS: usize = 10;

/// How the probabilities of chosen choices compare with how often they are right.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Documents with probabilities.
    pub n: usize,
    /// The expected calibration error: the mean over documents of |accuracy - confidence| of their bins (Naeini, Cooper and
    /// Hauskrecht 2015, AAAI; Guo et al., arXiv:1706.04599).
    pub ece: f64,
    /// Mean probability of what was chosen.
    pub confidence: f64,
    pub accuracy: f64,
    /// `None` where no document is.
    pub bins: Vec<Option<Bin>>,
}

/// The documents whose choice has a probability above the bin's lower and up to its upper bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Bin {
    pub n: usize,
    pub confidence: f64,
    pub accuracy: f64,
    /// Of the accuracy, 95 %.
    pub interval: Option<Interval>,
}

/// Returns the probabilities of a document's choices: the softmax over them of their log-likelihoods. `None` if it has no
/// choices, or all are impossible.
pub fn probabilities(sample: &SampleRun) -> Option<Vec<f64>> {
    let log_probs = sample.details.get("log_probs")?.as_array()?;
    // JSON has no minus infinity
    let log_probs: Vec<f64> =
        log_probs.iter().map(|value| value.as_f64().unwrap_or(f64::NEG_INFINITY)).collect();
    let largest = *log_probs.get(first_max(&log_probs))?;
    if !largest.is_finite() {
        return None;
    }
    let weights: Vec<f64> = log_probs.iter().map(|value| exp(value - largest)).collect();
    let sum: f64 = weights.iter().sum();
    Some(weights.into_iter().map(|weight| weight / sum).collect())
}

/// Returns the probability of what was chosen, which is the largest.
pub fn confidence(sample: &SampleRun) -> Option<f64> {
    let probabilities = probabilities(sample)?;
    Some(probabilities[first_max(&probabilities)])
}

/// Returns the calibration over a task's documents; `None` if its type does not choose by probability.
pub fn calibration(samples: &[SampleRun]) -> Option<Calibration> {
    let is_right = |sample: &SampleRun| match &sample.target {
        Some(target) if *target != Json::Null && *target == sample.prediction => 1.0,
        _ => 0.0,
    };
    let found: Vec<(f64, f64)> =
        samples.iter().filter_map(|sample| Some((confidence(sample)?, is_right(sample)))).collect();
    if found.is_empty() {
        return None;
    }
    let mut bins: Vec<Vec<(f64, f64)>> = vec![Vec::new(); BINS];
    for (confidence, right) in &found {
        let index = (confidence * BINS as f64).ceil() as usize;
        bins[index.clamp(1, BINS) - 1].push((*confidence, *right));
    }
    let (confidences, rights): (Vec<f64>, Vec<f64>) = found.into_iter().unzip();
    let bins: Vec<Option<Bin>> = bins.iter().map(|documents| bin(documents)).collect();
    let gap = |bin: &Bin| bin.n as f64 * (bin.accuracy - bin.confidence).abs();
    Some(Calibration {
        n: rights.len(),
        ece: bins.iter().flatten().map(gap).sum::<f64>() / rights.len() as f64,
        confidence: mean(&confidences),
        accuracy: mean(&rights),
        bins,
    })
}

fn bin(documents: &[(f64, f64)]) -> Option<Bin> {
    if documents.is_empty() {
        return None;
    }
    let (confidences, rights): (Vec<f64>, Vec<f64>) = documents.iter().copied().unzip();
    let interval = mean_interval(&rights, None, 0.95);
    Some(Bin { n: documents.len(), confidence: mean(&confidences), accuracy: mean(&rights), interval })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A document with two choices, the first of which has the probability `p`; `target` is right.
    fn sample(p: f64, target: usize) -> SampleRun {
        let log_probs = [p, 1.0 - p].map(f64::ln);
        SampleRun {
            document: 0,
            line: 1,
            item: None,
            cluster: None,
            is_truncated: false,
            question: None,
            error: None,
            target: Some(json!(target)),
            prediction: json!(if p >= 0.5 { 0 } else { 1 }),
            details: serde_json::Map::from_iter([("log_probs".to_owned(), json!(log_probs))]),
            scores: indexmap::IndexMap::new(),
        }
    }

    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 1e-12
    }

    #[test]
    fn the_error_is_the_bins_weighted_gap() {
        // confidence 0.55 and 0.59, one right of two; 0.95, right; 0.75, wrong
        let samples = [sample(0.55, 0), sample(0.41, 0), sample(0.95, 0), sample(0.25, 0)];
        let found = calibration(&samples).unwrap();
        assert!(near(found.ece, (2.0 * (0.57 - 0.5) + (1.0 - 0.95) + 0.75) / 4.0), "{found:?}");
        assert!(near(found.confidence, (0.55 + 0.59 + 0.95 + 0.75) / 4.0) && near(found.accuracy, 0.5));
        let counts: Vec<usize> = found.bins.iter().map(|bin| bin.as_ref().map_or(0, |bin| bin.n)).collect();
        assert_eq!(counts, [0, 0, 0, 0, 0, 2, 0, 1, 0, 1]);
    }

    #[test]
    fn certainty_and_impossible_choices_have_their_places() {
        let certain = [sample(1.0, 0), sample(1.0, 1)];
        let found = calibration(&certain).unwrap();
        assert_eq!((found.ece, found.bins[BINS - 1].as_ref().unwrap().n), (0.5, 2));
        assert_eq!(probabilities(&certain[0]), Some(vec![1.0, 0.0]));
        let mut impossible = sample(0.5, 0);
        impossible.details.insert("log_probs".to_owned(), json!([null, null]));
        assert_eq!(calibration(&[impossible]), None);
        let mut written = sample(0.5, 0);
        written.details.clear();
        assert_eq!(calibration(&[written]), None);
    }
}
