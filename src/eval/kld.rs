//! Kullback-Leibler divergence of a model's next-token distributions from a base model's, token by token, over the
//! chunks of a text: the statistics of llama-perplexity --kl-divergence, from exact f32 logits on both sides.

mod turns;

use std::ops::Range;
use std::sync::Mutex;

use serde::Serialize;

use super::chunks::{self, Chunks, Piece, ScoredRow, Walk};
use super::perplexity::{ChunkDone, Estimate, Moments};
use super::{EngineOptions, Error, LanguageModel};
use crate::kernel::{Team, math64};

pub use turns::{InTurns, divergence_in_turns};

/// Most bytes of logits of one model held at once.
const LOGITS_BYTES: usize = 32 << 20;

/// How two models differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    pub n_chunks: usize,
    pub chunk_len: usize,
    /// Scored tokens.
    pub n_tokens: usize,
    pub ppl: Estimate,
    pub ppl_base: Estimate,
    /// Correlation of the two models' log-likelihoods over tokens; absent if one of them is constant.
    pub ln_ppl_correlation: Option<f64>,
    /// ln(PPL / PPL of the base model)
    pub ln_ppl_ratio: Estimate,
    pub ppl_ratio: Estimate,
    pub ppl_difference: Estimate,
    /// Divergence D(base || model) in nats.
    pub kld: Distribution,
    /// Probability of the text's token, less the base model's.
    pub delta_p: Distribution,
    /// sqrt(mean of squares) of `delta_p`.
    pub delta_p_rms: Estimate,
    /// Share of tokens where both models' first choices agree.
    pub same_top: Estimate,
}

/// How a quantity is distributed over tokens. Percentiles are interpolated between neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distribution {
    pub mean: Estimate,
    pub max: f64,
    pub p99_9: f64,
    pub p99: f64,
    pub p95: f64,
    pub p90: f64,
    pub p75: f64,
    pub median: f64,
    pub p25: f64,
    pub p10: f64,
    pub p5: f64,
    pub p1: f64,
    pub p0_1: f64,
    pub min: f64,
}

/// What is known after some of the chunks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DivergenceSoFar {
    pub ppl: Estimate,
    pub ln_ppl_ratio: Estimate,
    pub kld: Estimate,
    pub delta_p_rms: Estimate,
    pub same_top: Estimate,
}

/// Where the base model's logits come from.
pub trait BaseLogits {
    fn vocab_size(&self) -> usize;

    /// Returns how many chunks it can hold at once: any number, where nothing is computed.
    fn n_at_once(&self, _: &EngineOptions) -> usize {
        usize::MAX
    }

    /// Moves on to a batch of pieces.
    #[doc(hidden)]
    fn advance(&mut self, _: &Batch<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Returns the logits of rows of that batch, `[rows.len(), vocab_size]`; each row is asked for once, in order.
    fn logits(&mut self, rows: Range<usize>) -> Result<Vec<f32>, Error>;
}

/// Pieces of chunks computed together.
pub struct Batch<'a>(pub(super) &'a [Piece]);

/// A base model in memory.
pub struct LiveBase<'a, M: LanguageModel> {
    walk: Walk<'a, M>,
    hidden: Option<M::Hidden>,
}

impl<'a, M: LanguageModel> LiveBase<'a, M> {
    /// Errors as [`super::perplexity()`] does.
    pub fn new(model: &'a M, text: &'a Chunks, options: &EngineOptions) -> Result<Self, Error> {
        Ok(LiveBase { walk: Walk::new(model, text, options)?, hidden: None })
    }
}

impl<M: LanguageModel> BaseLogits for LiveBase<'_, M> {
    fn vocab_size(&self) -> usize {
        self.walk.model.vocab_size()
    }

    fn n_at_once(&self, options: &EngineOptions) -> usize {
        self.walk.n_at_once(options)
    }

    fn advance(&mut self, batch: &Batch<'_>) -> Result<(), Error> {
        self.hidden = Some(self.walk.advance(batch.0)?);
        Ok(())
    }

    fn logits(&mut self, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        match &self.hidden {
            Some(hidden) => Ok(self.walk.model.logits(hidden, rows)?),
            None => Ok(Vec::new()),
        }
    }
}

/// Returns how `model` diverges from `base` over a text; `on_chunk` hears of every chunk, in order.
///
/// Errors if the vocabularies differ in size, the chunks are beyond the model, a logit is not finite, or a model
/// or file fails.
pub fn divergence<M: LanguageModel>(
    model: &M,
    base: &mut dyn BaseLogits,
    options: &EngineOptions,
    text: &Chunks,
    team: &Team,
    on_chunk: &mut dyn FnMut(&ChunkDone<DivergenceSoFar>),
) -> Result<Divergence, Error> {
    let mut comparison = Comparison::new(text, team, on_chunk);
    comparison.add(model, base, options, 0..text.n_chunks())?;
    Ok(comparison.finish())
}

