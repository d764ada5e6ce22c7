//! Activations that the backward needs, as small as its arithmetic lets them be.

use candle_core::{Device, Result, Shape, Tensor};

use crate::kernel::Compute;
use crate::kernel::convert::{bf16_to_f32, f32_to_bf16};
use crate::kernel::disjoint::{for_row_blocks, written_by_row_blocks};
use crate::nn::with_values;

/// How activations are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As they are.
    Exact,
    /// Rounded to bf16: products of bf16 round them so anyway.
    Bf16,
}

/// An activation of a forward.
pub(super) enum Kept {
    Exact(Tensor),
    Bf16 { bytes: Vec<u8>, shape: Shape },
}

impl Kept {
    pub fn new(compute: &Compute, form: Form, x: &Tensor) -> Result<Kept> {
        if form == Form::Exact {
            return Ok(Kept::Exact(x.clone()));
        }
        let bytes = with_values(x, |x| {
            let mut bytes = vec![0; 2 * x.len()];
            for_row_blocks(&compute.team, &mut bytes, 2, |first, bytes| {
                f32_to_bf16(compute.isa, &x[first..][..bytes.len() / 2], bytes);
            });
            bytes
        })?;
        Ok(Kept::Bf16 { bytes, shape: x.shape().clone() })
    }

    /// Returns the activation, rounded as it was kept.
    pub fn tensor(&self, compute: &Compute) -> Result<Tensor> {
        match self {
            Kept::Exact(x) => Ok(x.clone()),
            Kept::Bf16 { bytes, shape } => {
                let x = written_by_row_blocks(&compute.team, bytes.len() / 2, 1, |first, x| {
                    bf16_to_f32(compute.isa, &bytes[2 * first..][..2 * x.len()], x);
                });
                Tensor::from_vec(x, shape, &Device::Cpu)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Isa, Team};

    /// Some tasks' worth.
    const CHUNK: usize = 1 << 16;

    #[test]
    fn what_is_kept_comes_back_rounded_as_named() {
        let values: Vec<f32> = (0..2 * CHUNK + 6).map(|i| (i as f32 - 70_000.0) / 331.0).collect();
        let x = Tensor::from_vec(values.clone(), (2, CHUNK + 3), &Device::Cpu).unwrap();
        for threads in [1, 3] {
            let compute = Compute { isa: Isa::detect(), team: Team::new(threads).unwrap() };
            let back = |form| {
                let back = Kept::new(&compute, form, &x).unwrap().tensor(&compute).unwrap();
                assert_eq!(back.dims(), x.dims());
                with_values(&back, <[f32]>::to_vec).unwrap()
            };
            assert_eq!(back(Form::Exact), values);
            let rounded: Vec<f32> = values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
            assert_eq!(back(Form::Bf16), rounded);
        }
    }
}
