//! The loss of language models: the head's product, log-softmax and cross entropy in one, a few rows at a time.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::linear::{Product, products, products_backward, weight_gradient};
use super::softmax::softcap;
use super::{gather, with_values};
use crate::kernel::Compute;
use crate::kernel::activation::copied;
use crate::kernel::softmax::{LogSoftmax, cross_entropy_gradient_rows, log_softmax_rows};

/// From hidden states to logits.
#[derive(Clone)]
pub struct Head {
    /// `[V, C]`
    pub product: Product,
    /// Logits become `cap * tanh(logit / cap)` (Gemma 2, arXiv:2408.00118).
    pub softcap: Option<f32>,
}

/// What [`cross_entropy`] returns.
pub struct CrossEntropy {
    /// `-ln(probability of the target)`, a row each.
    pub nll: Vec<f32>,
    /// Of `scale * sum of nll`, by the hidden states: `[R, C]`.
    pub d_hidden: Tensor,
}

/// Logits held at a time: 32 MiB.
const LOGITS: usize = 8 << 20;

/// Returns the loss of every row of `hidden` `[R, C]` as a prediction of its target, and the gradient of `scale` times their
/// sum. The gradient of the head's matrix, if it is wanted, goes on from what `head_gradient` `[V, C]` holds, in ascending rows.
///
/// Logits exist for as many rows as 32 MiB hold. Errors on a target outside the vocabulary, or where shapes disagree.
pub fn cross_entropy(
    compute: &Arc<Compute>,
    hidden: &Tensor,
    head: &Head,
    targets: &[u32],
    scale: f32,
    head_gradient: Option<&mut [f32]>,
) -> Result<CrossEntropy> {
    let factors = vec![scale; targets.len()];
    let mut nll = Vec::with_capacity(targets.len());
    let mut each = |pieces: &[LogSoftmax], logits: &[f32], targets: &[u32]| {
        nll.extend(target_log_probs(pieces, logits, targets).map(|log_prob| -log_prob));
    };
    let d_hidden = backward(compute, hidden, head, targets, &factors, head_gradient, &mut each)?;
    Ok(CrossEntropy { nll, d_hidden })
}

/// Returns the natural-log probability of every row's target, for `hidden` `[R, C]`.
///
/// Errors as [`cross_entropy`].
pub fn log_probs(compute: &Arc<Compute>, hidden: &Tensor, head: &Head, targets: &[u32]) -> Result<Vec<f32>> {
    check(hidden, head, targets)?;
    let mut out = Vec::with_capacity(targets.len());
    for_chunks(head, targets.len(), |rows| {
        let logits = logits(compute, &narrow(hidden, rows.start, rows.len())?, head)?;
        with_values(&logits, |logits| {
            let pieces = log_softmax_rows(compute, logits, head.product.weight.rows());
            out.extend(target_log_probs(&pieces, logits, &targets[rows.clone()]));
        })
    })?;
    Ok(out)
}

/// Returns the gradient by `hidden` `[R, C]` of a function of which `d_log_probs` are the derivatives by the rows'
/// log-probabilities; see [`cross_entropy`] for `head_gradient`.
///
/// Errors as [`cross_entropy`], and if there are not as many derivatives as rows.
pub fn log_probs_backward(
    compute: &Arc<Compute>,
    hidden: &Tensor,
    head: &Head,
    targets: &[u32],
    d_log_probs: &[f32],
    head_gradient: Option<&mut [f32]>,
) -> Result<Tensor> {
    let factors: Vec<f32> = d_log_probs.iter().map(|d| -d).collect();
    backward(compute, hidden, head, targets, &factors, head_gradient, &mut |_, _, _| {})
}

