//! Between f32, in which sums are kept, and what products take.

use super::weights::Ready;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::{to_bf16, to_f32};
use crate::cuda::{CudaError, Device};

/// Returns values that products take in f32.
pub(in crate::model) fn widened<'a, T: Float>(
    device: &Device,
    x: &'a Buffer<T>,
) -> Result<Ready<'a, f32>, CudaError> {
    match (x.as_type::<f32>(), x.as_type()) {
        (Some(x), _) => Ok(Ready::Here(x)),
        (None, Some(x)) => {
            let mut wide = Buffer::uninit(device, x.len())?;
            to_f32(device, x, &mut wide)?;
            Ok(Ready::Made(wide))
        }
        _ => panic!("activations are f32 or bf16"),
    }
}

/// Returns values as products take them.
pub(in crate::model) fn narrowed<'a, T: Float>(
    device: &Device,
    x: &'a Buffer<f32>,
) -> Result<Ready<'a, T>, CudaError> {
    if let Some(x) = x.as_type::<T>() {
        return Ok(Ready::Here(x));
    }
    let mut narrow = Buffer::uninit(device, x.len())?;
    to_bf16(device, x, &mut narrow)?;
    match narrow.into_type::<T>() {
        Some(narrow) => Ok(Ready::Made(narrow)),
        None => panic!("activations are f32 or bf16"),
    }
}
