//! Rows picked out of a tensor and put back.

use candle_core::{Device, Result, Tensor};

use super::{tensor, with_values};
use crate::kernel::Compute;
use crate::kernel::lane_sum::dot;

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

/// Adds the gradient of x of [`gather`] to `dx` `[T, C]`: row i of `dy` to row `rows[i]`, ascending i.
///
/// Errors if dy has not as many rows.
///
/// # Panics
/// If a row is not below T.
pub fn gather_backward(dy: &Tensor, rows: &[usize], dx: &mut [f32]) -> Result<()> {
    let (n, len) = dy.dims2()?;
    if n != rows.len() {
        candle_core::bail!("{n} rows of gradients for {} gathered ones", rows.len());
    }
    with_values(dy, |dy| {
        for (dy, row) in dy.chunks_exact(len).zip(rows) {
            for (dx, dy) in dx[row * len..(row + 1) * len].iter_mut().zip(dy) {
                *dx += dy;
            }
        }
    })
}

/// Returns the gradients of `x` `[n, C]` and of the n factors of [`scatter_scaled`], given that of y, `[T, C]`:
/// `factor * dy[row]`, and the dot of x\[i\] and dy\[row\].
///
/// Errors if x has not as many rows.
///
/// # Panics
/// If a row lies outside of `dy`.
pub fn scatter_scaled_backward(
    compute: &Compute,
    x: &Tensor,
    rows: &[(usize, f32)],
    dy: &[f32],
) -> Result<(Tensor, Vec<f32>)> {
    let (n, len) = x.dims2()?;
    if n != rows.len() {
        candle_core::bail!("{n} rows of values for {} scattered ones", rows.len());
    }
    let mut dx = Vec::with_capacity(n * len);
    let factors = with_values(x, |x| {
        x.chunks_exact(len)
            .zip(rows)
            .map(|(x, (row, factor))| {
                let dy = &dy[row * len..(row + 1) * len];
                dx.extend(dy.iter().map(|dy| factor * dy));
                dot(compute.isa, x, dy)
            })
            .collect()
    })?;
    Ok((tensor(dx, x)?, factors))
}

/// Adds to `d_probabilities` of one row of a router what the gradients of its chosen experts' weights give: `chosen` has
/// each expert and its weight, `p / by`, by the sum of the chosen probabilities if they were renormalised, else 1.
///
/// `dp[e] = dw[e]`, renormalised `(dw[e] - sum over chosen of dw * w) / sum over chosen of p`, in the order of `chosen`.
pub fn expert_weights_backward(
    probabilities: &[f32],
    chosen: &[(usize, f32)],
    d_weights: &[f32],
    renormalized: bool,
    d_probabilities: &mut [f32],
) {
    let (mut shift, mut by) = (0.0, 1.0);
    if renormalized {
        shift = chosen.iter().zip(d_weights).fold(0.0, |sum, ((_, w), dw)| sum + w * dw);
        by = chosen.iter().fold(0.0, |sum, (expert, _)| sum + probabilities[*expert]);
    }
    for ((expert, _), dw) in chosen.iter().zip(d_weights) {
        d_probabilities[*expert] += (dw - shift) / by;
    }
}
