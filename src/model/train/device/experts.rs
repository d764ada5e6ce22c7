//! A mixture of experts on a device. It says itself which rows go to which expert; the host learns how many each has, once per layer, for
//! the shapes of the products.

use std::ops::Range;

use super::super::linear::Group;
use super::linear::{Back, GroupOn, Low, apart, wanted};
use super::mlp::{MlpOn, SavedMlp};
use super::pass::Pass;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::{Combined, DropoutRows, add_to, combine_rows, gather_rows};
use crate::cuda::op::routing::{Lists, Routed, Routing};
use crate::cuda::{CudaError, Device};
use crate::kernel::Compute;
use crate::model::config::Experts;
use crate::model::device::cast::{narrowed, widened};
use crate::model::device::experts::routing_of;
use crate::model::train::feed_forward::Mlp;

pub(super) struct ExpertsOn<'m, T> {
    /// Its products are f32, whatever the others are.
    router: GroupOn<'m, f32>,
    experts: Vec<MlpOn<'m, T>>,
    routing: Routing,
}

/// What an expert did, for its range of the listed rows.
struct SavedExpert<T> {
    range: Range<usize>,
    mlp: SavedMlp<T>,
    y: Buffer<T>,
}

pub(super) struct SavedExperts<T> {
    router_lows: Vec<Low<f32>>,
    routed: Routed,
    lists: Lists,
    /// Those that had rows.
    experts: Vec<Option<SavedExpert<T>>>,
}

impl<'m, T: Float> ExpertsOn<'m, T> {
    pub fn new(
        device: &Device,
        compute: &Compute,
        (router, experts): (&'m Group, &'m [Mlp]),
        settings: &Experts,
    ) -> Result<ExpertsOn<'m, T>, CudaError> {
        let experts = experts.iter().map(|mlp| MlpOn::new(device, compute, mlp));
        let experts = experts.collect::<Result<_, _>>()?;
        let routing = routing_of(settings);
        Ok(ExpertsOn { router: GroupOn::new(device, compute, router)?, experts, routing })
    }

    /// Returns the output for rows x, and what the backward needs besides x. A token's experts are summed in ascending index.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: &Buffer<T>,
        places: &DropoutRows,
    ) -> Result<(Buffer<T>, SavedExperts<T>), CudaError> {
        let device = pass.device;
        let wide = widened(device, x)?;
        let ([logits], router_lows) = apart(self.router.forward(pass, &wide, places)?);
        drop(wide);
        let (routed, lists) = Routed::new(device, self.routing, &logits, Some(places))?;
        let counts = lists.counts.read(device)?;
        let cols = x.len() / places.len();
        let mut y = Buffer::zeros(device, x.len())?;
        let mut experts = Vec::with_capacity(counts.len());
        let mut first = 0;
        for (mlp, count) in self.experts.iter().zip(counts) {
            let range = first..first + count as usize;
            first = range.end;
            if range.is_empty() {
                experts.push(None);
                continue;
            }
            let (ids, weights) = (lists.ids.slice(range.clone()), lists.weights.slice(range.clone()));
            let own_x = gathered(device, x, &ids, cols)?;
            let (out, mlp) = mlp.forward(pass, &own_x, &lists.places.slice(range.clone()))?;
            combine_rows(device, &out, &ids, Some(&weights), &mut y)?;
            experts.push(Some(SavedExpert { range, mlp, y: out }));
        }
        Ok((y, SavedExperts { router_lows, routed, lists, experts }))
    }

    /// Adds to the gradients of what is trained here; returns that of x.
    pub fn backward(
        &self,
        pass: &Pass<'_>,
        saved: &SavedExperts<T>,
        (x, dy): (&Buffer<T>, &Buffer<T>),
        places: &DropoutRows,
        grads: &mut Buffer<f32>,
    ) -> Result<Buffer<T>, CudaError> {
        let device = pass.device;
        let cols = x.len() / places.len();
        let mut dx = Buffer::zeros(device, x.len())?;
        let lists = &saved.lists;
        let mut dweights = Buffer::uninit(device, lists.weights.len())?;
        for (mlp, saved) in self.experts.iter().zip(&saved.experts) {
            let Some(SavedExpert { range, mlp: saved, y }) = saved else { continue };
            let (ids, weights) = (&*lists.ids.slice(range.clone()), &*lists.weights.slice(range.clone()));
            let mut dout = Buffer::uninit(device, y.len())?;
            let combined = Combined { from: y, ids, factors: weights, dout: dy };
            combined.backward(device, &mut dout, &mut dweights.slice_mut(range.clone()))?;
            let own_x = gathered(device, x, ids, cols)?;
            let places = lists.places.slice(range.clone());
            let own_dx = mlp.backward(pass, saved, (&own_x, &dout), &places, grads)?;
            combine_rows(device, &own_dx, ids, None, &mut dx)?;
        }
        let mut dlogits = Buffer::uninit(device, places.len() * self.experts.len())?;
        saved.routed.backward(device, &dweights, &mut dlogits)?;
        let wide = widened(device, x)?;
        let back = Back { x: &wide, dys: &[&dlogits], lows: &saved.router_lows, places, wants_dx: true };
        let through_router = wanted(self.router.backward(pass, &back, grads)?);
        let through_router = narrowed::<T>(device, &through_router)?;
        add_to(device, &mut dx, &*through_router, 1.0)?;
        Ok(dx)
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
