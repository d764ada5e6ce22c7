//! Keys and values of sequences on a device.

use crate::cuda::Device;
use crate::cuda::op::paged::{PageShape, PagedSpan, Pages};
use crate::kernel::attention::Span;
use crate::kernel::kv_cache::{Ledger, PageCopy};
use crate::model::batch::Cache;
use crate::model::{Error, SequenceId};

/// Pages on a device that forks share, within a budget of bytes.
///
/// Unknown ids and positions beyond a sequence's length are bugs of the caller: methods panic.
pub struct DeviceCache<'m> {
    device: &'m Device,
    ledger: Ledger,
    pages: Pages,
}

impl<'m> DeviceCache<'m> {
    pub(super) fn new(device: &'m Device, shape: PageShape, budget_bytes: usize) -> Self {
        let ledger = Ledger::new(shape.page_bytes(), budget_bytes);
        let most = budget_bytes / shape.page_bytes().max(1);
        DeviceCache { device, ledger, pages: Pages::new(shape, most) }
    }

    /// Returns which sequences have which pages.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns a new, empty sequence.
    pub fn create(&mut self) -> SequenceId {
        self.ledger.create()
    }

    /// Returns a new sequence that begins with the first `len` positions of `sequence`: full pages are shared, a partial one is copied.
    ///
    /// Errors if there is no room for the copy, in the budget or on the device.
    pub fn fork(&mut self, sequence: SequenceId, len: usize) -> Result<SequenceId, Error> {
        // at most the copy of a partial page
        self.ensure(1)?;
        let (child, copy) = self.ledger.fork(sequence, len)?;
        if let Err(error) = self.copy(copy) {
            self.ledger.free(child);
            return Err(error);
        }
        Ok(child)
    }

    /// Shortens a sequence to its first `len` positions.
    pub fn truncate(&mut self, sequence: SequenceId, len: usize) {
        self.ledger.truncate(sequence, len);
    }

    /// Forgets a sequence.
    pub fn free(&mut self, sequence: SequenceId) {
        self.ledger.free(sequence);
    }

    pub(super) fn pages(&self) -> &Pages {
        &self.pages
    }

    /// Returns a span of rows with its pages.
    pub(super) fn span(&self, span: &Span) -> PagedSpan<'_> {
        let Span { sequence, start, first_row, n_rows } = *span;
        PagedSpan { first_row, n_rows, position: start, slots: self.ledger.slots(sequence) }
    }

    /// Makes what pages the ledger will take, as far as the budget goes: before it notes them, so that it notes none that are not there.
    fn ensure(&mut self, n_pages: usize) -> Result<(), Error> {
        if self.ledger.check_room(n_pages).is_ok() {
            self.pages.grow(self.device, self.ledger.n_slots_with(n_pages))?;
        }
        Ok(())
    }

    fn copy(&mut self, copy: Option<PageCopy>) -> Result<(), Error> {
        match copy {
            Some(copy) => Ok(self.pages.copy(self.device, copy)?),
            None => Ok(()),
        }
    }
}

impl Cache for DeviceCache<'_> {
    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    fn extend(&mut self, sequence: SequenceId, n: usize) -> Result<(), Error> {
        self.ensure(self.ledger.pages_for(sequence, n))?;
        let copy = self.ledger.extend(sequence, n)?;
        let copied = self.copy(copy);
        if let (Err(_), Some(copy)) = (&copied, copy) {
            self.ledger.take_back(sequence, n, copy);
        }
        copied
    }
}

#[cfg(all(test, feature = "cuda-host"))]
mod tests {
    use super::*;
    use crate::cuda::host::Options;
    use crate::kernel::kv_cache::PAGE;

    /// What the ledger knows.
    fn known(cache: &DeviceCache<'_>, sequences: &[SequenceId]) -> (usize, Vec<(usize, Vec<usize>)>) {
        let ledger = cache.ledger();
        let of = |id: &SequenceId| (ledger.len(*id), ledger.slots(*id).to_vec());
        (ledger.bytes_available(), sequences.iter().map(of).collect())
    }

    #[test]
    fn a_copy_that_fails_leaves_every_sequence_as_it_was() {
        let shape = PageShape { n_layers: 1, row_len: 4, value_bytes: 4 };
        // lost at once: copies fail, memory is still given
        let device = Device::host(Options { lost_after: Some(0), ..Options::default() });
        let mut cache = DeviceCache::new(&device, shape, 16 * shape.page_bytes());
        let parent = cache.create();
        cache.extend(parent, 3 * PAGE).unwrap();
        // whole pages are shared without a copy; shortened, the child ends inside one that the parent has, too
        let child = cache.fork(parent, 2 * PAGE).unwrap();
        cache.truncate(child, PAGE + 3);
        let before = known(&cache, &[parent, child]);
        // within the page, and far beyond it
        for n in [1, 3 * PAGE] {
            let error = cache.extend(child, n).unwrap_err().to_string();
            assert!(error.contains("was lost while a copy"), "{error}");
            assert_eq!(known(&cache, &[parent, child]), before, "{n}");
        }
        assert!(cache.fork(parent, PAGE + 1).is_err());
        assert_eq!(known(&cache, &[parent, child]), before);
        // every page comes back once
        cache.free(child);
        cache.free(parent);
        assert_eq!(cache.ledger().bytes_available(), cache.ledger().bytes_budget());
    }
}
