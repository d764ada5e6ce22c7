//! Keys and values of sequences, in pages aligned to logical positions.
//!
//! A page holds [`PAGE`] positions of all layers. Sequences that share a prefix share its full pages, by reference
//! count; a partial page is copied before it is written to. What a slot holds that no position of the sequence has
//! written is unspecified: kernels must not let it into any result.

use std::collections::HashMap;
use std::ops::Range;

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
    max_pages: usize,
    pages: Vec<Page>,
    /// Slots of `pages` that nobody refers to.
    free: Vec<usize>,
    sequences: HashMap<SequenceId, Sequence>,
    next_id: usize,
}

/// Storage of [`PAGE`] positions: per layer and KV head, keys as `[head_dim][PAGE]`, then values as
/// `[PAGE][value_row_len]`.
struct Page {
    values: AlignedF32,
    n_refs: usize,
}

#[derive(Clone, Default)]
struct Sequence {
    /// Slot of each page, by position / PAGE.
    pages: Vec<usize>,
    len: usize,
    /// Of the first positions, as far as [`KvCache::note_tokens`] was told.
    tokens: Vec<u32>,
}

impl KvCache {
    /// Returns an empty cache of at most `budget_bytes` of pages, allocated as they are needed and kept for reuse.
    pub fn new(shape: KvShape, budget_bytes: usize) -> Self {
        KvCache {
            shape,
            max_pages: budget_bytes / shape.page_bytes().max(1),
            pages: Vec::new(),
            free: Vec::new(),
            sequences: HashMap::new(),
            next_id: 0,
        }
    }

    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Returns the bytes of the pages that sequences refer to, shared ones counted once.
    pub fn bytes_used(&self) -> usize {
        (self.pages.len() - self.free.len()) * self.shape.page_bytes()
    }

    /// Returns the bytes of pages that can still be taken.
    pub fn bytes_available(&self) -> usize {
        self.pages_available() * self.shape.page_bytes()
    }

    /// Returns the budget in bytes: whole pages.
    pub fn bytes_budget(&self) -> usize {
        self.max_pages * self.shape.page_bytes()
    }

    /// Returns a new, empty sequence.
    pub fn create(&mut self) -> SequenceId {
        self.insert(Sequence::default())
    }

    /// Returns a new sequence that begins with the first `len` positions of `id`: full pages are shared, a partial
    /// one is copied.
    ///
    /// Errors if there is no room for the copy.
    ///
    /// # Panics
    /// If `len > len(id)`.
    pub fn fork(&mut self, id: SequenceId, len: usize) -> Result<SequenceId, Error> {
        let parent = self.sequence(id);
        assert!(len <= parent.len, "fork at {len} of a sequence of {} positions", parent.len);
        let pages = parent.pages[..len.div_ceil(PAGE)].to_vec();
        let tokens = parent.tokens[..len.min(parent.tokens.len())].to_vec();
        let mut child = Sequence { pages, len, tokens };
        let is_partial = !len.is_multiple_of(PAGE);
        if is_partial {
            self.check_room(1)?;
        }
        for slot in &child.pages {
            self.pages[*slot].n_refs += 1;
        }
        if is_partial {
            self.own_last_page(&mut child);
        }
        Ok(self.insert(child))
    }

    /// Shortens a sequence to its first `len` positions.
    ///
    /// # Panics
    /// If `len > len(id)`.
    pub fn truncate(&mut self, id: SequenceId, len: usize) {
        let sequence = self.sequence_mut(id);
        assert!(len <= sequence.len, "truncate to {len} of a sequence of {} positions", sequence.len);
        sequence.len = len;
        sequence.tokens.truncate(len);
        let dropped = sequence.pages.split_off(len.div_ceil(PAGE));
        self.release(&dropped);
    }

    /// Forgets a sequence.
    pub fn free(&mut self, id: SequenceId) {
        let sequence = self.sequences.remove(&id).expect("a sequence is freed once");
        self.release(&sequence.pages);
    }

    /// Keeps the tokens of the positions behind those already noted: for models that compute a sequence anew when it
    /// outgrows a length.
    pub fn note_tokens(&mut self, id: SequenceId, tokens: &[u32]) {
        self.sequence_mut(id).tokens.extend_from_slice(tokens);
    }

    /// Returns the tokens noted.
    pub fn tokens(&self, id: SequenceId) -> &[u32] {
        &self.sequence(id).tokens
    }

    /// Gives `id` what `by` holds, and forgets `by`.
    pub fn replace(&mut self, id: SequenceId, by: SequenceId) {
        let new = self.sequences.remove(&by).expect("the caller holds ids of living sequences");
        let old = std::mem::replace(self.sequence_mut(id), new);
        self.release(&old.pages);
    }

