//! A divergence of two models of which one is there at a time: the base's logits over some chunks are kept, then compared with.

use std::ops::Range;

use super::{BaseLogits, ChunkDone, Comparison, Divergence, DivergenceSoFar, groups};
use crate::eval::chunks::{self, Chunks, Walk};
use crate::eval::{EngineOptions, Error, LanguageModel};
use crate::kernel::Team;

/// Two models that are opened in turns.
pub struct InTurns<'a, M, E> {
    pub model: &'a dyn Fn() -> Result<M, E>,
    pub base: &'a dyn Fn() -> Result<M, E>,
    /// Returns the bounds of one that is open.
    pub options: &'a dyn Fn(&M) -> EngineOptions,
    /// Most bytes of logits that are kept at a time; those of one chunk are in any case.
    pub kept_bytes: u64,
}

/// As [`super::divergence()`], to the bit, with models that are never there at the same time.
///
/// Errors as there, and if one does not open.
pub fn divergence_in_turns<M: LanguageModel, E: From<Error>>(
    models: &InTurns<'_, M, E>,
    text: &Chunks,
    team: &Team,
    on_chunk: &mut dyn FnMut(&ChunkDone<DivergenceSoFar>),
) -> Result<Divergence, E> {
    let mut comparison = Comparison::new(text, team, on_chunk);
    let mut begin = 0;
    while begin < text.n_chunks() {
        let base = (models.base)()?;
        let bytes_per_chunk = text.n_scored() * base.vocab_size() * size_of::<f32>();
        let n = usize::try_from(models.kept_bytes / bytes_per_chunk.max(1) as u64).unwrap_or(usize::MAX);
        let turn = begin..text.n_chunks().min(begin.saturating_add(n.max(1)));
        let mut kept = KeptLogits::of(&base, &(models.options)(&base), text, turn.clone())?;
        // its memory is the other's now
        drop(base);
        let model = (models.model)()?;
        comparison.add(&model, &mut kept, &(models.options)(&model), turn.clone())?;
        begin = turn.end;
    }
    Ok(comparison.finish())
}

/// A base model's logits over some chunks, in memory.
struct KeptLogits {
    vocab_size: usize,
    logits: Vec<f32>,
    /// Values that were asked for.
    given: usize,
}

impl KeptLogits {
    fn of<M: LanguageModel>(
        base: &M,
        options: &EngineOptions,
        text: &Chunks,
        chunks: Range<usize>,
    ) -> Result<Self, Error> {
        let mut walk = Walk::new(base, text, options)?;
        let vocab_size = base.vocab_size();
        let mut logits = Vec::with_capacity(chunks.len() * text.n_scored() * vocab_size);
        for batch in text.batches_of(chunks, options.batch_tokens, walk.n_at_once(options)) {
            let hidden = walk.advance(&batch)?;
            for rows in groups(chunks::rows(text, &batch).len(), vocab_size) {
                logits.extend(base.logits(&hidden, rows)?);
            }
        }
        Ok(KeptLogits { vocab_size, logits, given: 0 })
    }
}

impl BaseLogits for KeptLogits {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn logits(&mut self, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        let first = self.given;
        self.given += rows.len() * self.vocab_size;
        Ok(self.logits[first..self.given].to_vec())
    }
}