/// Returns the gradient of `sum of factor * nll`; calls `each` with the logits of some rows and what they are made of.
fn backward(
    compute: &Arc<Compute>,
    hidden: &Tensor,
    head: &Head,
    targets: &[u32],
    factors: &[f32],
    mut head_gradient: Option<&mut [f32]>,
    each: &mut impl FnMut(&[LogSoftmax], &[f32], &[u32]),
) -> Result<Tensor> {
    check(hidden, head, targets)?;
    if factors.len() != targets.len() {
        candle_core::bail!("{} derivatives for {} targets", factors.len(), targets.len());
    }
    let (vocab_size, width) = (head.product.weight.rows(), head.product.weight.cols());
    if head_gradient.as_ref().is_some_and(|gradient| gradient.len() != vocab_size * width) {
        candle_core::bail!("the gradient of the head is not {vocab_size} x {width}");
    }
    let mut d_hidden = Vec::with_capacity(hidden.elem_count());
    for_chunks(head, targets.len(), |rows| {
        let part = narrow(hidden, rows.start, rows.len())?;
        let logits = logits(compute, &part, head)?;
        let mut d_logits = with_values(&logits, |logits| {
            let pieces = log_softmax_rows(compute, logits, vocab_size);
            each(&pieces, logits, &targets[rows.clone()]);
            let mut gradient = copied(compute, logits);
            let (targets, factors) = (&targets[rows.clone()], &factors[rows.clone()]);
            cross_entropy_gradient_rows(compute, &mut gradient, vocab_size, &pieces, targets, factors);
            gradient
        })?;
        if let Some(cap) = head.softcap {
            with_values(&logits, |capped| {
                for (d, capped) in d_logits.iter_mut().zip(capped) {
                    let ratio = capped / cap;
                    *d *= 1.0 - ratio * ratio;
                }
            })?;
        }
        let d_logits = Tensor::from_vec(d_logits, (rows.len(), vocab_size), hidden.device())?;
        let d_part =
            products_backward(compute, std::slice::from_ref(&d_logits), std::slice::from_ref(&head.product))?;
        if let Some(gradient) = head_gradient.as_deref_mut() {
            weight_gradient(compute, &d_logits, &part, 1.0, gradient)?;
        }
        with_values(&d_part, |d_part| d_hidden.extend_from_slice(d_part))
    })?;
    Tensor::from_vec(d_hidden, (targets.len(), width), hidden.device())
}

fn check(hidden: &Tensor, head: &Head, targets: &[u32]) -> Result<()> {
    let (vocab_size, width) = (head.product.weight.rows(), head.product.weight.cols());
    if hidden.dims() != [targets.len(), width] {
        let (shape, n) = (hidden.shape(), targets.len());
        candle_core::bail!("hidden states of shape {shape:?} for {n} targets and a width of {width}");
    }
    match targets.iter().find(|target| **target as usize >= vocab_size) {
        Some(target) => candle_core::bail!("target {target} is outside the vocabulary of {vocab_size}"),
        None => Ok(()),
    }
}

fn logits(compute: &Arc<Compute>, hidden: &Tensor, head: &Head) -> Result<Tensor> {
    let logits = products(compute, hidden, vec![head.product.clone()])?.swap_remove(0); // one product, one result
    match head.softcap {
        None => Ok(logits),
        Some(cap) => softcap(compute, &logits, cap),
    }
}

fn target_log_probs<'a>(
    pieces: &'a [LogSoftmax],
    logits: &'a [f32],
    targets: &'a [u32],
) -> impl Iterator<Item = f32> + 'a {
    let vocab_size = logits.len() / pieces.len().max(1);
    let rows = logits.chunks_exact(vocab_size.max(1));
    pieces.iter().zip(rows).zip(targets).map(|((pieces, row), target)| pieces.log_prob(row[*target as usize]))
}

fn narrow(hidden: &Tensor, first: usize, n: usize) -> Result<Tensor> {
    let rows: Vec<usize> = (first..first + n).collect();
    gather(hidden, &rows)
}

