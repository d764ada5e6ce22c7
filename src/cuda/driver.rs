//! A GPU by NVIDIA's driver, opened at run time.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, sys};

use super::CudaError;
use super::blas::{self, Blas};
use super::launch::Launch;
use super::libraries;
use super::module::Kernels;
use super::pinned::Pinned;
use super::probe::{DeviceFacts, Found, driver_version};
use super::product::Gemm;
use super::staging::Staging;

/// The CUDA that the kernels were compiled with, as the driver counts: 13000 is 13.0.
pub fn cuda_version_needed() -> u32 {
    // digits: the build script wrote them
    env!("LCTL_CUDA_VERSION").parse().unwrap_or(13_000)
}

/// A context, one stream that everything runs on in order, the loaded kernels, and cuBLAS from its first use on.
pub(super) struct Driver {
    index: usize,
    /// Goes before the stream, as all that follows: its halves wait for their copies.
    staging: Mutex<Staging<Pinned>>,
    blas: OnceLock<Blas>,
    kernels: Kernels,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

/// Memory that is freed when this is dropped: after what the stream has to do with it.
pub(super) struct Block {
    slice: CudaSlice<u8>,
}

impl Block {
    pub fn address(&self) -> u64 {
        self.slice.device_ptr(self.slice.stream()).0
    }
}

impl Driver {
    /// Opens device `index` and loads the kernels.
    ///
    /// Errors as [`super::Device::open`].
    pub fn open(index: usize) -> Result<(Driver, DeviceFacts), CudaError> {
        let found = probe()?;
        if found.cuda_version < found.cuda_version_needed {
            let (found, needed) = (found.cuda_version, found.cuda_version_needed);
            return Err(CudaError::DriverTooOld { found, needed });
        }
        let count = found.devices.len();
        let facts = found.devices.into_iter().nth(index).ok_or(CudaError::NoSuchDevice { index, count })?;
        if !facts.is_usable() {
            let capability = facts.compute_capability;
            return Err(CudaError::TooOld { index, name: facts.name, capability });
        }
        let failed = |doing: &str| {
            let doing = doing.to_owned();
            move |error| described(index, &doing, error)
        };
        let context = CudaContext::new(index).map_err(failed("opening it"))?;
        // SAFETY: all work and every buffer of the device is on its one stream, whose order needs no events.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        keep_freed_memory(&context).map_err(failed("setting up its memory"))?;
        let kernels = Kernels::load(index)?;
        let (staging, blas) = (Mutex::default(), OnceLock::new());
        Ok((Driver { index, staging, stream, context, kernels, blas }, facts))
    }

    /// Returns the bytes of memory that are free, and all.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, total) =
            self.context.mem_get_info().map_err(|e| self.error("asking for its memory", e))?;
        Ok((free as u64 + self.kept(), total as u64))
    }

    /// Returns the bytes that were freed and wait to be given again: the driver does not count them as free.
    fn kept(&self) -> u64 {
        if !self.context.has_async_alloc() {
            return 0;
        }
        let ask = |attribute| {
            let mut bytes = 0u64;
            // SAFETY: the device exists, and the attributes are u64.
            unsafe {
                let pool = result::device::get_default_mem_pool(self.context.cu_device())?;
                sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()).result()?;
            }
            Ok::<_, DriverError>(bytes)
        };
        let reserved = ask(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
        let used = ask(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT);
        match (reserved, used) {
            (Ok(reserved), Ok(used)) => reserved.saturating_sub(used),
            _ => 0,
        }
    }

    /// Returns what tells the GPU, or its part, from every other one.
    pub fn identity(&self) -> Result<[u8; 16], CudaError> {
        let uuid = self.context.uuid().map_err(|e| self.error("asking who it is", e))?;
        Ok(uuid.bytes.map(|byte| byte.to_ne_bytes()[0]))
    }

