//! The embedded kernels, and how one is launched.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaStream, sys};

use super::CudaError;
use super::device::described;

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
fn fatbins() -> [(&'static str, &'static [u8]); 7] {
    fatbins!("attention_mma", "attention_plain", "dequantize", "elementwise", "loss", "norm", "optimizer")
}

/// Shared memory that a block has without asking for more.
const SHARED_UNASKED: u32 = 48 << 10;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// An address in the device's memory; 0 is null.
    Pointer(u64),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    F64(f64),
    /// A struct, by its words.
    Words([u32; 9]),
}

impl Arg {
    fn address(&self) -> *mut c_void {
        let address: *const c_void = match self {
            Arg::Pointer(x) | Arg::U64(x) => std::ptr::from_ref(x).cast(),
            Arg::U32(x) => std::ptr::from_ref(x).cast(),
            Arg::I32(x) => std::ptr::from_ref(x).cast(),
            Arg::F32(x) => std::ptr::from_ref(x).cast(),
            Arg::F64(x) => std::ptr::from_ref(x).cast(),
            Arg::Words(x) => std::ptr::from_ref(x).cast(),
        };
        address.cast_mut()
    }
}

/// A kernel, the shape of its grid, and its arguments.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    pub kernel: &'a str,
    /// Blocks.
    pub grid: (u32, u32),
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory that a block has beyond what the kernel declares.
    pub shared: u32,
    pub args: &'a [Arg],
}

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

    #[test]
    fn arguments_are_handed_over_by_address() {
        let args = [Arg::Pointer(7), Arg::F32(1.5), Arg::Words([1, 2, 3, 4, 5, 6, 7, 8, 9])];
        // SAFETY: each address is that of a value of the type.
        unsafe {
            assert_eq!(*args[0].address().cast::<u64>(), 7);
            assert_eq!(*args[1].address().cast::<f32>(), 1.5);
            assert_eq!(*args[2].address().cast::<[u32; 9]>(), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        }
    }
}
