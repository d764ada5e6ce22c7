//! A linear layer on a device: `model::weights::Linear`.

use super::rows::Rows;
use super::weights::Frozen;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::add_bias;
use crate::cuda::op::norm::scale_own_columns;
use crate::cuda::{CudaError, Device};
use crate::kernel::Compute;
use crate::model::weights::Linear;

pub(super) struct LinearOn<T> {
    weight: Frozen<T>,
    n_out: usize,
    bias: Option<Buffer<f32>>,
    low_rank: Option<LowRankOn>,
}

/// `model::adapter::LowRank`: in f32, as on the CPU, whatever the products' type.
struct LowRankOn {
    a: Frozen<f32>,
    b: Frozen<f32>,
    rank: usize,
    scale: f32,
    /// What outputs without bias are multiplied by (DoRA).
    gains: Option<Buffer<f32>>,
}

impl<T: Float> LinearOn<T> {
    pub fn new(device: &Device, compute: &Compute, linear: &Linear) -> Result<LinearOn<T>, CudaError> {
        let vector = |values: &crate::model::weights::Vector| Buffer::of(device, values);
        let low_rank = linear.low_rank.as_ref().map(|low_rank| {
            let (a, b) = low_rank.pair();
            Ok::<_, CudaError>(LowRankOn {
                a: Frozen::of(device, compute, a)?,
                b: Frozen::of(device, compute, b)?,
                rank: a.rows(),
                scale: low_rank.scale(),
                gains: low_rank.gains().map(vector).transpose()?,
            })
        });
        Ok(LinearOn {
            weight: Frozen::of(device, compute, &linear.weight)?,
            n_out: linear.weight.rows(),
            bias: linear.bias.as_ref().map(vector).transpose()?,
            low_rank: low_rank.transpose()?,
        })
    }

    /// Returns `x W^T + b` with the adapter's share, of type O.
    pub fn forward<O: Float>(&self, device: &Device, x: &Rows<T>) -> Result<Rows<O>, CudaError> {
        let weight = self.weight.ready(device)?;
        let Some(low_rank) = &self.low_rank else {
            return self.with_bias(device, x.product(device, &weight, self.n_out)?);
        };
        let mut y = x.product(device, &weight, self.n_out)?;
        drop(weight);
        low_rank.add_to(device, &x.widened(device)?, &mut y)?;
        self.with_bias(device, y)?.narrowed(device)
    }

    fn with_bias<O: Float>(&self, device: &Device, mut y: Rows<O>) -> Result<Rows<O>, CudaError> {
        if let Some(bias) = &self.bias {
            add_bias(device, &mut y.all_mut(), bias)?;
        }
        Ok(y)
    }
}

impl LowRankOn {
    /// Replaces y by `gains * (y + scale * (x A^T) B^T)`.
    fn add_to(&self, device: &Device, x: &Rows<f32>, y: &mut Rows<f32>) -> Result<(), CudaError> {
        let low: Rows<f32> = x.product(device, &*self.a.ready(device)?, self.rank)?;
        low.add_product(device, &*self.b.ready(device)?, (self.scale, 1.0), y)?;
        match &self.gains {
            Some(gains) => scale_own_columns(device, &mut y.all_mut(), gains),
            None => Ok(()),
        }
    }
}
