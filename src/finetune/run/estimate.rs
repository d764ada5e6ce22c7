//! What a run takes, before it begins.

use std::time::Instant;

use super::batches::Batches;
use super::corpus::{Corpus, Units};
use super::engine::engine;
use super::error::Error;
use super::measure::Objective;
use super::{groups, optimizer};
use crate::cuda::Device;
use crate::finetune::Update;
use crate::finetune::parallel::World;
use crate::finetune::recipe::{Export, Length, Recipe};
use crate::kernel::ComputeMode;
use crate::model::train::{Checkpointing, ParameterInfo, Trainable};

/// What a run goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub steps: u64,
    /// Epochs begun.
    pub epochs: u64,
    pub tokens: u64,
    /// Tokens that are trained.
    pub targets: u64,
    /// The largest micro-batch of the first epoch.
    pub largest: Largest,
}

/// Sizes of a micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Largest {
    pub tokens: usize,
    /// Tokens that are trained: behind the last block's attention only the rows that these are predicted from are computed.
    pub targets: usize,
}

/// Returns what a run goes through.
///
/// Errors if it has more steps than can be counted.
pub fn totals(recipe: &Recipe, corpus: &Corpus) -> Result<Totals, Error> {
    let batches = Batches::new(recipe, corpus);
    let units = corpus.train();
    let steps = batches.total_steps(recipe.train.length)?;
    let mut totals = Totals { steps, ..Totals::default() };
    let mut done = 0;
    while done < steps {
        // total_steps counted epochs in 32 bits, and every epoch has a step
        let epoch = batches.epoch(totals.epochs as u32);
        let wanted = (steps - done).min(epoch.len() as u64);
        let all = || epoch.iter().take(wanted as usize).flatten();
        let sum =
            |count: &dyn Fn(usize) -> usize| all().flatten().map(|unit| count(*unit) as u64).sum::<u64>();
        let (tokens, targets) = (sum(&|unit| units.tokens(unit)), sum(&|unit| units.targets(unit)));
        if totals.epochs == 0 {
            let micro = epoch.iter().take(wanted as usize).flatten();
            totals.largest = micro.map(|micro| sizes(units, micro)).max().unwrap_or_default();
        }
        totals.epochs += 1;
        totals.tokens += tokens;
        totals.targets += targets;
        done += wanted;
        if batches.epochs_are_alike() && corpus.mixture().parts.iter().all(|part| part.weight.fract() == 0.0)
        {
            // the same rows in another order: as many tokens
            let whole = (steps - done) / epoch.len() as u64;
            totals.epochs += whole;
            totals.tokens += whole * tokens;
            totals.targets += whole * targets;
            done += whole * epoch.len() as u64;
        }
    }
    if let Length::Epochs(epochs) = recipe.train.length {
        totals.epochs = u64::from(epochs);
    }
    Ok(totals)
}

/// Returns the bytes of parameters, gradients and moments.
pub fn trained_bytes(recipe: &Recipe, model: &Trainable) -> u64 {
    let moments = optimizer(&recipe.train).n_moments();
    (4 * ((1 + moments) * model.n_parameters() + model.gradient_len())) as u64
}

/// Returns the bytes that a run takes besides the model: parameters, gradients, moments, activations.
///
/// An estimate: activations are counted from the sizes of the model, by what the backward pass keeps.
pub fn memory(
    recipe: &Recipe,
    model: &Trainable,
    largest: Largest,
    checkpointing: Checkpointing,
    device: Option<&Device>,
) -> u64 {
    let config = model.decoder().config();
    let n = if model.decoder().mode() == ComputeMode::F32 { 4 } else { 2 };
    // the residual stream: a device keeps it as it computes with it
    let stream = if device.is_some() { 4 } else { n };
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let active = config.experts.as_ref().map_or(1, |experts| experts.n_used);
    let d_ff = config.experts.as_ref().map_or(config.d_ff, |experts| experts.d_ff);
    let Largest { tokens, targets } = largest;
    // of a block with `rows` behind its attention: its input, q, k, v and the attention's output; log-sums in f32; then the input of
    // the other half and gates
    let kept = |rows: usize| {
        tokens * (stream * config.d_model + n * (2 * q + 2 * kv) + 4 * config.n_heads)
            + rows * (stream * config.d_model + n * 2 * active * d_ff)
    };
    // of the block at work: gates, their product, the gradients of these, packed for the products
    let working = |rows: usize| {
        tokens * 4 * (4 * config.d_model + 2 * q + 2 * kv) + rows * (24 + 2 * n) * active * d_ff
    };
    let before_last = config.n_layers.saturating_sub(1);
    // gone back through is the last block, with all that is kept, then those before it
    let rows = if before_last > 0 { tokens } else { targets };
    let activations = match checkpointing {
        Checkpointing::None => {
            let others = before_last * kept(tokens);
            (others + kept(targets) + working(targets)).max(others + working(rows))
        }
        Checkpointing::Blocks => config.n_layers * tokens * 4 * config.d_model + kept(rows) + working(rows),
    };
    let logits = match device {
        // 32 MiB of them at a time, forward and backward
        Some(_) => 64 << 20,
        None => of_logits(model, targets, n),
    };
    // what pairs make of their inputs: r values of every row, in f32
    let ranks: usize = model.parameters().iter().filter_map(rank_of).sum();
    trained_bytes(recipe, model) + (activations + logits + 4 * ranks * tokens) as u64
}

