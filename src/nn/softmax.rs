//! Softmax of router logits, caps of output logits.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{rows_of, same_shape, tensor, values, with_values};
use crate::kernel::Compute;
use crate::kernel::activation::{soft_cap, soft_cap_backward};
use crate::kernel::softmax::{softmax_rows, softmax_rows_backward};

/// Returns the softmax of each row of `x` `[.., N]`.
pub fn softmax(compute: &Arc<Compute>, x: &Tensor) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Softmax { compute: compute.clone() })
}

/// Returns the gradient of x, given the softmax `y` and its gradient.
///
/// Errors if the shapes differ.
pub fn softmax_backward(compute: &Compute, y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    same_shape("a softmax's gradient", y, dy)?;
    let len = y.dims().last().copied().unwrap_or(1);
    let mut dx = with_values(dy, <[f32]>::to_vec)?;
    if !dx.is_empty() {
        with_values(y, |y| softmax_rows_backward(compute, y, &mut dx, len))?;
    }
    tensor(dx, y)
}

struct Softmax {
    compute: Arc<Compute>,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = values(storage, layout)?.to_vec();
        let (_, len) = rows_of(layout);
        softmax_rows(&self.compute, &mut y, len);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

/// Returns `cap * tanh(x / cap)` (Gemma 2, arXiv:2408.00118).
pub fn softcap(compute: &Arc<Compute>, x: &Tensor, cap: f32) -> Result<Tensor> {
    x.apply_op1_no_bwd(&SoftCap { compute: compute.clone(), cap })
}

/// Returns the gradient of `x` of [`softcap`], given that of its result: `dy * (1 - tanh(x / cap)^2)`.
///
/// Errors if the shapes differ.
pub fn softcap_backward(compute: &Compute, x: &Tensor, cap: f32, dy: &Tensor) -> Result<Tensor> {
    same_shape("a capped gradient", x, dy)?;
    let mut dx = with_values(x, <[f32]>::to_vec)?;
    with_values(dy, |dy| soft_cap_backward(compute, &mut dx, cap, dy))?;
    tensor(dx, x)
}

struct SoftCap {
    compute: Arc<Compute>,
    cap: f32,
}

impl CustomOp1 for SoftCap {
    fn name(&self) -> &'static str {
        "softcap"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = values(storage, layout)?.to_vec();
        soft_cap(&self.compute, &mut y, self.cap);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}
