//! Directions and magnitudes of rows (DoRA, arXiv:2402.09353) on a device: `train::dora`.

use super::super::linear::Adapter;
use super::linear::{Back, GroupOn, Low};
use super::pass::Pass;
use crate::cuda::CudaError;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::add_to;
use crate::cuda::op::norm::{RowNorms, magnitude_gradient, scale_columns, scale_own_columns};
use crate::cuda::product::{PartMut, Product, Sizes};

/// Of the rows of all parts of an adapter, one part after another.
pub(super) struct Gains {
    /// Of `W + s B A`.
    norms: Buffer<f32>,
    /// Magnitude / norm.
    gains: Buffer<f32>,
}

/// `x A^T`, the rank, and where B's rows are among the parameters.
type Pair<'a, T> = (&'a Buffer<T>, usize, std::ops::Range<usize>);

impl<T: Float> GroupOn<'_, T> {
    /// Returns where the rows of the adapter's parts are among its gains.
    fn rows(&self, adapter: &Adapter) -> Vec<std::ops::Range<usize>> {
        let mut start = 0;
        let rows = self.group.parts[adapter.parts.clone()].iter().map(|part| {
            let end = start + part.base.weight.rows();
            std::mem::replace(&mut start, end)..end
        });
        rows.collect()
    }

    /// Returns what the rows of an adapter's parts are multiplied by, if it is one of DoRA.
    pub(super) fn gains(&self, pass: &Pass<'_>, index: usize) -> Result<Option<Gains>, CudaError> {
        let (device, adapter) = (pass.device, &self.group.adapters[index]);
        let (Some(magnitude), Some(squares)) = (&adapter.magnitude, &self.squares[index]) else {
            return Ok(None);
        };
        let (rank, k) = (adapter.rank, adapter.a.len() / adapter.rank);
        let a = pass.values.of::<T>(adapter.a.clone());
        let mut gram = Buffer::uninit(device, rank * rank)?;
        let sizes = Sizes { m: rank, n: rank, k };
        device.product(Product::Forward, sizes, (&*a, &*a), (1.0, 0.0), &mut gram)?;
        let mut norms = Buffer::uninit(device, squares.len())?;
        let mut gains = Buffer::uninit(device, squares.len())?;
        let b_ranges = adapter.b_ranges(&self.group.parts);
        for ((i, rows), b) in adapter.parts.clone().zip(self.rows(adapter)).zip(b_ranges) {
            let mut through_base = Buffer::uninit(device, rank * rows.len())?;
            let (weight, sizes) = (self.weight(pass, i)?, Sizes { m: rank, n: rows.len(), k });
            let out = PartMut::from(&mut through_base);
            device.product(Product::Forward, sizes, (&*weight, &*a), (1.0, 0.0), out)?;
            let of = RowNorms {
                squares: &squares.slice(rows.clone()),
                through_base: &through_base,
                gram: &gram,
                b: &pass.values.exact.slice(b),
                scale: adapter.scale,
            };
            let start = magnitude.range.start;
            let own = pass.values.exact.slice(start + rows.start..start + rows.end);
            of.gains(device, &own, &mut norms.slice_mut(rows.clone()), &mut gains.slice_mut(rows))?;
        }
        Ok(Some(Gains { norms, gains }))
    }

    /// Turns part i's output z, the adapter's j-th, into `z + (g - 1) z' + g s up`, z' being the base's for the dropped input: z itself
    /// without dropout.
    pub(super) fn scale_direction(
        &self,
        pass: &Pass<'_>,
        adapter: &Adapter,
        (gains, j, i): (&Gains, usize, usize),
        (dropped, pair): (&Buffer<T>, Pair<'_, T>),
        y: &mut Buffer<T>,
    ) -> Result<(), CudaError> {
        let device = pass.device;
        let gains = gains.gains.slice(self.rows(adapter)[j].clone());
        if pass.rate == 0.0 {
            self.add_pair(pass, adapter.scale, pair, y)?;
            return scale_own_columns(device, y, &gains);
        }
        // y = z - z' + g (z' + s up)
        let mut direction = self.product(pass, i, dropped)?;
        add_to(device, y, &direction, -1.0)?;
        self.add_pair(pass, adapter.scale, pair, &mut direction)?;
        scale_own_columns(device, &mut direction, &gains)?;
        add_to(device, y, &direction, 1.0)
    }

    /// Returns the gradients of the parts' outputs times the gains of their rows, where there are some.
    pub(super) fn scaled(
        &self,
        pass: &Pass<'_>,
        back: &Back<'_, T>,
    ) -> Result<Vec<Option<Buffer<T>>>, CudaError> {
        let mut scaled: Vec<Option<Buffer<T>>> = back.dys.iter().map(|_| None).collect();
        for (adapter, low) in self.group.adapters.iter().zip(back.lows) {
            let Some(Gains { gains, .. }) = &low.gains else { continue };
            for (i, rows) in adapter.parts.clone().zip(self.rows(adapter)) {
                let mut dy = Buffer::uninit(pass.device, back.dys[i].len())?;
                scale_columns(pass.device, back.dys[i], &gains.slice(rows), &mut dy)?;
                scaled[i] = Some(dy);
            }
        }
        Ok(scaled)
    }

    /// Adds `sum over t of dy (z' + s up) / norm` to the gradient of the magnitudes; directions are computed anew.
    pub(super) fn magnitude_backward(
        &self,
        pass: &Pass<'_>,
        (adapter, low): (&Adapter, &Low<T>),
        (dropped, dys): (&Buffer<T>, &[&Buffer<T>]),
        grads: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let (Some(magnitude), Some(Gains { norms, .. })) = (&adapter.magnitude, &low.gains) else {
            return Ok(());
        };
        let b_ranges = adapter.b_ranges(&self.group.parts);
        for ((i, rows), b) in adapter.parts.clone().zip(self.rows(adapter)).zip(b_ranges) {
            let mut direction = self.product(pass, i, dropped)?;
            self.add_pair(pass, adapter.scale, (&low.low, adapter.rank, b), &mut direction)?;
            let start = magnitude.range.start;
            let mut gradient = grads.slice_mut(start + rows.start..start + rows.end);
            magnitude_gradient(pass.device, &direction, &norms.slice(rows), dys[i], &mut gradient)?;
        }
        Ok(())
    }
}
