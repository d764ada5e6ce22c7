//! Running sums of a matrix's columns: `kernel::column_moments`.

use super::super::CudaError;
use super::super::buffer::{Buffer, Element, Float, SliceMut, optional};
use super::super::device::Device;
use super::super::launch::Launch;
use super::{arg, blocks};

/// Threads of a block, a column each.
const COLUMNS: usize = 32;

/// Sums of so many columns, of values and of their squares.
pub struct Moments {
    values: Buffer<f64>,
    squares: Buffer<f64>,
    /// One more than the row of which a sum of squares is no finite f32; 0 where all are.
    beyond: Buffer<u32>,
    /// One number: 0 while all are.
    refused: Buffer<u32>,
}

/// What [`Moments`] came to.
pub struct Summed {
    pub values: Vec<f64>,
    pub squares: Vec<f64>,
}

impl Moments {
    /// Returns sums of nothing.
    pub fn zeros(device: &Device, columns: usize) -> Result<Moments, CudaError> {
        Ok(Moments {
            values: Buffer::zeros(device, columns)?,
            squares: Buffer::zeros(device, columns)?,
            beyond: Buffer::zeros(device, columns)?,
            refused: Buffer::zeros(device, 1)?,
        })
    }

    /// Returns the bytes that so many columns take on a device.
    pub fn bytes(columns: usize) -> usize {
        columns * (2 * size_of::<f64>() + size_of::<u32>()) + size_of::<u32>()
    }

    /// Adds rows x, `[ids.len(), columns]` or `[T, columns]`, to the sums from column `first` on, rows ascending: the CPU's bits. `ids` are
    /// what the rows are called where a sum is no finite f32.
    ///
    /// # Panics
    /// If there are not as many columns or ids, or x is no whole rows.
    pub fn add<T: Float>(
        &mut self,
        device: &Device,
        (first, columns): (usize, usize),
        x: &Buffer<T>,
        ids: Option<&Buffer<u32>>,
    ) -> Result<(), CudaError> {
        assert!(columns > 0 && x.len().is_multiple_of(columns));
        let rows = x.len() / columns;
        assert!(ids.is_none_or(|ids| ids.len() == rows));
        if rows == 0 {
            return Ok(());
        }
        let args = [
            x.arg(),
            optional(ids),
            part(&mut self.values, first, columns).arg(),
            part(&mut self.squares, first, columns).arg(),
            part(&mut self.beyond, first, columns).arg(),
            self.refused.arg(),
            arg(rows),
            arg(columns),
        ];
        let kernel = &format!("column_moments_{}", T::NAME);
        let grid = (blocks(columns.div_ceil(COLUMNS)), 1);
        let launch = Launch { kernel, grid, threads: COLUMNS as u32, shared: 0, args: &args };
        // SAFETY: the lengths were checked.
        unsafe { device.launch(&launch) }
    }

    /// Returns the first column of `columns` whose sum of squares is no finite f32, the row of which it is none, and the sum; columns in the
    /// order given, which is looked at only if there is one. Waits for what was added.
    pub fn refused(
        &self,
        device: &Device,
        columns: impl IntoIterator<Item = usize>,
    ) -> Result<Option<(usize, usize, f64)>, CudaError> {
        if self.refused.read(device)? == [0] {
            return Ok(None);
        }
        let beyond = self.beyond.read(device)?;
        let Some(column) = columns.into_iter().find(|column| beyond[*column] > 0) else { return Ok(None) };
        let sum = self.squares.slice(column..column + 1).read(device)?[0];
        Ok(Some((column, beyond[column] as usize - 1, sum)))
    }

    /// Returns the sums, once everything before is done.
    pub fn read(&self, device: &Device) -> Result<Summed, CudaError> {
        Ok(Summed { values: self.values.read(device)?, squares: self.squares.read(device)? })
    }
}

fn part<T: Element>(of: &mut Buffer<T>, first: usize, n: usize) -> SliceMut<'_, T> {
    of.slice_mut(first..first + n)
}
