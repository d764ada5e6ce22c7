//! Keys and values of sequences in pages, and attention of new rows over them: `kernel::kv_cache`, `kernel::attention`.

use std::cmp::Reverse;
use std::ops::Range;

use super::super::CudaError;
use super::super::buffer::{Buffer, Float};
use super::super::device::Device;
use super::super::launch::{Arg, Launch};
use super::attention::{Family, MAX_HEAD_DIM};
use super::{arg, blocks, over_rows};
use crate::kernel::attention::AttentionShape;
use crate::kernel::kv_cache::{PAGE, PageCopy};

/// The sizes of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    pub n_layers: usize,
    /// Values of all KV heads of a position.
    pub row_len: usize,
    /// Bytes of a value: 4 for f32, 2 for bf16.
    pub value_bytes: usize,
}

impl PageShape {
    /// Returns the bytes of a page: keys and values of [`PAGE`] positions of all layers.
    pub fn page_bytes(&self) -> usize {
        self.n_layers * 2 * PAGE * self.row_len * self.value_bytes
    }

    /// Returns how many values lie before a layer's keys.
    fn layer_start(&self, layer: usize) -> usize {
        layer * 2 * PAGE * self.row_len
    }
}

/// Pages on a device by slot, in slabs that are made as slots are taken and kept until the end.
pub struct Pages {
    shape: PageShape,
    /// Each with its first slot.
    slabs: Vec<(usize, Buffer<u8>)>,
    n_slots: usize,
    most: usize,
}

impl Pages {
    /// Pages of the first slab.
    const FIRST: usize = 16;
    /// Bytes of a slab, from which on they grow no more.
    const LARGEST: usize = 128 << 20;

    /// Returns no pages, of `most` that there can be.
    pub fn new(shape: PageShape, most: usize) -> Pages {
        Pages { shape, slabs: Vec::new(), n_slots: 0, most }
    }

    pub fn shape(&self) -> PageShape {
        self.shape
    }

    /// Makes pages until there are `n`.
    ///
    /// Errors if the device has no room; pages that were made stay.
    ///
    /// # Panics
    /// If there can be no `n`.
    pub fn grow(&mut self, device: &Device, n: usize) -> Result<(), CudaError> {
        assert!(n <= self.most, "{n} pages where there can be {}", self.most);
        let page_bytes = self.shape.page_bytes();
        while self.n_slots < n {
            let largest = (Self::LARGEST / page_bytes.max(1)).max(1);
            let wanted = self.n_slots.max(Self::FIRST).min(largest).max(n - self.n_slots);
            let n_new = wanted.min(self.most - self.n_slots);
            self.slabs.push((self.n_slots, Buffer::uninit(device, n_new * page_bytes)?));
            self.n_slots += n_new;
        }
        Ok(())
    }

    /// Copies a page for whoever asked for its first positions: the rest of it is never read before it is written.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn copy(&mut self, device: &Device, PageCopy { from, to, .. }: PageCopy) -> Result<(), CudaError> {
        assert_ne!(from, to);
        let (from, to) = (self.address(from), self.address(to));
        // SAFETY: both are whole pages of ours, and not the same.
        unsafe { device.copy(to, from, self.shape.page_bytes()) }
    }

    fn address(&self, slot: usize) -> u64 {
        assert!(slot < self.n_slots, "page {slot} of {}", self.n_slots);
        let (first, slab) = &self.slabs[self.slabs.partition_point(|(first, _)| *first <= slot) - 1];
        slab.address_of((slot - first) * self.shape.page_bytes())
    }
}

/// Rows of consecutive positions of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct PagedSpan<'a> {
    pub first_row: usize,
    pub n_rows: usize,
    /// Position of the first.
    pub position: usize,
    /// Slots of the sequence's pages, by position / [`PAGE`]; those of all positions up to the last row.
    pub slots: &'a [usize],
}

/// Rows of a batch as the kernels take them: where each one's keys and values go, and into which pages its query looks.
pub struct PagedRows<'p> {
    pages: &'p Pages,
    family: Family,
    n_rows: usize,
    /// What follows in one piece.
    words: Buffer<u32>,
    tables: Range<usize>,
    rows: Range<usize>,
    tiles: Range<usize>,
}

impl<'p> PagedRows<'p> {
    /// Prepares rows that lie one after another, attended to by heads of `head_dim` values of T.
    ///
    /// # Panics
    /// If the rows do not follow each other, positions leave their pages, or heads are larger than [`MAX_HEAD_DIM`].
    pub fn new<T: Float>(
        device: &Device,
        pages: &'p Pages,
        head_dim: usize,
        spans: &[PagedSpan<'_>],
    ) -> Result<PagedRows<'p>, CudaError> {
        let family = Family::choose::<T>(head_dim, [head_dim; 3]);
        PagedRows::with_family(device, pages, head_dim, spans, family)
    }

