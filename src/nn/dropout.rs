//! Dropout.

use candle_core::{Result, Tensor};

use super::{tensor, with_values};
use crate::kernel::Compute;
use crate::kernel::dropout::{MaskKey, dropout as kernel};

/// Returns x `[R, C]` with every value 0 with probability `rate`, else divided by `1 - rate` (arXiv:1207.0580); which ones is
/// drawn from the key, so that it depends on nothing but a value's address.
///
/// Errors unless `0 <= rate < 1` and x has as many rows as the key.
pub fn dropout(compute: &Compute, x: &Tensor, rate: f32, key: &MaskKey<'_>) -> Result<Tensor> {
    let (n_rows, len) = x.dims2()?;
    if !(0.0..1.0).contains(&rate) {
        candle_core::bail!("a dropout rate of {rate}");
    }
    if n_rows != key.rows.len() {
        candle_core::bail!("{} places for {n_rows} rows", key.rows.len());
    }
    let mut y = with_values(x, <[f32]>::to_vec)?;
    kernel(compute, &mut y, len, rate, key);
    tensor(y, x)
}

/// Returns the gradient of x of [`dropout`], given that of its result: the same mask, drawn again.
///
/// Errors as [`dropout`].
pub fn dropout_backward(compute: &Compute, dy: &Tensor, rate: f32, key: &MaskKey<'_>) -> Result<Tensor> {
    dropout(compute, dy, rate, key)
}
