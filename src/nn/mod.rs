//! Operations of a decoder on candle tensors: each file has one op's forward, over the slices of [`crate::kernel`].
//!
//! Weights are mapped and candle's tensors own their memory, so weights live inside the ops, never in tensors. An
//! op's result depends on its operands alone, to the bit (docs/architecture.md). Tensors are f32 and contiguous.

mod activation;
mod add;
mod attention;
mod embedding;
mod linear;
mod loss;
mod norm;
mod rope;
mod rows;
mod softmax;

use candle_core::{CpuStorage, Layout, Result, Tensor};

pub use activation::{Activation, gated};
pub use add::{add, add_scaled};
pub use attention::{AttendingRows, attention};
pub use embedding::embedding;
pub use linear::{Product, bias_gradient, products, products_backward, weight_gradient};
pub use loss::{CrossEntropy, Head, cross_entropy, log_probs, log_probs_backward};
pub use norm::rms_norm;
pub use rope::{Turns, rope};
pub use rows::{gather, scatter_scaled};
pub use softmax::{softcap, softmax};

/// Returns the values of an operand.
///
/// Errors unless they are f32 and lie one after another.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => candle_core::bail!("an operand of shape {:?} is not contiguous", layout.shape()),
    }
}

/// Calls `read` with the values of a tensor on the CPU.
///
/// Errors as [`values`], and for a tensor elsewhere.
pub fn with_values<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => Ok(read(values(storage, layout)?)),
        _ => candle_core::bail!("the tensor is not on the CPU"),
    }
}

/// Returns a tensor's rows and their length.
pub(crate) fn rows_of(layout: &Layout) -> (usize, usize) {
    let dims = layout.dims();
    let len = dims.last().copied().unwrap_or(1);
    (dims.iter().rev().skip(1).product(), len)
}
