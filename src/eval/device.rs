//! The decoder on a device as the engine sees it.

use std::ops::Range;

use super::collect::Observable;
use super::{LanguageModel, SequenceCache};
use crate::kernel::kv_cache;
use crate::model::device::{DeviceCache, DeviceDecoder, DeviceHidden, DeviceSums};
use crate::model::observe::{SiteSums, SiteTensors};
use crate::model::{Error, Scored, Segment, SequenceId};

/// Tokens computed at once: enough to fill a GPU, a multiple of what products take.
pub const BATCH_TOKENS: usize = 2048;

impl<'m> LanguageModel for DeviceDecoder<'m> {
    type Cache = DeviceCache<'m>;
    type Hidden = DeviceHidden;

    fn vocab_size(&self) -> usize {
        self.decoder().config().vocab_size
    }

    fn context_length(&self) -> usize {
        self.decoder().context_length()
    }

    fn cache_bytes(&self, n: usize) -> usize {
        DeviceDecoder::cache_bytes(self, n)
    }

    fn batch_tokens(&self) -> usize {
        BATCH_TOKENS
    }

    /// Three quarters of what is free, less what a batch takes, but never less than one whole context.
    fn cache_budget(&self) -> usize {
        let free = self.device().memory().map_or(0, |(free, _)| free);
        let left = free.saturating_sub(self.batch_bytes(BATCH_TOKENS)) / 4 * 3;
        let least = self.cache_bytes(LanguageModel::context_length(self));
        usize::try_from(left).unwrap_or(usize::MAX).max(least)
    }

    fn logit_rows(&self) -> usize {
        crate::model::device::TOGETHER
    }

    fn new_cache(&self, budget_bytes: usize) -> Result<DeviceCache<'m>, Error> {
        Ok(DeviceDecoder::new_cache(self, budget_bytes))
    }

    fn forward(&self, cache: &mut DeviceCache<'m>, segments: &[Segment<'_>]) -> Result<DeviceHidden, Error> {
        DeviceDecoder::forward(self, cache, segments)
    }

    fn score(&self, hidden: &DeviceHidden, targets: &[(usize, u32)]) -> Result<Vec<Scored>, Error> {
        DeviceDecoder::score(self, hidden, targets)
    }

    fn logits(&self, hidden: &DeviceHidden, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        DeviceDecoder::logits(self, hidden, rows)
    }
}

impl Observable for DeviceDecoder<'_> {
    type Sums = DeviceSums;

    fn new_sums(&self, sites: Vec<SiteTensors>) -> Result<DeviceSums, Error> {
        DeviceDecoder::new_sums(self, sites)
    }

    fn forward_observed(
        &self,
        cache: &mut Self::Cache,
        segments: &[Segment<'_>],
        sums: &mut DeviceSums,
    ) -> Result<DeviceHidden, Error> {
        DeviceDecoder::forward_observed(self, cache, segments, sums)
    }

    fn read_sums(&self, sums: DeviceSums) -> Result<Vec<SiteSums>, Error> {
        DeviceDecoder::read_sums(self, sums)
    }

    fn starts_anew_within(&self, length: usize) -> bool {
        self.decoder().starts_anew_within(length)
    }
}

impl SequenceCache for DeviceCache<'_> {
    const PAGE: usize = kv_cache::PAGE;

    fn page_bytes(&self) -> usize {
        self.ledger().page_bytes()
    }

    fn create(&mut self) -> SequenceId {
        DeviceCache::create(self)
    }

    fn fork(&mut self, sequence: SequenceId, len: usize) -> Result<SequenceId, Error> {
        DeviceCache::fork(self, sequence, len)
    }

    fn truncate(&mut self, sequence: SequenceId, len: usize) {
        DeviceCache::truncate(self, sequence, len);
    }

    fn free(&mut self, sequence: SequenceId) {
        DeviceCache::free(self, sequence);
    }
}
