//! Perplexity of a text in chunks, by llama-perplexity's definition (see [`Chunks`]).

use serde::Serialize;

use super::chunks::{self, Chunks, Walk};
use super::kld::groups;
use super::run_tree::checked;
use super::{EngineOptions, Error, LanguageModel, LogitsWriter};
use crate::kernel::math64;

/// A value and its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub value: f64,
    pub uncertainty: f64,
}

/// Perplexity of a text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// e^(mean negative log-likelihood); the uncertainty is that of the mean times this.
    pub ppl: Estimate,
    /// Mean negative natural log-likelihood per scored token.
    pub nll: Estimate,
    pub n_chunks: usize,
    pub chunk_len: usize,
    /// Scored tokens.
    pub n_tokens: usize,
}

/// How far a text is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChunkDone<T> {
    /// Chunks done.
    pub chunks_done: usize,
    pub n_chunks: usize,
    /// Tokens computed, of all chunks done.
    pub tokens_done: usize,
    pub tokens_total: usize,
    /// Over the chunks done.
    pub so_far: T,
}

/// Sums of a quantity and its squares.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    pub sum: f64,
    sum_of_squares: f64,
    pub n: usize,
}

impl Moments {
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.sum_of_squares += value * value;
        self.n += 1;
    }

    /// Returns the mean and its standard error, sqrt((mean of squares - square of mean) / (n - 1)); 0 with one value.
    pub fn mean(&self) -> Estimate {
        let n = self.n.max(1) as f64;
        let value = self.sum / n;
        let variance = (self.sum_of_squares / n - value * value).max(0.0);
        let uncertainty = if self.n > 1 { (variance / (n - 1.0)).sqrt() } else { 0.0 };
        Estimate { value, uncertainty }
    }
}

impl Estimate {
    /// Returns e^self.
    pub(super) fn exp(self) -> Estimate {
        let value = math64::exp(self.value);
        Estimate { value, uncertainty: value * self.uncertainty }
    }
}

/// Returns the perplexity of a text; `on_chunk` hears of every chunk, in order, and `saved` gets all logits.
///
/// Errors if the chunks are beyond the model, it fails, or the logits can't be written.
pub fn perplexity<M: LanguageModel>(
    model: &M,
    options: &EngineOptions,
    text: &Chunks,
    mut saved: Option<&mut LogitsWriter>,
    on_chunk: &mut dyn FnMut(&ChunkDone<Perplexity>),
) -> Result<Perplexity, Error> {
    let mut walk = Walk::new(model, text, options)?;
    let mut nll = Moments::default();
    let mut so_far = result(text, 0, &nll);
    for batch in text.batches(options.batch_tokens, walk.n_at_once(options)) {
        let hidden = walk.advance(&batch)?;
        let rows = chunks::rows(text, &batch);
        let targets: Vec<(usize, u32)> = rows.iter().enumerate().map(|(i, row)| (i, row.target)).collect();
        if targets.is_empty() {
            continue;
        }
        if let Some(saved) = &mut saved {
            for range in groups(rows.len(), model.vocab_size()) {
                saved.write(&model.logits(&hidden, range)?)?;
            }
        }
        for (row, scored) in rows.iter().zip(model.score(&hidden, &targets)?) {
            nll.add(-f64::from(checked(scored, row.target)?.log_prob));
            if row.ends_chunk {
                so_far = result(text, row.chunk + 1, &nll);
                on_chunk(&text.done(row.chunk + 1, so_far));
            }
        }
    }
    Ok(so_far)
}

fn result(text: &Chunks, n_chunks: usize, nll: &Moments) -> Perplexity {
    let mean = nll.mean();
    let chunk_len = text.chunk_len();
    Perplexity { ppl: mean.exp(), nll: mean, n_chunks, chunk_len, n_tokens: nll.n }
}

