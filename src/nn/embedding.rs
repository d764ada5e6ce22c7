//! Rows of the embedding.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::with_values;
use crate::kernel::{Compute, Matrix};

/// Returns the rows of `ids` in the table `[V, C]`, times `scale`: `[T, C]`.
///
/// # Panics
/// If an id is not below V.
pub fn embedding(compute: &Arc<Compute>, table: &Matrix, ids: &[u32], scale: f32) -> Result<Tensor> {
    let d_model = table.cols();
    let mut rows = vec![0.0; ids.len() * d_model];
    for (row, id) in rows.chunks_exact_mut(d_model).zip(ids) {
        table.decode_row(compute.isa, *id as usize, row);
        if scale != 1.0 {
            for value in row {
                *value *= scale;
            }
        }
    }
    Tensor::from_vec(rows, (ids.len(), d_model), &Device::Cpu)
}

/// Adds `scale * dx[t]` to row `ids[t]` of the table's gradient `[V, C]`, for ascending t: product and sum each rounded,
/// which is a chain of fused multiply-adds where the scale is 1. dx is `[T, C]`.
///
/// Errors if dx has not as many rows as there are ids, or an id is not below V.
pub fn embedding_backward(ids: &[u32], dx: &Tensor, scale: f32, gradient: &mut [f32]) -> Result<()> {
    let (n, d_model) = dx.dims2()?;
    if n != ids.len() {
        candle_core::bail!("{n} rows of gradients for {} ids", ids.len());
    }
    if let Some(id) = ids.iter().find(|id| (**id as usize + 1) * d_model > gradient.len()) {
        candle_core::bail!("id {id} for a gradient of {} rows", gradient.len() / d_model.max(1));
    }
    with_values(dx, |dx| {
        for (dx, id) in dx.chunks_exact(d_model).zip(ids) {
            let row = &mut gradient[*id as usize * d_model..][..d_model];
            for (sum, dx) in row.iter_mut().zip(dx) {
                *sum += scale * dx;
            }
        }
    })
}
