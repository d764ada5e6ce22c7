//! Pinned memory of the host, and copies between it and a GPU.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ops::Range;

use cudarc::driver::{CudaEvent, result};

use super::CudaError;
use super::driver::Driver;
use super::staging::{Transfers, give_back};

/// Memory that a GPU reads and writes by itself, given back once its copies are done.
pub(super) struct Pinned {
    start: *mut c_void,
    len: usize,
    /// Behind the last copy, if `is_behind`.
    done: CudaEvent,
    /// Whether the event could be put behind all copies that were asked for.
    is_behind: bool,
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
        let start = self.start;
        let waited = match self.is_behind {
            true => self.done.synchronize(),
            // copies of which nothing is known
            false => self.done.context().synchronize(),
        };
        // SAFETY: from `malloc_host`, in a context that the event keeps and that waiting made the current one.
        give_back(waited, || unsafe { result::free_host(start) });
    }
}

impl Pinned {
    /// Puts the event behind a copy that was asked for just now.
    fn note(&mut self, driver: &Driver, doing: &str) -> Result<(), CudaError> {
        let noted = self.done.record(driver.stream());
        // an event that is not behind the copy would say too early that it is done
        self.is_behind = self.is_behind && noted.is_ok();
        noted.map_err(|error| driver.error(doing, error))
    }
}

impl Transfers for Driver {
    type Half = Pinned;

    fn half(&self, bytes: usize) -> Result<Pinned, CudaError> {
        let failed = |error| self.error(&format!("pinning {bytes} bytes of the host's memory"), error);
        let done = self.stream().context().new_event(None).map_err(failed)?;
        // SAFETY: bytes are written before they are read.
        let start = unsafe { result::malloc_host(bytes, 0) }.map_err(failed)?;
        Ok(Pinned { start, len: bytes, done, is_behind: true })
    }

    fn start(half: &mut Pinned) -> *mut MaybeUninit<u8> {
        half.start.cast()
    }

    unsafe fn send(&self, half: &mut Pinned, range: Range<usize>, to: u64) -> Result<(), CudaError> {
        let doing = "a copy to it";
        // SAFETY: the caller's; the bytes stay as they are until the event is waited for.
        unsafe { result::memcpy_htod_async(to, half.bytes(range), self.stream().cu_stream()) }
            .map_err(|error| self.error(doing, error))?;
        half.note(self, doing)
    }

    unsafe fn receive(&self, half: &mut Pinned, range: Range<usize>, from: u64) -> Result<(), CudaError> {
        let doing = "a copy from it";
        // SAFETY: as above; nobody reads them before.
        unsafe { result::memcpy_dtoh_async(half.bytes(range), from, self.stream().cu_stream()) }
            .map_err(|error| self.error(doing, error))?;
        half.note(self, doing)
    }

    fn wait(&self, half: &mut Pinned) -> Result<(), CudaError> {
        let waited = match half.is_behind {
            true => half.done.synchronize(),
            false => self.stream().synchronize(),
        };
        half.is_behind |= waited.is_ok();
        waited.map_err(|error| self.error("computing", error))
    }
}
