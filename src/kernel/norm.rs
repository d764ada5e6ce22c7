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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Isa, Team};

    fn noise(n: usize) -> Vec<f32> {
        let mut state = 0x1234_5678_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn rows_are_near_f64_and_equal_on_every_isa_and_thread_count() {
        for (n_rows, n) in [(1, 1), (3, 5), (2, 64), (5, 80), (300, 130), (4, 4096), (3, 5003)] {
            let (x, weight) = (noise(n_rows * n), noise(n));
            let mut reference = Vec::new();
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let compute = Compute { isa, team: Team::new(threads).unwrap() };
                    let mut y = vec![0.0; x.len()];
                    rms_norm(&compute, &x, &weight, 1e-5, &mut y);
                    let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
                    if reference.is_empty() {
                        reference = bits.clone();
                    }
                    assert!(bits == reference, "{n_rows} x {n} on {} x {threads}", isa.name());
                    let mut in_place = x.clone();
                    rms_norm_in_place(&compute, &mut in_place, &weight, 1e-5);
                    assert!(in_place == y);
                }
            }
            let y = reference.into_iter().map(f32::from_bits).collect::<Vec<_>>();
            for (x, y) in x.chunks_exact(n).zip(y.chunks_exact(n)) {
                let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
                for ((x, y), weight) in x.iter().zip(y).zip(&weight) {
                    let want = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*weight);
                    // a handful of roundings of 2^-24 each
                    assert!((f64::from(*y) - want).abs() <= 6e-7 * want.abs(), "{y} for {want}");
                }
            }
        }
    }

    #[test]
    fn the_order_of_the_sum_is_as_documented() {
        let x = noise(4096 + 100);
        let chunk = |x: &[f32]| {
            let mut lanes = [0f32; 64];
            for (i, x) in x.iter().enumerate() {
                lanes[i % 64] = x.mul_add(*x, lanes[i % 64]);
            }
            lane_sum::tree(&mut lanes)
        };
        let want = chunk(&x[..4096]) + chunk(&x[4096..]);
        let factor = 1.0 / (want / x.len() as f32 + 0.5).sqrt();
        let compute = Compute { isa: Isa::detect(), team: Team::new(1).unwrap() };
        let mut y = vec![0.0; x.len()];
        rms_norm(&compute, &x, &vec![1.0; x.len()], 0.5, &mut y);
        assert!(x.iter().zip(y).all(|(x, y)| (x * factor).to_bits() == y.to_bits()));
    }
}
