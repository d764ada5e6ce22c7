//! A matrix of weights where it lies.

use std::sync::Arc;

use crate::kernel::Isa;
use crate::tensor::{Dtype, RowMap};

/// Bytes that outlive the matrices over them: a mapped file, or a buffer.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A `[rows, cols]` matrix of weights: rows of whole blocks, one after another, perhaps to be read in another order.
#[derive(Clone)]
pub struct Matrix {
    bytes: SharedBytes,
    /// Offset of stored row 0 in `bytes`.
    offset: usize,
    dtype: Dtype,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    /// Which stored row is row i.
    map: RowMap,
}

impl Matrix {
    /// Returns the matrix whose stored rows begin at `offset` of `bytes`.
    ///
    /// # Panics
    /// If the rows are no whole blocks, leave `bytes`, or the format cannot be decoded (callers check headers).
    pub fn new(
        bytes: SharedBytes,
        offset: usize,
        dtype: Dtype,
        rows: usize,
        cols: usize,
        map: RowMap,
    ) -> Self {
        assert!(cols.is_multiple_of(dtype.block_len()) && dtype.can_decode());
        let row_bytes = cols / dtype.block_len() * dtype.block_bytes();
        assert!(offset + rows * row_bytes <= (*bytes).as_ref().len());
        Matrix { bytes, offset, dtype, rows, cols, row_bytes, map }
    }

    /// Returns the number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns (inputs).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the format of the stored rows.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Returns the stored bytes of row `row`.
    ///
    /// # Panics
    /// If `row >= rows()`.
    #[inline]
    pub fn row(&self, row: usize) -> &[u8] {
        assert!(row < self.rows);
        let start = self.offset + self.map.source_of(row) * self.row_bytes;
        &(*self.bytes).as_ref()[start..start + self.row_bytes]
    }

    /// Writes row `row` as f32.
    ///
    /// # Panics
    /// If `row >= rows()` or `out.len() != cols()`.
    pub fn decode_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        self.dtype.decode(isa, self.row(row), out);
    }
}
