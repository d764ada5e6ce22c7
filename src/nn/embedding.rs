//! Rows of the embedding.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

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
