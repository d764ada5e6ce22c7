//! A GPU, ready to work.

use std::sync::{Arc, OnceLock};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaContext, CudaStream, sys};

use super::CudaError;
use super::blas::Blas;
use super::module::{Kernels, Launch};
use super::probe::{DeviceFacts, Found};

/// The CUDA that the kernels were compiled with, as the driver counts: 13000 is 13.0.
pub fn cuda_version_needed() -> u32 {
    // digits: the build script wrote them
    env!("LCTL_CUDA_VERSION").parse().unwrap_or(13_000)
}

/// A context, one stream that everything runs on in order, the loaded kernels, and cuBLAS from its first use on.
pub struct Device {
    index: usize,
    facts: DeviceFacts,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    kernels: Kernels,
    blas: OnceLock<Blas>,
}

impl Device {
    /// Opens device `index` and loads the kernels.
    ///
    /// Errors if there is no driver, it is too old, there is no such device, or it is one that the kernels do not run on.
    pub fn open(index: usize) -> Result<Device, CudaError> {
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
        Ok(Device { index, facts, stream, context, kernels, blas: OnceLock::new() })
    }

    pub fn index(&self) -> usize {
        self.index
    }

    pub fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// Returns the stream that everything runs on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Returns the bytes of memory that are free, and all.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, total) =
            self.context.mem_get_info().map_err(|error| self.error("asking for its memory", error))?;
        Ok((free as u64, total as u64))
    }

    /// Returns how many multiprocessors there are.
    pub fn n_multiprocessors(&self) -> Result<u32, CudaError> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let n =
            self.context.attribute(attribute).map_err(|error| self.error("asking for its size", error))?;
        Ok(u32::try_from(n).unwrap_or(1).max(1))
    }

    /// Puts a kernel at the end of the stream.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in type and order, and their memory is as large as the kernel takes it to be.
    pub unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the caller's.
        unsafe { self.kernels.launch(&self.stream, launch) }.map_err(|error| self.error(launch.kernel, error))
    }

    /// Waits until everything so far is done; an error of any of it comes up here.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(|error| self.error("computing", error))
    }

    /// Returns cuBLAS, opened at the first call.
    pub fn blas(&self) -> Result<&Blas, CudaError> {
        if let Some(blas) = self.blas.get() {
            return Ok(blas);
        }
        self.bind()?;
        let blas = Blas::open(self)?;
        // of two that were opened at once, one is dropped
        Ok(self.blas.get_or_init(|| blas))
    }

    /// Makes this thread use the device's context.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(|error| self.error("entering it", error))
    }

    /// Returns what an answer of the driver means.
    pub(super) fn error(&self, doing: &str, error: DriverError) -> CudaError {
        described(self.index, doing, error)
    }

    /// Returns what an answer of the driver to a wish for memory means.
    pub(super) fn memory_error(&self, wanted: u64, error: DriverError) -> CudaError {
        match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                // it answers even then; if not, the wish is the only number
                let (free, total) = self.context.mem_get_info().unwrap_or((0, 0));
                CudaError::OutOfMemory { index: self.index, wanted, free: free as u64, total: total as u64 }
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
        // SAFETY: as above.
        cublas_present: unsafe { cudarc::cublas::sys::is_culib_present() },
        devices: Vec::new(),
    };
    match result::init() {
        Ok(()) => {}
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(found),
        Err(error) => return Err(fails(error)),
    }
    let count = result::device::get_count().map_err(fails)?;
    let devices = (0..count).map(facts).collect::<Result<_, _>>().map_err(fails)?;
    Ok(Found { devices, ..found })
}

fn facts(index: i32) -> Result<DeviceFacts, DriverError> {
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
