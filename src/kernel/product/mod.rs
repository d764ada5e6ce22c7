//! Products of activations with weight matrices that stay as they lie in their file.
//!
//! `y[m][n] = sum over k of x[m][k] * w[n][k]`, the weights mapped row by row in any block format.
//! What the products take is an [`Arithmetic`]; each is defined to the bit (docs/architecture.md), so
//! an element of `y` depends on its row of `x`, its row of `w` and the arithmetic alone: not on the
//! other rows, the blocking, the thread count or the instruction set.

mod matrix;
mod oracle;

use super::{Isa, Team};

pub use matrix::{Matrix, SharedBytes};

/// What the products of a matrix take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Weights decoded to f32; one fused-multiply-add chain per element, ascending k from +0.
    F32,
    /// Both operands rounded to bf16, those of magnitude below 2^-50 to zero; per pair (2i, 2i + 1) of k,
    /// ascending, the odd product is added first, then the even one, each in a fused multiply-add from +0
    /// (what VDPBF16PS does). An odd last k is paired with a zero.
    Bf16,
    /// Integer codes of the weights against activations quantized per 32 values; exact i32 dots per
    /// group of the format, then one f32 fused multiply-add per group, groups ascending.
    Int8,
}

/// Which arithmetic each weight format gets (`--compute`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ComputeMode {
    /// The default: f32 for F32 and F16 weights, bf16 for BF16, int8 for block formats.
    #[default]
    Auto,
    F32,
    /// bf16 for every format.
    Bf16,
    /// int8 for block formats, the rest as [`ComputeMode::Auto`].
    Int8,
}

/// Everything a kernel needs besides its operands.
pub struct Compute {
    pub isa: Isa,
    pub team: Team,
}

/// Writes `y[m][n] = x[m] . w[n]` in that arithmetic; x is `[m, w.cols()]`, y `[m, w.rows()]`, row-major.
///
/// # Panics
/// If the lengths disagree, or the arithmetic is [`Arithmetic::Int8`] and the format has no integer codes.
pub fn matmul(compute: &Compute, x: &[f32], w: &Matrix, arithmetic: Arithmetic, y: &mut [f32]) {
    let m = x.len() / w.cols();
    assert_eq!(x.len(), m * w.cols());
    assert_eq!(y.len(), m * w.rows());
    oracle::matmul(compute, x, w, arithmetic, y);
}
