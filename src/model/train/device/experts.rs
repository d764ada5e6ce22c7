//! A mixture of experts on a device: the router's probabilities come to the host, which says which rows go to which expert.

use std::ops::Range;

use super::super::linear::Group;
use super::linear::{Back, GroupOn, Low, apart, wanted};
use super::mlp::{MlpOn, SavedMlp};
use super::pass::Pass;
use super::weights::{Ready, widened};
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::{Combined, DropoutRows, add_to, combine_rows, gather_rows, to_bf16};
use crate::cuda::{CudaError, Device};
use crate::kernel::Compute;
use crate::kernel::softmax::{softmax_rows, softmax_rows_backward};
use crate::model::config::Experts;
use crate::model::moe::rows_of;
use crate::model::train::feed_forward::Mlp;
use crate::nn::{RowPlace, expert_weights_backward};

pub(super) struct ExpertsOn<'m, T> {
    /// Its products are f32, whatever the others are.
    router: GroupOn<'m, f32>,
    experts: Vec<MlpOn<'m, T>>,
    settings: &'m Experts,
}

/// What an expert did, for its range of the chosen rows.
struct SavedExpert<T> {
    range: Range<usize>,
    mlp: SavedMlp<T>,
    y: Buffer<T>,
}

/// Which rows went to which expert: those of the first, ascending, then those of the next.
struct Chosen {
    /// With their weights.
    rows: Vec<(usize, f32)>,
    ids: Buffer<u32>,
    weights: Buffer<f32>,
    places: DropoutRows,
}

pub(super) struct SavedExperts<T> {
    /// `[T, E]`
    probabilities: Vec<f32>,
    router_lows: Vec<Low<f32>>,
    chosen: Chosen,
    /// Those that had rows.
    experts: Vec<Option<SavedExpert<T>>>,
}

/// Where rows are: on the device, and on the host.
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    pub on_device: &'a DropoutRows,
    pub rows: &'a [RowPlace],
}

