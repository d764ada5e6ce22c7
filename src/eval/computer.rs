//! A model on what a command computes with: the CPU, or a device.

use std::ops::Range;

use candle_core::Tensor;

use super::collect::Observable;
use super::{LanguageModel, SequenceCache};
use crate::kernel::KvCache;
use crate::model::observe::{InputSums, SiteSums, SiteTensors};
use crate::model::{Decoder, Error, Scored, Segment, SequenceId};

/// A model where it is computed: on the CPU, or as D.
pub enum On<'m, D> {
    Cpu(&'m Decoder),
    Device(D),
}

/// A model where this build can compute it.
#[cfg(gpu)]
pub type Computer<'m> = On<'m, crate::model::device::DeviceDecoder<'m>>;

/// A model where this build can compute it: on the CPU.
#[cfg(not(gpu))]
pub type Computer<'m> = On<'m, none::None>;

/// Keys and values, hidden states, or sums, of either.
pub enum Of<C, D> {
    Cpu(C),
    Device(D),
}

impl<D> On<'_, D> {
    /// Gives a device's memory back.
    pub fn close(self) {}
}

/// # Panics
/// Always: what came of one computer goes back to it.
fn of_another() -> ! {
    panic!("keys and values, hidden states, or sums, of another computer")
}

impl<D: LanguageModel> LanguageModel for On<'_, D> {
    type Cache = Of<KvCache, D::Cache>;
    type Hidden = Of<Tensor, D::Hidden>;

    fn vocab_size(&self) -> usize {
        match self {
            On::Cpu(model) => model.vocab_size(),
            On::Device(model) => model.vocab_size(),
        }
    }

    fn context_length(&self) -> usize {
        match self {
            On::Cpu(model) => model.context_length(),
            On::Device(model) => model.context_length(),
        }
    }

    fn cache_bytes(&self, n: usize) -> usize {
        match self {
            On::Cpu(model) => model.cache_bytes(n),
            On::Device(model) => model.cache_bytes(n),
        }
    }

    fn batch_tokens(&self) -> usize {
        match self {
            On::Cpu(model) => model.batch_tokens(),
            On::Device(model) => model.batch_tokens(),
        }
    }

    fn cache_budget(&self) -> usize {
        match self {
            On::Cpu(model) => model.cache_budget(),
            On::Device(model) => model.cache_budget(),
        }
    }

    fn logit_rows(&self) -> usize {
        match self {
            On::Cpu(model) => model.logit_rows(),
            On::Device(model) => model.logit_rows(),
        }
    }

    fn new_cache(&self, budget_bytes: usize) -> Result<Self::Cache, Error> {
        Ok(match self {
            On::Cpu(model) => Of::Cpu(LanguageModel::new_cache(*model, budget_bytes)?),
            On::Device(model) => Of::Device(model.new_cache(budget_bytes)?),
        })
    }

    fn forward(&self, cache: &mut Self::Cache, segments: &[Segment<'_>]) -> Result<Self::Hidden, Error> {
        Ok(match (self, cache) {
            (On::Cpu(model), Of::Cpu(cache)) => Of::Cpu(model.forward(cache, segments)?),
            (On::Device(model), Of::Device(cache)) => Of::Device(model.forward(cache, segments)?),
            _ => of_another(),
        })
    }

    fn score(&self, hidden: &Self::Hidden, targets: &[(usize, u32)]) -> Result<Vec<Scored>, Error> {
        match (self, hidden) {
            (On::Cpu(model), Of::Cpu(hidden)) => model.score(hidden, targets),
            (On::Device(model), Of::Device(hidden)) => model.score(hidden, targets),
            _ => of_another(),
        }
    }

    fn logits(&self, hidden: &Self::Hidden, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        match (self, hidden) {
            (On::Cpu(model), Of::Cpu(hidden)) => LanguageModel::logits(*model, hidden, rows),
            (On::Device(model), Of::Device(hidden)) => model.logits(hidden, rows),
            _ => of_another(),
        }
    }
}

