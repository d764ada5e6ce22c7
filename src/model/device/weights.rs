//! Matrices on a device that nothing changes: as they are stored, or rounded.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use crate::cuda::buffer::{Buffer, Float, Slice};
use crate::cuda::op::dequantize::{Nested, dequantize};
use crate::cuda::{CudaError, Device};
use crate::kernel::{Compute, Matrix};
use crate::tensor::format::nf4::DYNAMIC;

/// Values that are rounded on the host at a time.
const TOGETHER: usize = 1 << 24;

/// A frozen matrix.
pub(in crate::model) enum Frozen<T> {
    Dense(Buffer<T>),
    /// Decoded for every use.
    Blocks {
        format: &'static str,
        bytes: Buffer<u8>,
        len: usize,
    },
    Nested(Box<NestedOn>),
}

/// NF4 whose scales are quantized: [`Nested`].
pub(in crate::model) struct NestedOn {
    indices: Buffer<u8>,
    scales: Buffer<u8>,
    steps: Buffer<f32>,
    offset: f32,
    dynamic: Buffer<f32>,
}

/// A matrix or vector that an operation can read.
pub(in crate::model) enum Ready<'a, T> {
    Here(&'a Buffer<T>),
    Part(Slice<'a, T>),
    Made(Buffer<T>),
}

impl<T> Deref for Ready<'_, T> {
    type Target = Buffer<T>;

    fn deref(&self) -> &Buffer<T> {
        match self {
            Ready::Here(buffer) => buffer,
            Ready::Part(part) => part,
            Ready::Made(buffer) => buffer,
        }
    }
}

impl<T: Float> Frozen<T> {
    /// Copies a matrix to the device; the memory that its rows were read into is given back.
    pub fn of(device: &Device, compute: &Compute, matrix: &Matrix) -> Result<Frozen<T>, CudaError> {
        if let Some(nested) = matrix.nested() {
            return Ok(Frozen::Nested(Box::new(NestedOn {
                indices: Buffer::of(device, &nested.indices)?,
                scales: Buffer::of(device, &nested.scales)?,
                steps: Buffer::of(device, &nested.steps)?,
                offset: nested.offset,
                dynamic: Buffer::of(device, &DYNAMIC)?,
            })));
        }
        let frozen = match matrix.dtype().block_len() {
            1 => Frozen::Dense(dense(device, compute, matrix)?),
            _ => {
                let bytes: Vec<u8> =
                    (0..matrix.rows()).flat_map(|row| matrix.row(row).into_owned()).collect();
                let (format, len) = (matrix.dtype().name(), matrix.rows() * matrix.cols());
                Frozen::Blocks { format, bytes: Buffer::of(device, &bytes)?, len }
            }
        };
        matrix.release();
        Ok(frozen)
    }

    /// Returns its values.
    pub fn ready(&self, device: &Device) -> Result<Ready<'_, T>, CudaError> {
        match self {
            Frozen::Dense(values) => Ok(Ready::Here(values)),
            Frozen::Blocks { format, bytes, len } => {
                let mut values = Buffer::uninit(device, *len)?;
                dequantize(device, format, bytes, &mut values)?;
                Ok(Ready::Made(values))
            }
            Frozen::Nested(nested) => {
                let NestedOn { indices, scales, steps, offset, dynamic } = &**nested;
                let mut values = Buffer::uninit(device, 2 * indices.len())?;
                Nested { indices, scales, steps, offset: *offset, dynamic }
                    .dequantize(device, &mut values)?;
                Ok(Ready::Made(values))
            }
        }
    }
}

/// Returns the bytes that a frozen matrix takes on a device whose products take values of that many bytes.
pub(in crate::model) fn frozen_bytes(matrix: &Matrix, value_bytes: usize) -> usize {
    match matrix.dtype().block_len() {
        1 => matrix.rows() * matrix.cols() * value_bytes,
        _ => matrix.stored_bytes(),
    }
}

fn dense<T: Float>(device: &Device, compute: &Compute, matrix: &Matrix) -> Result<Buffer<T>, CudaError> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut all = Buffer::uninit(device, rows * cols)?;
    let together = (TOGETHER / cols.max(1)).max(1);
    for first in (0..rows).step_by(together) {
        let end = rows.min(first + together);
        let values = rounded(compute, matrix, end - first, |i| first + i, 1.0);
        all.slice_mut(first * cols..end * cols).write(device, &values)?;
    }
    Ok(all)
}

/// Returns the rows of `ids` in a table, times `scale`, each value rounded once.
pub(in crate::model) fn embedded<T: Float>(
    compute: &Compute,
    table: &Matrix,
    ids: &[u32],
    scale: f32,
) -> Vec<T> {
    rounded(compute, table, ids.len(), |i| ids[i] as usize, scale)
}

/// Returns n rows of a matrix, the i-th of which is `row(i)`.
fn rounded<T: Float>(
    compute: &Compute,
    matrix: &Matrix,
    n: usize,
    row: impl Fn(usize) -> usize + Sync,
    scale: f32,
) -> Vec<T> {
    /// Rows that one task decodes.
    const ROWS: usize = 16;
    let cols = matrix.cols();
    let mut values = vec![T::default(); n * cols];
    let tasks: Vec<_> = values.chunks_mut((ROWS * cols).max(1)).map(Mutex::new).collect();
    compute.team.run(tasks.len(), |task| {
        let mut out = tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
        let mut exact = vec![0.0; cols];
        for (i, out) in out.chunks_exact_mut(cols).enumerate() {
            matrix.decode_row(compute.isa, row(task * ROWS + i), &mut exact);
            out.iter_mut().zip(&exact).for_each(|(out, exact)| *out = T::from_f32(*exact * scale));
        }
    });
    drop(tasks);
    values
}