impl Chunks {
    /// Returns the event after `chunks_done` chunks.
    pub(super) fn done<T>(&self, chunks_done: usize, so_far: T) -> ChunkDone<T> {
        let n_chunks = self.n_chunks();
        let tokens = |chunks| chunks * self.n_inputs();
        let (tokens_done, tokens_total) = (tokens(chunks_done), tokens(n_chunks));
        ChunkDone { chunks_done, n_chunks, tokens_done, tokens_total, so_far }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::{FakeModel, Numbers, PAGE_BYTES};

    /// By the definition, one token at a time.
    fn plainly(
        model: &FakeModel,
        tokens: &[u32],
        chunk_len: usize,
        bos: Option<u32>,
        n_chunks: usize,
    ) -> Vec<f64> {
        let mut nll = Vec::new();
        for chunk in tokens.chunks_exact(chunk_len).take(n_chunks) {
            let mut chunk = chunk.to_vec();
            chunk[0] = bos.unwrap_or(chunk[0]);
            for at in chunk_len / 2 + 1..chunk_len {
                nll.push(-f64::from(model.score_plainly(&chunk[..at], chunk[at]).log_prob));
            }
        }
        nll
    }

    #[test]
    fn any_batch_gives_what_the_definition_gives() {
        let model = FakeModel::new(30, 64);
        let tokens = Numbers(5).tokens(203, 30);
        for (chunk_len, bos, limit) in
            [(4, None, None), (9, Some(1), None), (64, Some(0), None), (17, None, Some(3))]
        {
            let n_chunks = (203 / chunk_len).min(limit.unwrap_or(999));
            let expected = plainly(&model, &tokens, chunk_len, bos, n_chunks);
            let mean = expected.iter().sum::<f64>() / expected.len() as f64;
            let text = Chunks::new(tokens.clone(), chunk_len, bos, limit).unwrap();
            let mut results = Vec::new();
            for (batch_tokens, pages) in [(1, 16), (5, 16), (100, 20), (1000, 1000)] {
                let options =
                    EngineOptions { batch_tokens, cache_bytes: pages * PAGE_BYTES, prefix_cache: true };
                model.batches.borrow_mut().clear();
                let mut seen = Vec::new();
                let mut on_chunk = |done: &ChunkDone<Perplexity>| seen.push(*done);
                let found = perplexity(&model, &options, &text, None, &mut on_chunk).unwrap();
                assert_eq!(
                    (found.n_tokens, found.n_chunks, seen.len()),
                    (expected.len(), n_chunks, n_chunks)
                );
                assert!((found.nll.value - mean).abs() < 1e-12);
                assert_eq!(seen.last().unwrap().so_far, found);
                assert_eq!(seen.last().unwrap().tokens_done, seen[0].tokens_total);
                results.push((found, seen));
                assert!(model.batches.borrow().iter().all(|n| *n <= batch_tokens));
                assert_eq!(model.n_live.get(), 0);
            }
            assert!(results.iter().all(|result| *result == results[0]));
        }
    }

    #[test]
    fn uncertainty_is_the_standard_error_of_the_mean() {
        let mut moments = Moments::default();
        [1.0, 2.0, 4.0].into_iter().for_each(|value| moments.add(value));
        let Estimate { value, uncertainty } = moments.mean();
        assert!((value - 7.0 / 3.0).abs() < 1e-15);
        // population variance 14/9 over n - 1 = 2
        assert!((uncertainty - (14.0f64 / 9.0 / 2.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn a_model_without_probabilities_is_an_error_not_a_figure() {
        let model = FakeModel { is_broken: true, ..FakeModel::new(30, 64) };
        let text = Chunks::new((0..20).collect(), 10, None, None).unwrap();
        let found = perplexity(&model, &EngineOptions::new(&model), &text, None, &mut |_| {});
        assert!(matches!(found, Err(Error::NoProbability { token: 6 })), "{found:?}");
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let model = FakeModel::new(30, 64);
        let error = |result: Result<Chunks, Error>| result.unwrap_err().to_string();
        assert_eq!(
            error(Chunks::new(vec![0; 19], 10, None, None)),
            "the text has 19 tokens; 2 chunks of 10 need 20"
        );
        assert_eq!(
            error(Chunks::new(vec![0; 19], 3, None, None)),
            "a chunk of 3 tokens is too short: the least is 4"
        );
        let options = EngineOptions { cache_bytes: 15 * PAGE_BYTES, ..EngineOptions::new(&model) };
        let run = |tokens: Vec<u32>, len| {
            let text = Chunks::new(tokens, len, None, None).unwrap();
            perplexity(&model, &options, &text, None, &mut |_| {}).unwrap_err().to_string()
        };
        assert_eq!(run(vec![0; 200], 65), "chunks of 65 tokens exceed the model's context of 64");
        assert_eq!(run(vec![30; 20], 10), "the text has token 30, the model's vocabulary 30");
        assert_eq!(
            run(vec![0; 200], 64),
            "keys and values of the longest request take 1600 bytes, 1500 are allowed"
        );
    }
}
