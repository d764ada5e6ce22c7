//! Clipping and optimizers: the bits of the CPU's.

use half::bf16;

use super::run::{Checker, download, noise, upload};
use crate::cuda::CudaError;
use crate::cuda::buffer::Buffer;
use crate::cuda::op::optimizer::{Clip, Flat, Run, Step, sum_of_ranks};
use crate::finetune::{Group, Optimizer, Update, clip_factor, global_norm};

const LR: f64 = 0.01;
const DECAY: f64 = 0.1;
const MAX_NORM: f64 = 0.5;

pub fn run(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    for &n in checker.shapes(&[1, 1023, 65_537, 3_000_001], 2) {
        one(checker, Optimizer::adamw(), n)?;
        one(checker, Optimizer::lion(), n)?;
        ranks(checker, n)?;
        copies(checker, n)?;
    }
    // more than lies in pinned memory at a time
    for &n in checker.shapes(&[20_000_003], 0) {
        copies(checker, n)?;
    }
    Ok(())
}

/// Sums over ranks, in their order.
fn ranks(checker: &mut Checker<'_>, n: usize) -> Result<(), CudaError> {
    const N_RANKS: usize = 3;
    let (device, values) = (checker.device, noise::<f32>(N_RANKS * n, 3, 1.0));
    let on_device = upload::<f32>(device, &values)?;
    let found = checker.twice("sum of ranks", &format!("{n}"), &mut || {
        let mut sums = Buffer::<f32>::zeros(device, n)?;
        sum_of_ranks(device, &on_device, N_RANKS, &mut sums)?;
        download(device, &sums)
    })?;
    let mut want = values[..n].to_vec();
    for part in values[n..].chunks_exact(n) {
        want.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
    }
    checker.same_as_cpu("sum of ranks", &format!("{n}"), &found, &want);
    Ok(())
}

/// Copies there and back, in pieces of several sizes; what they are of is overwritten as soon as the call returns.
fn copies(checker: &mut Checker<'_>, n: usize) -> Result<(), CudaError> {
    let (device, values) = (checker.device, noise::<f32>(n, 4, 1.0));
    let found = checker.twice("copies", &format!("{n}"), &mut || {
        let mut buffer = Buffer::<f32>::zeros(device, n)?;
        let (mut first, mut piece) = (0, 1);
        while first < n {
            let end = n.min(first + piece);
            let mut own = values[first..end].to_vec();
            buffer.slice_mut(first..end).write(device, &own)?;
            own.fill(f32::NAN);
            (first, piece) = (end, 3 * piece);
        }
        download(device, &buffer)
    })?;
    checker.same_as_cpu("copies", &format!("{n}"), &found, &values);
    Ok(())
}

/// Three steps, with the last tenth of the parameters left alone.
fn one(checker: &mut Checker<'_>, optimizer: Optimizer, n: usize) -> Result<(), CudaError> {
    let device = checker.device;
    let (start, shape) = (noise::<f32>(n, 1, 1.0), format!("{n}"));
    let own = n - n / 10;
    let gradients: Vec<Vec<f32>> = (0..3).map(|step| noise::<f32>(n, 10 + step, 1.0)).collect();
    let mut norms = Vec::new();
    let found = checker.twice(optimizer.name(), &shape, &mut || {
        norms.clear();
        let mut params = upload::<f32>(device, &start)?;
        let moments = (0..optimizer.n_moments()).map(|_| Buffer::zeros(device, n));
        let mut moments: Vec<Buffer<f32>> = moments.collect::<Result<_, _>>()?;
        let mut rounded = Buffer::<bf16>::zeros(device, n)?;
        let mut clip = Clip::new(device, n)?;
        for (step, gradients) in (1..).zip(&gradients) {
            let gradients = upload::<f32>(device, gradients)?;
            clip.measure(device, &gradients, Some(MAX_NORM))?;
            norms.push(clip.norm(device)?);
            let rule = match optimizer {
                Optimizer::AdamW { beta1, beta2, eps } => Step::adamw((beta1, beta2), eps, LR, DECAY, step),
                Optimizer::Lion { beta1, beta2 } => Step::lion((beta1, beta2), LR, DECAY),
            };
            let mut flat = Flat {
                params: &mut params,
                moments: &mut moments,
                gradients: &gradients,
                rounded: Some(&mut rounded),
            };
            rule.apply(device, &mut flat, &clip, Run { first: 0, n: own })?;
        }
        let mut all = download(device, &params)?;
        for moment in &moments {
            all.extend(download(device, moment)?);
        }
        Ok(all)
    })?;
    let (mut params, mut state) = (start, optimizer.state(n));
    let groups = [Group { range: 0..own, lr_factor: 1.0, weight_decay: DECAY }];
    let mut n_other_norms = 0;
    for (gradients, norm) in gradients.iter().zip(&norms) {
        let want = global_norm(&checker.compute, gradients);
        n_other_norms += usize::from(want.to_bits() != norm.to_bits());
        let update = Update { lr: LR, gradient_factor: clip_factor(want, MAX_NORM), groups: &groups };
        optimizer.step(&checker.compute, &mut state, &mut params, gradients, &update);
    }
    checker.note("global_norm", "cpu bits", &shape, n_other_norms as f64 / norms.len() as f64, 0.0);
    let want: Vec<f32> = params.into_iter().chain(state.moments.into_iter().flatten()).collect();
    checker.same_as_cpu(optimizer.name(), &shape, &found, &want);
    Ok(())
}
