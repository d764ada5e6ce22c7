//! Memory of a device.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};

use half::bf16;

use super::CudaError;
use super::device::{Device, Memory};
use super::launch::Arg;

/// What lies in a device's memory: numbers without padding, whose every bit pattern is one.
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + 'static {
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

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for u8 {}
    impl Sealed for u32 {}
    impl Sealed for f64 {}
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

/// Values in a device's memory, freed when dropped: after what the device has to do with them.
pub struct Buffer<T> {
    /// Freed with the buffer; a [`Slice`] has none.
    _memory: Option<Memory>,
    /// 0 where there are no values.
    address: u64,
    len: usize,
    values: PhantomData<T>,
}

/// Some values of a buffer, to be read.
pub struct Slice<'a, T> {
    part: Buffer<T>,
    of: PhantomData<&'a Buffer<T>>,
}

/// Some values of a buffer, to be written.
pub struct SliceMut<'a, T> {
    part: Buffer<T>,
    of: PhantomData<&'a mut Buffer<T>>,
}

impl<T> Deref for Slice<'_, T> {
    type Target = Buffer<T>;

    fn deref(&self) -> &Buffer<T> {
        &self.part
    }
}

impl<T> Deref for SliceMut<'_, T> {
    type Target = Buffer<T>;

    fn deref(&self) -> &Buffer<T> {
        &self.part
    }
}

impl<T> DerefMut for SliceMut<'_, T> {
    fn deref_mut(&mut self) -> &mut Buffer<T> {
        &mut self.part
    }
}

impl<T: Element> Buffer<T> {
    /// Returns n values whose bits are whatever was there.
    ///
    /// Errors if the memory is not there, with how much is.
    pub fn uninit(device: &Device, n: usize) -> Result<Buffer<T>, CudaError> {
        if n == 0 {
            return Ok(Buffer { _memory: None, address: 0, len: 0, values: PhantomData });
        }
        let memory = device.alloc(n * size_of::<T>())?;
        Ok(Buffer { address: memory.address(), _memory: Some(memory), len: n, values: PhantomData })
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

    /// Returns a copy of a buffer.
    ///
    /// Errors as [`Buffer::uninit`].
    pub fn copy_of(device: &Device, from: &Buffer<T>) -> Result<Buffer<T>, CudaError> {
        let buffer = Buffer::uninit(device, from.len)?;
        if from.len > 0 {
            // SAFETY: both have the length.
            unsafe { device.copy(buffer.address, from.address, from.n_bytes())? };
        }
        Ok(buffer)
    }

    /// Overwrites all values behind what was asked for before; `values` may be changed when this returns.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn write(&mut self, device: &Device, values: &[T]) -> Result<(), CudaError> {
        assert_eq!(values.len(), self.len);
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: numbers without padding are bytes; the buffer has as many.
        unsafe {
            let bytes = std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values));
            device.write(self.address, bytes)
        }
    }

    /// Makes all values zero.
    pub fn fill_zero(&mut self, device: &Device) -> Result<(), CudaError> {
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: the whole of the buffer.
        unsafe { device.fill_zero(self.address, self.n_bytes()) }
    }

    /// Returns all values, once everything before is done.
    pub fn read(&self, device: &Device) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::default(); self.len];
        if self.len == 0 {
            return device.synchronize().map(|()| values);
        }
        // SAFETY: every bit pattern is a number; the buffer has as many.
        unsafe {
            let bytes = std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), self.n_bytes());
            device.read(self.address, bytes)?;
        }
        Ok(values)
    }

    fn n_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Returns the values of a range, where they lie.
    ///
    /// # Panics
    /// If the range leaves the buffer.
    pub fn slice(&self, range: Range<usize>) -> Slice<'_, T> {
        Slice { part: self.part(range), of: PhantomData }
    }

    /// Returns the values of a range, to be written where they lie.
    ///
    /// # Panics
    /// If the range leaves the buffer.
    pub fn slice_mut(&mut self, range: Range<usize>) -> SliceMut<'_, T> {
        SliceMut { part: self.part(range), of: PhantomData }
    }

    /// Returns a part that the borrow checker does not know as one: for wrappers that bind it to what it is of.
    pub(super) fn part(&self, range: Range<usize>) -> Buffer<T> {
        assert!(range.start <= range.end && range.end <= self.len);
        Buffer { _memory: None, address: self.address_of(range.start), len: range.len(), values: PhantomData }
    }

    /// Returns the buffer as one of that type, if it is.
    pub fn as_type<U: Element>(&self) -> Option<&Buffer<U>> {
        (self as &dyn Any).downcast_ref()
    }

    /// Returns the buffer as one of that type, if it is.
    pub fn into_type<U: Element>(self) -> Option<Buffer<U>> {
        let any: Box<dyn Any> = Box::new(self);
        any.downcast().ok().map(|buffer| *buffer)
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
        if self.address == 0 { 0 } else { self.address + (first * size_of::<T>()) as u64 }
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
