//! Softmax of rows: of logits over the vocabulary, of a router over its experts.

use super::Compute;
use super::Isa;
use super::disjoint::for_row_blocks;
use super::lane_sum::{self, Dot, LaneSum};
use super::math::lanes;
use super::simd::{FmaKernel, SimdFma, dispatch_fma};

/// What a row's log-softmax is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogSoftmax {
    /// The largest logit; NaNs don't count, and -infinity if there is nothing else.
    pub max: f32,
    /// Index of the first logit that equals `max`; 0 if none does.
    pub argmax: usize,
    /// ln(sum of e^(x - max)) >= 0; NaN if a logit is.
    pub log_sum: f32,
}

impl LogSoftmax {
    /// Returns the natural-log probability of a logit of the row: `(logit - max) - log_sum`.
    pub fn log_prob(&self, logit: f32) -> f32 {
        (logit - self.max) - self.log_sum
    }

    /// Returns ln(sum of e^x).
    pub fn log_sum_exp(&self) -> f32 {
        self.max + self.log_sum
    }
}

/// Returns the pieces of a row's log-softmax. The exponentials are summed in the fixed order of `lane_sum`.
pub fn log_softmax(isa: Isa, logits: &[f32]) -> LogSoftmax {
    dispatch_fma(isa, Pieces(logits))
}

/// Returns [`log_softmax`] of every row of `logits`, `[R, vocab_size]`.
///
/// # Panics
/// If `logits.len()` is not a multiple of `vocab_size`.
pub fn log_softmax_rows(compute: &Compute, logits: &[f32], vocab_size: usize) -> Vec<LogSoftmax> {
    assert!(vocab_size > 0 && logits.len().is_multiple_of(vocab_size));
    let n_rows = logits.len() / vocab_size;
    let mut pieces = vec![LogSoftmax::default(); n_rows];
    let shared = super::disjoint::DisjointMut::new(&mut pieces);
    compute.team.run(n_rows, |row| {
        // SAFETY: every task has its own row.
        let out = unsafe { shared.part(row..row + 1) };
        out[0] = log_softmax(compute.isa, &logits[row * vocab_size..][..vocab_size]);
    });
    pieces
}

/// Returns the index of the first largest value; NaNs don't count, 0 if there is nothing else.
pub fn argmax(isa: Isa, values: &[f32]) -> usize {
    dispatch_fma(isa, ArgMax(values))
}

/// Replaces every row of x, `[R, row_len]`, by its softmax: `e^(x - max) / sum`, summed in the order of `lane_sum`.
///
/// # Panics
/// If `x.len()` is not a multiple of `row_len`.
pub fn softmax_rows(compute: &Compute, x: &mut [f32], row_len: usize) {
    assert!(row_len > 0 && x.len().is_multiple_of(row_len));
    for_row_blocks(&compute.team, x, row_len, |_, rows| {
        for row in rows.chunks_exact_mut(row_len) {
            dispatch_fma(compute.isa, Softmax(row));
        }
    });
}

/// Replaces every row of logits, `[R, row_len]`, by the gradient of `factor * -ln(probability of the target)` by them:
/// `factor * (p - [is the target])`, p as [`LogSoftmax::log_prob`] has it.
///
/// # Panics
/// If the lengths disagree, or a target is not below `row_len`.
pub fn cross_entropy_gradient_rows(
    compute: &Compute,
    logits: &mut [f32],
    row_len: usize,
    pieces: &[LogSoftmax],
    targets: &[u32],
    factors: &[f32],
) {
    assert!(logits.len() == pieces.len() * row_len && pieces.len() == targets.len());
    assert_eq!(pieces.len(), factors.len());
    for_row_blocks(&compute.team, logits, row_len, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(row_len).enumerate() {
            let (pieces, target) = (pieces[first + i], targets[first + i] as usize);
            dispatch_fma(compute.isa, crate::kernel::math::MapInPlace(Probability(pieces), &mut *row));
            row[target] -= 1.0;
            let scale = super::activation::Scale(factors[first + i]);
            dispatch_fma(compute.isa, crate::kernel::math::MapInPlace(scale, row));
        }
    });
}

/// `e^((x - max) - log_sum)`
#[derive(Clone, Copy)]
struct Probability(LogSoftmax);

