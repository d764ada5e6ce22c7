//! Operations on a device: each checks lengths, chooses the kernel, and puts it on the stream.
//!
//! Nothing here waits. Lengths that disagree are bugs of the caller, and panic, as in `kernel`.

pub mod attention;
pub mod dequantize;
pub mod elementwise;
pub mod loss;
pub mod moments;
pub mod norm;
pub mod optimizer;
pub mod paged;
pub mod routing;
pub mod score;

use super::CudaError;
use super::buffer::Float;
use super::device::Device;
use super::launch::{Arg, Launch};

/// Threads of a block, unless a kernel says otherwise.
const THREADS: u32 = 256;

/// Blocks of a kernel whose threads go on to the next values until all are done: more change nothing.
const MOST_BLOCKS: usize = 4096;

/// Returns a size as kernels take it.
///
/// # Panics
/// If it is beyond 2^31, which a grid or an index of 32 bits is.
fn int(size: usize) -> i32 {
    i32::try_from(size).unwrap_or_else(|_| panic!("a size of {size} for a kernel"))
}

fn arg(size: usize) -> Arg {
    Arg::I32(int(size))
}

fn blocks(n: usize) -> u32 {
    int(n).cast_unsigned()
}

/// Returns the end of the name of a kernel that reads both: X where they are one type.
///
/// # Panics
/// If X is narrower than T: the residual stream is f32, whatever goes into products.
fn pair_name<X: Float, T: Float>() -> &'static str {
    match (X::NAME, T::NAME) {
        ("f32", "bf16") => "f32_bf16",
        (x, t) if x == t => x,
        (x, t) => panic!("no kernel for {x} beside {t}"),
    }
}

/// Launches a kernel over n values, `per_thread` of them by each thread at once.
///
/// # Safety
/// As [`Device::launch`].
unsafe fn over_values(
    device: &Device,
    kernel: &str,
    n: usize,
    per_thread: usize,
    args: &[Arg],
) -> Result<(), CudaError> {
    let grid = (blocks(n.div_ceil(THREADS as usize * per_thread).min(MOST_BLOCKS)), 1);
    // SAFETY: the caller's.
    unsafe { device.launch(&Launch { kernel, grid, threads: THREADS, shared: 0, args }) }
}

/// Launches a kernel of which a block has a row.
///
/// # Safety
/// As [`Device::launch`].
unsafe fn over_rows(device: &Device, kernel: &str, rows: usize, args: &[Arg]) -> Result<(), CudaError> {
    let grid = (blocks(rows), 1);
    // SAFETY: the caller's.
    unsafe { device.launch(&Launch { kernel, grid, threads: THREADS, shared: 0, args }) }
}