    pub fn n_multiprocessors(&self) -> Result<u32, CudaError> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let n = self.context.attribute(attribute).map_err(|e| self.error("asking for its size", e))?;
        Ok(u32::try_from(n).unwrap_or(1).max(1))
    }

    /// Returns memory of that many bytes, more than none.
    pub fn alloc(&self, bytes: usize) -> Result<Block, CudaError> {
        self.bind()?;
        // SAFETY: every bit pattern is a value of the types in `buffer`.
        let slice = unsafe { self.stream.alloc::<u8>(bytes) };
        Ok(Block { slice: slice.map_err(|error| self.memory_error(bytes as u64, error))? })
    }

    /// Writes behind what was asked for before; the bytes may be changed when this returns.
    ///
    /// # Safety
    /// There is as much memory at `to`, and it is the device's.
    pub unsafe fn write(&self, to: u64, bytes: &[u8]) -> Result<(), CudaError> {
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's.
        unsafe { staging.write(self, to, bytes) }
    }

    /// Reads once everything before is done.
    ///
    /// # Safety
    /// As [`Driver::write`], of `from`.
    pub unsafe fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's.
        unsafe { staging.read(self, from, bytes) }
    }

    /// # Safety
    /// As [`Driver::write`], of both.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the caller's.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(|error| self.error("a copy within it", error))
    }

    /// # Safety
    /// As [`Driver::write`].
    pub unsafe fn fill_zero(&self, to: u64, bytes: usize) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the caller's.
        unsafe { result::memset_d8_async(to, 0, bytes, self.stream.cu_stream()) }
            .map_err(|error| self.error("filling memory", error))
    }

    /// # Safety
    /// As [`super::Device::launch`].
    pub unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the caller's.
        unsafe { self.kernels.launch(&self.stream, launch) }.map_err(|error| self.error(launch.kernel, error))
    }

    /// # Safety
    /// The operands and the result have the sizes, and are the device's.
    pub unsafe fn product(&self, gemm: &Gemm) -> Result<(), CudaError> {
        self.bind()?;
        let blas = match self.blas.get() {
            Some(blas) => blas,
            None => {
                let blas = Blas::open(self)?;
                // of two that were opened at once, one is dropped
                self.blas.get_or_init(|| blas)
            }
        };
        // SAFETY: the caller's.
        unsafe { blas.product(self.index, gemm) }
    }

    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(|error| self.error("computing", error))
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Makes this thread use the device's context.
    fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(|error| self.error("entering it", error))
    }

    /// Returns what an answer of the driver means.
    pub(super) fn error(&self, doing: &str, error: DriverError) -> CudaError {
        described(self.index, doing, error)
    }

    /// Returns what an answer of the driver to a wish for memory means.
    fn memory_error(&self, wanted: u64, error: DriverError) -> CudaError {
        match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                // it answers even then; if not, the wish is the only number
                let (free, total) = self.context.mem_get_info().unwrap_or((0, 0));
                let free = free as u64 + self.kept();
                CudaError::OutOfMemory { index: self.index, wanted, free, total: total as u64 }
            }
            _ => self.error("giving memory", error),
        }
    }
}

/// See [`super::probe::probe`].
pub fn probe() -> Result<Found, CudaError> {
    // SAFETY: opens the driver's library, whose initialisers do nothing else.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let fails = |error: DriverError| match error.0 {
        // a library to link with, not a driver
        sys::CUresult::CUDA_ERROR_STUB_LIBRARY => CudaError::NoDriver,
        _ => CudaError::DriverFails { reason: text(error) },
    };
    let mut cuda_version = 0;
    // SAFETY: the argument is writable.
    unsafe { sys::cuDriverGetVersion(&raw mut cuda_version) }.result().map_err(fails)?;
    let found = Found {
        cuda_version: u32::try_from(cuda_version).unwrap_or(0),
        cuda_version_needed: cuda_version_needed(),
        cublas: libraries::cublas().map(|path| path.display().to_string()),
        devices: Vec::new(),
    };
    match result::init() {
        Ok(()) => {}
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(found),
        Err(error) => return Err(fails(error)),
    }
    let count = result::device::get_count().map_err(fails)?;
    // the module's version is that of the driver's libraries, unless newer ones are there for compatibility: they know a newer CUDA
    let module = std::fs::read_to_string("/sys/module/nvidia/version").ok();
    let (driver, cublas) = (driver_version(found.cuda_version, module.as_deref()), blas::version());
    let devices = (0..count).map(|index| facts(index, &driver, cublas.as_deref()));
    let devices = devices.collect::<Result<_, _>>().map_err(fails)?;
    Ok(Found { devices, ..found })
}

fn facts(index: i32, driver: &str, cublas: Option<&str>) -> Result<DeviceFacts, DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = result::device::get(index)?;
    // SAFETY: the device exists.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    let (major, minor) = (attribute(MAJOR)?, attribute(MINOR)?);
    Ok(DeviceFacts {
        index: usize::try_from(index).unwrap_or(0),
        name: result::device::get_name(device)?,
        compute_capability: (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0)),
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device)? } as u64,
        driver: driver.to_owned(),
        cublas: cublas.map(str::to_owned),
    })
}

/// Lets freed buffers stay with the process: giving them back at every wait costs more than it helps.
fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut all = u64::MAX;
    // SAFETY: the device exists, and the attribute is a u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut all).cast()).result()
    }
}

pub(super) fn described(index: usize, doing: &str, error: DriverError) -> CudaError {
    use sys::CUresult as R;
    let (doing, reason) = (doing.to_owned(), text(error));
    match error.0 {
        R::CUDA_ERROR_DEVICE_UNAVAILABLE
        | R::CUDA_ERROR_ECC_UNCORRECTABLE
        | R::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | R::CUDA_ERROR_ILLEGAL_ADDRESS
        | R::CUDA_ERROR_LAUNCH_TIMEOUT
        | R::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | R::CUDA_ERROR_HARDWARE_STACK_ERROR
        | R::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | R::CUDA_ERROR_MISALIGNED_ADDRESS
        | R::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | R::CUDA_ERROR_INVALID_PC
        | R::CUDA_ERROR_LAUNCH_FAILED
        | R::CUDA_ERROR_SYSTEM_NOT_READY
        | R::CUDA_ERROR_DEINITIALIZED
        | R::CUDA_ERROR_UNKNOWN => CudaError::Lost { index, doing, reason },
        _ => CudaError::Refused { index, doing, reason },
    }
}

/// The driver's own words, and the name to look for.
fn text(error: DriverError) -> String {
    let said =
        |words: Result<&std::ffi::CStr, DriverError>| words.ok().map(|w| w.to_string_lossy().into_owned());
    match (said(error.error_string()), said(error.error_name())) {
        (Some(words), Some(name)) => format!("{words} ({name})"),
        _ => format!("error {}", error.0 as u32),
    }
}
