//! A matrix of weights: where it lies in its file, or packed in memory.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::nested::Nested;
use super::panels::{Layout, PANEL_ROWS};
use super::{Arithmetic, Compute};
use crate::kernel::Isa;
use crate::kernel::arena::{Arena, Block};
use crate::kernel::disjoint::for_row_blocks;
use crate::tensor::format::{BF16, BlockFormat as _, F16, F32, Nf4};
use crate::tensor::{Dtype, RowMap};

/// Bytes that outlive the matrices over them.
pub type SharedBytes = Arc<dyn Bytes>;

/// Bytes that weights lie in: a mapped file, or a buffer.
pub trait Bytes: AsRef<[u8]> + Send + Sync {
    /// Gives back the memory of `range`, if it can be had again when it is read.
    fn release(&self, range: Range<usize>);

    /// Returns whether they lie in a file, and in memory only once they are read.
    fn are_mapped(&self) -> bool {
        false
    }
}

impl Bytes for Vec<u8> {
    fn release(&self, _range: Range<usize>) {}
}

/// Values that matrices can lie in, as the parameters of a training do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Values(pub Vec<f32>);

impl AsRef<[u8]> for Values {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: f32 has no padding, and every byte is a u8.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), size_of_val(self.0.as_slice())) }
    }
}

impl Bytes for Values {
    fn release(&self, _range: Range<usize>) {}
}

impl Bytes for memmap2::Mmap {
    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the mapping is read-only and of a file: pages that are dropped are read again when they are
            // touched. Where the system refuses, nothing is lost.
            let _ = unsafe {
                self.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        let _ = range;
    }

    fn are_mapped(&self) -> bool {
        true
    }
}

/// A `[rows, cols]` matrix of weights, rows of whole blocks.
#[derive(Clone)]
pub struct Matrix {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    Rows(Rows),
    Panels(Panels),
    /// Of the format NF4.
    Nested(Arc<Nested>),
}

/// Rows one after another, perhaps to be read in another order.
#[derive(Clone)]
pub struct Rows {
    bytes: SharedBytes,
    /// Offset of stored row 0 in `bytes`.
    offset: usize,
    /// Which stored row is row i.
    map: RowMap,
}

/// Rows as [`super::panels`] has them.
#[derive(Clone)]
pub struct Panels {
    bytes: Block,
    pub layout: Layout,
}

impl Panels {
    /// Returns the bytes of panels `range`.
    ///
    /// # Panics
    /// If there are no such panels.
    #[inline]
    pub fn panels(&self, range: Range<usize>) -> &[u8] {
        let bytes = self.layout.panel_bytes();
        &self.bytes[range.start * bytes..range.end * bytes]
    }
}

