//! The gate of a feed-forward.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::{same_shape, tensor, values, with_values};
use crate::kernel::Compute;
use crate::kernel::activation::{copied, geglu_tanh, geglu_tanh_backward, swiglu, swiglu_backward};

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

/// Returns the gradients of `gate` and `up` of [`gated`], given that of its result.
///
/// Errors if the shapes differ.
pub fn gated_backward(
    compute: &Compute,
    activation: Activation,
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    same_shape("a gate", gate, up)?;
    same_shape("a gate's gradient", gate, dy)?;
    let mut dgate = with_values(gate, |gate| copied(compute, gate))?;
    let mut dup = with_values(up, |up| copied(compute, up))?;
    with_values(dy, |dy| match activation {
        Activation::Silu => swiglu_backward(compute, &mut dgate, &mut dup, dy),
        Activation::GeluTanh => geglu_tanh_backward(compute, &mut dgate, &mut dup, dy),
    })?;
    Ok((tensor(dgate, gate)?, tensor(dup, up)?))
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
        let y = match self.activation {
            Activation::Silu => swiglu(&self.compute, gate, up),
            Activation::GeluTanh => geglu_tanh(&self.compute, gate, up),
        };
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }
}
