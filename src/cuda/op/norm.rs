//! Root-mean-square norms: `kernel::norm`; norms of a matrix's rows: `model::dora`.

use super::super::CudaError;
use super::super::buffer::{Buffer, Float, optional};
use super::super::device::Device;
use super::super::launch::{Arg, Launch};
use super::{THREADS, arg, blocks, over_rows, pair_name};

/// `y = x / sqrt(mean(x^2) + eps) * (weight + offset)`.
pub struct Norm<'a> {
    pub weight: &'a Buffer<f32>,
    /// 1 where checkpoints store w - 1 (Gemma).
    pub offset: f32,
    pub eps: f32,
}

/// Rows up to here are one warp's: the heads of queries and keys.
const WARP_COLS: usize = 256;

/// Rows whose share of a weight's gradient one block sums.
const ROWS_PER_PART: usize = 128;

impl Norm<'_> {
    /// Writes the norm of every row of x to y, both `[rows, weight.len()]`; x may be the residual stream, f32 where y is bf16.
    ///
    /// # Panics
    /// If the lengths disagree (as all functions here), or x is bf16 and y is not.
    pub fn forward<X: Float, T: Float>(
        &self,
        device: &Device,
        x: &Buffer<X>,
        y: &mut Buffer<T>,
    ) -> Result<(), CudaError> {
        self.run(device, x, None, y)
    }

    /// Writes `x + residual` to sum, and its norm to y.
    pub fn forward_of_sum<X: Float, T: Float>(
        &self,
        device: &Device,
        x: &Buffer<X>,
        residual: &Buffer<T>,
        sum: &mut Buffer<X>,
        y: &mut Buffer<T>,
    ) -> Result<(), CudaError> {
        assert!(residual.len() == x.len() && sum.len() == x.len());
        self.run(device, x, Some((residual, sum)), y)
    }

    fn run<X: Float, T: Float>(
        &self,
        device: &Device,
        x: &Buffer<X>,
        residual: Option<(&Buffer<T>, &mut Buffer<X>)>,
        y: &mut Buffer<T>,
    ) -> Result<(), CudaError> {
        assert_eq!(y.len(), x.len());
        let (residual, sum) =
            residual.map_or((Arg::Pointer(0), Arg::Pointer(0)), |(r, s)| (r.arg(), s.arg()));
        let (rows, cols) = self.shape(x.len());
        let args = [
            x.arg(),
            residual,
            self.weight.arg(),
            Arg::F32(self.offset),
            Arg::F32(self.eps),
            sum,
            y.arg(),
            arg(rows),
            arg(cols),
        ];
        // SAFETY: the lengths were checked.
        unsafe { self.launch::<X, T>(device, "rms_norm", rows, &args) }
    }

    /// Writes the gradient of x to dx, plus `residual` if there is one, and every row's `1 / sqrt(mean(x^2) + eps)` to factors.
    pub fn backward<X: Float, T: Float>(
        &self,
        device: &Device,
        x: &Buffer<X>,
        dy: &Buffer<T>,
        residual: Option<&Buffer<X>>,
        dx: &mut Buffer<X>,
        factors: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let (rows, cols) = self.shape(x.len());
        assert!(dy.len() == x.len() && dx.len() == x.len() && factors.len() == rows);
        assert!(residual.is_none_or(|residual| residual.len() == x.len()));
        let args = [
            x.arg(),
            self.weight.arg(),
            Arg::F32(self.offset),
            Arg::F32(self.eps),
            dy.arg(),
            optional(residual),
            dx.arg(),
            factors.arg(),
            arg(rows),
            arg(cols),
        ];
        // SAFETY: the lengths were checked.
        unsafe { self.launch::<X, T>(device, "rms_norm_backward", rows, &args) }
    }

    /// # Safety
    /// As [`Device::launch`].
    unsafe fn launch<X: Float, T: Float>(
        &self,
        device: &Device,
        name: &str,
        rows: usize,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        let (group, n_blocks) =
            if self.weight.len() <= WARP_COLS { ("warp", rows.div_ceil(8)) } else { ("block", rows) };
        let kernel = format!("{name}_{group}_{}", pair_name::<X, T>());
        let launch =
            Launch { kernel: &kernel, grid: (blocks(n_blocks), 1), threads: THREADS, shared: 0, args };
        // SAFETY: the caller's.
        unsafe { device.launch(&launch) }
    }

    fn shape(&self, len: usize) -> (usize, usize) {
        let cols = self.weight.len();
        assert!(cols > 0 && len.is_multiple_of(cols), "{len} values for a norm of {cols}");
        (len / cols, cols)
    }
}

/// Adds the gradient of a norm's weight, sums of `dy * (x * factor)` over rows, to `gradient`.
pub fn weight_gradient<X: Float, T: Float>(
    device: &Device,
    x: &Buffer<X>,
    factors: &Buffer<f32>,
    dy: &Buffer<T>,
    gradient: &mut Buffer<f32>,
) -> Result<(), CudaError> {
    assert!(x.len() == dy.len() && factors.len() * gradient.len() == x.len());
    let kernel = format!("column_sums_{}", pair_name::<X, T>());
    columns(device, &kernel, (x.arg(), factors.arg()), dy, gradient)
}