    /// Returns the number of positions of a sequence.
    pub fn len(&self, id: SequenceId) -> usize {
        self.sequence(id).len
    }

    /// Returns true if a sequence has no positions.
    pub fn is_empty(&self, id: SequenceId) -> bool {
        self.len(id) == 0
    }

    /// Lengthens a sequence by `n` positions, reserving their pages in all layers; their content is unspecified
    /// until it is written.
    ///
    /// Errors if there is no room; the sequence is then as it was.
    pub fn extend(&mut self, id: SequenceId, n: usize) -> Result<(), Error> {
        if n == 0 {
            return Ok(());
        }
        let sequence = self.sequence(id);
        let len = sequence.len + n;
        let n_new = len.div_ceil(PAGE) - sequence.pages.len();
        // a truncated sequence can end inside a page that others share
        let shares_last = !sequence.len.is_multiple_of(PAGE)
            && sequence.pages.last().is_some_and(|slot| self.pages[*slot].n_refs > 1);
        self.check_room(n_new + usize::from(shares_last))?;
        let mut sequence = std::mem::take(self.sequence_mut(id));
        if shares_last {
            self.own_last_page(&mut sequence);
        }
        for _ in 0..n_new {
            sequence.pages.push(self.take_page());
        }
        sequence.len = len;
        *self.sequence_mut(id) = sequence;
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
        let sequence = &self.sequences[&id];
        let end = start + k.len() / row_len;
        assert!(end <= sequence.len, "a write beyond the sequence");
        let mut position = start;
        while position < end {
            let page_end = end.min((position / PAGE + 1) * PAGE);
            let slot = sequence.pages[position / PAGE];
            let page = &mut self.pages[slot];
            assert!(page.n_refs == 1, "a write to a shared page");
            // head by head: a tile stays in the nearest cache while its columns are filled
            for head in 0..self.shape.n_kv_heads {
                let tile = &mut page.values[tile_range(&self.shape, layer, head, slot)];
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
        let sequence = self.sequence(id);
        SequencePages { cache: self, slots: &sequence.pages }
    }

    fn sequence(&self, id: SequenceId) -> &Sequence {
        self.sequences.get(&id).expect("the caller holds ids of living sequences")
    }

    fn sequence_mut(&mut self, id: SequenceId) -> &mut Sequence {
        self.sequences.get_mut(&id).expect("the caller holds ids of living sequences")
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.sequences.insert(id, sequence);
        id
    }

    fn pages_available(&self) -> usize {
        self.max_pages - self.pages.len() + self.free.len()
    }

    fn check_room(&self, n_pages: usize) -> Result<(), Error> {
        if n_pages > self.pages_available() {
            return Err(Error::Full {
                needed: n_pages * self.shape.page_bytes(),
                available: self.bytes_available(),
                budget: self.bytes_budget(),
            });
        }
        Ok(())
    }

    /// Returns the slot of a page nobody else refers to. The caller checked that there is room.
    fn take_page(&mut self) -> usize {
        if let Some(slot) = self.free.pop() {
            self.pages[slot].n_refs = 1;
            return slot;
        }
        let values = AlignedF32::zeros(self.shape.n_tiles() * self.shape.tile_len());
        self.pages.push(Page { values, n_refs: 1 });
        self.pages.len() - 1
    }

    fn release(&mut self, slots: &[usize]) {
        for slot in slots {
            let page = &mut self.pages[*slot];
            page.n_refs -= 1;
            if page.n_refs == 0 {
                self.free.push(*slot);
            }
        }
    }

    /// Replaces the last page, which is partial and shared, by a copy. The caller checked that there is room.
    fn own_last_page(&mut self, sequence: &mut Sequence) {
        let Some(&shared) = sequence.pages.last() else { return };
        let n_used = sequence.len % PAGE;
        let copy = self.take_page();
        // taken out while the other page is borrowed
        let mut target = std::mem::take(&mut self.pages[copy].values);
        let source = &self.pages[shared].values;
        for layer in 0..self.shape.n_layers {
            for head in 0..self.shape.n_kv_heads {
                let from = &source[tile_range(&self.shape, layer, head, shared)];
                let to = &mut target[tile_range(&self.shape, layer, head, copy)];
                copy_positions(&self.shape, from, to, n_used);
            }
        }
        self.pages[copy].values = target;
        self.release(&[shared]);
        if let Some(last) = sequence.pages.last_mut() {
            *last = copy;
        }
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
        let tile = &self.cache.pages[slot].values[tile_range(shape, layer, head, slot)];
        tile.split_at(shape.key_len())
    }
}

#[cfg(test)]
mod tests;
