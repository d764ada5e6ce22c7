//! A GPU, or what stands in for one, ready to work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::CudaError;
use super::buffer::Float;
#[cfg(feature = "cuda")]
use super::driver::{self, Driver};
#[cfg(feature = "cuda-host")]
use super::host::{self, Host};
use super::launch::Launch;
#[cfg(feature = "cuda")]
use super::nccl::{self, Communicator};
use super::probe::DeviceFacts;
use super::product::{Gemm, Operand, Part, PartMut, Product, Sizes};

/// What memory is on and work is done by, in the order in which it is asked for.
pub struct Device {
    index: usize,
    facts: DeviceFacts,
    backend: Backend,
    meter: Arc<Meter>,
}

enum Backend {
    #[cfg(feature = "cuda")]
    Driver(Box<Driver>),
    #[cfg(feature = "cuda-host")]
    Host(Host),
}

/// Memory, freed when this is dropped: after what was asked for before.
pub(super) struct Memory {
    block: Block,
    bytes: u64,
    meter: Arc<Meter>,
}

enum Block {
    #[cfg(feature = "cuda")]
    Driver(driver::Block),
    #[cfg(feature = "cuda-host")]
    Host(host::Block),
}

/// Bytes of all buffers, now and at most.
#[derive(Default)]
struct Meter {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Memory {
    pub fn address(&self) -> u64 {
        match &self.block {
            #[cfg(feature = "cuda")]
            Block::Driver(block) => block.address(),
            #[cfg(feature = "cuda-host")]
            Block::Host(block) => block.address(),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.meter.now.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Calls the same method of whichever backend there is.
macro_rules! on {
    ($device:expr, $backend:ident => $call:expr) => {
        match &$device.backend {
            #[cfg(feature = "cuda")]
            Backend::Driver($backend) => $call,
            #[cfg(feature = "cuda-host")]
            Backend::Host($backend) => $call,
        }
    };
}

impl Device {
    /// Opens GPU `index` and loads the kernels.
    ///
    /// Errors if there is no driver, it is too old, there is no such device, or it is one that the kernels do not run on; and if
    /// this build has the stand-in alone.
    pub fn open(index: usize) -> Result<Device, CudaError> {
        #[cfg(feature = "cuda")]
        {
            let (driver, facts) = Driver::open(index)?;
            let backend = Backend::Driver(Box::new(driver));
            Ok(Device { index, facts, backend, meter: Arc::default() })
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _ = index;
            Err(CudaError::NotBuilt)
        }
    }

    /// Returns the stand-in: the kernels run on the host, one after another.
    #[cfg(feature = "cuda-host")]
    pub fn host(options: host::Options) -> Device {
        let backend = Backend::Host(Host::new(options));
        Device { index: 0, facts: host::facts(), backend, meter: Arc::default() }
    }

    pub fn index(&self) -> usize {
        self.index
    }

    pub fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// Returns the bytes of memory that are free, and all.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        on!(self, backend => backend.memory())
    }

    /// Returns the most bytes that all buffers had at a time.
    pub fn peak_bytes(&self) -> u64 {
        self.meter.peak.load(Ordering::Relaxed)
    }

    /// Forgets the peak: it counts from what there is now.
    pub fn reset_peak(&self) {
        self.meter.peak.store(self.meter.now.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Returns what tells the device from every other one, of other machines, too.
    pub fn identity(&self) -> Result<[u8; 16], CudaError> {
        on!(self, backend => backend.identity())
    }

    /// Returns whether it is the host that stands in for a GPU.
    pub fn is_stand_in(&self) -> bool {
        match &self.backend {
            #[cfg(feature = "cuda")]
            Backend::Driver(_) => false,
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => true,
        }
    }

    /// Returns what `rank` of `size` needs to connect with the GPUs of the other processes. Waits for nobody.
    ///
    /// Errors with the reason.
    #[cfg(feature = "cuda")]
    pub fn prepare_connection(&self, place: (usize, usize)) -> Result<nccl::Prepared, String> {
        match &self.backend {
            Backend::Driver(driver) => Communicator::prepare(driver, place),
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => Err("the stand-in has no NCCL".to_owned()),
        }
    }

    /// Returns how many multiprocessors there are.
    pub fn n_multiprocessors(&self) -> Result<u32, CudaError> {
        on!(self, backend => backend.n_multiprocessors())
    }

    /// Puts a kernel behind what was asked for before.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in type and order, and their memory is as large as the kernel takes it to be.
    pub unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        on!(self, backend => unsafe { backend.launch(launch) })
    }

    /// Computes `out = factor * product + keep * out`, sums in f32. The operands are (w, x), (w, dy) or (x, dy) by the kind of product;
    /// an f32 product never goes through TF32. With a `keep` of 0 what was in `out` does not count.
    ///
    /// # Panics
    /// If the parts are shorter than the sizes say, or a size is beyond 2^31.
    pub fn product<'a, T: Float, O: Float>(
        &self,
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
        let operand = |address: u64, is_bf16: bool| Operand { address, is_bf16 };
        let gemm = Gemm {
            product,
            sizes,
            a: operand(a.buffer.address_of(a.first), T::NAME == "bf16"),
            b: operand(b.buffer.address_of(b.first), T::NAME == "bf16"),
            out: operand(out.buffer.address_of(out.first), O::NAME == "bf16"),
            factor,
            keep,
        };
        // SAFETY: the lengths were checked.
        on!(self, backend => unsafe { backend.product(&gemm) })
    }

    /// Waits until everything so far is done; an error of any of it comes up here.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        on!(self, backend => backend.synchronize())
    }

    /// Returns memory of that many bytes, more than none.
    pub(super) fn alloc(&self, bytes: usize) -> Result<Memory, CudaError> {
        let block = match &self.backend {
            #[cfg(feature = "cuda")]
            Backend::Driver(driver) => Block::Driver(driver.alloc(bytes)?),
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => Block::Host(host.alloc(bytes)?),
        };
        let (bytes, meter) = (bytes as u64, self.meter.clone());
        let now = meter.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        meter.peak.fetch_max(now, Ordering::Relaxed);
        Ok(Memory { block, bytes, meter })
    }

    /// Writes behind what was asked for before, without waiting for it.
    ///
    /// # Safety
    /// There is as much memory at `to`, and it is the device's.
    pub(super) unsafe fn write(&self, to: u64, bytes: &[u8]) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        on!(self, backend => unsafe { backend.write(to, bytes) })
    }

    /// Reads once everything before is done.
    ///
    /// # Safety
    /// As [`Device::write`], of `from`.
    pub(super) unsafe fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        on!(self, backend => unsafe { backend.read(from, bytes) })
    }

    /// # Safety
    /// As [`Device::write`], of both.
    pub(super) unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        on!(self, backend => unsafe { backend.copy(to, from, bytes) })
    }

    /// # Safety
    /// As [`Device::write`].
    pub(super) unsafe fn fill_zero(&self, to: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        on!(self, backend => unsafe { backend.fill_zero(to, bytes) })
    }
}
