//! What each process of a run gets: the same beginning, and its part of every batch.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::batches::Batches;
use super::checkpoint::State;
use super::corpus::Corpus;
use super::error::Error;
use crate::data::hex;
use crate::finetune::OptimizerState;
use crate::finetune::parallel::{Reducer, World};
use crate::finetune::recipe::Recipe;
use crate::model::train::Parameters;

/// Where a run begins or goes on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begun {
    pub state: State,
    /// The step of the last checkpoint.
    pub saved: Option<u64>,
}

/// Returns where rank 0 begins; parameters and moments become its own.
///
/// So the others need not see its checkpoints, nor can they read others.
pub(super) fn begin_alike(
    reducer: &dyn Reducer,
    begun: Begun,
    params: &mut Parameters,
    moments: &mut OptimizerState,
) -> Result<Begun, Error> {
    if reducer.world().size == 1 {
        return Ok(begun);
    }
    // numbers and texts under keys that are texts
    let text = reducer.broadcast_bytes(serde_json::to_vec(&begun).unwrap_or_default())?;
    let begun: Begun =
        serde_json::from_slice(&text).map_err(|error| Error::BadState { why: error.to_string() })?;
    reducer.broadcast(params)?;
    for moment in &mut moments.moments {
        reducer.broadcast(moment)?;
    }
    moments.step = begun.state.step;
    Ok(begun)
}

/// Errors if a process would get nothing of any step.
pub fn check_processes(recipe: &Recipe, world: World) -> Result<(), Error> {
    let micro_batches = recipe.train.grad_accum.max(1);
    match world.size > micro_batches {
        true => Err(Error::TooManyProcesses { size: world.size, micro_batches }),
        false => Ok(()),
    }
}

/// Returns the SHA-256 of parameters as little-endian bytes, lower-case hex.
pub fn parameters_sha256(params: &[f32]) -> String {
    let mut digest = Sha256::new();
    for chunk in params.chunks(1 << 16) {
        digest.update(chunk.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
    hex(&digest.finalize())
}

/// What a process computes of the first epoch's steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankShare {
    /// Most of a step.
    pub micro_batches: usize,
    /// Most of a step, and the mean over steps.
    pub most_tokens: usize,
    pub mean_tokens: f64,
}

/// Returns what each of `size` processes computes, and what share of all tokens is in the way of the next step: those of the rank
/// that has most of a step, summed over the first epoch's steps.
///
/// Errors if a process would get nothing of any step.
pub fn shares(recipe: &Recipe, corpus: &Corpus, size: usize) -> Result<(Vec<RankShare>, f64), Error> {
    check_processes(recipe, World { rank: 0, size })?;
    let units = corpus.train();
    let steps = Batches::new(recipe, corpus).epoch(0);
    let mut shares = vec![RankShare::default(); size];
    let (mut slowest, mut all) = (0, 0);
    for step in &steps {
        let mut tokens = vec![0; size];
        let mut micro_batches = vec![0; size];
        for (index, micro) in step.iter().enumerate() {
            let owns = |rank: &usize| World { rank: *rank, size }.owns(index);
            for rank in (0..size).filter(owns) {
                tokens[rank] += micro.iter().map(|unit| units.tokens(*unit)).sum::<usize>();
                micro_batches[rank] += 1;
            }
        }
        slowest += tokens.iter().max().copied().unwrap_or(0);
        all += tokens.iter().sum::<usize>();
        for (rank, share) in shares.iter_mut().enumerate() {
            share.micro_batches = share.micro_batches.max(micro_batches[rank]);
            share.most_tokens = share.most_tokens.max(tokens[rank]);
            // tokens of an epoch are far below 2^53
            share.mean_tokens += tokens[rank] as f64 / steps.len() as f64;
        }
    }
    Ok((shares, slowest as f64 / all.max(1) as f64))
}
