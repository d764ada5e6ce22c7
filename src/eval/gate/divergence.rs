//! How far the candidate's next-token distributions are from the baseline's, where both models are at hand. It
//! decides nothing.

use serde::Serialize;

use crate::eval::kld::DivergenceSoFar;
use crate::eval::perplexity::ChunkDone;
use crate::eval::request::Request;
use crate::eval::stats::{Interval, student};

/// Divergence over chunks of tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// What was read.
    pub over: String,
    /// Of the chunks ([`crate::eval::Chunks::digest`]), lower-case hex.
    pub tokens_sha256: String,
    pub chunks: usize,
    pub chunk_len: usize,
    /// Scored tokens.
    pub tokens: usize,
    /// Mean of D(baseline || candidate), nats.
    pub mean_kl: Bounded,
    /// Share of tokens where both put the same token first.
    pub same_top: Bounded,
}

/// A mean over chunks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bounded {
    pub value: f64,
    /// Student's, over chunks; absent of a single chunk.
    pub interval: Option<Interval>,
}

/// Gathers what each chunk comes to.
#[derive(Clone, Debug, Default)]
pub struct ChunkMeans {
    kl: Vec<f64>,
    same_top: Vec<f64>,
}

impl ChunkMeans {
    /// Takes the next chunk; all are equally long.
    pub fn add(&mut self, done: &ChunkDone<DivergenceSoFar>) {
        push_mean(&mut self.kl, done.so_far.kld.value);
        push_mean(&mut self.same_top, done.so_far.same_top.value);
    }

    /// Returns the mean divergence and the share of equal first choices, with two-sided intervals of level 1 - alpha.
    pub fn finish(self, alpha: f64) -> (Bounded, Bounded) {
        (bounded(&self.kl, alpha, f64::INFINITY), bounded(&self.same_top, alpha, 1.0))
    }
}

/// The mean so far is over all chunks so far.
fn push_mean(values: &mut Vec<f64>, mean_so_far: f64) {
    let sum: f64 = values.iter().sum();
    values.push(mean_so_far * (values.len() + 1) as f64 - sum);
}

/// Tokens of a chunk are not independent, chunks nearly are: the interval is that of a mean of chunks, within what
/// is possible (0 to `most`).
fn bounded(values: &[f64], alpha: f64, most: f64) -> Bounded {
    let n = values.len() as f64;
    let value = values.iter().sum::<f64>() / n.max(1.0);
    let interval = (values.len() > 1).then(|| {
        let variance = values.iter().map(|x| (x - value) * (x - value)).sum::<f64>() / (n - 1.0);
        let reach = student::quantile(1.0 - 0.5 * alpha, n - 1.0) * (variance / n).sqrt();
        Interval { lower: (value - reach).max(0.0), upper: (value + reach).min(most) }
    });
    Bounded { value, interval }
}

/// Returns prompts one after another, at most `most` tokens of them: of more, every k-th. What several requests share
/// (the choices of a question) is there once.
pub fn prompt_tokens(requests: &[Request], most: usize) -> Vec<u32> {
    let mut prompts: Vec<&[u32]> = requests
        .iter()
        .map(|request| match request {
            Request::Loglikelihood(request) => request.context.as_slice(),
            Request::Rolling(request) => request.tokens.as_slice(),
            Request::Generate(request) => request.prompt.as_slice(),
        })
        .collect();
    prompts.dedup();
    let total: usize = prompts.iter().map(|prompt| prompt.len()).sum();
    let step = total.div_ceil(most.max(1)).max(1);
    let mut tokens: Vec<u32> = prompts.into_iter().step_by(step).flatten().copied().collect();
    tokens.truncate(most);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::perplexity::Estimate;
    use crate::eval::request::LoglikelihoodRequest;

    fn done(n: usize, kl: f64, same_top: f64) -> ChunkDone<DivergenceSoFar> {
        let estimate = |value| Estimate { value, uncertainty: 0.0 };
        let so_far = DivergenceSoFar {
            ppl: estimate(0.0),
            ln_ppl_ratio: estimate(0.0),
            kld: estimate(kl),
            delta_p_rms: estimate(0.0),
            same_top: estimate(same_top),
        };
        ChunkDone { chunks_done: n, n_chunks: 3, tokens_done: 0, tokens_total: 0, so_far }
    }

    #[test]
    fn chunks_are_taken_apart_again() {
        // chunks of 0.1, 0.3 and 0.2: running means 0.1, 0.2, 0.2
        let mut means = ChunkMeans::default();
        for (n, kl) in [(1, 0.1), (2, 0.2), (3, 0.2)] {
            means.add(&done(n, kl, 1.0));
        }
        let (kl, same_top) = means.finish(0.05);
        // t(0.975, 2) = 4.302653; sd 0.1; 4.302653 * 0.1 / sqrt 3 = 0.2484138
        let interval = kl.interval.unwrap();
        assert!((kl.value - 0.2).abs() < 1e-12);
        assert!((interval.upper - 0.448_413_8).abs() < 1e-6, "{interval:?}");
        // no divergence is below 0
        assert_eq!(interval.lower, 0.0);
        assert_eq!(same_top, Bounded { value: 1.0, interval: Some(Interval { lower: 1.0, upper: 1.0 }) });
        let mut one = ChunkMeans::default();
        one.add(&done(1, 0.1, 0.5));
        assert_eq!(one.finish(0.05).0, Bounded { value: 0.1, interval: None });
    }

    #[test]
    fn prompts_stand_once_and_are_thinned_evenly() {
        let request = |context: &[u32], continuation: u32| {
            Request::Loglikelihood(LoglikelihoodRequest {
                context: context.to_vec(),
                continuation: vec![continuation],
            })
        };
        let requests: Vec<Request> =
            (0..6).flat_map(|n| [request(&[n, n], 1), request(&[n, n], 2)]).collect();
        assert_eq!(prompt_tokens(&requests, 100), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
        assert_eq!(prompt_tokens(&requests, 6), [0, 0, 2, 2, 4, 4]);
        assert_eq!(prompt_tokens(&requests, 5), [0, 0, 3, 3]);
        assert!(prompt_tokens(&[], 5).is_empty());
    }
}
