//! The gate of a feed-forward.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::values;
use crate::kernel::Compute;
use crate::kernel::activation::{geglu_tanh, swiglu};

/// What the gate of a feed-forward goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x)
    Silu,
    /// The tanh form of GELU (arXiv:1606.08415).
    GeluTanh,
}

/// Returns `activation(gate) * up`, both of one shape (arXiv:2002.05202).
///
/// Errors if the shapes differ.
pub fn gated(compute: &Arc<Compute>, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2_no_bwd(up, &Gated { compute: compute.clone(), activation })
}

struct Gated {
    compute: Arc<Compute>,
    activation: Activation,
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values(s1, l1)?, values(s2, l2)?);
        if l1.shape() != l2.shape() {
            candle_core::bail!("a gate of shape {:?} for {:?}", l1.shape(), l2.shape());
        }
        let mut y = gate.to_vec();
        match self.activation {
            Activation::Silu => swiglu(&self.compute, &mut y, up),
            Activation::GeluTanh => geglu_tanh(&self.compute, &mut y, up),
        }
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }
}
