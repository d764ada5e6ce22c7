//! Directions and magnitudes of rows (DoRA, arXiv:2402.09353), as PEFT computes them.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::linear::{Adapter, Part};
use super::pass::Pass;
use crate::kernel::{Arithmetic, Compute};
use crate::nn::{self, Product, with_values};

/// The trained norms of a module's rows.
pub(super) struct Magnitude {
    /// Among the parameters.
    pub range: Range<usize>,
    /// Squared norms of the rows of the base matrix.
    pub squares: Vec<f64>,
}

/// Returns the squared norm of every row of the parts' base matrices.
pub(super) fn squares(compute: &Compute, parts: &[Part]) -> Vec<f64> {
    let mut squares = Vec::new();
    for part in parts {
        let weight = &part.base.weight;
        let mut row = vec![0.0; weight.cols()];
        for i in 0..weight.rows() {
            weight.decode_row(compute.isa, i, &mut row);
            squares.push(row.iter().fold(0.0, |sum, w| sum + f64::from(*w) * f64::from(*w)));
        }
    }
    squares
}

/// Returns the norms of the rows of `W + s B A`, the constants that magnitudes are divided by.
///
/// `|w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A^T) b`: A w is a product of rank rows, and W B A is never made.
pub(super) fn norms(pass: &Pass<'_>, adapter: &Adapter, parts: &[Part]) -> Result<Vec<f32>> {
    let Some(magnitude) = &adapter.magnitude else { return Ok(Vec::new()) };
    let (rank, scale) = (adapter.rank, f64::from(adapter.scale));
    let a = &pass.params[adapter.a.clone()];
    let cols = a.len() / rank;
    let rows_of_a = Tensor::from_slice(a, (rank, cols), &Device::Cpu)?;
    let products = |part: &Part| Product { arithmetic: Arithmetic::F32, ..part.product(pass) };
    let parts = &parts[adapter.parts.clone()];
    let through_base = nn::products(pass.compute, &rows_of_a, parts.iter().map(products).collect())?;
    let gram = gram(a, rank);
    let b = &pass.params[adapter.b.clone()];
    let mut norms = Vec::with_capacity(magnitude.squares.len());
    for aw in &through_base {
        let n = aw.dim(1)?; // [rank, n]
        with_values(aw, |aw| {
            for row in 0..n {
                let at = norms.len();
                let b = &b[at * rank..(at + 1) * rank];
                let (mut linear, mut quadratic) = (0.0, 0.0);
                for (i, bi) in b.iter().enumerate() {
                    linear += f64::from(*bi) * f64::from(aw[i * n + row]);
                    for (j, bj) in b.iter().enumerate() {
                        quadratic += f64::from(*bi) * f64::from(*bj) * gram[i * rank + j];
                    }
                }
                let square = magnitude.squares[at] + 2.0 * scale * linear + scale * scale * quadratic;
                norms.push(square.max(0.0).sqrt() as f32);
            }
        })?;
    }
    Ok(norms)
}

/// Returns `A A^T`.
fn gram(a: &[f32], rank: usize) -> Vec<f64> {
    let cols = a.len() / rank;
    let row = |i: usize| &a[i * cols..(i + 1) * cols];
    let dot = |i: usize, j: usize| {
        row(i).iter().zip(row(j)).fold(0.0, |sum, (x, y)| sum + f64::from(*x) * f64::from(*y))
    };
    (0..rank * rank).map(|at| dot(at / rank, at % rank)).collect()
}

/// Returns what every row's direction is multiplied by: magnitude / norm.
pub(super) fn gains(pass: &Pass<'_>, adapter: &Adapter, parts: &[Part]) -> Result<Arc<[f32]>> {
    let Some(magnitude) = &adapter.magnitude else { return Ok(Arc::from([])) };
    let norms = norms(pass, adapter, parts)?;
    Ok(pass.params[magnitude.range.clone()]
        .iter()
        .zip(norms)
        .map(|(magnitude, norm)| magnitude / norm)
        .collect())
}

/// Returns x `[T, N]` with column n times `factors[n]`.
pub(super) fn scale_columns(x: &Tensor, factors: &[f32]) -> Result<Tensor> {
    by_rows(x, factors, |x, factor| x * factor)
}

/// Returns x `[T, N]` with `bias` added to every row.
pub(super) fn add_to_rows(x: &Tensor, bias: &[f32]) -> Result<Tensor> {
    by_rows(x, bias, |x, bias| x + bias)
}

fn by_rows(x: &Tensor, with: &[f32], f: impl Fn(f32, f32) -> f32) -> Result<Tensor> {
    let y: Vec<f32> = with_values(x, |x| {
        let row = |row| std::iter::zip(row, with).map(|(x, with): (&f32, &f32)| f(*x, *with));
        x.chunks_exact(with.len()).flat_map(row).collect()
    })?;
    Tensor::from_vec(y, x.shape(), &Device::Cpu)
}

/// Adds `sum over t of dy[t][n] * u[t][n] / norms[n]` to `grad[n]`, t ascending.
pub(super) fn add_column_dots(dy: &Tensor, u: &Tensor, norms: &[f32], grad: &mut [f32]) -> Result<()> {
    let n = norms.len();
    with_values(dy, |dy| {
        with_values(u, |u| {
            for (dy, u) in dy.chunks_exact(n).zip(u.chunks_exact(n)) {
                for i in 0..n {
                    grad[i] += dy[i] * (u[i] / norms[i]);
                }
            }
        })
    })?
}
