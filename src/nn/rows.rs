//! Rows picked out of a tensor and put back.

use candle_core::{Device, Result, Tensor};

use super::with_values;

/// Returns the given rows of `x` `[T, C]`: `[rows.len(), C]`.
///
/// # Panics
/// If a row is not below T.
pub fn gather(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let len = x.dim(1)?;
    let picked = with_values(x, |x| {
        let mut picked = Vec::with_capacity(rows.len() * len);
        for row in rows {
            picked.extend_from_slice(&x[row * len..(row + 1) * len]);
        }
        picked
    })?;
    Tensor::from_vec(picked, (rows.len(), len), &Device::Cpu)
}

/// Adds `factor * x[i]` to row `row` of `y`, for the i-th of `rows`; rows are `[len]`.
///
/// # Panics
/// If a row lies outside of `y`.
pub fn scatter_scaled(x: &Tensor, rows: &[(usize, f32)], y: &mut [f32]) -> Result<()> {
    let len = x.dim(1)?;
    with_values(x, |x| {
        for (x, (row, factor)) in x.chunks_exact(len).zip(rows) {
            for (y, x) in y[row * len..(row + 1) * len].iter_mut().zip(x) {
                *y = x.mul_add(*factor, *y);
            }
        }
    })
}
