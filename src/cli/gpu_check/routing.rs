//! Routing of a mixture's rows to its experts: the CPU's choice.

use half::bf16;

use super::run::{Against, Checker, download, noise, upload};
use crate::cuda::CudaError;
use crate::cuda::buffer::Buffer;
use crate::cuda::op::elementwise::DropoutRows;
use crate::cuda::op::routing::{Routed, Routing};
use crate::kernel::softmax::{softmax_rows, softmax_rows_backward};
use crate::nn::{RowPlace, expert_weights_backward};

pub fn run(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    for renormalize in [true, false] {
        for &(rows, n_experts, n_used) in checker.shapes(&[(11, 8, 2), (1000, 8, 2), (4096, 128, 8)], 1) {
            one(checker, rows, Routing { n_experts, n_used, renormalize })?;
        }
    }
    Ok(())
}

/// Returns the rows of every expert with their weights, ascending, as `model::moe` chooses them.
fn rows_of(probabilities: &[f32], routing: Routing) -> Vec<Vec<(usize, f32)>> {
    let mut rows_of = vec![Vec::new(); routing.n_experts];
    for (row, p) in probabilities.chunks_exact(routing.n_experts).enumerate() {
        let mut order: Vec<usize> = (0..p.len()).collect();
        // stable: equal ones keep ascending indexes
        order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
        order.truncate(routing.n_used);
        let sum: f32 = order.iter().map(|expert| p[*expert]).sum();
        let by = if routing.renormalize { sum } else { 1.0 };
        order.into_iter().for_each(|expert| rows_of[expert].push((row, p[expert] / by)));
    }
    rows_of
}

fn one(checker: &mut Checker<'_>, rows: usize, routing: Routing) -> Result<(), CudaError> {
    let (device, n) = (checker.device, routing.n_experts);
    let shape = format!("{rows}x{n} top {}", routing.n_used);
    // equal, or further apart than any rounding: one choice
    let logits = noise::<bf16>(rows * n, 1, 4.0);
    // rows of a check are few
    let places: Vec<RowPlace> =
        (0..rows as u32).map(|row| RowPlace { document: row / 7, position: row % 7 }).collect();
    let places = DropoutRows::new(device, &places)?;
    let on_device = upload::<f32>(device, &logits)?;
    let dweights = noise::<f32>(rows * routing.n_used, 2, 1.0);
    let dweights_on_device = upload::<f32>(device, &dweights)?;
    let numbers = |values: Vec<u32>| values.into_iter().map(|value| value as f32);
    let mut gradients = Vec::new();
    let found = checker.twice("routing", &shape, &mut || {
        let (routed, lists) = Routed::new(device, routing, &on_device, Some(&places))?;
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
    let rows_of = rows_of(&probabilities, routing);
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
        expert_weights_backward(p, chosen, dw, routing.renormalize, dp);
    }
    softmax_rows_backward(&checker.compute, &probabilities, &mut want, n);
    checker.near_cpu("routing backward", &shape, &gradients, &want, 1e-5, Against::Largest);
    Ok(())
}
