//! NVIDIA GPUs: a layer of our own over the driver and cuBLAS, opened at run time (docs/cuda.md).
//!
//! Without the feature `cuda` there is [`probe`] alone, which says that this build has none.

#[cfg(feature = "cuda")]
pub mod blas;
#[cfg(feature = "cuda")]
pub mod buffer;
#[cfg(feature = "cuda")]
pub mod device;
pub mod error;
#[cfg(feature = "cuda")]
pub mod module;
#[cfg(feature = "cuda")]
pub mod op;
pub mod probe;

pub use error::CudaError;
