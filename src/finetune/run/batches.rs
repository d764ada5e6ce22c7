//! Which units each optimizer step learns from.

use super::corpus::Corpus;
use super::error::Error;
use crate::data::pack::{Batching, Packing};
use crate::finetune::recipe::{Length, Recipe};

/// Most epochs and steps: they are counters of random numbers.
const MOST: u64 = u32::MAX as u64;

/// A step's micro-batches, each a list of units.
pub type StepBatch = Vec<Vec<usize>>;

/// The batches of a run, a function of recipe and data alone.
pub struct Batches<'a> {
    corpus: &'a Corpus,
    batching: Batching,
    accumulation: usize,
    seed: u64,
}

impl<'a> Batches<'a> {
    pub fn new(recipe: &Recipe, corpus: &'a Corpus) -> Batches<'a> {
        let batching = Batching {
            packing: recipe.data.packing,
            capacity: recipe.data.max_seq_len,
            micro_batch_size: recipe.train.micro_batch_size,
        };
        Batches { corpus, batching, accumulation: recipe.train.grad_accum.max(1), seed: recipe.train.seed }
    }

    /// Returns the steps of an epoch in their order; the last may have fewer micro-batches.
    pub fn epoch(&self, epoch: u32) -> Vec<StepBatch> {
        let order = self.corpus.mixture().epoch(self.seed, epoch);
        let units = self.corpus.train();
        let micro = self.batching.micro_batches(&order, |unit| units.tokens(unit), self.seed, epoch);
        micro.chunks(self.accumulation).map(<[Vec<usize>]>::to_vec).collect()
    }

    /// Returns the micro-batches of what is validated on, in its order.
    pub fn validation(&self) -> Vec<Vec<usize>> {
        let units = self.corpus.validation();
        let order: Vec<usize> = (0..units.len()).collect();
        let packing = match self.batching.packing {
            Packing::Off => Packing::Off,
            Packing::Sequential | Packing::FirstFit => Packing::Sequential,
        };
        let batching = Batching { packing, ..self.batching };
        batching.micro_batches(&order, |unit| units.tokens(unit), self.seed, 0)
    }

    /// Returns whether a run that has done `step` steps can stand before that step of an epoch.
    pub fn is_place(&self, step: u64, epoch: u32, step_in_epoch: usize) -> bool {
        // every epoch has a step
        let is_reached = step.checked_sub(u64::from(epoch)).is_some_and(|left| step_in_epoch as u64 <= left);
        if !is_reached {
            return false;
        }
        let len = self.epoch(epoch).len();
        let is_counted = || u64::from(epoch) * len as u64 + step_in_epoch as u64 == step;
        step_in_epoch < len && (!self.epochs_are_alike() || is_counted())
    }

    /// Returns the steps of the whole run.
    ///
    /// Errors if epochs or steps are more than a counter holds.
    pub fn total_steps(&self, length: Length) -> Result<u64, Error> {
        let too_many = |what, count| Error::TooMany { what, count, most: MOST };
        let steps = match length {
            Length::MaxSteps(steps) => steps,
            Length::Epochs(epochs) if self.epochs_are_alike() => {
                u64::from(epochs).saturating_mul(self.epoch(0).len() as u64)
            }
            Length::Epochs(epochs) => (0..epochs).map(|epoch| self.epoch(epoch).len() as u64).sum(),
        };
        if steps > MOST { Err(too_many("steps", steps)) } else { Ok(steps) }
    }

    /// Returns whether every epoch has as many steps: without packing, or if packs depend on lengths alone and every epoch
    /// has the same rows.
    pub(super) fn epochs_are_alike(&self) -> bool {
        let is_whole = self.corpus.mixture().parts.iter().all(|part| part.weight.fract() == 0.0);
        match self.batching.packing {
            Packing::Off => true,
            Packing::FirstFit => is_whole,
            Packing::Sequential => false,
        }
    }
}
