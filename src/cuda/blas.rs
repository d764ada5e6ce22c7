//! Dense products by cuBLAS, with f32 sums.

use std::ffi::{c_int, c_void};

use cudarc::cublas::result::{self, CublasError};
use cudarc::cublas::sys::{self, cublasOperation_t as Op, cudaDataType_t as Type};
use half::bf16;

use super::CudaError;
use super::buffer::{Buffer, Float};
use super::device::Device;

/// Memory that cuBLAS works in; its own would depend on what else ran.
const WORKSPACE_BYTES: usize = 32 << 20;

/// A handle of cuBLAS on a device's stream.
pub struct Blas {
    handle: sys::cublasHandle_t,
    /// Used by the handle as long as it lives.
    _workspace: Buffer<u8>,
}

// SAFETY: used from one thread at a time by the device's stream order; the handle itself belongs to no thread.
unsafe impl Send for Blas {}
// SAFETY: as above: cuBLAS locks a handle within a call.
unsafe impl Sync for Blas {}

/// A product of row-major matrices. x, y, dy are [m, n] and so on as each says; w is always `[n, k]`, as checkpoints have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// `y[m, n] = x[m, k] w^T`
    Forward,
    /// `dx[m, k] = dy[m, n] w`
    InputGradient,
    /// `dw[n, k] = dy[m, n]^T x[m, k]`
    WeightGradient,
}

/// The sizes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// A product as cuBLAS takes it: column-major C = op(A) op(B), C of rows x cols, `inner` summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gemm {
    rows: usize,
    cols: usize,
    inner: usize,
    transpose_a: bool,
    transpose_b: bool,
    lda: usize,
    ldb: usize,
    ldc: usize,
}

impl Product {
    /// A row-major matrix is its transpose, column-major. The operands' order is (w, x), (w, dy), (x, dy).
    fn gemm(self, Sizes { m, n, k }: Sizes) -> Gemm {
        match self {
            Product::Forward => Gemm {
                rows: n,
                cols: m,
                inner: k,
                transpose_a: true,
                transpose_b: false,
                lda: k,
                ldb: k,
                ldc: n,
            },
            Product::InputGradient => Gemm {
                rows: k,
                cols: m,
                inner: n,
                transpose_a: false,
                transpose_b: false,
                lda: k,
                ldb: n,
                ldc: k,
            },
            Product::WeightGradient => Gemm {
                rows: k,
                cols: n,
                inner: m,
                transpose_a: false,
                transpose_b: true,
                lda: k,
                ldb: n,
                ldc: k,
            },
        }
    }

    /// Returns the lengths of the operands in cuBLAS's order, and of the result.
    fn lengths(self, Sizes { m, n, k }: Sizes) -> [usize; 3] {
        match self {
            Product::Forward => [n * k, m * k, m * n],
            Product::InputGradient => [n * k, m * n, m * k],
            Product::WeightGradient => [m * k, m * n, n * k],
        }
    }
}

/// Which part of a buffer a matrix is.
#[derive(Clone, Copy)]
pub struct Part<'a, T> {
    pub buffer: &'a Buffer<T>,
    pub first: usize,
}

impl<'a, T> From<&'a Buffer<T>> for Part<'a, T> {
    fn from(buffer: &'a Buffer<T>) -> Self {
        Part { buffer, first: 0 }
    }
}

/// Where a result goes.
pub struct PartMut<'a, T> {
    pub buffer: &'a mut Buffer<T>,
    pub first: usize,
}

impl<'a, T> From<&'a mut Buffer<T>> for PartMut<'a, T> {
    fn from(buffer: &'a mut Buffer<T>) -> Self {
        PartMut { buffer, first: 0 }
    }
}