    /// [`PagedRows::new`] with kernels of one's choice: to compare them.
    ///
    /// # Panics
    /// As there, and if the family has no such head size, or there are more than 65,535 tiles.
    pub fn with_family(
        device: &Device,
        pages: &'p Pages,
        head_dim: usize,
        spans: &[PagedSpan<'_>],
        family: Family,
    ) -> Result<PagedRows<'p>, CudaError> {
        assert!((1..=MAX_HEAD_DIM).contains(&head_dim));
        assert!(family == Family::Plain || pages.shape.value_bytes == 2);
        let tile_rows = family.paged_rows(head_dim);
        let (mut tables, mut rows, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
        let mut n_rows = 0;
        for span in spans {
            assert!(span.first_row == n_rows, "rows that do not follow each other");
            n_rows += span.n_rows;
            let end = span.position + span.n_rows;
            assert!(end.div_ceil(PAGE) <= span.slots.len(), "{end} positions in {} pages", span.slots.len());
            let table = tables.len() / 2;
            let addresses = span.slots[..end.div_ceil(PAGE)].iter().map(|slot| pages.address(*slot));
            tables.extend(addresses.flat_map(words));
            for position in span.position..end {
                rows.extend(words(pages.address(span.slots[position / PAGE])));
                rows.extend([blocks(position % PAGE), 0]);
            }
            for first in (0..span.n_rows).step_by(tile_rows) {
                let n = tile_rows.min(span.n_rows - first);
                let (row, position) = (blocks(span.first_row + first), blocks(span.position + first));
                tiles.push([row, blocks(n), position, blocks(table)]);
            }
        }
        assert!(tiles.len() <= 65_535, "{} tiles of attention", tiles.len());
        // those that see most first; stable, so that the list is one and the same
        tiles.sort_by_key(|[_, n, position, _]| Reverse(position + n));
        let (n_tables, n_words) = (tables.len(), tables.len() + rows.len());
        // pairs of words are read as one of 8 bytes: all before the tiles are pairs
        let all = [tables, rows, tiles.into_flattened()].concat();
        Ok(PagedRows {
            pages,
            family,
            n_rows,
            tables: 0..n_tables,
            rows: n_tables..n_words,
            tiles: n_words..all.len(),
            words: Buffer::of(device, &all)?,
        })
    }

    /// Writes the rows' keys and values of a layer, `[T, row_len]` each, to their pages.
    ///
    /// # Panics
    /// If the lengths disagree, or the pages are of another type.
    pub fn store<T: Float>(
        &self,
        device: &Device,
        layer: usize,
        k: &Buffer<T>,
        v: &Buffer<T>,
    ) -> Result<(), CudaError> {
        let shape = self.check::<T>(layer);
        assert!(k.len() == self.n_rows * shape.row_len && v.len() == k.len());
        let rows = self.words.slice(self.rows.clone());
        let from = Arg::U64(shape.layer_start(layer) as u64);
        let args = [k.arg(), v.arg(), rows.arg(), from, arg(shape.row_len)];
        // SAFETY: the lengths were checked; the rows are of these pages, which live.
        unsafe { over_rows(device, &format!("store_paged_{}", T::NAME), self.n_rows, &args) }
    }

    /// Writes the attention of every row, `[T, n_heads, head_dim]`, over what its sequence's pages hold up to its own position.
    ///
    /// # Panics
    /// If the lengths disagree, or the pages are of another type or of other heads.
    pub fn attention<T: Float>(
        &self,
        device: &Device,
        layer: usize,
        shape: &AttentionShape,
        q: &Buffer<T>,
        out: &mut Buffer<T>,
    ) -> Result<(), CudaError> {
        let pages = self.check::<T>(layer);
        let &AttentionShape { n_heads, n_kv_heads, head_dim, scale, softcap, window } = shape;
        assert!(n_heads.is_multiple_of(n_kv_heads) && pages.row_len == n_kv_heads * head_dim);
        assert!(q.len() == self.n_rows * n_heads * head_dim && out.len() == q.len());
        let q_stride = blocks(n_heads * head_dim);
        // `AttentionRules` of `attention.cuh`; a window beyond every position is none
        let rules = [
            blocks(n_heads),
            blocks(n_heads / n_kv_heads),
            window
                .and_then(|window| u32::try_from(window).ok())
                .filter(|window| *window < 1 << 30)
                .unwrap_or(0),
            blocks(head_dim),
            scale.to_bits(),
            softcap.unwrap_or(0.0).to_bits(),
            q_stride,
            blocks(pages.row_len),
            q_stride,
        ];
        let (tiles, tables) = (self.words.slice(self.tiles.clone()), self.words.slice(self.tables.clone()));
        let from = Arg::U64(pages.layer_start(layer) as u64);
        let args = [q.arg(), out.arg(), tiles.arg(), tables.arg(), from, Arg::Words(rules)];
        let (threads, shared) = self.family.paged_block(head_dim);
        let kernel = self.family.paged_kernel::<T>(head_dim);
        let grid = (blocks(n_heads), blocks(tiles.len() / 4));
        let launch = Launch { kernel: &kernel, grid, threads, shared: blocks(shared), args: &args };
        // SAFETY: the lengths were checked; tiles and tables are of these rows and pages, which live.
        unsafe { device.launch(&launch) }
    }

    fn check<T: Float>(&self, layer: usize) -> PageShape {
        let shape = self.pages.shape;
        assert!(shape.value_bytes == size_of::<T>() && layer < shape.n_layers);
        shape
    }
}

/// Returns an address as the kernels read it: its low word first.
fn words(address: u64) -> [u32; 2] {
    let bytes = address.to_le_bytes();
    let half = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    [half(0), half(4)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_those_of_the_kernels() {
        let kernels = include_str!("../kernels/paged.cuh");
        for line in [
            &*format!("constexpr int PAGE = {PAGE};"),
            "uint64_t page;\n    uint32_t slot, unused;",
            "uint32_t row, rows, position, table;",
        ] {
            assert!(kernels.contains(line), "{line}");
        }
        assert_eq!(words(0x0123_4567_89ab_cdef), [0x89ab_cdef, 0x0123_4567]);
        let shape = PageShape { n_layers: 3, row_len: 24, value_bytes: 2 };
        assert_eq!(shape.page_bytes(), 3 * 2 * 16 * 24 * 2);
        assert_eq!(shape.layer_start(2) * 2 * 3, shape.page_bytes() * 2);
    }
}
