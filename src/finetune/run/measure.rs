//! Losses and their gradients over batches of documents or pairs.

use std::collections::HashMap;

use super::corpus::Units;
use super::engine::{Engine, Of};
use super::error::Error;
use crate::finetune::parallel::{self, Reducer, World};
use crate::finetune::recipe::Dpo;
use crate::finetune::{DpoLoss, DpoOutcome, PairLogProbs};
use crate::model::train::{Document, LossSum, StepKey};

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Mean over trained tokens, or over pairs.
    pub loss: f64,
    pub accuracy: Option<f64>,
    pub margin: Option<f64>,
    /// The first micro-batch whose loss is not finite.
    pub broken: Option<usize>,
}

/// What a rank's micro-batches came to, as sums.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    loss: f64,
    /// Of pairs: those whose chosen answer gained on the rejected one, and differences of rewards.
    pairs: Option<(f64, f64)>,
    /// Trained tokens, or pairs.
    count: usize,
    /// The first micro-batch, among all ranks', whose loss is not finite.
    broken: Option<usize>,
}

impl Share {
    fn of_pairs(pairs: &[DpoOutcome], broken: Option<usize>) -> Share {
        let sum = |value: fn(&DpoOutcome) -> f64| pairs.iter().fold(0.0, |sum, pair| sum + value(pair));
        Share {
            loss: sum(|pair| pair.loss),
            pairs: Some((
                sum(|pair| f64::from(u8::from(pair.is_right()))),
                sum(|pair| pair.reward_chosen - pair.reward_rejected),
            )),
            count: pairs.len(),
            broken,
        }
    }

    /// Returns the means over what all ranks have.
    pub fn of_all(self, reducer: &dyn Reducer) -> Result<Measured, parallel::Error> {
        let World { rank, size } = reducer.world();
        let (right, margin) = self.pairs.unwrap_or_default();
        // counts and indices are far below 2^53
        let mut sums = vec![self.loss, right, margin, self.count as f64];
        sums.resize(4 + size, 0.0);
        sums[4 + rank] = self.broken.map_or(0.0, |index| index as f64 + 1.0);
        reducer.all_reduce_scalars(&mut sums)?;
        let mean = |sum: f64| sum / sums[3];
        Ok(Measured {
            loss: mean(sums[0]),
            accuracy: self.pairs.map(|_| mean(sums[1])),
            margin: self.pairs.map(|_| mean(sums[2])),
            broken: sums[4..].iter().filter(|place| **place > 0.0).map(|place| *place as usize - 1).min(),
        })
    }
}

/// The objective of a run.
pub struct Objective {
    dpo: Option<Dpo>,
    /// Whose micro-batches are computed.
    world: World,
    /// Log-probabilities of pairs before training, by (whether it is a validation pair, index).
    reference: HashMap<(bool, usize), PairLogProbs>,
}

impl Objective {
    pub fn new(dpo: Option<Dpo>, world: World) -> Self {
        Objective { dpo, world, reference: HashMap::new() }
    }

