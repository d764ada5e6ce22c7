//! The head's product and cross entropy in one, a chunk of rows at a time: `nn::loss`.

use super::super::CudaError;
use super::super::buffer::{Buffer, Float, optional};
use super::super::device::Device;
use super::super::launch::{Arg, Launch};
use super::super::product::{Part, PartMut, Product, Sizes};
use super::{arg, blocks};

/// A row without a target: its loss and gradient are 0.
pub const NO_TARGET: u32 = u32::MAX;

/// Threads of a block, as `loss.cu` has it.
const LOSS_THREADS: u32 = 512;

/// Bytes of logits that exist at a time.
const LOGITS_BYTES: usize = 512 << 20;

/// What rows are predicted to be, and what their loss counts.
pub struct Targets<'a> {
    /// A class each, or [`NO_TARGET`].
    pub classes: &'a Buffer<u32>,
    /// Of the gradient, a row each.
    pub factors: &'a Buffer<f32>,
    /// Logits become `cap * tanh(logit / cap)` (Gemma 2).
    pub softcap: Option<f32>,
}

/// Rows of logits, and of what goes with them.
#[derive(Clone, Copy)]
struct Rows {
    first: usize,
    n: usize,
    n_classes: usize,
}

/// Writes `-ln(probability of the target)` of every row of logits `[R, n_classes]` to nll, and the gradient of `factor * nll` by them to
/// `gradient`, if that is wanted.
///
/// # Panics
/// If the lengths disagree. Classes are the caller's: one beyond the logits reads other memory.
pub fn cross_entropy<T: Float, O: Float>(
    device: &Device,
    logits: &Buffer<T>,
    targets: &Targets<'_>,
    nll: &mut Buffer<f32>,
    gradient: Option<&mut Buffer<O>>,
) -> Result<(), CudaError> {
    let n = targets.classes.len();
    if n == 0 {
        return Ok(());
    }
    let rows = Rows { first: 0, n, n_classes: logits.len() / n };
    assert!(logits.len() == n * rows.n_classes && gradient.as_ref().is_none_or(|g| g.len() == logits.len()));
    // SAFETY: the lengths were checked.
    unsafe { run::<T, O>(device, logits.arg(), targets, nll, optional(gradient.as_deref()), rows) }
}

/// [`cross_entropy`] with the gradient in place of the logits.
///
/// # Panics
/// As there.
pub fn cross_entropy_in_place<T: Float>(
    device: &Device,
    logits: &mut Buffer<T>,
    targets: &Targets<'_>,
    nll: &mut Buffer<f32>,
) -> Result<(), CudaError> {
    let n = targets.classes.len();
    if n == 0 {
        return Ok(());
    }
    let rows = Rows { first: 0, n, n_classes: logits.len() / n };
    assert_eq!(logits.len(), n * rows.n_classes);
    // SAFETY: the lengths were checked; a thread writes what it alone read.
    unsafe { run::<T, T>(device, logits.arg(), targets, nll, logits.arg(), rows) }
}

/// # Safety
/// Logits and gradient are null or have the rows; the targets have `first + n`.
unsafe fn run<T: Float, O: Float>(
    device: &Device,
    logits: Arg,
    targets: &Targets<'_>,
    nll: &mut Buffer<f32>,
    gradient: Arg,
    Rows { first, n, n_classes }: Rows,
) -> Result<(), CudaError> {
    assert!(targets.factors.len() == targets.classes.len() && nll.len() == targets.classes.len());
    assert!(first + n <= nll.len() && targets.softcap.is_none_or(|cap| cap > 0.0));
    let kernel = match (T::NAME, O::NAME) {
        ("f32", "f32") => "cross_entropy_f32",
        ("f32", "bf16") => "cross_entropy_f32_bf16",
        ("bf16", "bf16") => "cross_entropy_bf16",
        (from, to) => panic!("no cross entropy from {from} to {to}"),
    };
    let args = [
        logits,
        Arg::Pointer(targets.classes.address_of(first)),
        Arg::Pointer(targets.factors.address_of(first)),
        Arg::F32(targets.softcap.unwrap_or(0.0)),
        Arg::Pointer(nll.address_of(first)),
        gradient,
        arg(n_classes),
    ];
    // SAFETY: the caller's.
    unsafe {
        device.launch(&Launch { kernel, grid: (blocks(n), 1), threads: LOSS_THREADS, shared: 0, args: &args })
    }
}

