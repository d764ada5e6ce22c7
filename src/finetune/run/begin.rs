//! Where a run begins: at nothing, or at a checkpoint.

use super::batches::Batches;
use super::checkpoint::{Checkpoints, Restored, State};
use super::error::Error;
use super::identity::Identity;
use super::log::{check_log, log_path};
use super::{Job, Observer};
use crate::finetune::Optimizer;
use crate::finetune::recipe;

/// Returns the checkpoints of the run's directory, and the one to go on from, if the run is to go on.
pub(super) fn from_disk(
    job: &Job<'_>,
    batches: &Batches<'_>,
    identity: &Identity,
    optimizer: Optimizer,
    observer: &mut dyn Observer,
) -> Result<(Checkpoints, Option<Restored>), Error> {
    let checkpoints = Checkpoints::open(job.dir)?;
    let restored = restored(job, &checkpoints, identity, observer)?;
    if let Some(restored) = &restored {
        // before anything is computed: the report is made of it
        check_log(job.dir, &restored.state.logs)?;
        let total_steps = batches.total_steps(job.recipe.train.length)?;
        check_place(restored, batches, total_steps, optimizer)
            .map_err(|why| Error::Damaged { path: checkpoints.path(restored.state.step), why })?;
    }
    Ok((checkpoints, restored))
}

/// Returns the checkpoint to go on from, if the run is to go on.
fn restored(
    job: &Job<'_>,
    checkpoints: &Checkpoints,
    identity: &Identity,
    observer: &mut dyn Observer,
) -> Result<Option<Restored>, Error> {
    let there = checkpoints.steps()?;
    let path = || job.dir.to_owned();
    if !job.resume {
        return match there.is_empty() && !log_path(job.dir, recipe::Log::Jsonl).exists() {
            true => Ok(None),
            false => Err(Error::Exists { path: path() }),
        };
    }
    // before tensors are read: those of another model have other shapes
    let mut differences = Vec::new();
    if let Some(state) = there.iter().rev().find_map(|step| checkpoints.state(*step).ok()) {
        differences = identity.differences(&state.identity);
        if !differences.is_empty() {
            return Err(Error::OtherRun { path: checkpoints.path(state.step), differences });
        }
    }
    let mut notes = differences;
    let last = checkpoints.last(job.model, job.recipe.checkpoint.keep_best, &mut notes)?;
    notes.iter().for_each(|note| observer.note(note));
    // killed before its first checkpoint, a run begins anew
    if last.is_none() && !log_path(job.dir, recipe::Log::Jsonl).exists() {
        return Err(Error::NothingToResume { path: path() });
    }
    Ok(last)
}

/// Errors, saying why, if a checkpoint of this run cannot be where it says: its state is no part of any digest.
fn check_place(
    restored: &Restored,
    batches: &Batches<'_>,
    total_steps: u64,
    optimizer: Optimizer,
) -> Result<(), String> {
    let State { step, epoch, step_in_epoch, .. } = restored.state;
    if step > total_steps || !batches.is_place(step, epoch, step_in_epoch) {
        return Err(format!(
            "state.json is at step {step} of {total_steps}, before step {step_in_epoch} of epoch {epoch}, which the data does not have there"
        ));
    }
    let (found, expected) = (restored.optimizer.moments.len(), optimizer.n_moments());
    match found == expected {
        true => Ok(()),
        false => Err(format!("{found} moments, and `{}` has {expected}", optimizer.name())),
    }
}