impl Blas {
    pub(super) fn open(device: &Device) -> Result<Blas, CudaError> {
        // SAFETY: opens a library.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoLibrary { library: "libcublas.so.13" });
        }
        let refused = |error| refused(device, "opening cuBLAS", error);
        let workspace = Buffer::<u8>::uninit(device, WORKSPACE_BYTES)?;
        let handle = result::create_handle().map_err(refused)?;
        let address = workspace.address_of(0) as *mut c_void;
        let blas = Blas { handle, _workspace: workspace };
        // SAFETY: the handle is new; stream and workspace outlive it.
        unsafe {
            result::set_stream(handle, device.stream().cu_stream().cast()).map_err(refused)?;
            sys::cublasSetWorkspace_v2(handle, address, WORKSPACE_BYTES).result().map_err(refused)?;
        }
        Ok(blas)
    }

    /// Computes `out = factor * product + keep * out`, sums in f32. The operands are (w, x), (w, dy) or (x, dy) by the kind of product;
    /// an f32 product never goes through TF32.
    ///
    /// # Panics
    /// If the parts are shorter than the sizes say, or a size is beyond 2^31.
    pub fn product<'a, T: Float, O: Float>(
        &self,
        device: &Device,
        product: Product,
        sizes: Sizes,
        (a, b): (impl Into<Part<'a, T>>, impl Into<Part<'a, T>>),
        (factor, keep): (f32, f32),
        out: impl Into<PartMut<'a, O>>,
    ) -> Result<(), CudaError> {
        let (a, b, out) = (a.into(), b.into(), out.into());
        let lengths = product.lengths(sizes);
        assert!(a.first + lengths[0] <= a.buffer.len() && b.first + lengths[1] <= b.buffer.len());
        assert!(out.first + lengths[2] <= out.buffer.len());
        if lengths[2] == 0 {
            return Ok(());
        }
        let gemm = product.gemm(sizes);
        let op = |transpose: bool| if transpose { Op::CUBLAS_OP_T } else { Op::CUBLAS_OP_N };
        let compute = match type_of::<T>() {
            Type::CUDA_R_32F => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_PEDANTIC,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        device.bind()?;
        // SAFETY: the lengths were checked; factors are read before the call returns.
        unsafe {
            result::gemm_ex(
                self.handle,
                op(gemm.transpose_a),
                op(gemm.transpose_b),
                int(gemm.rows),
                int(gemm.cols),
                int(gemm.inner),
                (&raw const factor).cast(),
                a.buffer.address_of(a.first) as *const c_void,
                type_of::<T>(),
                int(gemm.lda),
                b.buffer.address_of(b.first) as *const c_void,
                type_of::<T>(),
                int(gemm.ldb),
                (&raw const keep).cast(),
                out.buffer.address_of(out.first) as *mut c_void,
                type_of::<O>(),
                int(gemm.ldc),
                compute,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| refused(device, &format!("a product of {sizes:?}"), error))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: no longer used. What cuBLAS says of it changes nothing.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn type_of<T: Float>() -> Type {
    if T::NAME == <bf16 as super::buffer::Element>::NAME { Type::CUDA_R_16BF } else { Type::CUDA_R_32F }
}

fn int(size: usize) -> c_int {
    c_int::try_from(size).unwrap_or_else(|_| panic!("a matrix of {size}"))
}

fn refused(device: &Device, doing: &str, error: CublasError) -> CudaError {
    let reason = format!("{error}");
    let (index, doing) = (device.index(), doing.to_owned());
    match error.0 {
        sys::cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED => CudaError::Lost { index, doing, reason },
        _ => CudaError::Refused { index, doing, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::noise;

    /// What cuBLAS does, by its manual.
    fn column_major(gemm: Gemm, a: &[f32], b: &[f32]) -> Vec<f32> {
        let mut c = vec![0.0; gemm.ldc * gemm.cols];
        for col in 0..gemm.cols {
            for row in 0..gemm.rows {
                c[col * gemm.ldc + row] = (0..gemm.inner)
                    .map(|i| {
                        let a = if gemm.transpose_a { a[row * gemm.lda + i] } else { a[i * gemm.lda + row] };
                        let b = if gemm.transpose_b { b[i * gemm.ldb + col] } else { b[col * gemm.ldb + i] };
                        a * b
                    })
                    .sum();
            }
        }
        c
    }

    #[test]
    fn products_are_asked_for_in_column_major_form() {
        let sizes = Sizes { m: 3, n: 5, k: 4 };
        let Sizes { m, n, k } = sizes;
        let (x, w, dy) = (noise(m * k, 1), noise(n * k, 2), noise(m * n, 3));
        let dot = |len: usize, term: &dyn Fn(usize) -> f32| (0..len).map(term).sum::<f32>();
        let check = |product: Product, a: &[f32], b: &[f32], want: Vec<f32>| {
            assert_eq!(product.lengths(sizes), [a.len(), b.len(), want.len()]);
            assert_eq!(column_major(product.gemm(sizes), a, b), want, "{product:?}");
        };
        let forward = (0..m * n).map(|at| dot(k, &|i| w[at % n * k + i] * x[at / n * k + i]));
        check(Product::Forward, &w, &x, forward.collect());
        let input = (0..m * k).map(|at| dot(n, &|i| w[i * k + at % k] * dy[at / k * n + i]));
        check(Product::InputGradient, &w, &dy, input.collect());
        let weight = (0..n * k).map(|at| dot(m, &|i| x[i * k + at % k] * dy[i * n + at / k]));
        check(Product::WeightGradient, &x, &dy, weight.collect());
    }
}
