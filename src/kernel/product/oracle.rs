//! The slow, obvious form of every product: the definition that the fast kernels must equal to the bit.

use super::float::BF16_TINY;
use super::{Arithmetic, Compute, Matrix};
use crate::kernel::convert::{bf16_bits_to_f32, f32_to_bf16_bits};

/// See [`super::matmul`].
pub fn matmul(compute: &Compute, x: &[f32], w: &Matrix, arithmetic: Arithmetic, y: &mut [f32]) {
    let (k, n) = (w.cols(), w.rows());
    let mut row = vec![0.0; k];
    for j in 0..n {
        w.decode_row(compute.isa, j, &mut row);
        for (i, x) in x.chunks_exact(k).enumerate() {
            let y = &mut y[i * n + j];
            *y = match arithmetic {
                Arithmetic::F32 | Arithmetic::Int8 => dot_f32(x, &row),
                Arithmetic::Bf16 => dot_bf16(x, &row),
            };
            if y.is_nan() {
                *y = f32::from_bits(0x7fc0_0000); // which NaN a chain gives is up to the processor
            }
        }
    }
}

/// Returns the chain of fused multiply-adds over ascending k.
pub fn dot_f32(x: &[f32], w: &[f32]) -> f32 {
    chain_f32(0.0, x, w)
}

fn chain_f32(sum: f32, x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(sum, |sum, (x, w)| x.mul_add(*w, sum))
}

/// Returns `x` as a bf16 product sees it.
pub fn bf16_operand(x: f32) -> f32 {
    if x.abs() < BF16_TINY { 0.0 } else { bf16_bits_to_f32(f32_to_bf16_bits(x)) }
}

/// Returns the chain over pairs, odd product first.
pub fn dot_bf16(x: &[f32], w: &[f32]) -> f32 {
    chain_bf16(0.0, x, w)
}

fn chain_bf16(sum: f32, x: &[f32], w: &[f32]) -> f32 {
    let at = |v: &[f32], k: usize| v.get(k).map_or(0.0, |v| bf16_operand(*v));
    (0..x.len().div_ceil(2)).fold(sum, |sum, pair| {
        let (even, odd) = (2 * pair, 2 * pair + 1);
        let sum = at(x, odd).mul_add(at(w, odd), sum);
        at(x, even).mul_add(at(w, even), sum)
    })
}

/// See [`super::matmul_transposed`]: continues y.
pub fn matmul_transposed(x: &[f32], w: &[f32], k: usize, arithmetic: Arithmetic, y: &mut [f32]) {
    let n = w.len() / k;
    let column = |col: usize| -> Vec<f32> { (0..n).map(|row| w[row * k + col]).collect() };
    for col in 0..k {
        let column = column(col);
        for (i, x) in x.chunks_exact(n).enumerate() {
            let y = &mut y[i * k + col];
            *y = match arithmetic {
                Arithmetic::F32 | Arithmetic::Int8 => chain_f32(*y, x, &column),
                Arithmetic::Bf16 => chain_bf16(*y, x, &column),
            };
            if y.is_nan() {
                *y = f32::from_bits(0x7fc0_0000);
            }
        }
    }
}
