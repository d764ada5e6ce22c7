//! Curves: a tiny model trained for some hundred steps on a device and on the CPU, stopped and gone on with.

use std::ops::Range;

use super::report::Curve;
use super::run::{Checker, share_that_differs};
use super::train::{Shape, TINY};
use crate::cuda::Device;
use crate::error::Failure;
use crate::finetune::run::engine;
use crate::finetune::{Group, Optimizer, OptimizerState, Update, clip_factor};
use crate::kernel::ComputeMode;
use crate::model::train::{Document, Error, LowRankSpec, Parameters, StepKey, Trainable};

const MODEL: Shape = TINY;

/// Documents of a step, their tokens, and after how many steps the same come again.
const DOCUMENTS: usize = 3;
const LENGTH: usize = 20;
const BATCHES: usize = 2;

/// Small and slow to begin, so that the curve is no chaos: with 1e-3, and four batches, a bit in the parameters at the start becomes a
/// hundredth of a loss within 200 steps, with these 4e-7 of it.
const LR: f64 = 5e-4;
const WARM_UP: u32 = 20;
const MAX_NORM: f64 = 1.0;

/// What losses in f32 may be off by, as a share of the CPU's: some twenty times what a bit in the parameters makes, and a hundredth of what
/// products in bf16 do.
const F32_ALLOWED: f64 = 1e-5;

/// How many times further the device's curve in bf16 may be from the CPU's in f32 than the CPU's in bf16 is: the CPU rounds what goes into
/// products, the device what comes out of them, too, and its gradients are up to 2.5 times as far off (tests/train/cuda.rs). The largest of
/// some hundred steps is a single draw.
const BF16_TIMES: f64 = 6.0;

/// What a curve in bf16 may be off by in any case: what rounding a value to bf16 may. The CPU's own distance is a draw, over a few steps
/// often one of nearly nothing.
const BF16_ALLOWED: f64 = 1.0 / 512.0;

/// From how many steps on a curve has to fall.
const LONG: u32 = 100;

/// What a checkpoint holds.
#[derive(Clone)]
struct State {
    params: Parameters,
    optimizer: OptimizerState,
}

/// Trains on the device and on the CPU, in f32 and in bf16.
pub fn run(checker: &mut Checker<'_>) -> Result<(), Failure> {
    let n = checker.steps;
    let spec = || LowRankSpec { lora_dropout: 0.05, ..LowRankSpec::new(8) };
    let exact = MODEL.model(spec(), None, ComputeMode::F32)?;
    let rounded = MODEL.model(spec(), None, ComputeMode::Bf16)?;
    let params = exact.initial_parameters(1);
    let optimizer = Optimizer::adamw().state(params.len());
    let start = State { params, optimizer };
    let on_cpu = train(&exact, None, &start, 0..n)?.0;
    let rounded_on_cpu = train(&rounded, None, &start, 0..n)?.0;
    let steps = format!("{n} steps");
    if n >= LONG {
        let last = mean(&on_cpu[on_cpu.len() - on_cpu.len().div_ceil(10)..]);
        // a curve that stands still would agree with any other
        checker.note("training curve falls", "cpu", &steps, last / on_cpu[0], 0.95);
    }
    let of_cpu = distances(&rounded_on_cpu, &on_cpu);
    for (model, name, allowed) in [
        (&exact, "f32", Distances { largest: F32_ALLOWED, mean: F32_ALLOWED }),
        (
            &rounded,
            "bf16",
            Distances {
                largest: (BF16_TIMES * of_cpu.largest).max(BF16_ALLOWED),
                mean: (BF16_TIMES * of_cpu.mean).max(BF16_ALLOWED),
            },
        ),
    ] {
        let losses = on_device(checker, model, name, &start)?;
        let found = distances(&losses, &on_cpu);
        let kernel = format!("training curve {name}");
        checker.note(&format!("{kernel}, largest"), "cpu", &steps, found.largest, allowed.largest);
        checker.note(&format!("{kernel}, mean"), "cpu", &steps, found.mean, allowed.mean);
        checker.curves.push(Curve {
            what: name.to_owned(),
            largest: found.largest,
            mean: found.mean,
            losses,
            of_cpu: on_cpu.clone(),
            of_cpu_in_bf16: rounded_on_cpu.clone(),
        });
    }
    Ok(())
}

/// Trains twice, and once more with a stop at half: the same bits. Returns the losses.
fn on_device(
    checker: &mut Checker<'_>,
    model: &Trainable,
    name: &str,
    start: &State,
) -> Result<Vec<f64>, Failure> {
    let (device, n) = (Some(checker.device), checker.steps);
    let (losses, end) = train(model, device, start, 0..n)?;
    let (again, end_again) = train(model, device, start, 0..n)?;
    let half = n / 2;
    let (mut parts, stopped) = train(model, device, start, 0..half)?;
    let (rest, end_of_parts) = train(model, device, &stopped, half..n)?;
    parts.extend(rest);
    for (what, losses_too, end_too) in
        [("again", &again, &end_again), ("stopped and gone on with", &parts, &end_of_parts)]
    {
        let differ = share_that_differs(&all(&losses, &end), &all(losses_too, end_too));
        let kernel = format!("training curve {name}");
        checker.note(&kernel, "itself", &format!("{n} steps {what}"), differ, 0.0);
    }
    Ok(losses)
}

