//! Root-mean-square normalisation (arXiv:1910.07467).

#![allow(clippy::needless_range_loop, reason = "iterator adaptors would leave the instruction set")]

use super::Compute;
use super::disjoint::{DisjointMut, for_row_blocks};
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

/// Writes the gradient of [`rms_norm`]'s x to dx, and adds that of the weight to `weight_gradient`.
///
/// With f = 1 / sqrt(mean(x^2) + eps), as the forward rounds it, and c the sum of `(dy * weight) * x` over the lanes
/// of `lane_sum`: `dx = (dy * weight) * f - x * r` with `r = f * f * f * (c / C)`, the difference fused. The weight's
/// gradient is one chain of fused multiply-adds of `dy * (x * f)` over ascending rows, from the value it has.
///
/// # Panics
/// If the lengths disagree.
pub fn rms_norm_backward(
    compute: &Compute,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    weight_gradient: Option<&mut [f32]>,
) {
    let row_len = weight.len();
    assert!(x.len() == dy.len() && x.len() == dx.len() && x.len().is_multiple_of(row_len.max(1)));
    let mut factors = vec![0.0; x.len().checked_div(row_len).unwrap_or(0)];
    let shared = DisjointMut::new(&mut factors);
    for_row_blocks(&compute.team, dx, row_len, |first_row, dx| {
        let n_rows = dx.len() / row_len;
        let rows = first_row * row_len..(first_row + n_rows) * row_len;
        // SAFETY: every task has its own rows.
        let factors = unsafe { shared.part(first_row..first_row + n_rows) };
        dispatch_fma(
            compute.isa,
            InputGradient { x: &x[rows.clone()], weight, eps, dy: &dy[rows], dx, factors },
        );
    });
    let Some(gradient) = weight_gradient else { return };
    assert_eq!(gradient.len(), row_len);
    let gradient = DisjointMut::new(gradient);
    compute.team.run(row_len.div_ceil(COLUMNS), |task| {
        let columns = task * COLUMNS..row_len.min((task + 1) * COLUMNS);
        // SAFETY: every task has its own columns.
        let gradient = unsafe { gradient.part(columns.clone()) };
        let first = columns.start;
        dispatch_fma(compute.isa, WeightGradient { x, dy, factors: &factors, row_len, first, gradient });
    });
}

/// Columns of a task of the weight's gradient: as many as four vectors of 16.
const COLUMNS: usize = 64;

struct RmsNorm<'a> {
    rows: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

struct SumOfSquares;

impl LaneSum<1> for SumOfSquares {
    #[inline(always)]
    fn add<S: SimdFma>(&self, s: S, sum: S::F32, [x]: [S::F32; 1]) -> S::F32 {
        s.mul_add(x, x, sum)
    }
}

impl FmaKernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) {
        let n = self.weight.len();
        for row in self.rows.chunks_exact_mut(n) {
            let mean = lane_sum::sum(s, [row], &SumOfSquares) / n as f32;
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

struct InputGradient<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    dy: &'a [f32],
    dx: &'a mut [f32],
    /// One over the root mean square of every row.
    factors: &'a mut [f32],
}

/// Adds `(dy * weight) * x`.
struct WeightedDot;

impl LaneSum<3> for WeightedDot {
    #[inline(always)]
    fn add<S: SimdFma>(&self, s: S, sum: S::F32, [dy, weight, x]: [S::F32; 3]) -> S::F32 {
        s.mul_add(dy * weight, x, sum)
    }
}

impl FmaKernel for InputGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) {
        let n = self.weight.len();
        let body = n / S::LANES * S::LANES;
        for row in 0..self.factors.len() {
            let (x, dy) = (&self.x[row * n..][..n], &self.dy[row * n..][..n]);
            let mean = lane_sum::sum(s, [x], &SumOfSquares) / n as f32;
            let f = 1.0 / (mean + self.eps).sqrt();
            let dot = lane_sum::sum(s, [dy, self.weight, x], &WeightedDot);
            let r = f * f * f * (dot / n as f32);
            let dx = &mut self.dx[row * n..][..n];
            for at in (0..body).step_by(S::LANES) {
                let scaled = (s.load(&dy[at..]) * s.load(&self.weight[at..])) * s.splat(f);
                s.store(s.mul_add(-s.load(&x[at..]), s.splat(r), scaled), &mut dx[at..]);
            }
            for i in body..n {
                dx[i] = (-x[i]).mul_add(r, (dy[i] * self.weight[i]) * f);
            }
            self.factors[row] = f;
        }
    }
}

struct WeightGradient<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    factors: &'a [f32],
    row_len: usize,
    /// The column of `gradient[0]`.
    first: usize,
    gradient: &'a mut [f32],
}

impl FmaKernel for WeightGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) {
        const WAYS: usize = 4;
        let n = self.gradient.len();
        let mut at = 0;
        while at + WAYS * S::LANES <= n {
            self.sum::<S, WAYS>(s, at).store(s, &mut self.gradient[at..]);
            at += WAYS * S::LANES;
        }
        while at + S::LANES <= n {
            self.sum::<S, 1>(s, at).store(s, &mut self.gradient[at..]);
            at += S::LANES;
        }
        for column in at..n {
            let mut sum = self.gradient[column];
            for row in 0..self.factors.len() {
                let i = row * self.row_len + self.first + column;
                sum = self.dy[i].mul_add(self.x[i] * self.factors[row], sum);
            }
            self.gradient[column] = sum;
        }
    }
}

/// Sums of V vectors of columns.
struct Sums<S: SimdFma, const V: usize>([S::F32; V]);

impl<S: SimdFma, const V: usize> Sums<S, V> {
    #[inline(always)]
    fn store(self, s: S, gradient: &mut [f32]) {
        for i in 0..V {
            s.store(self.0[i], &mut gradient[i * S::LANES..]);
        }
    }
}

impl WeightGradient<'_> {
    #[inline(always)]
    fn sum<S: SimdFma, const V: usize>(&self, s: S, at: usize) -> Sums<S, V> {
        let mut sums = [s.splat(0.0); V];
        for i in 0..V {
            sums[i] = s.load(&self.gradient[at + i * S::LANES..]);
        }
        for row in 0..self.factors.len() {
            let start = row * self.row_len + self.first + at;
            let (x, dy) = (&self.x[start..][..V * S::LANES], &self.dy[start..][..V * S::LANES]);
            for i in 0..V {
                let normed = s.load(&x[i * S::LANES..]) * s.splat(self.factors[row]);
                sums[i] = s.mul_add(s.load(&dy[i * S::LANES..]), normed, sums[i]);
            }
        }
        Sums(sums)
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
