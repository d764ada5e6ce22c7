//! What evaluation asks of logits: how likely tokens are, and which is the likeliest: `kernel::softmax`.

use super::super::CudaError;
use super::super::buffer::Buffer;
use super::super::device::Device;
use super::super::launch::{Arg, Launch};
use super::{arg, blocks, over_values};

/// Threads of a block, as `loss.cu` has it.
const LOSS_THREADS: u32 = 512;

/// What is made of rows of logits.
pub struct Scores {
    /// Natural logarithms, one for each target.
    pub log_probs: Buffer<f32>,
    /// Of every row the first index of the largest logit.
    pub best: Buffer<u32>,
}

/// Returns how likely each target, (row, token), is by logits `[R, n_classes]`, which become `cap * tanh(logit / cap)` first with a cap;
/// of `logits` that has room for more the first `n_rows` rows.
///
/// # Panics
/// If there are not as many rows of logits, or a target is beyond them.
pub fn score(
    device: &Device,
    logits: &Buffer<f32>,
    (n_rows, n_classes): (usize, usize),
    targets: &[[u32; 2]],
    softcap: Option<f32>,
) -> Result<Scores, CudaError> {
    assert!(n_rows * n_classes <= logits.len() && softcap.is_none_or(|cap| cap > 0.0));
    let within = |[row, token]: &[u32; 2]| (*row as usize) < n_rows && (*token as usize) < n_classes;
    assert!(targets.iter().all(within));
    let pieces = Buffer::<f32>::uninit(device, 2 * n_rows)?;
    let scores =
        Scores { log_probs: Buffer::uninit(device, targets.len())?, best: Buffer::uninit(device, n_rows)? };
    let on_device = Buffer::of(device, targets.as_flattened())?;
    let cap = Arg::F32(softcap.unwrap_or(0.0));
    let args = [logits.arg(), cap, pieces.arg(), scores.best.arg(), arg(n_classes)];
    let grid = (blocks(n_rows), 1);
    let launch = Launch { kernel: "score_rows_f32", grid, threads: LOSS_THREADS, shared: 0, args: &args };
    // SAFETY: the lengths were checked.
    unsafe { device.launch(&launch)? };
    let n = targets.len();
    let args =
        [logits.arg(), pieces.arg(), on_device.arg(), cap, scores.log_probs.arg(), arg(n), arg(n_classes)];
    // SAFETY: as above.
    unsafe { over_values(device, "score_targets_f32", n, 1, &args)? };
    Ok(scores)
}

/// Replaces every value by `cap * tanh(value / cap)`.
pub fn softcap(device: &Device, x: &mut Buffer<f32>, cap: f32) -> Result<(), CudaError> {
    assert!(cap > 0.0);
    let args = [x.arg(), Arg::F32(cap), Arg::U64(x.len() as u64)];
    // SAFETY: the length is the buffer's.
    unsafe { over_values(device, "softcap_f32", x.len(), 1, &args) }
}
