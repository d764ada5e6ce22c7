//! The training loop: batches -> gradients -> clip -> optimizer, with checkpoints, validation and logs.
//!
//! Nothing random has a state: order, dropout and first values are drawn by counters of (seed, epoch, step, place). So a
//! run that goes on from a checkpoint computes every loss and parameter to the bit as if it had not ended.
//!
//! Several processes ([`super::parallel`]) each run this loop over their share of every batch; what decides is the same on all
//! of them, and the first alone reads and writes.

mod batches;
mod begin;
mod checkpoint;
mod corpus;
mod engine;
mod error;
mod estimate;
mod identity;
mod lock;
mod log;
mod measure;
mod shares;
mod tensorboard;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::parallel::{self, Reducer};
use super::recipe::{self, Recipe};
use super::{Group, Optimizer, Schedule, Update, clip_factor};
use crate::cuda::Device;
use crate::model::train::{self, Parameters, Trainable};

pub use batches::{Batches, StepBatch};
pub use checkpoint::{Best, Checkpoints, Digests, Exact, Restored, State};
pub use corpus::{Corpus, Units};
pub use engine::{Engine, Of, engine};
pub use error::Error;
pub use estimate::{Largest, Probe, Totals, memory, peak, probe, totals, trained_bytes};
pub use identity::Identity;
pub use lock::RunLock;
pub use log::{Event, StepEvent, ValidationEvent, log_path, read_events};
pub use measure::{Measured, text_loss};
pub use shares::{RankShare, check_processes, parameters_sha256, shares};

use log::Logs;
use measure::Objective;

/// Moments are means of gradients and of their squares: while no gradient is larger than this, neither is a moment larger than its
/// square, and all are finite in f32.
const LARGE_NORM: f64 = 1e18;

/// A run to be done.
pub struct Job<'a> {
    pub recipe: &'a Recipe,
    pub model: &'a Trainable,
    /// What it is trained on; the CPU if there is none.
    pub device: Option<&'a Device>,
    pub corpus: &'a Corpus,
    /// Documents of a general text, whose loss is measured before and after.
    pub general: Option<&'a [Vec<u32>]>,
    /// Where checkpoints and logs go; of several processes the first holds its [`RunLock`].
    pub dir: &'a Path,
    /// SHA-256 of the model's files.
    pub model_sha256: &'a str,
    /// Goes on from the last checkpoint.
    pub resume: bool,
    /// Ends the run at the next micro-batch, with a checkpoint.
    pub interrupted: &'a AtomicBool,
    /// The way to the run's other processes.
    pub reducer: &'a dyn Reducer,
}

/// Hears of what happens in a run.
pub trait Observer {
    /// The run begins, `done` of `total` steps behind it.
    fn began(&mut self, _done: u64, _total: u64) {}
    fn step(&mut self, _event: &StepEvent) {}
    fn validated(&mut self, _event: &ValidationEvent) {}
    fn saved(&mut self, _checkpoint: &Path) {}
    fn note(&mut self, _note: &str) {}
}

/// Hears nothing.
impl Observer for () {}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Finished,
    /// Validation loss had not fallen for long enough.
    Early,
    Interrupted,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub ended: Ended,
    /// Steps done, and those planned.
    pub steps: u64,
    pub total_steps: u64,
    /// The parameters that are the result, and the step they are of: the best by validation if the recipe keeps it.
    pub params: Parameters,
    pub chosen_step: u64,
    /// Where the last checkpoint is, which `--resume` goes on from.
    pub checkpoint: PathBuf,
    pub best: Option<Best>,
    /// Loss on the general text.
    pub forgetting: Option<Forgetting>,
    pub identity: Identity,
}

/// Loss on the general text before and after, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forgetting {
    pub before: f64,
    pub after: f64,
}

/// Trains.
///
/// Errors if there is a run in the directory already (unless it is to go on), if a checkpoint is of another run, if a loss is not
/// finite, and if something cannot be written; checkpoints written until then stay as they are. An error of one process is told to
/// the others, whose runs end with it.
pub fn run(job: &Job<'_>, observer: &mut dyn Observer) -> Result<Outcome, Error> {
    let run = Run::new(job, observer).and_then(|mut run| {
        let ended = run.train(observer).map_err(|error| run.explained(error))?;
        run.finish(ended)
    });
    run.map_err(|error| {
        job.reducer.fail(&with_causes(&error));
        match error {
            Error::Parallel { error, .. } if job.reducer.world().is_first() => {
                let checkpoints = Checkpoints::at(job.dir);
                let last = checkpoints.steps().ok().and_then(|steps| steps.last().copied());
                Error::Parallel { error, checkpoint: last.map(|step| checkpoints.path(step)) }
            }
            error => error,
        }
    })
}

