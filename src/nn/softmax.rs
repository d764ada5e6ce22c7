//! Softmax of router logits, caps of output logits.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{rows_of, values};
use crate::kernel::Compute;
use crate::kernel::activation::soft_cap;
use crate::kernel::softmax::softmax_rows;

/// Returns the softmax of each row of `x` `[.., N]`.
pub fn softmax(compute: &Arc<Compute>, x: &Tensor) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Softmax { compute: compute.clone() })
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
