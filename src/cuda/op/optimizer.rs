//! Clipping and optimizers over one flat vector: `finetune::clip` and `finetune::optimizer`, to the bit.

use half::bf16;

use super::super::CudaError;
use super::super::buffer::Buffer;
use super::super::device::Device;
use super::super::launch::Arg;
use super::{arg, over_rows, over_values};

pub use crate::kernel::optimizer::Step;

/// Values whose squares are summed together: as on the CPU, or the bits would differ.
const CHUNK: usize = 1 << 16;

/// The norm of all gradients, and the factor that clips them; both stay on the device.
pub struct Clip {
    chunks: Buffer<f64>,
    norm: Buffer<f64>,
    factor: Buffer<f32>,
}

impl Clip {
    /// Makes room for the sums of `n_gradients` values.
    pub fn new(device: &Device, n_gradients: usize) -> Result<Clip, CudaError> {
        Ok(Clip {
            chunks: Buffer::uninit(device, n_gradients.div_ceil(CHUNK))?,
            norm: Buffer::zeros(device, 1)?,
            factor: Buffer::of(device, &[1.0])?,
        })
    }

    /// Computes the norm and the factor that brings it to at most `max_norm`, `None` for a factor of 1.
    ///
    /// # Panics
    /// If there are not as many gradients as room was made for.
    pub fn measure(
        &mut self,
        device: &Device,
        gradients: &Buffer<f32>,
        max_norm: Option<f64>,
    ) -> Result<(), CudaError> {
        let n_chunks = gradients.len().div_ceil(CHUNK);
        assert_eq!(n_chunks, self.chunks.len());
        let args = [gradients.arg(), self.chunks.arg(), Arg::U64(gradients.len() as u64)];
        // SAFETY: there is a sum per chunk.
        unsafe { over_rows(device, "sum_of_squares", n_chunks, &args)? };
        let max_norm = Arg::F64(max_norm.unwrap_or(0.0));
        let args = [self.chunks.arg(), arg(n_chunks), max_norm, self.norm.arg(), self.factor.arg()];
        // SAFETY: as above.
        unsafe { over_rows(device, "clip_factor", 1, &args) }
    }

    /// Sets the factor that gradients are multiplied by, whatever the norm.
    pub fn set_factor(&mut self, device: &Device, factor: f32) -> Result<(), CudaError> {
        self.factor.write(device, &[factor])
    }

    /// Returns the norm, once everything before is done.
    pub fn norm(&self, device: &Device) -> Result<f64, CudaError> {
        Ok(self.norm.read(device)?.first().copied().unwrap_or(0.0))
    }
}

/// Writes the sums over ranks to out, added in their order; `values` are the vectors of all ranks one behind another.
///
/// # Panics
/// If they are not as many as `n_ranks` times out.
pub fn sum_of_ranks(
    device: &Device,
    values: &Buffer<f32>,
    n_ranks: usize,
    out: &mut Buffer<f32>,
) -> Result<(), CudaError> {
    let n = out.len();
    assert!(n_ranks > 0 && values.len() == n_ranks * n);
    let args = [values.arg(), out.arg(), arg(n_ranks), Arg::U64(n as u64)];
    // SAFETY: the lengths were checked.
    unsafe { over_values(device, "sum_of_ranks", n, 1, &args) }
}

/// A run of the flat vectors that share settings.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub first: usize,
    pub n: usize,
}

/// Parameters, what is remembered of them, and their gradients.
pub struct Flat<'a> {
    pub params: &'a mut Buffer<f32>,
    /// AdamW's first and second, Lion's first alone.
    pub moments: &'a mut [Buffer<f32>],
    pub gradients: &'a Buffer<f32>,
    /// Gets the parameters as bf16.
    pub rounded: Option<&'a mut Buffer<bf16>>,
}

impl Step {
    /// Updates a run of the parameters by the gradients times the factor of `clip`.
    ///
    /// # Panics
    /// If the vectors' lengths differ, the run leaves them, or moments are missing.
    pub fn apply(
        &self,
        device: &Device,
        flat: &mut Flat<'_>,
        clip: &Clip,
        run: Run,
    ) -> Result<(), CudaError> {
        let Run { first, n } = run;
        let len = flat.params.len();
        assert!(first + n <= len && flat.gradients.len() == len);
        assert!(flat.moments.iter().all(|moment| moment.len() == len));
        assert!(flat.rounded.as_ref().is_none_or(|rounded| rounded.len() == len));
        let at = |buffer: &Buffer<f32>| Arg::Pointer(buffer.address_of(first));
        let rounded = flat.rounded.as_deref().map_or(Arg::Pointer(0), |r| Arg::Pointer(r.address_of(first)));
        let (kernel, n_moments, factors) = match *self {
            Step::AdamW { keep, first, beta2, second, root, eps, step_size } => {
                ("adamw", 2, vec![keep, first, beta2, second, root, eps, step_size])
            }
            Step::Lion { keep, beta1, rest1, beta2, rest2, lr } => {
                ("lion", 1, vec![keep, beta1, rest1, beta2, rest2, lr])
            }
        };
        assert_eq!(flat.moments.len(), n_moments);
        let mut args = vec![at(flat.params)];
        args.extend(flat.moments.iter().map(at));
        args.extend([at(flat.gradients), rounded, clip.factor.arg()]);
        args.extend(factors.into_iter().map(Arg::F32));
        args.push(Arg::U64(n as u64));
        // SAFETY: the lengths were checked.
        unsafe { over_values(device, kernel, n, 4, &args) }
    }
}
