//! NVIDIA GPUs: a layer of our own over the driver and cuBLAS, opened at run time (docs/cuda.md).
//!
//! A [`Device`] is a GPU (feature `cuda`), or the stand-in that runs the same kernels on the host (feature `cuda-host`, for tests).
//! Without both there is none: [`Device`] has no value, and [`probe`] says that this build has no CUDA.

#[cfg(feature = "cuda")]
mod blas;
#[cfg(gpu)]
pub mod buffer;
#[cfg(gpu)]
pub mod device;
#[cfg(feature = "cuda")]
mod driver;
pub mod error;
#[cfg(feature = "cuda-host")]
pub mod host;
#[cfg(gpu)]
pub mod launch;
#[cfg(feature = "cuda")]
mod libraries;
#[cfg(feature = "cuda")]
mod module;
#[cfg(feature = "cuda")]
pub mod nccl;
#[cfg(gpu)]
pub mod op;
#[cfg(feature = "cuda")]
mod pinned;
pub mod probe;
#[cfg(gpu)]
pub mod product;
#[cfg(gpu)]
mod staging;
#[cfg(feature = "cuda-host")]
pub mod under_test;

#[cfg(gpu)]
pub use device::Device;
pub use error::CudaError;

/// What computes in place of the CPU: nothing, in this build.
#[cfg(not(gpu))]
#[derive(Clone, Copy, Debug)]
pub enum Device {}

#[cfg(not(gpu))]
impl Device {
    /// Errors: this build has no CUDA.
    pub fn open(_index: usize) -> Result<Device, CudaError> {
        Err(CudaError::NotBuilt)
    }

    /// Returns what it is.
    pub fn facts(&self) -> &probe::DeviceFacts {
        match *self {}
    }
}