/// Adds the gradient of a bias, sums of dy over rows, to `gradient`.
pub fn bias_gradient<T: Float>(
    device: &Device,
    dy: &Buffer<T>,
    gradient: &mut Buffer<f32>,
) -> Result<(), CudaError> {
    assert!(!gradient.is_empty() && dy.len().is_multiple_of(gradient.len()));
    let none = (Arg::Pointer(0), Arg::Pointer(0));
    columns(device, &format!("column_sums_{}", T::NAME), none, dy, gradient)
}

/// Adds the sums of `dy * (x / norms)` over rows to `gradient`, norms by column: the gradient of magnitudes (DoRA).
pub fn magnitude_gradient<T: Float>(
    device: &Device,
    x: &Buffer<T>,
    norms: &Buffer<f32>,
    dy: &Buffer<T>,
    gradient: &mut Buffer<f32>,
) -> Result<(), CudaError> {
    assert!(x.len() == dy.len() && norms.len() == gradient.len());
    assert!(!gradient.is_empty() && dy.len().is_multiple_of(gradient.len()));
    columns(device, &format!("column_dots_{}", T::NAME), (x.arg(), norms.arg()), dy, gradient)
}

/// Writes x with column i times `factors[i]` to y.
pub fn scale_columns<T: Float>(
    device: &Device,
    x: &Buffer<T>,
    factors: &Buffer<f32>,
    y: &mut Buffer<T>,
) -> Result<(), CudaError> {
    assert!(y.len() == x.len());
    // SAFETY: both have the length.
    unsafe { columns_scaled::<T>(device, (x.arg(), y.arg()), x.len(), factors) }
}

/// [`scale_columns`] in place.
pub fn scale_own_columns<T: Float>(
    device: &Device,
    x: &mut Buffer<T>,
    factors: &Buffer<f32>,
) -> Result<(), CudaError> {
    // SAFETY: a thread writes what it alone read.
    unsafe { columns_scaled::<T>(device, (x.arg(), x.arg()), x.len(), factors) }
}

/// # Safety
/// Both arguments have that many values of T.
unsafe fn columns_scaled<T: Float>(
    device: &Device,
    (x, y): (Arg, Arg),
    len: usize,
    factors: &Buffer<f32>,
) -> Result<(), CudaError> {
    let cols = factors.len();
    assert!(cols > 0 && len.is_multiple_of(cols));
    let rows = len / cols;
    let args = [x, factors.arg(), y, arg(rows), arg(cols)];
    // SAFETY: the caller's; the lengths were checked.
    unsafe { over_rows(device, &format!("scale_columns_{}", T::NAME), rows, &args) }
}

/// What the norms of the rows of `W + s B A` are made of: `model::dora`.
pub struct RowNorms<'a> {
    /// Squared norms of the rows of W.
    pub squares: &'a Buffer<f64>,
    /// `A W^T`, `[rank, rows]`
    pub through_base: &'a Buffer<f32>,
    /// `A A^T`
    pub gram: &'a Buffer<f32>,
    /// `[rows, rank]`
    pub b: &'a Buffer<f32>,
    pub scale: f32,
}

impl RowNorms<'_> {
    /// Writes every row's norm, and its magnitude divided by that.
    pub fn gains(
        &self,
        device: &Device,
        magnitude: &Buffer<f32>,
        norms: &mut Buffer<f32>,
        gains: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let rows = self.squares.len();
        assert!(magnitude.len() == rows && norms.len() == rows && gains.len() == rows && rows > 0);
        let rank = self.b.len() / rows;
        assert!(self.b.len() == rows * rank && self.through_base.len() == rows * rank);
        assert!(self.gram.len() == rank * rank);
        let args = [
            self.squares.arg(),
            self.through_base.arg(),
            self.gram.arg(),
            self.b.arg(),
            magnitude.arg(),
            Arg::F32(self.scale),
            norms.arg(),
            gains.arg(),
            arg(rank),
            arg(rows),
        ];
        let grid = (blocks(rows.div_ceil(THREADS as usize)), 1);
        // SAFETY: the lengths were checked.
        unsafe {
            device.launch(&Launch { kernel: "row_gains", grid, threads: THREADS, shared: 0, args: &args })
        }
    }
}

/// Adds sums over rows to `gradient`, in two steps. `with` are what the kernel takes besides dy.
fn columns<T: Float>(
    device: &Device,
    kernel: &str,
    with: (Arg, Arg),
    dy: &Buffer<T>,
    gradient: &mut Buffer<f32>,
) -> Result<(), CudaError> {
    let cols = gradient.len();
    let rows = dy.len() / cols;
    let n_parts = rows.div_ceil(ROWS_PER_PART);
    let partial = Buffer::<f32>::uninit(device, n_parts * cols)?;
    let columns = blocks(cols.div_ceil(THREADS as usize));
    let args = [with.0, with.1, dy.arg(), partial.arg(), arg(rows), arg(cols), arg(ROWS_PER_PART)];
    let grid = (columns, blocks(n_parts));
    // SAFETY: the lengths were checked by the callers; partial has a row per part.
    unsafe { device.launch(&Launch { kernel, grid, threads: THREADS, shared: 0, args: &args })? };
    let args = [partial.arg(), gradient.arg(), arg(n_parts), arg(cols)];
    let grid = (columns, 1);
    // SAFETY: as above.
    unsafe { device.launch(&Launch { kernel: "add_parts", grid, threads: THREADS, shared: 0, args: &args }) }
}
