//! Products of activations with weight matrices that stay as they lie in their file.
//!
//! `y[m][n] = sum over k of x[m][k] * w[n][k]`, the weights mapped row by row in any block format.
//! What the products take is an [`Arithmetic`]; each is defined to the bit (docs/architecture.md), so
//! an element of `y` depends on its row of `x`, its row of `w` and the arithmetic alone: not on the
//! other rows, the blocking, the thread count or the instruction set.

mod driver;
mod float;
mod int8;
mod matrix;
mod nested;
#[cfg(test)]
mod oracle;
mod panels;
mod scratch;
#[cfg(test)]
mod tests;
mod transposed;

use std::mem::MaybeUninit;

use super::{Isa, Team};
use crate::tensor::Dtype;
use crate::tensor::format::{BF16, BlockFormat, Nf4};
use driver::{Job, Product};

pub use matrix::{Bytes, Matrix, SharedBytes, Unquantizable, Values};
pub use transposed::{Operand, accumulate_outer, matmul_transposed, transposed_products};

/// What the products of a matrix take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Weights decoded to f32; one fused-multiply-add chain per element, ascending k from +0.
    F32,
    /// Both operands rounded to bf16, those of magnitude below 2^-50 to zero; per pair (2i, 2i + 1) of k,
    /// ascending, the odd product is added first, then the even one, each in a fused multiply-add from +0
    /// (what VDPBF16PS does). An odd last k is paired with a zero.
    Bf16,
    /// Integer codes of the weights against activations quantized per 32 values: exact i32 dots per group of
    /// 16 or 32 weights, scaled and summed in f32, blocks of 32 ascending (to the bit: the head of `int8/mod.rs`).
    Int8,
}

/// Which arithmetic each weight format gets (`--compute`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ComputeMode {
    /// The default: f32 for F32 and F16 weights, bf16 for BF16 and NF4, int8 for the other block formats.
    #[default]
    Auto,
    F32,
    /// bf16 for every format.
    Bf16,
    /// int8 for block formats, the rest as [`ComputeMode::Auto`].
    Int8,
}

impl ComputeMode {
    pub const ALL: [ComputeMode; 4] =
        [ComputeMode::Auto, ComputeMode::F32, ComputeMode::Bf16, ComputeMode::Int8];

    /// Returns the name used by `--compute` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            ComputeMode::Auto => "auto",
            ComputeMode::F32 => "f32",
            ComputeMode::Bf16 => "bf16",
            ComputeMode::Int8 => "int8",
        }
    }

    /// Returns the mode of that name.
    pub fn by_name(name: &str) -> Option<ComputeMode> {
        ComputeMode::ALL.into_iter().find(|mode| mode.name().eq_ignore_ascii_case(name))
    }

    /// Returns the arithmetic of weights stored as `dtype`.
    pub fn arithmetic(self, dtype: Dtype) -> Arithmetic {
        match self {
            ComputeMode::F32 => Arithmetic::F32,
            ComputeMode::Bf16 => Arithmetic::Bf16,
            ComputeMode::Auto | ComputeMode::Int8 if dtype.block_len() > 1 && dtype.name() != Nf4.name() => {
                Arithmetic::Int8
            }
            ComputeMode::Auto | ComputeMode::Int8 if dtype.block_len() > 1 || dtype.name() == BF16.name() => {
                Arithmetic::Bf16
            }
            ComputeMode::Auto | ComputeMode::Int8 => Arithmetic::F32,
        }
    }
}

/// Everything a kernel needs besides its operands.
pub struct Compute {
    pub isa: Isa,
    pub team: Team,
}

impl Compute {
    /// Returns kernels on `isa` with a team of `threads` threads, the caller's included.
    ///
    /// Errors if the system gives no threads.
    pub fn new(isa: Isa, threads: usize) -> Result<Self, std::io::Error> {
        Ok(Compute { isa, team: Team::new(threads)? })
    }
}