/// Two models on their way over a text.
struct Comparison<'a> {
    text: &'a Chunks,
    team: &'a Team,
    on_chunk: &'a mut dyn FnMut(&ChunkDone<DivergenceSoFar>),
    sums: Sums,
}

impl<'a> Comparison<'a> {
    fn new(
        text: &'a Chunks,
        team: &'a Team,
        on_chunk: &'a mut dyn FnMut(&ChunkDone<DivergenceSoFar>),
    ) -> Self {
        Comparison { text, team, on_chunk, sums: Sums::default() }
    }

    /// Compares over some chunks, those behind the last ones.
    fn add<M: LanguageModel>(
        &mut self,
        model: &M,
        base: &mut dyn BaseLogits,
        options: &EngineOptions,
        chunks: Range<usize>,
    ) -> Result<(), Error> {
        let text = self.text;
        let mut walk = Walk::new(model, text, options)?;
        let vocab_size = model.vocab_size();
        if base.vocab_size() != vocab_size {
            let (found, expected) = (vocab_size.to_string(), base.vocab_size().to_string());
            return Err(Error::ModelsDiffer { what: "vocabulary size", found, expected });
        }
        let n_at_once = walk.n_at_once(options).min(base.n_at_once(options));
        for batch in text.batches_of(chunks, options.batch_tokens, n_at_once) {
            let hidden = walk.advance(&batch)?;
            base.advance(&Batch(&batch))?;
            let rows = chunks::rows(text, &batch);
            for range in groups(rows.len(), vocab_size) {
                let logits = model.logits(&hidden, range.clone())?;
                let base_logits = base.logits(range.clone())?;
                let compared = compare(self.team, &rows[range.clone()], vocab_size, &logits, &base_logits)?;
                for (row, token) in rows[range].iter().zip(compared) {
                    self.sums.add(&token);
                    if row.ends_chunk {
                        (self.on_chunk)(&text.done(row.chunk + 1, self.sums.so_far()));
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Divergence {
        self.sums.finish(self.text)
    }
}

/// Returns ranges of rows whose logits stay within [`LOGITS_BYTES`].
pub(super) fn groups(n_rows: usize, vocab_size: usize) -> impl Iterator<Item = Range<usize>> {
    let at_once = (LOGITS_BYTES / size_of::<f32>() / vocab_size.max(1)).max(1);
    (0..n_rows).step_by(at_once).map(move |start| start..n_rows.min(start + at_once))
}

fn compare(
    team: &Team,
    rows: &[ScoredRow],
    vocab_size: usize,
    logits: &[f32],
    base: &[f32],
) -> Result<Vec<Token>, Error> {
    let results: Vec<Mutex<Result<Token, f32>>> = rows.iter().map(|_| Mutex::new(Err(0.0))).collect();
    team.run(rows.len(), |i| {
        let at = i * vocab_size..(i + 1) * vocab_size;
        let token = Token::new(&logits[at.clone()], &base[at], rows[i].target);
        if let Ok(mut result) = results[i].lock() {
            *result = token;
        }
    });
    let results = results.into_iter().map(|result| result.into_inner().unwrap_or_else(|e| e.into_inner()));
    results
        .zip(rows)
        .map(|(token, row)| token.map_err(|value| Error::NotFinite { chunk: row.chunk + 1, value }))
        .collect()
}

/// What one position says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Token {
    nll: f64,
    nll_base: f64,
    kld: f64,
    delta_p: f64,
    same_top: bool,
}

/// Returns the largest logit and its first index.
///
/// Errors with a logit that is not finite.
fn largest(logits: &[f32]) -> Result<(f32, usize), f32> {
    let (mut max, mut argmax) = (f32::NEG_INFINITY, 0);
    for (i, logit) in logits.iter().enumerate() {
        if !logit.is_finite() {
            return Err(*logit);
        }
        if *logit > max {
            (max, argmax) = (*logit, i);
        }
    }
    Ok((max, argmax))
}

impl Token {
    /// Everything in f64 from the f32 logits: equal logits give a divergence of exactly 0.
    fn new(logits: &[f32], base: &[f32], target: u32) -> Result<Token, f32> {
        let ((max, argmax), (base_max, base_argmax)) = (largest(logits)?, largest(base)?);
        let (max, base_max) = (f64::from(max), f64::from(base_max));
        // sum of p_base * (ln p_base - ln p); the two log-sums come out of the sum
        let (mut sum, mut base_sum, mut difference) = (0.0, 0.0, 0.0);
        for (logit, base) in logits.iter().zip(base) {
            let (logit, base) = (f64::from(*logit), f64::from(*base));
            let weight = math64::exp(base - base_max);
            sum += math64::exp(logit - max);
            base_sum += weight;
            difference += weight * (base - logit);
        }
        let lse = max + math64::ln(sum);
        let base_lse = base_max + math64::ln(base_sum);
        let kld = difference / base_sum - (base_lse - lse);
        let nll = lse - f64::from(logits[target as usize]);
        let nll_base = base_lse - f64::from(base[target as usize]);
        Ok(Token {
            nll,
            nll_base,
            kld: kld.max(0.0), // below 0 by rounding only
            delta_p: math64::exp(-nll) - math64::exp(-nll_base),
            same_top: argmax == base_argmax,
        })
    }
}

#[derive(Default)]
struct Sums {
    nll: Moments,
    nll_base: Moments,
    /// Of nll * nll_base.
    product: f64,
    kld: Moments,
    delta_p: Moments,
    delta_p_squared: Moments,
    n_same_top: usize,
    klds: Vec<f64>,
    delta_ps: Vec<f64>,
}

impl Sums {
    fn add(&mut self, token: &Token) {
        self.nll.add(token.nll);
        self.nll_base.add(token.nll_base);
        self.product += token.nll * token.nll_base;
        self.kld.add(token.kld);
        self.delta_p.add(token.delta_p);
        self.delta_p_squared.add(token.delta_p * token.delta_p);
        self.n_same_top += usize::from(token.same_top);
        self.klds.push(token.kld);
        self.delta_ps.push(token.delta_p);
    }

    /// Returns the covariance of the two means.
    fn covariance(&self) -> f64 {
        let n = self.nll.n as f64;
        if self.nll.n < 2 {
            return 0.0;
        }
        (self.product / n - self.nll.mean().value * self.nll_base.mean().value) / (n - 1.0)
    }

    fn ln_ratio(&self) -> Estimate {
        let (nll, base) = (self.nll.mean(), self.nll_base.mean());
        Estimate { value: nll.value - base.value, uncertainty: of_difference(nll, base, self.covariance()) }
    }

    fn rms(&self) -> Estimate {
        let squares = self.delta_p_squared.mean();
        let value = squares.value.sqrt();
        let uncertainty = if value > 0.0 { 0.5 / value * squares.uncertainty } else { 0.0 };
        Estimate { value, uncertainty }
    }

    fn same_top(&self) -> Estimate {
        let n = self.nll.n.max(1) as f64;
        let value = self.n_same_top as f64 / n;
        Estimate { value, uncertainty: (value * (1.0 - value) / (n - 1.0).max(1.0)).sqrt() }
    }

    fn so_far(&self) -> DivergenceSoFar {
        DivergenceSoFar {
            ppl: self.nll.mean().exp(),
            ln_ppl_ratio: self.ln_ratio(),
            kld: self.kld.mean(),
            delta_p_rms: self.rms(),
            same_top: self.same_top(),
        }
    }

    fn finish(mut self, text: &Chunks) -> Divergence {
        let (nll, nll_base) = (self.nll.mean(), self.nll_base.mean());
        let covariance = self.covariance();
        let spread = nll.uncertainty * nll_base.uncertainty;
        let (ppl, ppl_base) = (nll.exp(), nll_base.exp());
        Divergence {
            n_chunks: text.n_chunks(),
            chunk_len: text.chunk_len(),
            n_tokens: self.nll.n,
            ppl,
            ppl_base,
            ln_ppl_correlation: (spread > 0.0).then(|| covariance / spread),
            ln_ppl_ratio: self.ln_ratio(),
            ppl_ratio: self.ln_ratio().exp(),
            ppl_difference: Estimate {
                value: ppl.value - ppl_base.value,
                uncertainty: of_difference(ppl, ppl_base, ppl.value * ppl_base.value * covariance),
            },
            kld: distribution(&self.kld, &mut self.klds),
            delta_p: distribution(&self.delta_p, &mut self.delta_ps),
            delta_p_rms: self.rms(),
            same_top: self.same_top(),
        }
    }
}

/// Returns the standard error of a - b.
fn of_difference(a: Estimate, b: Estimate, covariance: f64) -> f64 {
    let variance = a.uncertainty * a.uncertainty + b.uncertainty * b.uncertainty - 2.0 * covariance;
    variance.max(0.0).sqrt()
}

fn distribution(moments: &Moments, values: &mut [f64]) -> Distribution {
    values.sort_by(f64::total_cmp);
    let at = |fraction: f64| {
        let position = fraction * (values.len() - 1) as f64;
        let (below, part) = (position as usize, position.fract());
        (1.0 - part) * values[below] + part * values[(below + 1).min(values.len() - 1)]
    };
    Distribution {
        mean: moments.mean(),
        max: at(1.0),
        p99_9: at(0.999),
        p99: at(0.99),
        p95: at(0.95),
        p90: at(0.9),
        p75: at(0.75),
        median: at(0.5),
        p25: at(0.25),
        p10: at(0.1),
        p5: at(0.05),
        p1: at(0.01),
        p0_1: at(0.001),
        min: at(0.0),
    }
}

#[cfg(test)]
mod tests;
