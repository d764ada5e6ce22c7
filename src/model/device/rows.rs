//! Rows of activations, and their products.

use super::cast::widened;
use super::weights::Ready;
use crate::cuda::buffer::{Buffer, Float, Slice, SliceMut};
use crate::cuda::op::elementwise::{gather_rows, to_bf16};
use crate::cuda::product::{Part, PartMut, Product, Sizes};
use crate::cuda::{CudaError, Device};

/// Rows of every product.
///
/// cuBLAS chooses a kernel, and with it an order of sums, by the shape of a product. One number of rows makes a row's result independent
/// of how many others there are: the rows of a prompt, of a single token, of an expert and of the output layer go in chunks of it, the
/// last one filled up with zeros.
pub const TOGETHER: usize = 256;

/// `[n, cols]`, with zeros behind that fill up the last chunk.
pub(super) struct Rows<T> {
    buffer: Buffer<T>,
    n: usize,
    cols: usize,
}

impl<T: Float> Rows<T> {
    /// Returns n rows whose bits are whatever was there.
    pub fn uninit(device: &Device, n: usize, cols: usize) -> Result<Rows<T>, CudaError> {
        let end = n.next_multiple_of(TOGETHER) * cols;
        let mut buffer = Buffer::uninit(device, end)?;
        buffer.slice_mut(n * cols..end).fill_zero(device)?;
        Ok(Rows { buffer, n, cols })
    }

    /// Returns rows of zeros.
    pub fn zeros(device: &Device, n: usize, cols: usize) -> Result<Rows<T>, CudaError> {
        Ok(Rows { buffer: Buffer::zeros(device, n.next_multiple_of(TOGETHER) * cols)?, n, cols })
    }

    /// Returns a copy of these values, of rows of `cols`.
    pub fn of(device: &Device, values: &[T], cols: usize) -> Result<Rows<T>, CudaError> {
        let mut rows = Rows::uninit(device, values.len() / cols, cols)?;
        rows.all_mut().write(device, values)?;
        Ok(rows)
    }

    pub fn n(&self) -> usize {
        self.n
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the values of all rows.
    pub fn all(&self) -> Slice<'_, T> {
        self.buffer.slice(0..self.n * self.cols)
    }

    pub fn all_mut(&mut self) -> SliceMut<'_, T> {
        self.buffer.slice_mut(0..self.n * self.cols)
    }

    /// Returns the rows of these ids.
    pub fn gathered(&self, device: &Device, ids: &Buffer<u32>) -> Result<Rows<T>, CudaError> {
        let mut rows = Rows::uninit(device, ids.len(), self.cols)?;
        gather_rows(device, &self.all(), ids, 1.0, &mut rows.all_mut())?;
        Ok(rows)
    }

    /// Returns the rows in f32.
    pub fn widened(&self, device: &Device) -> Result<Rows<f32>, CudaError> {
        let buffer = match widened(device, &self.buffer)? {
            Ready::Made(wide) => wide,
            same => Buffer::copy_of(device, &same)?,
        };
        Ok(Rows { buffer, n: self.n, cols: self.cols })
    }

    /// Returns the rows rounded to O.
    ///
    /// # Panics
    /// If the rows are neither f32 nor O.
    pub fn narrowed<O: Float>(self, device: &Device) -> Result<Rows<O>, CudaError> {
        let Rows { buffer, n, cols } = self;
        let buffer = match (buffer.as_type::<O>().is_some(), buffer.as_type()) {
            (false, Some(wide)) => {
                let mut narrow = Buffer::uninit(device, wide.len())?;
                to_bf16(device, wide, &mut narrow)?;
                narrow.into_type::<O>()
            }
            _ => buffer.into_type::<O>(),
        };
        Ok(Rows { buffer: buffer.unwrap_or_else(|| panic!("rows are f32 or bf16")), n, cols })
    }

    /// Returns `x W^T` of these rows and w `[n_out, cols]`.
    pub fn product<O: Float>(
        &self,
        device: &Device,
        weight: &Buffer<T>,
        n_out: usize,
    ) -> Result<Rows<O>, CudaError> {
        // the rows behind come out as zeros by themselves
        let buffer = Buffer::uninit(device, self.n.next_multiple_of(TOGETHER) * n_out)?;
        let mut y = Rows { buffer, n: self.n, cols: n_out };
        self.add_product(device, weight, (1.0, 0.0), &mut y)?;
        Ok(y)
    }

    /// Replaces y by `factor * x W^T + keep * y`.
    pub fn add_product<O: Float>(
        &self,
        device: &Device,
        weight: &Buffer<T>,
        factors: (f32, f32),
        y: &mut Rows<O>,
    ) -> Result<(), CudaError> {
        assert!(y.n == self.n && weight.len() == y.cols * self.cols);
        let sizes = Sizes { m: TOGETHER, n: y.cols, k: self.cols };
        for first in (0..self.n).step_by(TOGETHER) {
            let x = Part { buffer: &self.buffer, first: first * self.cols };
            let out = PartMut { first: first * y.cols, buffer: &mut y.buffer };
            device.product(Product::Forward, sizes, (Part::from(weight), x), factors, out)?;
        }
        Ok(())
    }
}