/// Writes `y[m][n] = x[m] . w[n]` in that arithmetic; x is `[m, w.cols()]`, y `[m, w.rows()]`, row-major.
///
/// # Panics
/// If the lengths disagree, or the arithmetic is [`Arithmetic::Int8`] and the format has no integer codes.
pub fn matmul(compute: &Compute, x: &[f32], w: &Matrix, arithmetic: Arithmetic, y: &mut [f32]) {
    matmul_many(compute, x, &[(w, arithmetic)], &mut [y]);
}

/// Writes the products of one `x` with several matrices, as [`matmul`] would one by one, in one parallel
/// region: x is packed once, and threads that end a small matrix go on with the next.
///
/// # Panics
/// As [`matmul`]; and if the matrices differ in their columns, or there are not as many results as matrices.
pub fn matmul_many(compute: &Compute, x: &[f32], ws: &[(&Matrix, Arithmetic)], ys: &mut [&mut [f32]]) {
    multiply(compute, x, ws, ys.iter_mut().map(|y| driver::overwritten(y)).collect(), None);
}

/// Adds `scale * (x[m] . w[n])` to `y[m][n]`, the product rounded as [`matmul`] does, then its multiple, then the sum.
///
/// # Panics
/// As [`matmul`], and for [`Arithmetic::Int8`].
pub fn matmul_add_scaled(
    compute: &Compute,
    x: &[f32],
    w: &Matrix,
    arithmetic: Arithmetic,
    scale: f32,
    y: &mut [f32],
) {
    assert!(arithmetic != Arithmetic::Int8, "integer products begin at zero");
    multiply(compute, x, &[(w, arithmetic)], vec![driver::overwritten(y)], Some(scale));
}

/// Returns what [`matmul_many`] writes, the results one after another.
///
/// # Panics
/// As [`matmul_many`].
pub fn matmul_all(compute: &Compute, x: &[f32], ws: &[(&Matrix, Arithmetic)]) -> Vec<f32> {
    let Some((first, _)) = ws.first() else { return Vec::new() };
    let m = x.len().checked_div(first.cols()).unwrap_or(0);
    let n = ws.iter().map(|(w, _)| w.rows()).sum::<usize>() * m;
    let mut all = Vec::with_capacity(n);
    let mut rest = &mut all.spare_capacity_mut()[..n];
    let mut ys = Vec::with_capacity(ws.len());
    for (w, _) in ws {
        let (y, behind) = rest.split_at_mut(m * w.rows());
        ys.push(y);
        rest = behind;
    }
    multiply(compute, x, ws, ys, None);
    // SAFETY: the products wrote every element (`Product::tile`); there is none if x is empty.
    unsafe { all.set_len(n) };
    all
}

fn multiply(
    compute: &Compute,
    x: &[f32],
    ws: &[(&Matrix, Arithmetic)],
    ys: Vec<&mut [MaybeUninit<f32>]>,
    add_scaled: Option<f32>,
) {
    assert_eq!(ws.len(), ys.len());
    let Some(k) = ws.first().map(|(w, _)| w.cols()) else { return };
    let m = x.len().checked_div(k).unwrap_or(0);
    assert_eq!(x.len(), m * k);
    let mut jobs = Vec::with_capacity(ws.len());
    for ((w, arithmetic), y) in ws.iter().zip(ys) {
        assert_eq!(w.cols(), k);
        assert_eq!(y.len(), m * w.rows());
        let product = product(compute.isa, *arithmetic, w.dtype());
        jobs.push(Job { arithmetic: *arithmetic, product, w, y, add_scaled });
    }
    if m > 0 {
        driver::run(compute, x, k, &mut jobs);
    }
}

fn product(isa: Isa, arithmetic: Arithmetic, dtype: Dtype) -> &'static dyn Product {
    match arithmetic {
        Arithmetic::F32 | Arithmetic::Bf16 => float::product(isa, arithmetic),
        Arithmetic::Int8 => match int8::product(isa, dtype) {
            Some(product) => product,
            None => panic!("{} has no integer codes", dtype.name()),
        },
    }
}