/// Returns the bytes of logits on the CPU: 32 MiB of them at a time, as many of their gradient, and one such buffer that was freed. The
/// allocator keeps it as it happens to lie: between equal runs the peak differs by so much.
fn of_logits(model: &Trainable, targets: usize, n: usize) -> usize {
    const AT_ONCE: usize = 32 << 20;
    let row = 4 * model.decoder().config().vocab_size.max(1);
    let at_once = row * targets.min((AT_ONCE / row).max(1));
    // a head that is trained takes them once more, packed for the gradient of its matrix
    let packed = if model.trains_head() { at_once / 4 * n } else { 0 };
    3 * at_once + packed
}

/// Returns the rank of a pair, by its A.
fn rank_of(parameter: &ParameterInfo) -> Option<usize> {
    parameter.name.contains(".lora_A.").then(|| parameter.shape[0])
}

/// Freed memory that glibc's allocator keeps at most: twice the largest buffer that it takes from its heap.
const KEPT_BYTES: u64 = 64 << 20;

/// What the program takes besides, whatever the model: code that it has not come to yet, stacks, buffers of files. 5 to 8 MB were
/// measured.
const PROGRAM_BYTES: u64 = 12_000_000;

/// Returns the most memory that a run takes on the CPU, of which the process has `resident` bytes now: the model is open, and nothing
/// has been computed.
///
/// An estimate from above: docs/benchmarks.md has what runs took.
pub fn peak(
    recipe: &Recipe,
    model: &Trainable,
    largest: Largest,
    checkpointing: Checkpointing,
    resident: u64,
) -> u64 {
    // the reference of pairs, and a text that is not to be forgotten, are asked of the model as it was opened
    let asks_base = recipe.dpo.is_some() || recipe.eval.forgetting.is_some();
    let taken = memory(recipe, model, largest, checkpointing, None);
    let mapped = model.mapped_bytes(asks_base) as u64;
    // a merged result passes through memory when activations are gone, but for what the allocator does not give back
    let is_merged = |form: &Export| matches!(form, Export::MergedSafetensors | Export::MergedGguf(_));
    let merged = match recipe.export.iter().any(is_merged) {
        true => 2 * model.n_parameters() as u64,
        false => 0,
    };
    let given_back = (taken - trained_bytes(recipe, model)).saturating_sub(KEPT_BYTES);
    let counted = resident + mapped + taken + merged.saturating_sub(given_back);
    // a fiftieth for what is not counted: what threads pack into, and gaps between buffers
    counted + counted / 50 + PROGRAM_BYTES
}

fn sizes(units: Units<'_>, micro: &[usize]) -> Largest {
    let sum = |count: &dyn Fn(usize) -> usize| micro.iter().map(|unit| count(*unit)).sum();
    Largest { tokens: sum(&|unit| units.tokens(unit)), targets: sum(&|unit| units.targets(unit)) }
}

/// What a probe took.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub tokens: usize,
    /// Of the forward and backward pass.
    pub seconds: f64,
    /// Of the optimizer.
    pub step_seconds: f64,
}

/// Does a step over the largest micro-batch and forgets it; the process has then taken what a run takes.
///
/// Errors as a run does.
pub fn probe(
    recipe: &Recipe,
    model: &Trainable,
    corpus: &Corpus,
    device: Option<&Device>,
) -> Result<Probe, Error> {
    let batches = Batches::new(recipe, corpus);
    let units = corpus.train();
    let epoch = batches.epoch(0);
    let Some(micro) = epoch.iter().flatten().max_by_key(|micro| sizes(units, micro)) else {
        return Ok(Probe { tokens: 0, seconds: 0.0, step_seconds: 0.0 });
    };
    let optimizer = optimizer(&recipe.train);
    let params = model.initial_parameters(recipe.train.seed);
    let state = optimizer.state(params.len());
    let mut engine = engine(model, device, optimizer, params, state)?;
    let mut objective = Objective::new(recipe.dpo, World::ALONE);
    let batch = std::slice::from_ref(micro);
    let (mut seconds, mut step_seconds) = (0.0, 0.0);
    // the first pass warms up memory and threads
    for _ in 0..2 {
        let clock = Instant::now();
        objective.step(engine.as_mut(), (units, batch), (recipe.train.seed, 0), || false)?;
        seconds = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        let groups = groups(model, recipe.train.weight_decay);
        let update = Update { lr: 0.0, gradient_factor: 1.0, groups: &groups };
        engine.update(&update)?;
        // the norm is waited for
        engine.gradient_norm()?;
        step_seconds = clock.elapsed().as_secs_f64();
    }
    Ok(Probe { tokens: sizes(units, micro).tokens, seconds, step_seconds })
}
