//! What every step of one forward and backward on a device shares.

use super::super::pass::Norm;
use super::batch::Batch;
use super::weights::{Ready, Values};
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::norm::{self, Norm as Op};
use crate::cuda::{CudaError, Device};
use crate::kernel::Compute;
use crate::model::config::ModelConfig;

pub(super) struct Pass<'a> {
    pub device: &'a Device,
    pub config: &'a ModelConfig,
    pub compute: &'a Compute,
    pub values: Values<'a>,
    pub batch: &'a Batch<'a>,
    /// The model as it was opened: nothing that is trained counts.
    pub is_base: bool,
    /// Probability that dropout takes a value; 0 outside of training.
    pub rate: f32,
    pub seed: u64,
    pub step: u32,
}

/// A norm on the device.
pub(super) struct NormOn<'m> {
    norm: &'m Norm,
    /// Of one that is not trained.
    weight: Option<Buffer<f32>>,
}

impl<'m> NormOn<'m> {
    pub fn new(device: &Device, norm: &'m Norm) -> Result<NormOn<'m>, CudaError> {
        let is_frozen = norm.range.is_none();
        Ok(NormOn { norm, weight: is_frozen.then(|| Buffer::of(device, &norm.base)).transpose()? })
    }

    /// Returns the weight, and what is added to it.
    fn weight<'a>(&'a self, pass: &Pass<'a>) -> Result<(Ready<'a, f32>, f32), CudaError> {
        Ok(match (&self.weight, &self.norm.range) {
            (Some(weight), _) => (Ready::Here(weight), 0.0),
            (None, Some(range)) if !pass.is_base => {
                (Ready::Part(pass.values.exact.slice(range.clone())), self.norm.offset)
            }
            _ => (Ready::Made(Buffer::of(pass.device, &self.norm.base)?), 0.0),
        })
    }

    /// Returns the norm of x, which may be the residual stream.
    pub fn forward<X: Float, T: Float>(
        &self,
        pass: &Pass<'_>,
        x: &Buffer<X>,
    ) -> Result<Buffer<T>, CudaError> {
        let (weight, offset) = self.weight(pass)?;
        let mut y = Buffer::uninit(pass.device, x.len())?;
        let op = Op { weight: &weight, offset, eps: pass.config.rms_norm_eps };
        op.forward(pass.device, x, &mut y)?;
        Ok(y)
    }

    /// Returns `x + residual`, and its norm.
    pub fn forward_of_sum<T: Float>(
        &self,
        pass: &Pass<'_>,
        x: &Buffer<f32>,
        residual: &Buffer<T>,
    ) -> Result<(Buffer<f32>, Buffer<T>), CudaError> {
        let (weight, offset) = self.weight(pass)?;
        let mut sum = Buffer::uninit(pass.device, x.len())?;
        let mut y = Buffer::uninit(pass.device, x.len())?;
        let op = Op { weight: &weight, offset, eps: pass.config.rms_norm_eps };
        op.forward_of_sum(pass.device, x, residual, &mut sum, &mut y)?;
        Ok((sum, y))
    }

    /// Adds to the weight's gradient, if it is trained; returns that of x, plus `residual`.
    pub fn backward<X: Float, T: Float>(
        &self,
        pass: &Pass<'_>,
        x: &Buffer<X>,
        dy: &Buffer<T>,
        residual: Option<&Buffer<X>>,
        grads: &mut Buffer<f32>,
    ) -> Result<Buffer<X>, CudaError> {
        let (weight, offset) = self.weight(pass)?;
        let mut dx = Buffer::uninit(pass.device, x.len())?;
        let mut factors = Buffer::uninit(pass.device, x.len() / weight.len())?;
        let op = Op { weight: &weight, offset, eps: pass.config.rms_norm_eps };
        op.backward(pass.device, x, dy, residual, &mut dx, &mut factors)?;
        if let Some(range) = &self.norm.range {
            norm::weight_gradient(pass.device, x, &factors, dy, &mut grads.slice_mut(range.clone()))?;
        }
        Ok(dx)
    }
}
