//! Dense products by cuBLAS.

use std::ffi::{c_int, c_void};

use cudarc::cublas::result::{self, CublasError};
use cudarc::cublas::sys::{self, cublasOperation_t as Op, cudaDataType_t as Type};

use super::CudaError;
use super::driver::{Block, Driver};
use super::libraries;
use super::product::{Operand, Product, Sizes};

/// Memory that cuBLAS works in; its own would depend on what else ran.
const WORKSPACE_BYTES: usize = 32 << 20;

/// A handle of cuBLAS on a device's stream.
pub struct Blas {
    handle: sys::cublasHandle_t,
    /// Used by the handle as long as it lives.
    _workspace: Block,
}

// SAFETY: used from one thread at a time by the device's stream order; the handle itself belongs to no thread.
unsafe impl Send for Blas {}
// SAFETY: as above: cuBLAS locks a handle within a call.
unsafe impl Sync for Blas {}

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
}

/// Returns the library's version, as `13.0.2`; `None` if there is no library.
pub(super) fn version() -> Option<String> {
    use sys::libraryPropertyType_t as Part;
    // SAFETY: opens a library.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let part = |which| {
        let mut value = 0;
        // SAFETY: the argument is writable.
        unsafe { sys::cublasGetProperty(which, &raw mut value) }.result().ok()?;
        Some(value)
    };
    let (major, minor, patch) =
        (part(Part::MAJOR_VERSION)?, part(Part::MINOR_VERSION)?, part(Part::PATCH_LEVEL)?);
    Some(format!("{major}.{minor}.{patch}"))
}

impl Blas {
    pub(super) fn open(driver: &Driver) -> Result<Blas, CudaError> {
        if libraries::cublas().is_none() {
            return Err(CudaError::NoLibrary { library: "libcublas.so.13" });
        }
        let refused = |error| refused(driver.index(), "opening cuBLAS", error);
        let workspace = driver.alloc(WORKSPACE_BYTES)?;
        let handle = result::create_handle().map_err(refused)?;
        let address = workspace.address() as *mut c_void;
        let blas = Blas { handle, _workspace: workspace };
        // SAFETY: the handle is new; stream and workspace outlive it.
        unsafe {
            result::set_stream(handle, driver.stream().cu_stream().cast()).map_err(refused)?;
            sys::cublasSetWorkspace_v2(handle, address, WORKSPACE_BYTES).result().map_err(refused)?;
            // else the parts of a sum that is split over blocks may be added in bf16, where the result is bf16
            let whole = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            sys::cublasSetMathMode(handle, whole).result().map_err(refused)?;
        }
        Ok(blas)
    }

    /// Puts a product on the stream of device `index`.
    ///
    /// # Safety
    /// As [`Driver::product`]; the device's context is the current one.
    ///
    /// # Panics
    /// If a size is beyond 2^31.
    pub(super) unsafe fn product(
        &self,
        index: usize,
        product: &super::product::Gemm,
    ) -> Result<(), CudaError> {
        let &super::product::Gemm { product, sizes, a, b, out, factor, keep } = product;
        let gemm = product.gemm(sizes);
        let op = |transpose: bool| if transpose { Op::CUBLAS_OP_T } else { Op::CUBLAS_OP_N };
        let compute = match a.is_bf16 {
            true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_PEDANTIC,
        };
        // SAFETY: the caller's; factors are read before the call returns.
        unsafe {
            result::gemm_ex(
                self.handle,
                op(gemm.transpose_a),
                op(gemm.transpose_b),
                int(gemm.rows),
                int(gemm.cols),
                int(gemm.inner),
                (&raw const factor).cast(),
                a.address as *const c_void,
                type_of(a),
                int(gemm.lda),
                b.address as *const c_void,
                type_of(b),
                int(gemm.ldb),
                (&raw const keep).cast(),
                out.address as *mut c_void,
                type_of(out),
                int(gemm.ldc),
                compute,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| refused(index, &format!("a product of {sizes:?}"), error))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: no longer used. What cuBLAS says of it changes nothing.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn type_of(operand: Operand) -> Type {
    if operand.is_bf16 { Type::CUDA_R_16BF } else { Type::CUDA_R_32F }
}

fn int(size: usize) -> c_int {
    c_int::try_from(size).unwrap_or_else(|_| panic!("a matrix of {size}"))
}

fn refused(index: usize, doing: &str, error: CublasError) -> CudaError {
    let (reason, doing) = (format!("{error}"), doing.to_owned());
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