/// Returns an error and its causes in a line, as the other processes say it.
fn with_causes(error: &Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |said, cause| format!("{said}: {cause}"))
}

struct Run<'a> {
    job: &'a Job<'a>,
    batches: Batches<'a>,
    total_steps: u64,
    schedule: Schedule,
    engine: Box<dyn Engine + 'a>,
    groups: Vec<Group>,
    objective: Objective,
    checkpoints: Checkpoints,
    logs: Logs,
    state: State,
    /// The step of the last checkpoint.
    saved: Option<u64>,
}

impl<'a> Run<'a> {
    fn new(job: &'a Job<'a>, observer: &mut dyn Observer) -> Result<Run<'a>, Error> {
        let Job { recipe, model, corpus, dir, .. } = *job;
        let batches = Batches::new(recipe, corpus);
        let total_steps = batches.total_steps(recipe.train.length)?;
        let world = job.reducer.world();
        check_processes(recipe, world)?;
        let identity = Identity::new(recipe, job.model_sha256.to_owned(), corpus, job.general, world.size);
        let optimizer = optimizer(&recipe.train);
        let (checkpoints, restored) = match world.is_first() {
            true => begin::from_disk(job, &batches, &identity, optimizer, observer)?,
            false => (Checkpoints::at(dir), None),
        };
        let saved = restored.as_ref().map(|restored| restored.state.step);
        let (state, mut params, mut moments) = match restored {
            Some(Restored { state, params, optimizer }) => (state, params, optimizer),
            None => {
                let params = model.initial_parameters(recipe.train.seed);
                let moments = optimizer.state(params.len());
                (State::new(identity), params, moments)
            }
        };
        let begun = shares::Begun { state, saved };
        let shares::Begun { mut state, saved } =
            shares::begin_alike(job.reducer, begun, &mut params, &mut moments)?;
        // before anything is written: there may be no room for it, here or at another process
        let engine = engine(model, job.device, optimizer, params, moments)?;
        job.reducer.barrier()?;
        let logs = match world.is_first() {
            true => Logs::open(dir, &recipe.log, &state.logs, world.size)?,
            false => Logs::none(),
        };
        if world.is_first() {
            // those that were passed over: a log that is cut has no place for them
            checkpoints.remove_after(state.step)?;
            // the first alone is asked for it
            if let (Some(general), None) = (job.general, state.general_before) {
                state.general_before = Some(Exact(text_loss(engine.as_ref(), Of::Base, general)?));
            }
        }
        observer.began(state.step, total_steps);
        Ok(Run {
            job,
            batches,
            total_steps,
            schedule: recipe.train.schedule(total_steps as usize),
            engine,
            groups: groups(model, recipe.train.weight_decay),
            objective: Objective::new(recipe.dpo, world),
            checkpoints,
            logs,
            state,
            saved,
        })
    }

    fn train(&mut self, observer: &mut dyn Observer) -> Result<Ended, Error> {
        while self.state.step < self.total_steps && !self.is_out_of_patience() {
            let epoch = self.batches.epoch(self.state.epoch);
            let batch = &epoch[self.state.step_in_epoch];
            let Some(event) = self.step(batch)? else {
                self.save(observer)?;
                return Ok(Ended::Interrupted);
            };
            let is_epochs_end = self.advance(epoch.len());
            self.logs.write(&Event::Step(event.clone()))?;
            observer.step(&event);
            let is_better = match self.is_due(self.job.recipe.eval.every_steps, is_epochs_end) {
                true => self.validate(observer)?,
                false => false,
            };
            let keeps = &self.job.recipe.checkpoint;
            if self.is_due(keeps.every_steps, is_epochs_end)
                || (is_better && keeps.keep_best)
                || self.is_out_of_patience()
            {
                self.save(observer)?;
            }
        }
        let is_early = self.state.step < self.total_steps;
        Ok(if is_early { Ended::Early } else { Ended::Finished })
    }

    /// Does a step; `None` if the run is interrupted in it, parameters as they were.
    fn step(&mut self, batch: &[Vec<usize>]) -> Result<Option<StepEvent>, Error> {
        let clock = Instant::now();
        let Job { recipe, corpus, interrupted, .. } = *self.job;
        // no more steps than a counter holds: `Batches::total_steps`
        let step = self.state.step as u32;
        let is_ended = || interrupted.load(Ordering::SeqCst);
        let units = corpus.train();
        let key = (recipe.train.seed, step);
        let reducer = self.job.reducer;
        let engine = self.engine.as_mut();
        let share = self.objective.step(engine, (units, batch), key, is_ended)?;
        // the signal may have come to one process alone
        let is_ended = reducer.any(share.is_none())?;
        let Some(share) = share.filter(|_| !is_ended) else { return Ok(None) };
        let measured = share.of_all(reducer)?;
        engine.sum_gradients(reducer)?;
        let norm = engine.gradient_norm()?;
        if !measured.loss.is_finite() || !norm.is_finite() {
            let what = format!("loss {}, gradient norm {norm}", measured.loss);
            return self.not_finite(batch, measured.broken, what);
        }
        let lr = self.schedule.lr_at(self.state.step as usize);
        let gradient_factor = match recipe.train.max_grad_norm {
            0.0 => 1.0,
            max => clip_factor(norm, max),
        };
        let update = Update { lr, gradient_factor, groups: &self.groups };
        let engine = self.engine.as_mut();
        engine.update(&update)?;
        // before they could become a checkpoint
        let is_large = norm * f64::from(gradient_factor) > LARGE_NORM;
        if is_large && !engine.moments_are_finite()? {
            let what =
                format!("the optimizer's moments overflow; loss {}, gradient norm {norm}", measured.loss);
            return self.not_finite(batch, None, what);
        }
        if !engine.params_are_finite()? {
            let what = format!("parameters overflow; loss {}, gradient norm {norm}", measured.loss);
            return self.not_finite(batch, None, what);
        }
        let count = |of: &dyn Fn(usize) -> usize| batch.iter().flatten().map(|unit| of(*unit) as u64).sum();
        Ok(Some(StepEvent {
            step: self.state.step + 1,
            epoch: self.state.epoch,
            loss: measured.loss,
            lr,
            grad_norm: norm,
            tokens: count(&|unit| units.tokens(unit)),
            targets: count(&|unit| units.targets(unit)),
            accuracy: measured.accuracy,
            margin: measured.margin,
            seconds: clock.elapsed().as_secs_f64(),
        }))
    }

    /// Returns the error of a step that went wrong: with the rows of the micro-batch that did, if it is known, else with all.
    fn not_finite<T>(&self, batch: &[Vec<usize>], broken: Option<usize>, what: String) -> Result<T, Error> {
        let units = self.job.corpus.train();
        let (batch, rows) = match broken {
            Some(index) => {
                let batch_of = format!("micro-batch {} of {}", index + 1, batch.len());
                (batch_of, rows(units, &batch[index]))
            }
            None => ("the rows of its batch".to_owned(), rows(units, &batch.concat())),
        };
        Err(Error::NotFinite {
            step: self.state.step + 1,
            what,
            batch,
            rows,
            checkpoint: self.last_checkpoint()?,
        })
    }

    /// Returns an error of the device as one that says what is left.
    fn explained(&self, error: Error) -> Error {
        match error {
            Error::Train(train::Error::Device(source)) => match self.last_checkpoint() {
                Ok(checkpoint) => Error::Device { step: self.state.step + 1, checkpoint, source },
                Err(error) => error,
            },
            other => other,
        }
    }

    /// Returns where the last checkpoint lies.
    fn last_checkpoint(&self) -> Result<Option<PathBuf>, Error> {
        Ok(self.checkpoints.steps()?.last().map(|step| self.checkpoints.path(*step)))
    }

    /// Counts a step; returns whether it was the epoch's last.
    fn advance(&mut self, epoch_len: usize) -> bool {
        let state = &mut self.state;
        state.step += 1;
        state.step_in_epoch += 1;
        state.validation = None;
        let is_epochs_end = state.step_in_epoch == epoch_len;
        if is_epochs_end {
            (state.epoch, state.step_in_epoch) = (state.epoch + 1, 0);
        }
        is_epochs_end
    }

    /// Returns whether something that comes every so many steps, or at the end of epochs, comes now.
    fn is_due(&self, every: Option<u64>, is_epochs_end: bool) -> bool {
        self.state.step == self.total_steps
            || every.map_or(is_epochs_end, |every| self.state.step.is_multiple_of(every))
    }

    /// Validates, if there is what to validate on; returns whether the loss is the lowest so far.
    fn validate(&mut self, observer: &mut dyn Observer) -> Result<bool, Error> {
        let units = self.job.corpus.validation();
        if units.is_empty() {
            return Ok(false);
        }
        let clock = Instant::now();
        let batches = self.batches.validation();
        let share = self.objective.validation(self.engine.as_ref(), units, &batches)?;
        let measured = share.of_all(self.job.reducer)?;
        let Measured { loss, accuracy, broken, .. } = measured;
        let step = self.state.step;
        if !loss.is_finite() {
            let index = broken.unwrap_or(0);
            let (batch, rows) = (index + 1, rows(units, &batches[index]));
            let checkpoint = self.last_checkpoint()?;
            return Err(Error::ValidationNotFinite { step, loss, batch, rows, checkpoint });
        }
        let seconds = clock.elapsed().as_secs_f64();
        let event = ValidationEvent { step, loss, accuracy, seconds };
        self.logs.write(&Event::Validation(event.clone()))?;
        observer.validated(&event);
        let state = &mut self.state;
        state.validation = Some(Exact(loss));
        let min_delta = self.job.recipe.eval.early_stopping.map_or(0.0, |early| early.min_delta);
        match state.to_beat {
            Some(Exact(to_beat)) if loss >= to_beat - min_delta => {
                state.misses = state.misses.saturating_add(1);
            }
            _ => (state.to_beat, state.misses) = (Some(Exact(loss)), 0),
        }
        let is_better = state.best.is_none_or(|best| loss < best.loss.0);
        if is_better {
            state.best = Some(Best { step, loss: Exact(loss) });
        }
        Ok(is_better)
    }

    fn is_out_of_patience(&self) -> bool {
        self.job.recipe.eval.early_stopping.is_some_and(|early| self.state.misses >= early.patience)
    }

    /// Writes a checkpoint, unless the last one is of this step, and removes old ones. Nothing is written of parameters that are
    /// not the same in all processes.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        if self.saved == Some(self.state.step) {
            return Ok(());
        }
        let world = self.job.reducer.world();
        if world.size > 1 {
            let digest = parameters_sha256(&self.engine.params()?);
            parallel::check_agreement(self.job.reducer, digest.as_bytes())?;
        }
        if !world.is_first() {
            self.saved = Some(self.state.step);
            return Ok(());
        }
        self.state.logs = self.logs.sync()?;
        let mut written = None;
        self.engine.with_state(&mut |params, moments| {
            let parameters = self.job.model.parameters();
            written = Some(self.checkpoints.write(&self.state, parameters, params, moments));
        })?;
        // it was called
        let Some(path) = written.transpose()? else { return Ok(()) };
        self.saved = Some(self.state.step);
        let keeps = &self.job.recipe.checkpoint;
        self.checkpoints.prune(keeps.keep, keeps.keep_best)?;
        observer.saved(&path);
        Ok(())
    }

    fn finish(mut self, ended: Ended) -> Result<Outcome, Error> {
        self.logs.sync()?;
        // nobody has ended well before the last checkpoint is written
        self.job.reducer.barrier()?;
        let Run { job, state, mut engine, checkpoints, total_steps, .. } = self;
        let mut chosen_step = state.step;
        let is_result = job.reducer.world().is_first() && ended != Ended::Interrupted;
        let keeps_best = job.recipe.checkpoint.keep_best && is_result;
        let better = state.best.filter(|best| keeps_best && best.step != state.step);
        engine.settle(better.is_none());
        if let Some(best) = better {
            let restored = checkpoints.read(best.step, job.model).map_err(Error::of_best)?;
            engine.set_params(restored.params)?;
            chosen_step = best.step;
        }
        let forgetting = match (job.general, state.general_before) {
            (Some(general), Some(Exact(before))) if is_result => {
                Some(Forgetting { before, after: text_loss(engine.as_ref(), Of::Trained, general)? })
            }
            _ => None,
        };
        Ok(Outcome {
            ended,
            steps: state.step,
            total_steps,
            params: engine.params()?,
            chosen_step,
            checkpoint: checkpoints.path(state.step),
            best: state.best,
            forgetting,
            identity: state.identity,
        })
    }
}

