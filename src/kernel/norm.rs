//! Root-mean-square normalisation (arXiv:1910.07467).

use super::Compute;
use super::disjoint::for_row_blocks;
use super::lane_sum::{self, LaneSum};
use super::simd::{FmaKernel, SimdFma, dispatch_fma};

/// Writes `y = x / sqrt(mean(x^2) + eps) * weight` for every row; x and y are `[T, C]`, weight is `[C]`.
///
/// The squares are summed over fixed lanes (`lane_sum`), then `y = (x * (1 / sqrt(sum / C + eps))) * weight`, each
/// operation rounded: a row depends on itself alone. Weights stored as w - 1 (Gemma) are resolved where they are loaded.
/// With C = head_dim this is the norm of queries and keys per head.
///
/// # Panics
/// If the lengths disagree.
pub fn rms_norm(compute: &Compute, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    assert!(x.len() == y.len() && x.len().is_multiple_of(weight.len().max(1)));
    let row_len = weight.len();
    for_row_blocks(&compute.team, y, row_len, |first_row, y| {
        y.copy_from_slice(&x[first_row * row_len..][..y.len()]);
        dispatch_fma(compute.isa, RmsNorm { rows: y, weight, eps });
    });
}

/// [`rms_norm`] with the result in place of x.
///
/// # Panics
/// If `x.len()` is not a multiple of `weight.len()`.
pub fn rms_norm_in_place(compute: &Compute, x: &mut [f32], weight: &[f32], eps: f32) {
    assert!(x.len().is_multiple_of(weight.len().max(1)));
    for_row_blocks(&compute.team, x, weight.len(), |_, rows| {
        dispatch_fma(compute.isa, RmsNorm { rows, weight, eps });
    });
}

struct RmsNorm<'a> {
    rows: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

struct SumOfSquares;

impl LaneSum for SumOfSquares {
    #[inline(always)]
    fn add<S: SimdFma>(&self, s: S, sum: S::F32, x: S::F32) -> S::F32 {
        s.mul_add(x, x, sum)
    }
}

impl FmaKernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) {
        let n = self.weight.len();
        for row in self.rows.chunks_exact_mut(n) {
            let mean = lane_sum::sum(s, row, &SumOfSquares) / n as f32;
            let factor = 1.0 / (mean + self.eps).sqrt();
            let body = n / S::LANES * S::LANES;
            let vectors = row.chunks_exact_mut(S::LANES).zip(self.weight.chunks_exact(S::LANES));
            for (x, weight) in vectors {
                s.store((s.load(x) * s.splat(factor)) * s.load(weight), x);
            }
            for (x, weight) in row[body..].iter_mut().zip(&self.weight[body..]) {
                *x = (*x * factor) * weight;
            }
        }
    }
}
