//! Root-mean-square norm.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{rows_of, same_shape, tensor, values, with_values};
use crate::kernel::Compute;
use crate::kernel::norm::{rms_norm as kernel, rms_norm_backward as backward};

/// Returns `x / sqrt(mean(x^2) + eps) * weight` over each run of `weight.len()` values of `x` `[.., N]`
/// (arXiv:1910.07467): rows, or the heads within them.
///
/// Errors if the rows are not whole runs.
pub fn rms_norm(compute: &Arc<Compute>, x: &Tensor, weight: &Arc<[f32]>, eps: f32) -> Result<Tensor> {
    x.apply_op1_no_bwd(&RmsNorm { compute: compute.clone(), weight: weight.clone(), eps })
}

/// Returns the gradient of `x` of [`rms_norm`], given that of its result, and adds that of the weight to
/// `weight_gradient`, a chain over ascending rows.
///
/// Errors if the shapes differ, the rows are not whole runs, or the weight's gradient is of another length.
pub fn rms_norm_backward(
    compute: &Compute,
    x: &Tensor,
    weight: &[f32],
    eps: f32,
    dy: &Tensor,
    weight_gradient: Option<&mut [f32]>,
) -> Result<Tensor> {
    same_shape("a norm's gradient", x, dy)?;
    let len = x.dims().last().copied().unwrap_or(1);
    if weight.is_empty() || !len.is_multiple_of(weight.len()) {
        candle_core::bail!("rows of {len} values for a norm of {}", weight.len());
    }
    if let Some(gradient) = &weight_gradient
        && gradient.len() != weight.len()
    {
        candle_core::bail!("a gradient of {} values for a norm of {}", gradient.len(), weight.len());
    }
    let mut dx = vec![0.0; x.elem_count()];
    with_values(x, |x| {
        with_values(dy, |dy| backward(compute, x, weight, eps, dy, &mut dx, weight_gradient))
    })??;
    tensor(dx, x)
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