impl crate::kernel::math::Unary for Probability {
    #[inline(always)]
    fn apply<S: SimdFma>(self, s: S, x: S::F32) -> S::F32 {
        lanes::exp_nonpositive(s, (x - s.splat(self.0.max)) - s.splat(self.0.log_sum))
    }
}

/// Replaces the gradient of a softmax `y`, `[R, row_len]`, by that of its x: `y * (dy - sum of dy * y)`, the sum of
/// fused products in the order of `lane_sum`.
///
/// # Panics
/// If the lengths differ or are not a multiple of `row_len`.
pub fn softmax_rows_backward(compute: &Compute, y: &[f32], dy: &mut [f32], row_len: usize) {
    assert!(y.len() == dy.len() && row_len > 0 && y.len().is_multiple_of(row_len));
    for_row_blocks(&compute.team, dy, row_len, |first_row, dy| {
        for (i, dy) in dy.chunks_exact_mut(row_len).enumerate() {
            let y = &y[(first_row + i) * row_len..][..row_len];
            dispatch_fma(compute.isa, SoftmaxBackward { y, dy });
        }
    });
}

struct SoftmaxBackward<'a> {
    y: &'a [f32],
    dy: &'a mut [f32],
}

impl FmaKernel for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) {
        let dot = lane_sum::sum(s, [&*self.dy, self.y], &Dot);
        for (dy, y) in self.dy.iter_mut().zip(self.y) {
            *dy = y * (*dy - dot);
        }
    }
}

/// Adds e^(x - max).
struct SumOfExp(f32);

impl LaneSum<1> for SumOfExp {
    #[inline(always)]
    fn add<S: SimdFma>(&self, s: S, sum: S::F32, [x]: [S::F32; 1]) -> S::F32 {
        sum + lanes::exp_nonpositive(s, x - s.splat(self.0))
    }
}

struct Sum;

impl LaneSum<1> for Sum {
    #[inline(always)]
    fn add<S: SimdFma>(&self, _: S, sum: S::F32, [x]: [S::F32; 1]) -> S::F32 {
        sum + x
    }
}

#[inline(always)]
fn max<S: SimdFma>(s: S, values: &[f32]) -> f32 {
    const WAYS: usize = 4;
    let mut lanes = [f32::NEG_INFINITY; WAYS * 16];
    let mut largest = [s.splat(f32::NEG_INFINITY); WAYS];
    let mut blocks = values.chunks_exact(WAYS * S::LANES);
    for block in &mut blocks {
        for i in 0..WAYS {
            largest[i] = s.max(s.load(&block[i * S::LANES..]), largest[i]);
        }
    }
    for i in 0..WAYS {
        s.store(largest[i], &mut lanes[i * S::LANES..]);
    }
    let mut max = f32::NEG_INFINITY;
    for x in lanes.iter().chain(blocks.remainder()) {
        max = if *x > max { *x } else { max };
    }
    max
}

/// Returns the index of the first value equal to `wanted`, or 0.
#[inline(always)]
fn first_equal<S: SimdFma>(s: S, values: &[f32], wanted: f32) -> usize {
    const WAYS: usize = 4;
    let step = WAYS * S::LANES;
    let mut at = 0;
    while at + step <= values.len() {
        let block = &values[at..at + step];
        let mut found = s.eq(s.load(block), s.splat(wanted));
        for i in 1..WAYS {
            found = found | s.eq(s.load(&block[i * S::LANES..]), s.splat(wanted));
        }
        if s.any(found) {
            break;
        }
        at += step;
    }
    values[at..].iter().position(|x| *x == wanted).map_or(0, |i| at + i)
}

struct ArgMax<'a>(&'a [f32]);

impl FmaKernel for ArgMax<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) -> usize {
        first_equal(s, self.0, max(s, self.0))
    }
}

struct Pieces<'a>(&'a [f32]);

impl FmaKernel for Pieces<'_> {
    type Output = LogSoftmax;

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) -> LogSoftmax {
        let max = max(s, self.0);
        let sum = lane_sum::sum(s, [self.0], &SumOfExp(max));
        let mut log_sum = [0.0; 16];
        s.store(lanes::log(s, s.splat(sum)), &mut log_sum);
        LogSoftmax { max, argmax: first_equal(s, self.0, max), log_sum: log_sum[0] }
    }
}