/// Returns the places of units, the first of them.
fn rows(units: Units<'_>, of: &[usize]) -> Vec<String> {
    const LISTED: usize = 20;
    let mut rows: Vec<String> = of.iter().take(LISTED).map(|unit| units.place(*unit).to_string()).collect();
    if of.len() > LISTED {
        rows.push(format!("and {} more", of.len() - LISTED));
    }
    rows
}

/// Returns the optimizer of a recipe.
fn optimizer(train: &recipe::Train) -> Optimizer {
    let [beta1, beta2] = train.betas;
    match train.optimizer {
        recipe::Optimizer::Adamw => Optimizer::AdamW { beta1, beta2, eps: train.eps.unwrap_or(1e-8) },
        recipe::Optimizer::Lion => Optimizer::Lion { beta1, beta2 },
    }
}

/// Returns the parameters in groups: those that decay, and those that don't.
fn groups(model: &Trainable, weight_decay: f64) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for info in model.parameters() {
        let weight_decay = if info.decays { weight_decay } else { 0.0 };
        match groups.last_mut() {
            Some(last) if last.weight_decay == weight_decay && last.range.end == info.range.start => {
                last.range.end = info.range.end;
            }
            _ => groups.push(Group { range: info.range.clone(), lr_factor: 1.0, weight_decay }),
        }
    }
    groups
}