impl<D: Observable> Observable for On<'_, D> {
    type Sums = Of<InputSums, D::Sums>;

    fn new_sums(&self, sites: Vec<SiteTensors>) -> Result<Self::Sums, Error> {
        Ok(match self {
            On::Cpu(model) => Of::Cpu(model.new_sums(sites)?),
            On::Device(model) => Of::Device(model.new_sums(sites)?),
        })
    }

    fn forward_observed(
        &self,
        cache: &mut Self::Cache,
        segments: &[Segment<'_>],
        sums: &mut Self::Sums,
    ) -> Result<Self::Hidden, Error> {
        Ok(match (self, cache, sums) {
            (On::Cpu(model), Of::Cpu(cache), Of::Cpu(sums)) => {
                Of::Cpu(model.forward_observed(cache, segments, sums)?)
            }
            (On::Device(model), Of::Device(cache), Of::Device(sums)) => {
                Of::Device(model.forward_observed(cache, segments, sums)?)
            }
            _ => of_another(),
        })
    }

    fn read_sums(&self, sums: Self::Sums) -> Result<Vec<SiteSums>, Error> {
        match (self, sums) {
            (On::Cpu(model), Of::Cpu(sums)) => model.read_sums(sums),
            (On::Device(model), Of::Device(sums)) => model.read_sums(sums),
            _ => of_another(),
        }
    }

    fn starts_anew_within(&self, length: usize) -> bool {
        match self {
            On::Cpu(model) => model.starts_anew_within(length),
            On::Device(model) => model.starts_anew_within(length),
        }
    }
}

impl<D: SequenceCache> SequenceCache for Of<KvCache, D> {
    const PAGE: usize = {
        assert!(KvCache::PAGE == D::PAGE);
        KvCache::PAGE
    };

    fn page_bytes(&self) -> usize {
        match self {
            Of::Cpu(cache) => cache.page_bytes(),
            Of::Device(cache) => cache.page_bytes(),
        }
    }

    fn create(&mut self) -> SequenceId {
        match self {
            Of::Cpu(cache) => cache.create(),
            Of::Device(cache) => cache.create(),
        }
    }

    fn fork(&mut self, sequence: SequenceId, len: usize) -> Result<SequenceId, Error> {
        match self {
            Of::Cpu(cache) => SequenceCache::fork(cache, sequence, len),
            Of::Device(cache) => cache.fork(sequence, len),
        }
    }

    fn truncate(&mut self, sequence: SequenceId, len: usize) {
        match self {
            Of::Cpu(cache) => cache.truncate(sequence, len),
            Of::Device(cache) => cache.truncate(sequence, len),
        }
    }

    fn free(&mut self, sequence: SequenceId) {
        match self {
            Of::Cpu(cache) => cache.free(sequence),
            Of::Device(cache) => cache.free(sequence),
        }
    }
}

/// What there is of a device in a build without one.
#[cfg(not(gpu))]
pub mod none {
    use super::{
        Error, LanguageModel, Observable, Range, Scored, Segment, SequenceCache, SequenceId, SiteSums,
        SiteTensors,
    };
    use crate::kernel::kv_cache;

    /// No model on a device: it has no value.
    #[derive(Clone, Copy, Debug)]
    pub enum None {}

    impl LanguageModel for None {
        type Cache = None;
        type Hidden = None;

        fn vocab_size(&self) -> usize {
            match *self {}
        }

        fn context_length(&self) -> usize {
            match *self {}
        }

        fn cache_bytes(&self, _: usize) -> usize {
            match *self {}
        }

        fn new_cache(&self, _: usize) -> Result<None, Error> {
            match *self {}
        }

        fn forward(&self, _: &mut None, _: &[Segment<'_>]) -> Result<None, Error> {
            match *self {}
        }

        fn score(&self, _: &None, _: &[(usize, u32)]) -> Result<Vec<Scored>, Error> {
            match *self {}
        }

        fn logits(&self, _: &None, _: Range<usize>) -> Result<Vec<f32>, Error> {
            match *self {}
        }
    }

    impl Observable for None {
        type Sums = None;

        fn new_sums(&self, _: Vec<SiteTensors>) -> Result<None, Error> {
            match *self {}
        }

        fn forward_observed(&self, _: &mut None, _: &[Segment<'_>], _: &mut None) -> Result<None, Error> {
            match *self {}
        }

        fn read_sums(&self, _: None) -> Result<Vec<SiteSums>, Error> {
            match *self {}
        }

        fn starts_anew_within(&self, _: usize) -> bool {
            match *self {}
        }
    }

    impl SequenceCache for None {
        const PAGE: usize = kv_cache::PAGE;

        fn page_bytes(&self) -> usize {
            match *self {}
        }

        fn create(&mut self) -> SequenceId {
            match *self {}
        }

        fn fork(&mut self, _: SequenceId, _: usize) -> Result<SequenceId, Error> {
            match *self {}
        }

        fn truncate(&mut self, _: SequenceId, _: usize) {
            match *self {}
        }

        fn free(&mut self, _: SequenceId) {
            match *self {}
        }
    }
}