/// Returns losses, parameters and moments as 32 bits each.
fn all(losses: &[f64], end: &State) -> Vec<f32> {
    let halves = |loss: &f64| {
        let bits = loss.to_bits();
        // both halves of it
        [(bits >> 32) as u32, bits as u32].map(f32::from_bits)
    };
    let mut all: Vec<f32> = losses.iter().flat_map(halves).collect();
    all.extend(end.params.iter());
    all.extend(end.optimizer.moments.iter().flatten());
    all
}

/// Returns the loss of each step, per token, and what there is behind the last.
fn train(
    model: &Trainable,
    device: Option<&Device>,
    from: &State,
    steps: Range<u32>,
) -> Result<(Vec<f64>, State), Error> {
    let State { params, optimizer: state } = from.clone();
    let groups = [Group { range: 0..params.len(), lr_factor: 1.0, weight_decay: 0.01 }];
    let mut engine = engine(model, device, Optimizer::adamw(), params, state)?;
    let tokens = MODEL.tokens(BATCHES * DOCUMENTS, LENGTH);
    let flags = [true; LENGTH];
    let mut losses = Vec::new();
    for step in steps {
        let batch = tokens.chunks(DOCUMENTS).nth(step as usize % BATCHES).unwrap_or_default();
        let documents: Vec<Document<'_>> =
            batch.iter().map(|tokens| Document { tokens, is_target: &flags }).collect();
        let n_targets: usize = documents.iter().map(Document::n_targets).sum();
        engine.clear_gradients()?;
        let key = StepKey { seed: 1, step, first_document: 0 };
        engine.forward_backward(&documents, 1.0 / n_targets as f32, key)?;
        engine.finish_gradients()?;
        let nll: f64 = engine.losses()?.iter().map(|sum| sum.nll).sum();
        losses.push(nll / n_targets as f64);
        let gradient_factor = clip_factor(engine.gradient_norm()?, MAX_NORM);
        let lr = LR * f64::from(step + 1).min(f64::from(WARM_UP)) / f64::from(WARM_UP);
        engine.update(&Update { lr, gradient_factor, groups: &groups })?;
    }
    let mut end = from.clone();
    engine.with_state(&mut |params, state| {
        end = State { params: params.to_vec().into(), optimizer: state.clone() };
    })?;
    Ok((losses, end))
}

/// How far a curve is from another, as shares of its losses.
struct Distances {
    largest: f64,
    mean: f64,
}

/// A NaN in either is one in both.
fn distances(found: &[f64], expected: &[f64]) -> Distances {
    let each: Vec<f64> = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs()).collect();
    let larger = |max: f64, x: &f64| if x.is_nan() || *x > max { *x } else { max };
    let largest = each.iter().fold(0.0, |max: f64, x| if max.is_nan() { max } else { larger(max, x) });
    Distances { largest, mean: mean(&each) }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_as_far_apart_as_their_losses() {
        let Distances { largest, mean } = distances(&[2.0, 3.0, 5.0, 4.0], &[2.0, 4.0, 4.0, 4.0]);
        assert_eq!((largest, mean), (0.25, 0.125));
        for found in [[f64::NAN, 1.0], [1.0, f64::NAN]] {
            let Distances { largest, mean } = distances(&found, &[2.0, 2.0]);
            assert!(largest.is_nan() && mean.is_nan());
        }
    }

    #[test]
    fn a_run_that_stops_goes_on_to_the_same_bits() {
        let model = MODEL.model(LowRankSpec::new(2), None, ComputeMode::F32).unwrap();
        let params = model.initial_parameters(1);
        let start = State { optimizer: Optimizer::adamw().state(params.len()), params };
        let (losses, end) = train(&model, None, &start, 0..4).unwrap();
        let (first, stopped) = train(&model, None, &start, 0..2).unwrap();
        let (rest, end_of_parts) = train(&model, None, &stopped, 2..4).unwrap();
        let parts = [first, rest].concat();
        assert_eq!(share_that_differs(&all(&losses, &end), &all(&parts, &end_of_parts)), 0.0);
        // without what the optimizer remembers it would be another run
        let forgets = State { optimizer: start.optimizer.clone(), ..stopped };
        let (_, other) = train(&model, None, &forgets, 2..4).unwrap();
        assert!(share_that_differs(&all(&losses, &end), &all(&losses, &other)) > 0.1);
    }
}
