//! NCCL, opened at run time: what lays the values of all processes beside one another in the memory of each one's GPU.
//!
//! Bindings of our own: cudarc looks for the names that development packages have, and `libnccl.so.2` is not among them.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use libloading::Library;

use super::CudaError;
use super::buffer::Buffer;
use super::driver::{Driver, described};
use super::libraries;

/// By what the dynamic linker knows it.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// `ncclResult_t`: done, and not done yet.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

/// `ncclDataType_t`
const FLOAT32: c_int = 7;

/// Bytes of `ncclUniqueId`.
pub const ID_BYTES: usize = 128;

#[derive(Clone, Copy)]
#[repr(C)]
struct UniqueId([u8; ID_BYTES]);

/// `ncclComm_t`
type Handle = *mut c_void;

/// The functions that are called, as `nccl.h` has had them since 2.4.
struct Nccl {
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init_rank: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> c_int,
    comm_get_async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    comm_abort: unsafe extern "C" fn(Handle) -> c_int,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Never closed: it has threads of its own.
    _library: Library,
}

impl Nccl {
    /// Returns the library, opened once; `None` if it is not there, or lacks a function.
    fn get() -> Option<&'static Nccl> {
        static NCCL: OnceLock<Option<Nccl>> = OnceLock::new();
        NCCL.get_or_init(|| libraries::open(&NAMES).and_then(Nccl::of)).as_ref()
    }

    fn of(library: Library) -> Option<Nccl> {
        // SAFETY: the types are those of nccl.h, and the library stays open as long as the functions are there.
        unsafe {
            Some(Nccl {
                get_version: *library.get(b"ncclGetVersion\0").ok()?,
                get_unique_id: *library.get(b"ncclGetUniqueId\0").ok()?,
                comm_init_rank: *library.get(b"ncclCommInitRank\0").ok()?,
                comm_get_async_error: *library.get(b"ncclCommGetAsyncError\0").ok()?,
                comm_abort: *library.get(b"ncclCommAbort\0").ok()?,
                all_gather: *library.get(b"ncclAllGather\0").ok()?,
                get_error_string: *library.get(b"ncclGetErrorString\0").ok()?,
                _library: library,
            })
        }
    }

    /// Errors with NCCL's own words unless a call succeeded.
    fn check(&self, result: c_int) -> Result<(), String> {
        if result == SUCCESS {
            return Ok(());
        }
        // SAFETY: a constant string for any number, or null.
        let words = unsafe {
            let words = (self.get_error_string)(result);
            if words.is_null() { None } else { Some(CStr::from_ptr(words).to_string_lossy().into_owned()) }
        };
        Err(words.unwrap_or_else(|| format!("error {result}")))
    }
}

/// Returns the library's version: 22703 is 2.27.3. `None` if there is no library.
pub fn version() -> Option<u32> {
    let nccl = Nccl::get()?;
    let mut version = 0;
    // SAFETY: the argument is writable.
    nccl.check(unsafe { (nccl.get_version)(&raw mut version) }).ok()?;
    u32::try_from(version).ok()
}

/// Returns what the processes of one communicator share: rank 0's.
///
/// Errors with the reason.
pub fn unique_id() -> Result<[u8; ID_BYTES], String> {
    let nccl = Nccl::get().ok_or("there is no libnccl.so.2")?;
    let mut id = UniqueId([0; ID_BYTES]);
    // SAFETY: the argument is writable.
    nccl.check(unsafe { (nccl.get_unique_id)(&raw mut id) })?;
    Ok(id.0)
}

/// A way to the GPUs of the other processes.
pub struct Communicator {
    nccl: &'static Nccl,
    handle: Handle,
    index: usize,
    size: usize,
    stream: Arc<CudaStream>,
    /// Behind the last of what was asked for.
    done: CudaEvent,
}

// SAFETY: NCCL takes calls from any thread, one at a time: the communicator is not shared.
unsafe impl Send for Communicator {}

/// What a rank needs for a communicator, made before any of them waits for another.
pub struct Prepared {
    nccl: &'static Nccl,
    index: usize,
    /// Its rank, and how many there are.
    place: (c_int, c_int),
    size: usize,
    stream: Arc<CudaStream>,
    done: CudaEvent,
    /// A value of each rank: what is gathered first.
    own: CudaSlice<f32>,
    all: CudaSlice<f32>,
}

impl Prepared {
    /// Connects with the other processes, which do the same meanwhile with the same id; what is sent is the communicator, or the
    /// reason.
    ///
    /// The call waits for the others without an end: should one never come, its thread is left behind, and what it comes to is
    /// aborted.
    pub fn connect(self, id: [u8; ID_BYTES]) -> Receiver<Result<Communicator, String>> {
        let (sender, receiver) = channel();
        // nobody may wait for it any more: a communicator is aborted where it is dropped
        std::thread::spawn(move || sender.send(self.connected(id)));
        receiver
    }

