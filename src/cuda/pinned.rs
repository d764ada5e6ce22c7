//! Pinned memory of the host, and copies between it and a GPU.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ops::Range;

use cudarc::driver::{CudaEvent, result};

use super::CudaError;
use super::driver::Driver;
use super::staging::Transfers;

/// Memory that a GPU reads and writes by itself, given back once its copies are done.
pub(super) struct Pinned {
    start: *mut c_void,
    len: usize,
    /// Behind the last copy.
    done: CudaEvent,
}

// SAFETY: memory that this alone points to; the driver takes calls from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Returns the bytes of a range.
    ///
    /// # Safety
    /// Nothing else has them, and no copy that is under way.
    unsafe fn bytes(&mut self, range: Range<usize>) -> &mut [MaybeUninit<u8>] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: within the memory, which bytes need no alignment for; the rest is the caller's.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.cast::<MaybeUninit<u8>>().add(range.start), range.len())
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // a device that is lost copies no more; what the driver says of either changes nothing
        let _ = self.done.synchronize();
        // SAFETY: from `malloc_host`, in a context that the event keeps and that waiting made the current one.
        let _ = unsafe { result::free_host(self.start) };
    }
}

impl Transfers for Driver {
    type Half = Pinned;

    fn half(&self, bytes: usize) -> Result<Pinned, CudaError> {
        let failed = |error| self.error(&format!("pinning {bytes} bytes of the host's memory"), error);
        let done = self.stream().context().new_event(None).map_err(failed)?;
        // SAFETY: bytes are written before they are read.
        let start = unsafe { result::malloc_host(bytes, 0) }.map_err(failed)?;
        Ok(Pinned { start, len: bytes, done })
    }

    fn start(half: &mut Pinned) -> *mut MaybeUninit<u8> {
        half.start.cast()
    }

    unsafe fn send(&self, half: &mut Pinned, range: Range<usize>, to: u64) -> Result<(), CudaError> {
        let failed = |error| self.error("a copy to it", error);
        // SAFETY: the caller's; the bytes stay as they are until the event is waited for.
        unsafe { result::memcpy_htod_async(to, half.bytes(range), self.stream().cu_stream()) }
            .map_err(failed)?;
        half.done.record(self.stream()).map_err(failed)
    }

    unsafe fn receive(&self, half: &mut Pinned, range: Range<usize>, from: u64) -> Result<(), CudaError> {
        let failed = |error| self.error("a copy from it", error);
        // SAFETY: as above; nobody reads them before.
        unsafe { result::memcpy_dtoh_async(half.bytes(range), from, self.stream().cu_stream()) }
            .map_err(failed)?;
        half.done.record(self.stream()).map_err(failed)
    }

    fn wait(&self, half: &mut Pinned) -> Result<(), CudaError> {
        half.done.synchronize().map_err(|error| self.error("computing", error))
    }
}
