//! Low-rank adapters.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::kernel::{Arithmetic, Compute, Matrix};
use crate::nn;

/// `scale * (x A^T) B^T`, added to a linear's output (arXiv:2106.09685).
pub(super) struct LowRank {
    /// `[r, in]`
    pub a: Matrix,
    /// `[out, r]`
    pub b: Matrix,
    pub scale: f32,
}

impl LowRank {
    /// Returns `y + scale * (x A^T) B^T`, in f32.
    pub fn add_to(&self, compute: &Arc<Compute>, y: &Tensor, x: &Tensor) -> Result<Tensor> {
        let product = |weight: &Matrix, x: &Tensor| {
            let product = nn::Product { weight: weight.clone(), bias: None, arithmetic: Arithmetic::F32 };
            nn::products(compute, x, vec![product])
        };
        let low = product(&self.a, x)?;
        let high = product(&self.b, &low[0])?;
        nn::add_scaled(compute, y, &high[0], self.scale)
    }
}
