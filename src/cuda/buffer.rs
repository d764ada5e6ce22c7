//! Memory of a device.

use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use half::bf16;

use super::CudaError;
use super::device::Device;
use super::module::Arg;

/// What lies in a device's memory.
pub trait Element: DeviceRepr + Copy + Default + Send + Sync + 'static {
    /// The part of a kernel's name that names the type.
    const NAME: &'static str;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
}

impl Element for u8 {
    const NAME: &'static str = "u8";
}

impl Element for u32 {
    const NAME: &'static str = "u32";
}

impl Element for f64 {
    const NAME: &'static str = "f64";
}

/// A type that kernels compute on.
pub trait Float: Element {
    fn to_f32(self) -> f32;
    fn from_f32(x: f32) -> Self;
}

impl Float for f32 {
    fn to_f32(self) -> f32 {
        self
    }

    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl Float for bf16 {
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

/// Values in a device's memory, freed when dropped: after what the stream has to do with them.
pub struct Buffer<T> {
    slice: Option<CudaSlice<T>>,
    len: usize,
}

impl<T: Element> Buffer<T> {
    /// Returns n values whose bits are whatever was there.
    ///
    /// Errors if the memory is not there, with how much is.
    pub fn uninit(device: &Device, n: usize) -> Result<Buffer<T>, CudaError> {
        if n == 0 {
            return Ok(Buffer { slice: None, len: 0 });
        }
        device.bind()?;
        // SAFETY: every bit pattern is a value of the types above.
        let slice = unsafe { device.stream().alloc::<T>(n) };
        let slice = slice.map_err(|error| device.memory_error((n * size_of::<T>()) as u64, error))?;
        Ok(Buffer { slice: Some(slice), len: n })
    }

    /// Returns n zeros.
    ///
    /// Errors as [`Buffer::uninit`].
    pub fn zeros(device: &Device, n: usize) -> Result<Buffer<T>, CudaError> {
        let mut buffer = Buffer::uninit(device, n)?;
        buffer.fill_zero(device)?;
        Ok(buffer)
    }

    /// Returns a copy of `values`.
    ///
    /// Errors as [`Buffer::uninit`].
    pub fn of(device: &Device, values: &[T]) -> Result<Buffer<T>, CudaError> {
        let mut buffer = Buffer::uninit(device, values.len())?;
        buffer.write(device, values)?;
        Ok(buffer)
    }

    /// Overwrites all values.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn write(&mut self, device: &Device, values: &[T]) -> Result<(), CudaError> {
        assert_eq!(values.len(), self.len);
        let Some(slice) = &mut self.slice else { return Ok(()) };
        device.stream().memcpy_htod(values, slice).map_err(|error| device.error("a copy to it", error))
    }

    /// Makes all values zero.
    pub fn fill_zero(&mut self, device: &Device) -> Result<(), CudaError> {
        let Some(slice) = &mut self.slice else { return Ok(()) };
        device.bind()?;
        let bytes = slice.num_bytes();
        let pointer = slice.device_ptr(device.stream()).0;
        // SAFETY: the whole of the buffer.
        unsafe { cudarc::driver::result::memset_d8_async(pointer, 0, bytes, device.stream().cu_stream()) }
            .map_err(|error| device.error("filling memory", error))
    }

    /// Returns all values, once everything before is done.
    pub fn read(&self, device: &Device) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::default(); self.len];
        if let Some(slice) = &self.slice {
            device
                .stream()
                .memcpy_dtoh(slice, &mut values)
                .map_err(|error| device.error("a copy from it", error))?;
        }
        device.synchronize()?;
        Ok(values)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the address of value `first` on the device; 0 if there is no memory.
    ///
    /// # Panics
    /// If `first` is beyond the end.
    pub fn address_of(&self, first: usize) -> u64 {
        assert!(first <= self.len);
        let base = self.slice.as_ref().map_or(0, |slice| slice.device_ptr(slice.stream()).0);
        if base == 0 { 0 } else { base + (first * size_of::<T>()) as u64 }
    }

    /// Returns the buffer as an argument of a kernel.
    pub fn arg(&self) -> Arg {
        Arg::Pointer(self.address_of(0))
    }
}

/// Returns a buffer that may be missing as an argument: null then.
pub fn optional<T: Element>(buffer: Option<&Buffer<T>>) -> Arg {
    buffer.map_or(Arg::Pointer(0), Buffer::arg)
}
