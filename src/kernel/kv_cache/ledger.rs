//! Which sequences have which pages: all of a KV cache but what lies in the pages.
//!
//! Whoever stores them, here or on a device, asks a [`Ledger`] first, and does what it says.

use std::collections::HashMap;

use super::{Error, PAGE, SequenceId};

/// Sequences and their pages within a budget. A page is known by its slot; storage has as many as [`Ledger::n_slots`].
///
/// Unknown ids and positions beyond a sequence's length are bugs of the caller: methods panic.
pub struct Ledger {
    page_bytes: usize,
    max_pages: usize,
    /// How many sequences refer to each slot.
    n_refs: Vec<usize>,
    /// Slots that nobody refers to.
    free: Vec<usize>,
    sequences: HashMap<SequenceId, Sequence>,
    next_id: usize,
}

#[derive(Clone, Default)]
struct Sequence {
    /// Slot of each page, by position / PAGE.
    pages: Vec<usize>,
    len: usize,
    /// Of the first positions, as far as [`Ledger::note_tokens`] was told.
    tokens: Vec<u32>,
}

/// What storage has to do: slot `to` gets the first `n` positions of slot `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct PageCopy {
    pub from: usize,
    pub to: usize,
    pub n: usize,
}

impl Ledger {
    /// Returns a ledger without sequences, for pages of that many bytes, all of them at most `budget_bytes`.
    pub fn new(page_bytes: usize, budget_bytes: usize) -> Self {
        Ledger {
            page_bytes,
            max_pages: budget_bytes / page_bytes.max(1),
            n_refs: Vec::new(),
            free: Vec::new(),
            sequences: HashMap::new(),
            next_id: 0,
        }
    }

    /// Returns the bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Returns how many slots were ever taken.
    pub fn n_slots(&self) -> usize {
        self.n_refs.len()
    }

    /// Returns how many slots there will be once that many pages are taken.
    pub fn n_slots_with(&self, n_pages: usize) -> usize {
        self.n_refs.len() + n_pages.saturating_sub(self.free.len())
    }

    /// Returns how many sequences refer to a slot.
    pub fn n_refs(&self, slot: usize) -> usize {
        self.n_refs[slot]
    }

    /// Returns the bytes of the pages that sequences refer to, shared ones counted once.
    pub fn bytes_used(&self) -> usize {
        (self.n_refs.len() - self.free.len()) * self.page_bytes
    }

    /// Returns the bytes of pages that can still be taken.
    pub fn bytes_available(&self) -> usize {
        self.pages_available() * self.page_bytes
    }

    /// Returns the budget in bytes: whole pages.
    pub fn bytes_budget(&self) -> usize {
        self.max_pages * self.page_bytes
    }

    /// Returns a new, empty sequence.
    pub fn create(&mut self) -> SequenceId {
        self.insert(Sequence::default())
    }

    /// Returns a new sequence that begins with the first `len` positions of `id`, and what is to be copied for it: full pages are
    /// shared, a partial one is not.
    ///
    /// Errors if there is no room for the copy.
    ///
    /// # Panics
    /// If `len > len(id)`.
    pub fn fork(&mut self, id: SequenceId, len: usize) -> Result<(SequenceId, Option<PageCopy>), Error> {
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
            self.n_refs[*slot] += 1;
        }
        let copy = if is_partial { self.own_last_page(&mut child) } else { None };
        Ok((self.insert(child), copy))
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

    /// Returns the slots of a sequence's pages, by position / PAGE.
    pub fn slots(&self, id: SequenceId) -> &[usize] {
        &self.sequence(id).pages
    }

    /// Returns how many pages `n` more positions of a sequence take.
    pub fn pages_for(&self, id: SequenceId, n: usize) -> usize {
        let sequence = self.sequence(id);
        match n {
            0 => 0,
            _ => {
                let n_new = (sequence.len + n).div_ceil(PAGE) - sequence.pages.len();
                n_new + usize::from(self.shares_last(sequence))
            }
        }
    }

    /// Lengthens a sequence by `n` positions, whose pages are its own; returns what is to be copied for it.
    ///
    /// Errors if there is no room; the sequence is then as it was.
    pub fn extend(&mut self, id: SequenceId, n: usize) -> Result<Option<PageCopy>, Error> {
        if n == 0 {
            return Ok(None);
        }
        self.check_room(self.pages_for(id, n))?;
        let mut sequence = std::mem::take(self.sequence_mut(id));
        let len = sequence.len + n;
        let copy = if self.shares_last(&sequence) { self.own_last_page(&mut sequence) } else { None };
        while sequence.pages.len() < len.div_ceil(PAGE) {
            sequence.pages.push(self.take_page());
        }
        sequence.len = len;
        *self.sequence_mut(id) = sequence;
        Ok(copy)
    }

    /// Takes an [`Ledger::extend`] by `n` positions back whose copy could not be made: the sequence is then as it was, with the page that
    /// was to be copied.
    ///
    /// # Panics
    /// If it is none of the last extension of the sequence.
    pub fn take_back(&mut self, id: SequenceId, n: usize, copy: PageCopy) {
        let len = self.len(id) - n;
        self.truncate(id, len);
        let sequence = self.sequence_mut(id);
        let own = sequence.pages.last_mut().filter(|slot| **slot == copy.to);
        *own.expect("a sequence was extended into the copy of its last page") = copy.from;
        // others still share it
        self.n_refs[copy.from] += 1;
        self.release(&[copy.to]);
    }

    /// Errors if that many pages are not to be had.
    pub fn check_room(&self, n_pages: usize) -> Result<(), Error> {
        if n_pages > self.pages_available() {
            return Err(Error::Full {
                needed: n_pages * self.page_bytes,
                available: self.bytes_available(),
                budget: self.bytes_budget(),
            });
        }
        Ok(())
    }

    /// Returns whether a sequence ends inside a page that others share: one that was truncated can.
    fn shares_last(&self, sequence: &Sequence) -> bool {
        !sequence.len.is_multiple_of(PAGE) && sequence.pages.last().is_some_and(|slot| self.n_refs[*slot] > 1)
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
        self.max_pages - self.n_refs.len() + self.free.len()
    }

    /// Returns the slot of a page nobody else refers to. The caller checked that there is room.
    fn take_page(&mut self) -> usize {
        if let Some(slot) = self.free.pop() {
            self.n_refs[slot] = 1;
            return slot;
        }
        self.n_refs.push(1);
        self.n_refs.len() - 1
    }

    fn release(&mut self, slots: &[usize]) {
        for slot in slots {
            self.n_refs[*slot] -= 1;
            if self.n_refs[*slot] == 0 {
                self.free.push(*slot);
            }
        }
    }

    /// Replaces the last page, which is partial and shared, by one that is to be a copy. The caller checked that there is room.
    fn own_last_page(&mut self, sequence: &mut Sequence) -> Option<PageCopy> {
        let to = self.take_page();
        let from = std::mem::replace(sequence.pages.last_mut()?, to);
        self.release(&[from]);
        Some(PageCopy { from, to, n: sequence.len % PAGE })
    }
}
