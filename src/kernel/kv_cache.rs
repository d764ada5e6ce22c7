//! Keys and values of sequences, in pages aligned to logical positions.
//!
//! A page holds [`PAGE`] positions of all layers. Sequences that share a prefix share its full pages, by reference
//! count; a partial page is copied before it is written to. What a slot holds that no position of the sequence has
//! written is unspecified: kernels must not let it into any result.

mod ledger;

use std::ops::Range;

pub use ledger::{Ledger, PageCopy};

use super::aligned::AlignedF32;
use crate::error::Diagnostic;

/// Positions per page.
pub const PAGE: usize = 16;

/// A sequence in a KV cache; never used again after it was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub usize);

/// The sizes of a model's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub n_layers: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
}

impl KvShape {
    /// Returns the bytes of one page.
    pub fn page_bytes(&self) -> usize {
        self.n_tiles() * self.tile_len() * size_of::<f32>()
    }

    /// Returns the bytes that a sequence of `n` positions takes, shared with no other.
    pub fn bytes_for(&self, n: usize) -> usize {
        n.div_ceil(PAGE) * self.page_bytes()
    }

    fn n_tiles(&self) -> usize {
        self.n_layers * self.n_kv_heads
    }

    /// Values of one head's rows of V: whole cache lines, so that kernels need no tail.
    fn value_row_len(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    fn key_len(&self) -> usize {
        self.head_dim * PAGE
    }

    fn tile_len(&self) -> usize {
        self.key_len() + self.value_row_len() * PAGE
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the KV cache is full: {needed} bytes are needed and {available} of {budget} are free")]
    Full { needed: usize, available: usize, budget: usize },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        Some("give the KV cache more memory, or use shorter prompts or smaller batches".into())
    }
}

/// The keys and values of many sequences, f32, within a budget of bytes.
///
/// Unknown ids and positions beyond a sequence's length are bugs of the caller: methods panic.
pub struct KvCache {
    shape: KvShape,
    ledger: Ledger,
    /// By slot, the storage of [`PAGE`] positions: per layer and KV head, keys as `[head_dim][PAGE]`, then values as
    /// `[PAGE][value_row_len]`.
    pages: Vec<AlignedF32>,
}

impl KvCache {
    /// Returns an empty cache of at most `budget_bytes` of pages, allocated as they are needed and kept for reuse.
    pub fn new(shape: KvShape, budget_bytes: usize) -> Self {
        KvCache { shape, ledger: Ledger::new(shape.page_bytes(), budget_bytes), pages: Vec::new() }
    }

    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Returns which sequences have which pages.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns the same, for what touches no values. Pages are taken by [`KvCache::fork`] and [`KvCache::extend`], which store.
    pub fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Returns the bytes of the pages that sequences refer to, shared ones counted once.
    pub fn bytes_used(&self) -> usize {
        self.ledger.bytes_used()
    }

    /// Returns the bytes of pages that can still be taken.
    pub fn bytes_available(&self) -> usize {
        self.ledger.bytes_available()
    }

    /// Returns the budget in bytes: whole pages.
    pub fn bytes_budget(&self) -> usize {
        self.ledger.bytes_budget()
    }

    /// Returns a new, empty sequence.
    pub fn create(&mut self) -> SequenceId {
        self.ledger.create()
    }

    /// Returns a new sequence that begins with the first `len` positions of `id`: full pages are shared, a partial
    /// one is copied.
    ///
    /// Errors if there is no room for the copy.
    ///
    /// # Panics
    /// If `len > len(id)`.
    pub fn fork(&mut self, id: SequenceId, len: usize) -> Result<SequenceId, Error> {
        let (child, copy) = self.ledger.fork(id, len)?;
        self.store(copy);
        Ok(child)
    }

    /// Shortens a sequence to its first `len` positions.
    ///
    /// # Panics
    /// If `len > len(id)`.
    pub fn truncate(&mut self, id: SequenceId, len: usize) {
        self.ledger.truncate(id, len);
    }

    /// Forgets a sequence.
    pub fn free(&mut self, id: SequenceId) {
        self.ledger.free(id);
    }

    /// Returns the number of positions of a sequence.
    pub fn len(&self, id: SequenceId) -> usize {
        self.ledger.len(id)
    }

    /// Returns true if a sequence has no positions.
    pub fn is_empty(&self, id: SequenceId) -> bool {
        self.ledger.is_empty(id)
    }

    /// Lengthens a sequence by `n` positions, reserving their pages in all layers; their content is unspecified
    /// until it is written.
    ///
    /// Errors if there is no room; the sequence is then as it was.
    pub fn extend(&mut self, id: SequenceId, n: usize) -> Result<(), Error> {
        let copy = self.ledger.extend(id, n)?;
        self.store(copy);
        Ok(())
    }