/// The head's matrix `[n_classes, width]`, and the rows it is applied to, `[R, width]`: only those that have a target.
pub struct Head<'a, T> {
    pub weight: &'a Buffer<T>,
    pub hidden: &'a Buffer<T>,
    pub width: usize,
}

/// Where a head's gradients go.
pub struct HeadGradients<'a, T> {
    /// Gets the gradient by the hidden states.
    pub hidden: &'a mut Buffer<T>,
    /// The gradient by the matrix is added to it.
    pub weight: Option<&'a mut Buffer<f32>>,
}

/// Writes every row's loss to nll, and, if they are wanted, the gradients of the sum of `factor * nll`. Logits are f32, their gradient is
/// rounded to T for the products; both exist for one chunk of rows.
///
/// # Panics
/// As [`cross_entropy`].
pub fn linear_cross_entropy<T: Float>(
    device: &Device,
    head: &Head<'_, T>,
    targets: &Targets<'_>,
    nll: &mut Buffer<f32>,
    mut gradients: Option<HeadGradients<'_, T>>,
) -> Result<(), CudaError> {
    let (n, width) = (targets.classes.len(), head.width);
    assert!(width > 0 && head.hidden.len() == n * width && head.weight.len().is_multiple_of(width));
    if let Some(HeadGradients { hidden, weight }) = &gradients {
        assert!(hidden.len() == n * width);
        assert!(weight.as_ref().is_none_or(|weight| weight.len() == head.weight.len()));
    }
    let n_classes = head.weight.len() / width;
    let together = rows_together(n, n_classes);
    let mut logits = Buffer::<f32>::uninit(device, together * n_classes)?;
    let slopes = Buffer::<T>::uninit(device, if gradients.is_some() { together * n_classes } else { 0 })?;
    let weight = Part::from(head.weight);
    for first in (0..n).step_by(together.max(1)) {
        let m = together.min(n - first);
        let sizes = Sizes { m, n: n_classes, k: width };
        let hidden = Part { buffer: head.hidden, first: first * width };
        let out = PartMut::from(&mut logits);
        device.product(Product::Forward, sizes, (weight, hidden), (1.0, 0.0), out)?;
        let rows = Rows { first, n: m, n_classes };
        let to = if gradients.is_some() { slopes.arg() } else { Arg::Pointer(0) };
        // SAFETY: both have the rows.
        unsafe { run::<f32, T>(device, logits.arg(), targets, nll, to, rows)? };
        let Some(gradients) = &mut gradients else { continue };
        let slopes = Part::from(&slopes);
        let out = PartMut { buffer: &mut *gradients.hidden, first: first * width };
        device.product(Product::InputGradient, sizes, (weight, slopes), (1.0, 0.0), out)?;
        if let Some(sum) = &mut gradients.weight {
            let operands = (hidden, slopes);
            device.product(Product::WeightGradient, sizes, operands, (1.0, 1.0), &mut **sum)?;
        }
    }
    Ok(())
}

/// Returns the bytes that [`linear_cross_entropy`] takes of its own: logits and their gradient, in values of that many bytes.
pub fn working_bytes(n_rows: usize, n_classes: usize, value_bytes: usize) -> usize {
    rows_together(n_rows, n_classes) * n_classes * (size_of::<f32>() + value_bytes)
}

/// Returns how many rows of logits exist at a time: a multiple of 128 where there are that many.
fn rows_together(n_rows: usize, n_classes: usize) -> usize {
    let fit = (LOGITS_BYTES / size_of::<f32>() / n_classes.max(1)).max(1);
    n_rows.min(if fit >= 128 { fit / 128 * 128 } else { fit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_of_a_chunk_fit() {
        assert_eq!(rows_together(100_000, 128_256), 1024);
        assert_eq!(rows_together(50, 128_256), 50);
        assert_eq!(rows_together(50, 2 * LOGITS_BYTES), 1);
        for n_classes in [32_000, 128_256, 262_144] {
            let n = rows_together(usize::MAX, n_classes);
            assert!(n * n_classes * 4 <= LOGITS_BYTES && n.is_multiple_of(128), "{n}");
        }
    }
}
