//! The embedded kernels of a GPU.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaStream, sys};

use super::CudaError;
use super::driver::described;
use super::launch::{Arg, Launch};

/// What the driver reads must be aligned.
#[repr(align(16))]
struct Aligned<T: ?Sized>(T);

macro_rules! fatbins {
    ($($name:literal),*) => { [$({
        static FATBIN: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin")));
        ($name, &FATBIN.0)
    }),*] };
}

/// By the names of the files that `src/build.rs` compiles.
fn fatbins() -> [(&'static str, &'static [u8]); 11] {
    fatbins!(
        "attention_mma",
        "attention_paged",
        "attention_paged_mma",
        "attention_plain",
        "dequantize",
        "elementwise",
        "loss",
        "moments",
        "norm",
        "optimizer",
        "routing"
    )
}

/// Shared memory that a block has without asking for more.
const SHARED_UNASKED: u32 = 48 << 10;

/// The functions of the embedded kernels in one context.
pub struct Kernels {
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<String, sys::CUfunction>>,
}

// SAFETY: handles of the driver, which any thread may use.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Loads the kernels into the current context, which is that of device `index`.
    pub fn load(index: usize) -> Result<Kernels, CudaError> {
        let load = |(name, image): (&str, &'static [u8])| {
            // SAFETY: a whole fatbin.
            unsafe { result::module::load_data(image.as_ptr().cast()) }
                .map_err(|error| described(index, &format!("the kernels of `{name}`"), error))
        };
        let modules = fatbins().into_iter().map(load).collect::<Result<_, _>>()?;
        Ok(Kernels { modules, functions: Mutex::default() })
    }

    /// Puts a kernel at the end of the stream.
    ///
    /// # Safety
    /// As [`super::device::Device::launch`]; the kernels' context is the current one.
    pub unsafe fn launch(&self, stream: &CudaStream, launch: &Launch<'_>) -> Result<(), DriverError> {
        let &Launch { kernel, grid, threads, shared, args } = launch;
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        let function = self.function(kernel)?;
        if shared > SHARED_UNASKED {
            let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function exists.
            unsafe { result::function::set_function_attribute(function, most, shared.cast_signed())? };
        }
        let mut addresses: Vec<*mut c_void> = args.iter().map(Arg::address).collect();
        let (grid, block) = ((grid.0, grid.1, 1), (threads, 1, 1));
        // SAFETY: the caller's; arguments are copied before this returns.
        unsafe { result::launch_kernel(function, grid, block, shared, stream.cu_stream(), &mut addresses) }
    }

    fn function(&self, name: &str) -> Result<sys::CUfunction, DriverError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(*function);
        }
        let missing = DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND);
        let c_name = CString::new(name).map_err(|_| missing)?;
        // SAFETY: the modules are loaded and never unloaded before this is dropped.
        let look =
            |module: &sys::CUmodule| unsafe { result::module::get_function(*module, c_name.clone()) }.ok();
        let function = self.modules.iter().find_map(look).ok_or(missing)?;
        functions.insert(name.to_owned(), function);
        Ok(function)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        for module in &self.modules {
            // SAFETY: loaded, and no longer used. What the driver says of it changes nothing.
            let _ = unsafe { result::module::unload(*module) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What nvcc writes at the start of a fatbin.
    const MAGIC: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();

    #[test]
    fn every_unit_of_kernels_is_embedded() {
        for (name, image) in fatbins() {
            assert!(image.starts_with(&MAGIC), "{name}");
            assert_eq!(image.as_ptr().align_offset(16), 0, "{name}");
        }
    }
}
