//! Directions and magnitudes of rows (DoRA, arXiv:2402.09353), as PEFT computes them.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::linear::{Adapter, Part};
use super::pass::Pass;
use crate::kernel::{Arithmetic, Compute};
use crate::model::dora::{self, Pair};
use crate::nn::{Product, with_values};

pub(super) use crate::model::dora::{add_to_rows, scale_columns};

/// The trained norms of a module's rows.
pub(super) struct Magnitude {
    /// Among the parameters.
    pub range: Range<usize>,
    /// Squared norms of the rows of the base matrix.
    pub squares: Vec<f64>,
}

/// Returns the squared norm of every row of the parts' base matrices.
pub(super) fn squares(compute: &Compute, parts: &[Part]) -> Vec<f64> {
    dora::squares(compute, parts.iter().map(|part| &part.base.weight))
}

/// Returns the norms of the rows of `W + s B A`, the constants that magnitudes are divided by.
pub(super) fn norms(pass: &Pass<'_>, adapter: &Adapter, parts: &[Part]) -> Result<Vec<f32>> {
    let Some(magnitude) = &adapter.magnitude else { return Ok(Vec::new()) };
    let products = |part: &Part| Product { arithmetic: Arithmetic::F32, ..part.product(pass) };
    let bases = parts[adapter.parts.clone()].iter().map(products).collect();
    let (a, b) = (&pass.params[adapter.a.clone()], &pass.params[adapter.b.clone()]);
    let pair = Pair { a, b, rank: adapter.rank, scale: adapter.scale };
    dora::norms(pass.compute, bases, &magnitude.squares, &pair)
}

/// Returns what every row's direction is multiplied by: magnitude / norm.
pub(super) fn gains(pass: &Pass<'_>, adapter: &Adapter, parts: &[Part]) -> Result<Arc<[f32]>> {
    let Some(magnitude) = &adapter.magnitude else { return Ok(Arc::from([])) };
    Ok(dora::gains(&pass.params[magnitude.range.clone()], &norms(pass, adapter, parts)?))
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