struct Softmax<'a>(&'a mut [f32]);

impl FmaKernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) {
        let max = max(s, self.0);
        crate::kernel::math::MapInPlace(ExpBelow(max), &mut *self.0).run(s);
        let sum = lane_sum::sum(s, [self.0], &Sum);
        for x in self.0.iter_mut() {
            *x /= sum;
        }
    }
}

/// `e^(x - max)`
#[derive(Clone, Copy)]
struct ExpBelow(f32);

impl crate::kernel::math::Unary for ExpBelow {
    #[inline(always)]
    fn apply<S: SimdFma>(self, s: S, x: S::F32) -> S::F32 {
        lanes::exp_nonpositive(s, x - s.splat(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Team;

    fn noise(n: usize, width: f32) -> Vec<f32> {
        let mut state = 0x1234_5678_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            width * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn log_softmax_is_near_f64_and_equal_on_every_isa() {
        for n in [1, 2, 63, 64, 65, 1000, 4096, 32_000, 151_936] {
            for width in [0.0, 1e-3, 3.0, 30.0, 300.0] {
                let logits = noise(n, width);
                let want = log_softmax(Isa::Portable, &logits);
                let exact = logits.iter().map(|x| f64::from(x - want.max).exp()).sum::<f64>().ln();
                let error = (f64::from(want.log_sum) - exact).abs();
                assert!(error <= 1e-6 * exact.max(0.3), "{n} {width}: {} for {exact}", want.log_sum);
                assert_eq!(want.max, logits.iter().copied().fold(f32::MIN, f32::max));
                assert_eq!(want.argmax, logits.iter().position(|x| *x == want.max).unwrap());
                for isa in Isa::available() {
                    let got = log_softmax(isa, &logits);
                    assert_eq!(got.log_sum.to_bits(), want.log_sum.to_bits(), "{}", isa.name());
                    assert_eq!((got.max, got.argmax), (want.max, want.argmax));
                    assert_eq!(argmax(isa, &logits), want.argmax);
                }
            }
        }
    }

    #[test]
    fn the_first_of_equal_maxima_counts_and_nan_does_not() {
        for isa in Isa::available() {
            for at in [0, 1, 17, 63, 64, 200] {
                let mut x = vec![-1.0; 201];
                x[at..].fill(2.0);
                assert_eq!(argmax(isa, &x), at);
                x[..at].fill(f32::NAN);
                assert_eq!(argmax(isa, &x), at);
                let pieces = log_softmax(isa, &x);
                assert_eq!((pieces.max, pieces.log_sum.is_nan()), (2.0, at > 0));
            }
            assert_eq!(argmax(isa, &[f32::NAN; 40]), 0);
            assert_eq!(argmax(isa, &[f32::NEG_INFINITY; 40]), 0);
            let masked = [f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY];
            let pieces = log_softmax(isa, &masked);
            assert_eq!((pieces.log_prob(3.0), pieces.log_prob(masked[0])), (0.0, f32::NEG_INFINITY));
            assert_eq!(pieces.log_sum_exp(), 3.0);
        }
    }

    #[test]
    fn rows_are_independent_of_their_batch() {
        let logits = noise(7 * 5000, 8.0);
        let want: Vec<_> = logits.chunks_exact(5000).map(|row| log_softmax(Isa::detect(), row)).collect();
        let mut probabilities: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            for threads in [1, 3] {
                let compute = Compute { isa, team: Team::new(threads).unwrap() };
                assert_eq!(log_softmax_rows(&compute, &logits, 5000), want);
                let mut p = logits.clone();
                softmax_rows(&compute, &mut p, 5000);
                assert!(*probabilities.get_or_insert_with(|| p.clone()) == p, "{}", isa.name());
            }
        }
        for ((p, logits), pieces) in probabilities.unwrap().chunks(5000).zip(logits.chunks(5000)).zip(want) {
            assert!((p.iter().map(|p| f64::from(*p)).sum::<f64>() - 1.0).abs() < 1e-6);
            for (p, logit) in p.iter().zip(logits) {
                let want = f64::from(pieces.log_prob(*logit)).exp();
                // an error of log_prob below 1e-6, as its magnitude is below 30
                assert!((f64::from(*p) - want).abs() <= 3e-6 * want, "{p} for {want}");
            }
        }
    }
}
