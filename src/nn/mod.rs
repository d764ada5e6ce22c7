//! Operations of a decoder on candle tensors: each file has one op, forward and backward, over the slices of
//! [`crate::kernel`].
//!
//! There is no autograd: a backward takes what its forward took or gave, and the gradient of the result, and returns
//! the gradients of the operands; those of parameters are added to slices, chains going on from what is there.
//!
//! Weights are mapped and candle's tensors own their memory, so weights live inside the ops, never in tensors. An
//! op's result depends on its operands alone, to the bit (docs/architecture.md). Tensors are f32 and contiguous.

mod activation;
mod add;
mod attention;
mod dropout;
mod embedding;
mod linear;
mod loss;
mod norm;
mod rope;
mod rows;
mod softmax;

use candle_core::{CpuStorage, Device, Layout, Result, Tensor};

pub use crate::kernel::dropout::{MaskKey, RowPlace};
pub use activation::{Activation, gated, gated_backward};
pub use add::{add, add_scaled};
pub use attention::{AttendingRows, attention, document_attention, document_attention_backward};
pub use dropout::{dropout, dropout_backward};
pub use embedding::{embedding, embedding_backward};
pub use linear::{Product, add_product_scaled, bias_gradient, products, products_backward, weight_gradient};
pub use loss::{CrossEntropy, Head, cross_entropy, log_probs, log_probs_backward};
pub use norm::{rms_norm, rms_norm_backward};
pub use rope::{Turns, rope, rope_backward};
pub use rows::{expert_weights_backward, gather, gather_backward, scatter_scaled, scatter_scaled_backward};
pub use softmax::{softcap, softcap_backward, softmax, softmax_backward};

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

/// Returns a tensor of that shape.
pub(crate) fn tensor(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), &Device::Cpu)
}

/// Errors unless both have one shape.
pub(crate) fn same_shape(what: &str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape() != b.shape() {
        candle_core::bail!("{what} of shape {:?} for {:?}", b.shape(), a.shape());
    }
    Ok(())
}

/// Returns a tensor's rows and their length.
pub(crate) fn rows_of(layout: &Layout) -> (usize, usize) {
    let dims = layout.dims();
    let len = dims.last().copied().unwrap_or(1);
    (dims.iter().rev().skip(1).product(), len)
}