impl<'m, T: Float> ExpertsOn<'m, T> {
    pub fn new(
        device: &Device,
        compute: &Compute,
        (router, experts): (&'m Group, &'m [Mlp]),
        settings: &'m Experts,
    ) -> Result<ExpertsOn<'m, T>, CudaError> {
        let experts = experts.iter().map(|mlp| MlpOn::new(device, compute, mlp));
        let experts = experts.collect::<Result<_, _>>()?;
        Ok(ExpertsOn { router: GroupOn::new(device, compute, router)?, experts, settings })
    }

    /// Returns the output for rows x, and what the backward needs besides x. A token's experts are summed in ascending index.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: &Buffer<T>,
        places: Places<'_>,
    ) -> Result<(Buffer<T>, SavedExperts<T>), CudaError> {
        let (device, n_experts) = (pass.device, self.experts.len());
        let wide = widened(device, x)?;
        let ([logits], router_lows) = apart(self.router.forward(pass, &wide, places.on_device)?);
        drop(wide);
        let mut probabilities = logits.read(device)?;
        softmax_rows(pass.compute, &mut probabilities, n_experts);
        let rows_of = rows_of(&probabilities, self.settings);
        let chosen = Chosen::new(device, rows_of.concat(), places.rows)?;
        let cols = x.len() / places.rows.len();
        let mut y = Buffer::zeros(device, x.len())?;
        let mut experts = Vec::with_capacity(n_experts);
        let mut first = 0;
        for (mlp, rows) in self.experts.iter().zip(rows_of) {
            let range = first..first + rows.len();
            first = range.end;
            if range.is_empty() {
                experts.push(None);
                continue;
            }
            let (ids, weights) = (chosen.ids.slice(range.clone()), chosen.weights.slice(range.clone()));
            let own_x = gathered(device, x, &ids, cols)?;
            let (out, mlp) = mlp.forward(pass, &own_x, &chosen.places.slice(range.clone()))?;
            combine_rows(device, &out, &ids, Some(&weights), &mut y)?;
            experts.push(Some(SavedExpert { range, mlp, y: out }));
        }
        Ok((y, SavedExperts { probabilities, router_lows, chosen, experts }))
    }

    /// Adds to the gradients of what is trained here; returns that of x.
    pub fn backward(
        &self,
        pass: &Pass<'_>,
        saved: &SavedExperts<T>,
        (x, dy): (&Buffer<T>, &Buffer<T>),
        places: Places<'_>,
        grads: &mut Buffer<f32>,
    ) -> Result<Buffer<T>, CudaError> {
        let device = pass.device;
        let cols = x.len() / places.rows.len();
        let mut dx = Buffer::zeros(device, x.len())?;
        let chosen = &saved.chosen;
        let mut dweights = Buffer::uninit(device, chosen.rows.len())?;
        for (mlp, saved) in self.experts.iter().zip(&saved.experts) {
            let Some(SavedExpert { range, mlp: saved, y }) = saved else { continue };
            let (ids, weights) = (&*chosen.ids.slice(range.clone()), &*chosen.weights.slice(range.clone()));
            let mut dout = Buffer::uninit(device, y.len())?;
            let combined = Combined { from: y, ids, factors: weights, dout: dy };
            combined.backward(device, &mut dout, &mut dweights.slice_mut(range.clone()))?;
            let own_x = gathered(device, x, ids, cols)?;
            let places = chosen.places.slice(range.clone());
            let own_dx = mlp.backward(pass, saved, (&own_x, &dout), &places, grads)?;
            combine_rows(device, &own_dx, ids, None, &mut dx)?;
        }
        let dlogits = self.logit_gradients(pass, saved, &dweights.read(device)?);
        let (dlogits, wide) = (Buffer::of(device, &dlogits)?, widened(device, x)?);
        let back = Back {
            x: &wide,
            dys: &[&dlogits],
            lows: &saved.router_lows,
            places: places.on_device,
            wants_dx: true,
        };
        let through_router = wanted(self.router.backward(pass, &back, grads)?);
        let through_router = narrowed(device, &through_router)?;
        add_to(device, &mut dx, &through_router, 1.0)?;
        Ok(dx)
    }

    /// Returns the gradients of the router's logits, given those of the chosen rows' weights.
    fn logit_gradients(&self, pass: &Pass<'_>, saved: &SavedExperts<T>, dweights: &[f32]) -> Vec<f32> {
        let (n_experts, probabilities) = (self.experts.len(), &saved.probabilities);
        // of every row: its experts with their weights, and the gradients of these
        let mut chosen = vec![(Vec::new(), Vec::new()); probabilities.len() / n_experts];
        for (expert, saved_expert) in saved.experts.iter().enumerate() {
            let Some(SavedExpert { range, .. }) = saved_expert else { continue };
            for ((row, weight), dweight) in
                saved.chosen.rows[range.clone()].iter().zip(&dweights[range.clone()])
            {
                chosen[*row].0.push((expert, *weight));
                chosen[*row].1.push(*dweight);
            }
        }
        let mut gradients = vec![0.0; probabilities.len()];
        let rows = probabilities.chunks_exact(n_experts).zip(gradients.chunks_exact_mut(n_experts));
        for ((p, dp), (chosen, dw)) in rows.zip(&chosen) {
            expert_weights_backward(p, chosen, dw, self.settings.renormalize, dp);
        }
        softmax_rows_backward(pass.compute, probabilities, &mut gradients, n_experts);
        gradients
    }
}

impl Chosen {
    /// Copies all at once: every copy waits for what was asked for before.
    fn new(device: &Device, rows: Vec<(usize, f32)>, places: &[RowPlace]) -> Result<Chosen, CudaError> {
        let own: Vec<RowPlace> = rows.iter().map(|(row, _)| places[*row]).collect();
        // rows of a batch are below 2^32: `Sheet::new`
        let (ids, weights): (Vec<u32>, Vec<f32>) =
            rows.iter().map(|(row, weight)| (*row as u32, *weight)).unzip();
        Ok(Chosen {
            ids: Buffer::of(device, &ids)?,
            weights: Buffer::of(device, &weights)?,
            places: DropoutRows::new(device, &own)?,
            rows,
        })
    }
}

/// Returns the rows of `ids`.
fn gathered<T: Float>(
    device: &Device,
    x: &Buffer<T>,
    ids: &Buffer<u32>,
    cols: usize,
) -> Result<Buffer<T>, CudaError> {
    let mut rows = Buffer::uninit(device, ids.len() * cols)?;
    gather_rows(device, x, ids, 1.0, &mut rows)?;
    Ok(rows)
}

/// Returns x in the type of activations.
fn narrowed<'a, T: Float>(device: &Device, x: &'a Buffer<f32>) -> Result<Ready<'a, T>, CudaError> {
    if let Some(x) = x.as_type::<T>() {
        return Ok(Ready::Here(x));
    }
    let mut narrow = Buffer::uninit(device, x.len())?;
    to_bf16(device, x, &mut narrow)?;
    match narrow.into_type::<T>() {
        Some(narrow) => Ok(Ready::Made(narrow)),
        None => panic!("activations are f32 or bf16"),
    }
}
