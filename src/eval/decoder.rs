//! The one decoder as the engine sees it.

use std::ops::Range;

use candle_core::Tensor;

use super::{LanguageModel, SequenceCache};
use crate::kernel::{KvCache, KvShape, SequenceId, kv_cache};
use crate::model::{Decoder, Error, Scored, Segment};
use crate::nn;

impl LanguageModel for Decoder {
    type Cache = KvCache;
    type Hidden = Tensor;

    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    fn context_length(&self) -> usize {
        Decoder::context_length(self)
    }

    fn cache_bytes(&self, n: usize) -> usize {
        let config = self.config();
        let (n_layers, n_kv_heads, head_dim) = (config.n_layers, config.n_kv_heads, config.head_dim);
        KvShape { n_layers, n_kv_heads, head_dim }.bytes_for(n)
    }

    fn new_cache(&self, budget_bytes: usize) -> Result<KvCache, Error> {
        Ok(Decoder::new_cache(self, budget_bytes))
    }

    fn forward(&self, cache: &mut KvCache, segments: &[Segment<'_>]) -> Result<Tensor, Error> {
        Decoder::forward(self, cache, segments)
    }

    fn score(&self, hidden: &Tensor, targets: &[(usize, u32)]) -> Result<Vec<Scored>, Error> {
        Decoder::score(self, hidden, targets)
    }

    fn logits(&self, hidden: &Tensor, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        let logits = Decoder::logits(self, &hidden.narrow(0, rows.start, rows.len())?)?;
        Ok(nn::with_values(&logits, |values| values.to_vec())?)
    }
}

impl SequenceCache for KvCache {
    const PAGE: usize = kv_cache::PAGE;

    fn page_bytes(&self) -> usize {
        self.shape().page_bytes()
    }

    fn create(&mut self) -> SequenceId {
        KvCache::create(self)
    }

    fn fork(&mut self, sequence: SequenceId, len: usize) -> Result<SequenceId, Error> {
        Ok(KvCache::fork(self, sequence, len)?)
    }

    fn truncate(&mut self, sequence: SequenceId, len: usize) {
        KvCache::truncate(self, sequence, len);
    }

    fn free(&mut self, sequence: SequenceId) {
        KvCache::free(self, sequence);
    }
}