    /// Computes the gradients of this rank's part of a step's mean loss; `None` if `is_ended` said so between micro-batches.
    /// `batch` is the whole step's: its mean, and the places of documents in it, are over all ranks.
    pub fn step(
        &mut self,
        engine: &mut dyn Engine,
        (units, batch): (Units<'_>, &[Vec<usize>]),
        (seed, step): (u64, u32),
        is_ended: impl Fn() -> bool,
    ) -> Result<Option<Share>, Error> {
        let n_pairs = batch.iter().map(Vec::len).sum::<usize>();
        let n_targets: usize = batch.iter().flatten().map(|unit| units.targets(*unit)).sum();
        // of those that are this rank's
        let mut indexes = Vec::new();
        let (mut pairs, mut first_document, mut broken) = (Vec::new(), 0, None);
        engine.clear_gradients()?;
        for (index, micro) in batch.iter().enumerate() {
            if is_ended() {
                return Ok(None);
            }
            let documents = units.documents(micro);
            let key = StepKey { seed, step, first_document };
            // a step has fewer documents than 2^32: they are in memory
            first_document += documents.len() as u32;
            if !self.world.owns(index) {
                continue;
            }
            match self.dpo {
                None => {
                    // a batch has fewer than 2^24 targets where f32 begins to round them; rounding is the same for all
                    let scale = (1.0 / n_targets as f64) as f32;
                    engine.forward_backward(&documents, scale, key)?;
                    indexes.push(index);
                }
                Some(dpo) => {
                    let reference = self.reference(engine, units, (micro, false))?;
                    let mut slopes = |each: &[Vec<f32>]| {
                        let found = outcomes(dpo, each, &reference);
                        let slope = |outcome: &DpoOutcome| (outcome.d_chosen / n_pairs as f64) as f32;
                        let slopes =
                            found.iter().flat_map(|outcome| [slope(outcome), -slope(outcome)]).collect();
                        note_broken(&mut broken, index, Share::of_pairs(&found, None).loss);
                        pairs.extend(found);
                        slopes
                    };
                    engine.log_probs_backward(&documents, key, &mut slopes)?;
                }
            }
        }
        engine.finish_gradients()?;
        // not before: a device is at one micro-batch while the host lays out the next
        let (mut nll, mut targets) = (0.0, 0);
        for (index, sum) in indexes.into_iter().zip(engine.losses()?) {
            note_broken(&mut broken, index, sum.nll);
            nll += sum.nll;
            targets += sum.tokens;
        }
        Ok(Some(match self.dpo {
            None => Share { loss: nll, pairs: None, count: targets, broken },
            Some(_) => Share::of_pairs(&pairs, broken),
        }))
    }

    /// Returns the loss over this rank's among the batches, without dropout.
    pub fn validation(
        &mut self,
        engine: &dyn Engine,
        units: Units<'_>,
        batches: &[Vec<usize>],
    ) -> Result<Share, Error> {
        let (mut nll, mut targets, mut pairs, mut broken) = (0.0, 0, Vec::new(), None);
        let world = self.world;
        for (index, batch) in batches.iter().enumerate().filter(|(index, _)| world.owns(*index)) {
            let documents = units.documents(batch);
            match self.dpo {
                None => {
                    let sum = loss(engine, Of::Trained, &documents)?;
                    note_broken(&mut broken, index, sum.nll);
                    nll += sum.nll;
                    targets += sum.tokens;
                }
                Some(dpo) => {
                    let reference = self.reference(engine, units, (batch, true))?;
                    let each = engine.log_probs(Of::Trained, &documents)?;
                    let found = outcomes(dpo, &each, &reference);
                    note_broken(&mut broken, index, Share::of_pairs(&found, None).loss);
                    pairs.extend(found);
                }
            }
        }
        Ok(match self.dpo {
            None => Share { loss: nll, pairs: None, count: targets, broken },
            Some(_) => Share::of_pairs(&pairs, broken),
        })
    }

    /// Returns what the model as it was opened says of pairs. It is computed once: it does not depend on the batch.
    fn reference(
        &mut self,
        engine: &dyn Engine,
        units: Units<'_>,
        (pairs, is_held): (&[usize], bool),
    ) -> Result<Vec<PairLogProbs>, Error> {
        let is_new = |pair: &usize| !self.reference.contains_key(&(is_held, *pair));
        let new: Vec<usize> = pairs.iter().copied().filter(is_new).collect();
        if !new.is_empty() {
            let each = engine.log_probs(Of::Base, &units.documents(&new))?;
            let keys = new.iter().map(|pair| (is_held, *pair));
            self.reference.extend(keys.zip(pair_sums(&each)));
        }
        Ok(pairs.iter().map(|pair| self.reference[&(is_held, *pair)]).collect())
    }
}

/// Returns the summed loss of documents.
fn loss(engine: &dyn Engine, of: Of, documents: &[Document<'_>]) -> Result<LossSum, Error> {
    let log_probs = engine.log_probs(of, documents)?;
    let nll = log_probs.iter().flatten().fold(0.0, |sum, log_prob| sum - f64::from(*log_prob));
    Ok(LossSum { nll, tokens: log_probs.iter().map(Vec::len).sum() })
}

/// Returns the mean loss over documents.
pub fn text_loss(engine: &dyn Engine, of: Of, texts: &[Vec<u32>]) -> Result<f64, Error> {
    let (mut nll, mut targets) = (0.0, 0);
    for tokens in texts {
        let is_target: Vec<bool> = (0..tokens.len()).map(|at| at > 0).collect();
        let sum = loss(engine, of, &[Document { tokens, is_target: &is_target }])?;
        nll += sum.nll;
        targets += sum.tokens;
    }
    Ok(nll / targets as f64)
}

/// Keeps the index of the first batch whose loss is not finite.
fn note_broken(broken: &mut Option<usize>, index: usize, loss: f64) {
    if !loss.is_finite() {
        broken.get_or_insert(index);
    }
}

fn pair_sums(each: &[Vec<f32>]) -> Vec<PairLogProbs> {
    let sum = |log_probs: &[f32]| log_probs.iter().fold(0.0, |sum, log_prob| sum + f64::from(*log_prob));
    each.chunks_exact(2).map(|pair| PairLogProbs { chosen: sum(&pair[0]), rejected: sum(&pair[1]) }).collect()
}

fn outcomes(dpo: Dpo, each: &[Vec<f32>], reference: &[PairLogProbs]) -> Vec<DpoOutcome> {
    let loss = DpoLoss::Sigmoid { label_smoothing: dpo.label_smoothing };
    let pairs = pair_sums(each);
    pairs.iter().zip(reference).map(|(policy, reference)| loss.of(dpo.beta, *policy, *reference)).collect()
}