/// Calls `each` with ranges of rows, ascending, whose logits fit.
fn for_chunks(
    head: &Head,
    n_rows: usize,
    mut each: impl FnMut(std::ops::Range<usize>) -> Result<()>,
) -> Result<()> {
    let together = (LOGITS / head.product.weight.rows().max(1)).max(1);
    (0..n_rows).step_by(together).try_for_each(|first| each(first..n_rows.min(first + together)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::product::Values;
    use crate::kernel::testing::noise;
    use crate::kernel::{Arithmetic, Isa, Matrix};
    use candle_core::Device;

    const WIDTH: usize = 5;
    const VOCAB: usize = 11;
    const TARGETS: [u32; 4] = [3, 0, 10, 3];

    fn head(weights: &[f32], cap: Option<f32>) -> Head {
        let weight = Matrix::of_values(Arc::new(Values(weights.to_vec())), 0, VOCAB, WIDTH);
        Head { product: Product { weight, bias: None, arithmetic: Arithmetic::F32 }, softcap: cap }
    }

    /// The loss in f64, by its definition.
    fn loss(hidden: &[f64], weights: &[f64], cap: Option<f32>, factors: &[f64]) -> f64 {
        let mut sum = 0.0;
        for ((x, target), factor) in hidden.chunks_exact(WIDTH).zip(TARGETS).zip(factors) {
            let logit = |w: &[f64]| {
                let logit: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                cap.map_or(logit, |cap| f64::from(cap) * (logit / f64::from(cap)).tanh())
            };
            let logits: Vec<f64> = weights.chunks_exact(WIDTH).map(logit).collect();
            let log_sum = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
            sum += factor * (log_sum - logits[target as usize]);
        }
        sum
    }

    /// Returns the derivatives of `f` at `x` by central differences.
    fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        const STEP: f64 = 1e-5;
        let mut at = x.to_vec();
        let mut derivative = |i: usize| {
            at[i] = x[i] + STEP;
            let above = f(&at);
            at[i] = x[i] - STEP;
            let below = f(&at);
            at[i] = x[i];
            (above - below) / (2.0 * STEP)
        };
        (0..x.len()).map(&mut derivative).collect()
    }

    fn widened(values: &[f32]) -> Vec<f64> {
        values.iter().map(|value| f64::from(*value)).collect()
    }

    fn assert_close(found: &[f32], want: &[f64], what: &str) {
        assert_eq!(found.len(), want.len());
        let scale = want.iter().fold(0.0f64, |scale, x| scale.max(x.abs()));
        for (i, (found, want)) in found.iter().zip(want).enumerate() {
            assert!((f64::from(*found) - want).abs() <= 1e-5 * scale, "{what}[{i}]: {found} for {want}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (hidden, weights) = (noise(TARGETS.len() * WIDTH, 1), noise(VOCAB * WIDTH, 2));
        let scale = 0.25;
        for cap in [None, Some(1.5)] {
            for threads in [1, 2, 7] {
                let compute = Arc::new(Compute::new(Isa::detect(), threads).unwrap());
                let x = Tensor::from_slice(&hidden, (TARGETS.len(), WIDTH), &Device::Cpu).unwrap();
                let mut gradient = vec![0.0; VOCAB * WIDTH];
                let head = head(&weights, cap);
                let result =
                    cross_entropy(&compute, &x, &head, &TARGETS, scale, Some(&mut gradient)).unwrap();
                let factors = [f64::from(scale); TARGETS.len()];
                let (h, w) = (widened(&hidden), widened(&weights));
                let sum: f64 = result.nll.iter().map(|nll| f64::from(*nll * scale)).sum();
                assert!((sum - loss(&h, &w, cap, &factors)).abs() < 1e-5);
                let d_hidden = result.d_hidden.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_close(&d_hidden, &differences(&h, |h| loss(h, &w, cap, &factors)), "d_hidden");
                assert_close(&gradient, &differences(&w, |w| loss(&h, w, cap, &factors)), "head");

                let log_probs = log_probs(&compute, &x, &head, &TARGETS).unwrap();
                assert!(log_probs.iter().zip(&result.nll).all(|(l, nll)| l.to_bits() == (-nll).to_bits()));
                let d = [0.5, -1.0, 2.0, 0.0];
                let found = log_probs_backward(&compute, &x, &head, &TARGETS, &d, None).unwrap();
                let factors = d.map(|d| -f64::from(d));
                let want = differences(&h, |h| loss(h, &w, cap, &factors));
                assert_close(&found.flatten_all().unwrap().to_vec1::<f32>().unwrap(), &want, "d_log_probs");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let compute = Arc::new(Compute::new(Isa::Portable, 1).unwrap());
        let head = head(&noise(VOCAB * WIDTH, 2), None);
        let x = Tensor::zeros((1, WIDTH), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(cross_entropy(&compute, &x, &head, &[VOCAB as u32], 1.0, None).is_err());
        assert!(cross_entropy(&compute, &x, &head, &[1, 2], 1.0, None).is_err());
        assert!(cross_entropy(&compute, &x, &head, &[1], 1.0, Some(&mut [0.0])).is_err());
        assert!(log_probs_backward(&compute, &x, &head, &[1], &[1.0, 2.0], None).is_err());
    }
}