    fn connected(self, id: [u8; ID_BYTES]) -> Result<Communicator, String> {
        let Prepared { nccl, index, place: (rank, n_ranks), size, stream, done, own, mut all } = self;
        stream.context().bind_to_thread().map_err(|error| format!("{error:?}"))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the argument is writable, the context the thread's.
        nccl.check(unsafe { (nccl.comm_init_rank)(&raw mut handle, n_ranks, UniqueId(id), rank) })?;
        let communicator = Communicator { nccl, handle, index, size, stream, done };
        // ways between GPUs may be laid at the first use only: here, where another way can still be taken
        communicator.greet(&own, &mut all)?;
        Ok(communicator)
    }
}

impl Communicator {
    /// Returns what `rank` of `size` needs to connect. Waits for nobody.
    ///
    /// Errors with the reason.
    pub(super) fn prepare(driver: &Driver, (rank, size): (usize, usize)) -> Result<Prepared, String> {
        let nccl = Nccl::get().ok_or("there is no libnccl.so.2")?;
        let int = |n: usize| c_int::try_from(n).map_err(|_| format!("{n} processes are too many"));
        let place = (int(rank)?, int(size)?);
        let failed = |error| format!("{error:?}");
        let stream = driver.stream().clone();
        stream.context().bind_to_thread().map_err(failed)?;
        let done = stream.context().new_event(None).map_err(failed)?;
        let own = stream.alloc_zeros::<f32>(1).map_err(failed)?;
        let all = stream.alloc_zeros::<f32>(size).map_err(failed)?;
        Ok(Prepared { nccl, index: driver.index(), place, size, stream, done, own, all })
    }

    /// Gathers a value of every process, and waits for it.
    fn greet(&self, own: &CudaSlice<f32>, all: &mut CudaSlice<f32>) -> Result<(), String> {
        let Communicator { nccl, handle, stream, .. } = self;
        let from = own.device_ptr(stream).0 as *const c_void;
        let to = all.device_ptr_mut(stream).0 as *mut c_void;
        let on = stream.cu_stream().cast();
        // SAFETY: there is a value for each; the handle is connected, and the stream that of the device.
        nccl.check(unsafe { (nccl.all_gather)(from, to, 1, FLOAT32, *handle, on) })?;
        stream.synchronize().map_err(|error| format!("{error:?}"))
    }

    /// Writes every rank's `own` to `all`, one behind another; every rank gives as many. Nothing waits.
    ///
    /// # Panics
    /// If `all` has not as many times the values as there are processes.
    pub fn gather(&self, own: &Buffer<f32>, all: &mut Buffer<f32>) -> Result<(), CudaError> {
        assert_eq!(all.len(), own.len() * self.size);
        let (from, to) = (own.address_of(0) as *const c_void, all.address_of(0) as *mut c_void);
        let stream = self.stream.cu_stream().cast();
        // SAFETY: the lengths were checked; the handle is connected, and the stream that of the device.
        let result = unsafe { (self.nccl.all_gather)(from, to, own.len(), FLOAT32, self.handle, stream) };
        self.nccl.check(result).map_err(|reason| self.refused(reason))
    }

    /// Waits until everything so far is done, at most so long; errors where a process is gone.
    pub fn wait(&self, limit: Duration) -> Result<(), CudaError> {
        let failed = |error| described(self.index, "summing over processes", error);
        self.done.record(&self.stream).map_err(failed)?;
        let begun = Instant::now();
        while !self.done.try_is_complete().map_err(failed)? {
            let mut state = SUCCESS;
            // SAFETY: the handle is connected, the argument writable.
            let asked = unsafe { (self.nccl.comm_get_async_error)(self.handle, &raw mut state) };
            let state = if asked == SUCCESS { state } else { asked };
            if state != IN_PROGRESS {
                self.nccl.check(state).map_err(|reason| self.refused(reason))?;
            }
            if begun.elapsed() > limit {
                let reason = format!("no sign of the other processes for {} s", limit.as_secs());
                return Err(self.refused(reason));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    fn refused(&self, reason: String) -> CudaError {
        let doing = "a sum over processes by NCCL".to_owned();
        CudaError::Refused { index: self.index, doing, reason }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // not `ncclCommDestroy`, which would wait for processes that may be gone: nothing is under way, or nothing of it counts.
        // SAFETY: connected, and not used again.
        let _ = unsafe { (self.nccl.comm_abort)(self.handle) };
    }
}
