//! Magnitudes of rows apart from their directions (DoRA, arXiv:2402.09353), as PEFT computes them.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use crate::kernel::{Compute, Matrix};
use crate::nn::{self, Product, with_values};

/// A pair of low rank beside a module.
pub(super) struct Pair<'a> {
    /// `[rank, in]`
    pub a: &'a [f32],
    /// `[out, rank]`
    pub b: &'a [f32],
    pub rank: usize,
    pub scale: f32,
}

/// Returns the squared norm of every row of matrices, one after another.
pub(super) fn squares<'m>(compute: &Compute, matrices: impl Iterator<Item = &'m Matrix>) -> Vec<f64> {
    let mut squares = Vec::new();
    for weight in matrices {
        let mut row = vec![0.0; weight.cols()];
        for i in 0..weight.rows() {
            weight.decode_row(compute.isa, i, &mut row);
            squares.push(row.iter().fold(0.0, |sum, w| sum + f64::from(*w) * f64::from(*w)));
        }
    }
    squares
}

/// Returns the norms of the rows of `W + s B A`, the constants that magnitudes are divided by; `squares` are the squared norms of
/// the rows of W, which `bases` multiply by.
///
/// `|w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A^T) b`: A w is a product of rank rows, and W B A is never made.
pub(super) fn norms(
    compute: &Arc<Compute>,
    bases: Vec<Product>,
    squares: &[f64],
    pair: &Pair<'_>,
) -> Result<Vec<f32>> {
    let (rank, scale) = (pair.rank, f64::from(pair.scale));
    let rows_of_a = Tensor::from_slice(pair.a, (rank, pair.a.len() / rank), &Device::Cpu)?;
    let through_base = nn::products(compute, &rows_of_a, bases)?;
    let gram = gram(pair.a, rank);
    let mut norms = Vec::with_capacity(squares.len());
    for aw in &through_base {
        let n = aw.dim(1)?; // [rank, n]
        with_values(aw, |aw| {
            for row in 0..n {
                let at = norms.len();
                let b = &pair.b[at * rank..(at + 1) * rank];
                let (mut linear, mut quadratic) = (0.0, 0.0);
                for (i, bi) in b.iter().enumerate() {
                    linear += f64::from(*bi) * f64::from(aw[i * n + row]);
                    for (j, bj) in b.iter().enumerate() {
                        quadratic += f64::from(*bi) * f64::from(*bj) * gram[i * rank + j];
                    }
                }
                let square = squares[at] + 2.0 * scale * linear + scale * scale * quadratic;
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
pub(super) fn gains(magnitude: &[f32], norms: &[f32]) -> Arc<[f32]> {
    magnitude.iter().zip(norms).map(|(magnitude, norm)| magnitude / norm).collect()
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
