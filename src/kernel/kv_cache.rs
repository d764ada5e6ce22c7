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
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape { n_layers: 3, n_kv_heads: 2, head_dim: 6 };

    /// Keys and values of positions `from .. to`; `seed` tells sequences apart.
    fn rows(seed: usize, layer: usize, from: usize, to: usize) -> (Vec<f32>, Vec<f32>) {
        let n = SHAPE.n_kv_heads * SHAPE.head_dim;
        let value = |i: usize| (seed * 1_000_000 + layer * 100_000 + from * n + i) as f32;
        let k: Vec<f32> = (0..(to - from) * n).map(value).collect();
        let v = k.iter().map(|k| -k).collect();
        (k, v)
    }

    fn append(cache: &mut KvCache, id: SequenceId, seed: usize, n: usize) -> Result<(), Error> {
        let from = cache.len(id);
        cache.extend(id, n)?;
        for layer in 0..SHAPE.n_layers {
            let (k, v) = rows(seed, layer, from, from + n);
            cache.write(layer, id, from, &k, &v);
        }
        Ok(())
    }

    /// Asserts that positions `from .. to` hold what `append` with that seed wrote.
    fn check(cache: &KvCache, id: SequenceId, seed: usize, from: usize, to: usize) {
        let pages = cache.pages(id);
        for layer in 0..SHAPE.n_layers {
            for position in from..to {
                let (k, v) = rows(seed, layer, position, position + 1);
                for head in 0..SHAPE.n_kv_heads {
                    let (keys, values) = pages.tile(layer, head, position / PAGE);
                    for d in 0..SHAPE.head_dim {
                        let at = head * SHAPE.head_dim + d;
                        assert_eq!(keys[d * PAGE + position % PAGE], k[at]);
                        assert_eq!(values[position % PAGE * 16 + d], v[at]);
                    }
                }
            }
        }
    }

    fn pages(n: usize) -> KvCache {
        KvCache::new(SHAPE, n * SHAPE.page_bytes() + 5)
    }

    #[test]
    fn forks_share_full_pages_and_part_ways() {
        let mut cache = pages(20);
        let parent = cache.create();
        append(&mut cache, parent, 1, 40).unwrap();
        assert_eq!(cache.bytes_used(), SHAPE.bytes_for(40));
        let aligned = cache.fork(parent, 32).unwrap();
        assert_eq!(cache.bytes_used(), 3 * SHAPE.page_bytes(), "full pages are shared");
        let ragged = cache.fork(parent, 35).unwrap();
        assert_eq!(cache.bytes_used(), 4 * SHAPE.page_bytes(), "the partial page is copied");
        append(&mut cache, aligned, 2, 3).unwrap();
        append(&mut cache, ragged, 3, 30).unwrap();
        append(&mut cache, parent, 4, 1).unwrap();
        check(&cache, parent, 1, 0, 40);
        check(&cache, parent, 4, 40, 41);
        check(&cache, aligned, 1, 0, 32);
        check(&cache, aligned, 2, 32, 35);
        check(&cache, ragged, 1, 0, 35);
        check(&cache, ragged, 3, 35, 65);
        cache.free(parent);
        check(&cache, aligned, 1, 0, 32);
        check(&cache, ragged, 1, 0, 35);
        cache.free(aligned);
        cache.free(ragged);
        assert_eq!(cache.bytes_used(), 0);
        assert_eq!(cache.bytes_available(), cache.bytes_budget());
    }

    #[test]
    fn a_truncated_sequence_copies_the_shared_page_it_ends_in() {
        let mut cache = pages(8);
        let parent = cache.create();
        append(&mut cache, parent, 1, 48).unwrap();
        let child = cache.fork(parent, 48).unwrap();
        cache.truncate(child, 20);
        assert_eq!((cache.len(child), cache.bytes_used()), (20, SHAPE.bytes_for(48)));
        append(&mut cache, child, 2, 20).unwrap();
        check(&cache, parent, 1, 0, 48);
        check(&cache, child, 1, 0, 20);
        check(&cache, child, 2, 20, 40);
        cache.truncate(child, 0);
        assert!(cache.is_empty(child) && cache.bytes_used() == SHAPE.bytes_for(48));
    }

    #[test]
    fn a_full_cache_says_so_and_changes_nothing() {
        let mut cache = pages(3);
        let id = cache.create();
        append(&mut cache, id, 1, 20).unwrap();
        let Error::Full { needed, available, budget } = append(&mut cache, id, 1, 40).unwrap_err();
        let page = SHAPE.page_bytes();
        assert_eq!((needed, available, budget), (2 * page, page, 3 * page));
        assert_eq!(cache.len(id), 20);
        let other = cache.fork(id, 20).unwrap();
        assert!(cache.fork(id, 18).is_err());
        assert!(cache.extend(other, 13).is_err());
        append(&mut cache, other, 2, 12).unwrap();
        check(&cache, id, 1, 0, 20);
        check(&cache, other, 2, 20, 32);
        cache.free(id);
        append(&mut cache, other, 3, 10).unwrap();
        check(&cache, other, 3, 32, 42);
        let message = Error::Full { needed, available, budget }.to_string();
        let want =
            format!("the KV cache is full: {needed} bytes are needed and {available} of {budget} are free");
        assert_eq!(message, want);
    }

    #[test]
    fn tiles_of_a_page_never_overlap() {
        for slot in 0..20 {
            let mut starts: Vec<usize> = (0..SHAPE.n_layers)
                .flat_map(|layer| (0..SHAPE.n_kv_heads).map(move |head| (layer, head)))
                .map(|(layer, head)| tile_range(&SHAPE, layer, head, slot).start)
                .collect();
            starts.sort_unstable();
            let want: Vec<usize> = (0..SHAPE.n_tiles()).map(|i| i * SHAPE.tile_len()).collect();
            assert_eq!(starts, want);
        }
    }
}