/// How a matrix lies.
pub enum Stored<'a> {
    /// Row by row: see [`Matrix::row`] and [`Matrix::decode_cols`].
    Rows,
    Panels(&'a Panels),
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
        Matrix { dtype, rows, cols, row_bytes, storage: Storage::Rows(Rows { bytes, offset, map }) }
    }

    /// Returns the matrix whose values begin at `values[first]`.
    ///
    /// # Panics
    /// If it leaves them.
    pub fn of_values(values: Arc<Values>, first: usize, rows: usize, cols: usize) -> Self {
        const { assert!(cfg!(target_endian = "little"), "stored numbers are") };
        Matrix::new(values, 4 * first, Dtype(&F32), rows, cols, RowMap::Identity)
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

    /// Returns the bytes of a stored row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Returns how the matrix lies.
    #[inline]
    pub fn stored(&self) -> Stored<'_> {
        match &self.storage {
            Storage::Rows(_) | Storage::Nested(_) => Stored::Rows,
            Storage::Panels(panels) => Stored::Panels(panels),
        }
    }

    /// Returns the blocks whose scales are quantized, if it has such.
    #[cfg(gpu)]
    pub(crate) fn nested(&self) -> Option<&Nested> {
        match &self.storage {
            Storage::Nested(nested) => Some(nested),
            _ => None,
        }
    }

    /// Returns the bytes that the matrix takes, where it lies or packed.
    pub fn stored_bytes(&self) -> usize {
        match &self.storage {
            Storage::Rows(_) => self.rows * self.row_bytes,
            Storage::Panels(_) => self.packed_bytes(),
            Storage::Nested(nested) => nested.bytes(),
        }
    }

    /// Returns the stored bytes of row `row`; where they lie in another form they are put together anew.
    ///
    /// # Panics
    /// If `row >= rows()`.
    #[inline]
    pub fn row(&self, row: usize) -> Cow<'_, [u8]> {
        assert!(row < self.rows);
        match &self.storage {
            Storage::Rows(_) => Cow::Borrowed(self.mapped_row(row)),
            Storage::Panels(Panels { bytes, layout }) => {
                let mut out = vec![0; self.row_bytes];
                let panel = &bytes[row / PANEL_ROWS * layout.panel_bytes()..][..layout.panel_bytes()];
                layout.unpack(panel, row % PANEL_ROWS, 0..layout.units(), &mut out);
                Cow::Owned(out)
            }
            Storage::Nested(nested) => Cow::Owned(nested.nf4(self.blocks(row, 0..self.cols))),
        }
    }

    /// Returns which blocks of all rows `cols` of row `row` are.
    fn blocks(&self, row: usize, cols: Range<usize>) -> Range<usize> {
        let (len, first) = (self.dtype.block_len(), row * self.cols);
        (first + cols.start) / len..(first + cols.end) / len
    }

    /// Returns the bytes of row `row` where they lie.
    ///
    /// # Panics
    /// If the matrix is packed or `row >= rows()`.
    #[inline]
    pub fn mapped_row(&self, row: usize) -> &[u8] {
        let Storage::Rows(Rows { bytes, offset, map }) = &self.storage else {
            panic!("a packed matrix has no rows");
        };
        assert!(row < self.rows);
        let start = offset + map.source_of(row) * self.row_bytes;
        &(**bytes).as_ref()[start..start + self.row_bytes]
    }

    /// Writes row `row` as f32.
    ///
    /// # Panics
    /// If `row >= rows()` or `out.len() != cols()`.
    pub fn decode_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        self.decode_cols(isa, row, 0..self.cols, out);
    }

    /// Writes columns `cols` of row `row`, whole blocks, as f32.
    ///
    /// # Panics
    /// If they are no whole blocks of the matrix, or `out.len() != cols.len()`.
    #[inline]
    pub fn decode_cols(&self, isa: Isa, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let len = self.dtype.block_len();
        assert!(row < self.rows && cols.end <= self.cols);
        assert!(cols.start.is_multiple_of(len) && cols.end.is_multiple_of(len));
        let at = |col: usize| col / len * self.dtype.block_bytes();
        match &self.storage {
            Storage::Rows(_) => {
                self.dtype.decode(isa, &self.mapped_row(row)[at(cols.start)..at(cols.end)], out);
            }
            Storage::Panels(_) => self.dtype.decode(isa, &self.row(row)[at(cols.start)..at(cols.end)], out),
            Storage::Nested(nested) => nested.decode(isa, self.blocks(row, cols), out),
        }
    }

    /// Returns the bytes of columns `cols` of row `row`, whole blocks, where they lie as rows.
    ///
    /// # Panics
    /// If the row or columns are not there.
    #[inline]
    pub fn stored_cols(&self, row: usize, cols: Range<usize>) -> Option<&[u8]> {
        let at = |col: usize| col / self.dtype.block_len() * self.dtype.block_bytes();
        match &self.storage {
            Storage::Rows(_) => Some(&self.mapped_row(row)[at(cols.start)..at(cols.end)]),
            Storage::Panels(_) | Storage::Nested(_) => None,
        }
    }

    /// Gives back the memory of the stored rows, if it can be had again when they are read.
    pub fn release(&self) {
        if let Storage::Rows(Rows { bytes, offset, .. }) = &self.storage {
            bytes.release(*offset..offset + self.rows * self.row_bytes);
        }
    }

    /// Returns the bytes that lie in a file, and in memory once the matrix is read: none of one that is in memory already.
    pub fn mapped_bytes(&self) -> usize {
        match &self.storage {
            Storage::Rows(Rows { bytes, .. }) if bytes.are_mapped() => self.rows * self.row_bytes,
            _ => 0,
        }
    }

    /// Returns whether products in `arithmetic` gain from [`Matrix::packed`]: where they would decode the weights
    /// first, they don't.
    pub fn packs_for(&self, arithmetic: Arithmetic) -> bool {
        let is = |name: &str| self.dtype.name() == name;
        matches!(self.storage, Storage::Rows(_))
            && match arithmetic {
                Arithmetic::F32 => is(F32.name()) || is(F16.name()) || is(BF16.name()),
                Arithmetic::Bf16 => is(BF16.name()),
                Arithmetic::Int8 => true,
            }
    }

    /// Returns the bytes that [`Matrix::packed`] takes.
    pub fn packed_bytes(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS) * Layout::of(self.dtype, self.cols).panel_bytes()
    }

    /// Returns the matrix packed into `arena`, which must have room for [`Matrix::packed_bytes`]; memory of the stored
    /// rows is given back as they are passed.
    ///
    /// # Panics
    /// If the arena is too small.
    pub fn packed(&self, compute: &Compute, arena: &mut Arena) -> Matrix {
        let layout = Layout::of(self.dtype, self.cols);
        let panel_bytes = layout.panel_bytes();
        let together = (RELEASE_BYTES / panel_bytes.max(1)).max(1);
        let bytes = arena.fill(self.packed_bytes(), |out| {
            for (i, out) in out.chunks_mut((together * panel_bytes).max(1)).enumerate() {
                let first = i * together;
                for_row_blocks(&compute.team, out, panel_bytes, |panel, out| {
                    for (i, out) in out.chunks_exact_mut(panel_bytes).enumerate() {
                        self.pack_panel(compute.isa, &layout, first + panel + i, out);
                    }
                });
                if let Storage::Rows(Rows { bytes, offset, .. }) = &self.storage {
                    let row = |panel: usize| offset + (panel * PANEL_ROWS).min(self.rows) * self.row_bytes;
                    bytes.release(row(first)..row(first + together));
                }
            }
        });
        Matrix { storage: Storage::Panels(Panels { bytes, layout }), ..self.clone() }
    }

    /// Returns the matrix in memory in a format of blocks; the memory of the stored rows is given back. With `nested`, which is for
    /// NF4, the scales are quantized too.
    ///
    /// Errors with the first weight that is not finite, or is not in that format.
    ///
    /// # Panics
    /// If rows are no whole blocks, the format has no encoder, or `nested` is set for another one.
    pub fn quantized(&self, compute: &Compute, dtype: Dtype, nested: bool) -> Result<Matrix, Unquantizable> {
        assert!(self.cols.is_multiple_of(dtype.block_len()) && dtype.can_encode());
        assert!(!nested || dtype.name() == Nf4.name());
        let row_bytes = self.cols / dtype.block_len() * dtype.block_bytes();
        let mut bytes = vec![0; self.rows * row_bytes];
        let bad = Mutex::new(None::<Unquantizable>);
        let together = (RELEASE_BYTES / self.row_bytes.max(1)).max(1);
        for (i, out) in bytes.chunks_mut((together * row_bytes).max(1)).enumerate() {
            for_row_blocks(&compute.team, out, row_bytes, |first, out| {
                let first = i * together + first;
                if let Err(found) = self.encode_rows(compute.isa, dtype, first, out) {
                    let mut bad = bad.lock().unwrap_or_else(PoisonError::into_inner);
                    // the first of all, whichever thread comes first
                    *bad = Some(bad.map_or(found, |other| other.min(found)));
                }
            });
            if let Storage::Rows(Rows { bytes, offset, .. }) = &self.storage {
                let row = |row: usize| offset + row.min(self.rows) * self.row_bytes;
                bytes.release(row(i * together)..row((i + 1) * together));
            }
        }
        if let Some(bad) = bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(bad);
        }
        let storage = match nested {
            true => Storage::Nested(Arc::new(Nested::of(&bytes))),
            false => Storage::Rows(Rows { bytes: Arc::new(bytes), offset: 0, map: RowMap::Identity }),
        };
        Ok(Matrix { dtype, row_bytes, storage, ..*self })
    }

    /// Encodes rows from `first` on.
    fn encode_rows(&self, isa: Isa, dtype: Dtype, first: usize, out: &mut [u8]) -> Result<(), Unquantizable> {
        let row_bytes = self.cols / dtype.block_len() * dtype.block_bytes();
        let mut values = vec![0.0; self.cols];
        for (row, out) in (first..).zip(out.chunks_exact_mut(row_bytes)) {
            let finite = |values: &[f32]| match values.iter().position(|value| !value.is_finite()) {
                Some(col) => Err(Unquantizable { row, col }),
                None => Ok(()),
            };
            self.decode_row(isa, row, &mut values);
            finite(&values)?;
            dtype.encode(isa, &values, self.cols, None, out);
            // a scale may not fit into its half
            dtype.decode(isa, out, &mut values);
            finite(&values)?;
        }
        Ok(())
    }

    fn pack_panel(&self, isa: Isa, layout: &Layout, panel: usize, out: &mut [u8]) {
        let row = |row: usize| self.row((panel * PANEL_ROWS + row).min(self.rows - 1));
        let rows: [Cow<'_, [u8]>; PANEL_ROWS] = std::array::from_fn(row);
        layout.pack(isa, &std::array::from_fn(|row| &*rows[row]), 0..layout.units(), out);
    }
}

/// Where a weight is that a format cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unquantizable {
    pub row: usize,
    pub col: usize,
}

/// Bytes that are packed before those they came from are given back.
const RELEASE_BYTES: usize = 32 << 20;
