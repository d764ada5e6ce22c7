//! Routing of a mixture's rows to its experts: the CPU's choice.

use candle_core::Tensor;

use super::run::{Against, Checker, download, noise, upload};
use crate::cuda::CudaError;
use crate::cuda::buffer::Buffer;
use crate::cuda::op::elementwise::DropoutRows;
use crate::cuda::op::routing::Routed;
use crate::kernel::softmax::{softmax_rows, softmax_rows_backward};
use crate::model::config::Experts;
use crate::model::moe::rows_of_experts;
use crate::nn::{RowPlace, expert_weights_backward};

pub fn run(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    for renormalize in [true, false] {
        for (rows, n, n_used) in [(11, 8, 2), (1000, 8, 2), (4096, 128, 8)] {
            one(checker, rows, &Experts { n, n_used, d_ff: 1, renormalize })?;
        }
    }
    Ok(())
}

fn one(checker: &mut Checker<'_>, rows: usize, experts: &Experts) -> Result<(), CudaError> {
    let (device, n) = (checker.device, experts.n);
    let shape = format!("{rows}x{n} top {}", experts.n_used);
    let logits = noise::<f32>(rows * n, 1, 4.0);
    // rows of a check are few
    let places: Vec<RowPlace> =
        (0..rows as u32).map(|row| RowPlace { document: row / 7, position: row % 7 }).collect();
    let places = DropoutRows::new(device, &places)?;
    let on_device = upload::<f32>(device, &logits)?;
    let dweights = noise::<f32>(rows * experts.n_used, 2, 1.0);
    let dweights_on_device = upload::<f32>(device, &dweights)?;
    let numbers = |values: Vec<u32>| values.into_iter().map(|value| value as f32);
    let mut gradients = Vec::new();
    let found = checker.twice("routing", &shape, &mut || {
        let (routed, lists) = Routed::new(device, experts, &on_device, &places)?;
        let mut dlogits = Buffer::<f32>::zeros(device, rows * n)?;
        routed.backward(device, &dweights_on_device, &mut dlogits)?;
        gradients = download(device, &dlogits)?;
        let mut all = download(device, &lists.weights)?;
        all.extend(numbers(lists.counts.read(device)?));
        all.extend(numbers(lists.ids.read(device)?));
        Ok::<_, CudaError>(all)
    })?;
    let (weights, lists) = found.split_at(dweights.len());

    let mut probabilities = logits;
    softmax_rows(&checker.compute, &mut probabilities, n);
    let rows_of = Tensor::from_slice(&probabilities, (rows, n), &candle_core::Device::Cpu)
        .and_then(|probabilities| rows_of_experts(&probabilities, experts))
        .expect("rows of as many values as there are experts");
    let all = rows_of.concat();
    let counts = rows_of.iter().map(|rows| rows.len() as f32);
    let want: Vec<f32> = counts.chain(all.iter().map(|(row, _)| *row as f32)).collect();
    checker.same_as_cpu("routing lists", &shape, lists, &want);
    let want: Vec<f32> = all.iter().map(|(_, weight)| *weight).collect();
    checker.near_cpu("routing weights", &shape, weights, &want, 1e-5, Against::Value);
    // of every row: its experts with their weights, and the gradients of these
    let mut chosen = vec![(Vec::new(), Vec::new()); rows];
    let listed =
        rows_of.iter().enumerate().flat_map(|(expert, rows)| rows.iter().map(move |row| (expert, row)));
    for ((expert, (row, weight)), dweight) in listed.zip(&dweights) {
        chosen[*row].0.push((expert, *weight));
        chosen[*row].1.push(*dweight);
    }
    let mut want = vec![0.0; rows * n];
    for ((p, dp), (chosen, dw)) in probabilities.chunks_exact(n).zip(want.chunks_exact_mut(n)).zip(&chosen) {
        expert_weights_backward(p, chosen, dw, experts.renormalize, dp);
    }
    softmax_rows_backward(&checker.compute, &probabilities, &mut want, n);
    checker.near_cpu("routing backward", &shape, &gradients, &want, 1e-5, Against::Largest);
    Ok(())
}
