//! Residual sums.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::values;
use crate::kernel::{Compute, activation};

/// Returns `a + b`, both of one shape.
///
/// Errors if the shapes differ.
pub fn add(compute: &Arc<Compute>, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.apply_op2_no_bwd(b, &Add { compute: compute.clone() })
}

/// Returns `a + scale * b`, both of one shape.
///
/// Errors if the shapes differ.
pub fn add_scaled(compute: &Arc<Compute>, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    a.apply_op2_no_bwd(b, &AddScaled { compute: compute.clone(), scale })
}

struct AddScaled {
    compute: Arc<Compute>,
    scale: f32,
}

impl CustomOp2 for AddScaled {
    fn name(&self) -> &'static str {
        "add_scaled"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (values(s1, l1)?, values(s2, l2)?);
        if l1.shape() != l2.shape() {
            candle_core::bail!("a sum of shapes {:?} and {:?}", l1.shape(), l2.shape());
        }
        let y = activation::scaled_sum(&self.compute, a, self.scale, b);
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }
}

struct Add {
    compute: Arc<Compute>,
}

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (values(s1, l1)?, values(s2, l2)?);
        if l1.shape() != l2.shape() {
            candle_core::bail!("a sum of shapes {:?} and {:?}", l1.shape(), l2.shape());
        }
        let y = activation::sum(&self.compute, a, b);
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }
}
