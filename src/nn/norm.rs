//! Root-mean-square norm.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{rows_of, values};
use crate::kernel::Compute;
use crate::kernel::norm::rms_norm as kernel;

/// Returns `x / sqrt(mean(x^2) + eps) * weight` over each run of `weight.len()` values of `x` `[.., N]`
/// (arXiv:1910.07467): rows, or the heads within them.
///
/// Errors if the rows are not whole runs.
pub fn rms_norm(compute: &Arc<Compute>, x: &Tensor, weight: &Arc<[f32]>, eps: f32) -> Result<Tensor> {
    x.apply_op1_no_bwd(&RmsNorm { compute: compute.clone(), weight: weight.clone(), eps })
}

struct RmsNorm {
    compute: Arc<Compute>,
    weight: Arc<[f32]>,
    eps: f32,
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let (_, len) = rows_of(layout);
        if !len.is_multiple_of(self.weight.len()) {
            candle_core::bail!("rows of {len} values for a norm of {}", self.weight.len());
        }
        let mut y = vec![0.0; x.len()];
        kernel(&self.compute, x, &self.weight, self.eps, &mut y);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}