    /// Stores keys and values of positions `start ..`; k and v are `[n, n_kv_heads, head_dim]`.
    ///
    /// # Panics
    /// If k and v disagree, are no whole rows, leave the sequence, or touch a page that another sequence shares
    /// (positions that [`KvCache::extend`] added since the last fork are never shared).
    pub fn write(&mut self, layer: usize, id: SequenceId, start: usize, k: &[f32], v: &[f32]) {
        let row_len = self.shape.n_kv_heads * self.shape.head_dim;
        assert!(k.len() == v.len() && k.len().is_multiple_of(row_len));
        let end = start + k.len() / row_len;
        assert!(end <= self.ledger.len(id), "a write beyond the sequence");
        let mut position = start;
        while position < end {
            let page_end = end.min((position / PAGE + 1) * PAGE);
            let slot = self.ledger.slots(id)[position / PAGE];
            assert!(self.ledger.n_refs(slot) == 1, "a write to a shared page");
            let page = &mut self.pages[slot];
            // head by head: a tile stays in the nearest cache while its columns are filled
            for head in 0..self.shape.n_kv_heads {
                let tile = &mut page[tile_range(&self.shape, layer, head, slot)];
                for position in position..page_end {
                    let at = (position - start) * row_len + head * self.shape.head_dim;
                    let row = at..at + self.shape.head_dim;
                    write_position(&self.shape, tile, position % PAGE, &k[row.clone()], &v[row]);
                }
            }
            position = page_end;
        }
    }

    /// Returns the pages of a sequence, for kernels.
    pub(super) fn pages(&self, id: SequenceId) -> SequencePages<'_> {
        SequencePages { cache: self, slots: self.ledger.slots(id) }
    }

    /// Makes storage for slots that were taken, and the copy that is due.
    fn store(&mut self, copy: Option<PageCopy>) {
        let shape = self.shape;
        self.pages
            .resize_with(self.ledger.n_slots(), || AlignedF32::zeros(shape.n_tiles() * shape.tile_len()));
        let Some(PageCopy { from, to, n }) = copy else { return };
        // taken out while the other page is borrowed
        let mut target = std::mem::take(&mut self.pages[to]);
        let source = &self.pages[from];
        for layer in 0..shape.n_layers {
            for head in 0..shape.n_kv_heads {
                let tile = &source[tile_range(&shape, layer, head, from)];
                copy_positions(&shape, tile, &mut target[tile_range(&shape, layer, head, to)], n);
            }
        }
        self.pages[to] = target;
    }
}

/// Where a layer's head lies in the page of that slot.
///
/// Tiles rotate with the slot: in pages of a power of two, one head's tiles would otherwise all compete for the same
/// cache sets.
fn tile_range(shape: &KvShape, layer: usize, head: usize, slot: usize) -> Range<usize> {
    let index = (layer * shape.n_kv_heads + head + slot) % shape.n_tiles();
    index * shape.tile_len()..(index + 1) * shape.tile_len()
}

fn write_position(shape: &KvShape, tile: &mut [f32], slot: usize, k: &[f32], v: &[f32]) {
    let (keys, values) = tile.split_at_mut(shape.key_len());
    for (keys, k) in keys.chunks_exact_mut(PAGE).zip(k) {
        keys[slot] = *k;
    }
    values[slot * shape.value_row_len()..][..v.len()].copy_from_slice(v);
}

/// Copies the first `n` positions of a tile.
fn copy_positions(shape: &KvShape, from: &[f32], to: &mut [f32], n: usize) {
    let split = shape.key_len();
    for (to, from) in to[..split].chunks_exact_mut(PAGE).zip(from[..split].chunks_exact(PAGE)) {
        to[..n].copy_from_slice(&from[..n]);
    }
    let n_values = n * shape.value_row_len();
    to[split..][..n_values].copy_from_slice(&from[split..][..n_values]);
}

/// A sequence's pages as kernels read them.
#[derive(Clone, Copy)]
pub(super) struct SequencePages<'a> {
    cache: &'a KvCache,
    slots: &'a [usize],
}

impl<'a> SequencePages<'a> {
    /// Returns keys, `[head_dim][PAGE]`, and values, `[PAGE][head_dim rounded up to 16]`, of positions
    /// `PAGE * page ..` of one head.
    #[inline]
    pub fn tile(&self, layer: usize, head: usize, page: usize) -> (&'a [f32], &'a [f32]) {
        let slot = self.slots[page];
        let shape = &self.cache.shape;
        let tile = &self.cache.pages[slot][tile_range(shape, layer, head, slot)];
        tile.split_at(shape.key_len())
    }
}

#[cfg(test)]
mod tests;
