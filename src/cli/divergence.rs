//! The divergence of two open models: side by side, or in turns where a device has no room for both.

use super::model::LoadedModel;
use super::term;
use crate::error::Failure;
use crate::eval::kld::{Divergence, DivergenceSoFar, InTurns, LiveBase, divergence, divergence_in_turns};
use crate::eval::perplexity::ChunkDone;
use crate::eval::{Chunks, Computer, EngineOptions};
use crate::model::free_memory;

/// Bytes of logits that are kept where nobody says how much memory is free.
const KEPT_BYTES: u64 = 1 << 30;

/// Two models that are compared, neither of them on a device yet.
pub struct Pair<'m> {
    pub model: &'m LoadedModel,
    pub base: &'m LoadedModel,
    /// Tokens computed at once, if they were said.
    pub batch_tokens: Option<u32>,
    pub quiet: bool,
}

impl<'m> Pair<'m> {
    /// Returns how far the model is from the base over a text, the same to the bit whichever way it is computed.
    ///
    /// A device that has no room for both gets one after the other, and the host keeps the base's logits meanwhile, in a quarter of its
    /// free memory: over a long text they take turns. That the CPU computes one of them instead would show in the result.
    ///
    /// Errors as [`divergence()`], and if a device has no room for one of them.
    pub fn divergence(
        &self,
        chunks: &Chunks,
        options: &dyn Fn(&Computer<'m>) -> EngineOptions,
        on_chunk: &mut dyn FnMut(&ChunkDone<DivergenceSoFar>),
    ) -> Result<Divergence, Failure> {
        let team = &self.model.decoder.compute().team;
        if self.model.has_room_beside(self.base, self.batch_tokens, chunks.chunk_len())? {
            let (model, base) = (self.model.computer()?, self.base.computer()?);
            let mut live = LiveBase::new(&base, chunks, &options(&base))?;
            return Ok(divergence(&model, &mut live, &options(&model), chunks, team, on_chunk)?);
        }
        if !self.quiet {
            term::say("note: the GPU has no room for both models: they compute one after the other");
        }
        let models = InTurns::<Computer<'m>, Failure> {
            model: &|| self.model.computer(),
            base: &|| self.base.computer(),
            options,
            kept_bytes: free_memory().map_or(KEPT_BYTES, |free| free / 4),
        };
        divergence_in_turns(&models, chunks, team, on_chunk)
    }
}

#[cfg(all(test, feature = "cuda-host"))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cli::device::Shared;
    use crate::cli::model::{ModelArgs, WeightsArg};
    use crate::cuda::Device;
    use crate::cuda::host::Options;
    use crate::kernel::ComputeMode;
    use crate::model::device::memory;

    const BATCH: u32 = 64;

    fn open(name: &str, on: &Shared, compute: ComputeMode) -> Result<LoadedModel, Failure> {
        LoadedModel::open(&ModelArgs {
            model: &crate::testing::root().join("tests/golden/convert").join(name).display().to_string(),
            offline: true,
            adapter: None,
            compute,
            context: None,
            threads: Some(1),
            isa: None,
            weights: WeightsArg::Auto,
            on,
            batch_tokens: Some(BATCH),
            observed: false,
            quiet: true,
            digests: false,
        })
    }

    /// What came of two models on a device.
    struct Measured {
        found: Divergence,
        n_chunks: usize,
        /// Whether there was room for both at a time.
        together: bool,
        /// The most that was used of the device's memory.
        peak_bytes: u64,
        /// What the larger of the two is taken to need.
        one_bytes: u64,
    }

    /// The divergence of a model in bf16 from itself in f32, on a device of so much memory.
    fn measured(memory_bytes: u64) -> Measured {
        let device = Arc::new(Device::host(Options { memory_bytes, ..Options::default() }));
        let on = Shared { device: Some(device.clone()), is_auto: false };
        let model = open("Qwen3-0.6B", &on, ComputeMode::Bf16).unwrap();
        let base = open("Qwen3-0.6B", &on, ComputeMode::F32).unwrap();
        let bytes = |model: &LoadedModel| memory(&model.decoder, BATCH as usize, BATCH as usize);
        let pair = Pair { model: &model, base: &base, batch_tokens: Some(BATCH), quiet: true };
        let vocab_size = model.decoder.config().vocab_size as u32;
        let tokens = (0..160u32).map(|i| i * i * 7 % vocab_size).collect();
        let chunks = Chunks::new(tokens, 32, None, None).unwrap();
        let options = |computer: &Computer<'_>| {
            let cache_bytes = 4 * crate::eval::LanguageModel::cache_bytes(computer, 32);
            EngineOptions { batch_tokens: BATCH as usize, cache_bytes, ..EngineOptions::new(computer) }
        };
        let mut n_chunks = 0;
        let found = pair.divergence(&chunks, &options, &mut |_| n_chunks += 1).unwrap();
        Measured {
            found,
            n_chunks,
            together: model.has_room_beside(&base, Some(BATCH), 32).unwrap(),
            peak_bytes: device.peak_bytes(),
            one_bytes: bytes(&model).max(bytes(&base)),
        }
    }

    #[test]
    fn two_models_diverge_the_same_where_a_device_has_room_for_one() {
        let beside = measured(8 << 30);
        assert!(beside.together && beside.n_chunks == 5 && beside.found.kld.mean.value > 0.0);
        let in_turns = measured(beside.one_bytes / 10 * 11);
        assert!(!in_turns.together && in_turns.n_chunks == 5);
        assert_eq!(in_turns.found, beside.found);
        // never two at a time
        assert!(in_turns.peak_bytes < beside.peak_bytes, "{} {}", in_turns.peak_bytes, beside.peak_bytes);
    }

    #[test]
    fn a_model_that_has_no_room_alone_is_refused() {
        let device = Device::host(Options { memory_bytes: 50_000, ..Options::default() });
        let on = Shared { device: Some(Arc::new(device)), is_auto: false };
        let refused = open("Qwen3-0.6B", &on, ComputeMode::F32).err().unwrap().to_string();
        assert!(refused.contains("the model takes about"), "{refused}");
    }
}
