//! What the engine needs of a model.

use std::ops::Range;

use crate::model::{Error, Scored, Segment, SequenceId};

/// A causal language model over token ids.
///
/// Everything it returns for a token depends on that token and those before it in its sequence alone: not on
/// what else is in the batch, on how a sequence is cut into calls, or on what it was forked from.
pub trait LanguageModel {
    type Cache: SequenceCache;
    /// Final hidden states of the wanted tokens of one `forward`, a row each.
    type Hidden;

    /// Returns the number of logits per row.
    fn vocab_size(&self) -> usize;

    /// Returns the most tokens a sequence may have.
    fn context_length(&self) -> usize;

    /// Returns the bytes of keys and values of a sequence of `n` tokens that shares none.
    fn cache_bytes(&self, n: usize) -> usize;

    /// Returns how many tokens are best computed at once.
    fn batch_tokens(&self) -> usize {
        512
    }

    /// Returns the bytes of keys and values that suit the model: 1 GiB or two whole contexts, unless memory says otherwise.
    fn cache_budget(&self) -> usize {
        (1 << 30).max(2 * self.cache_bytes(self.context_length()))
    }

    /// Returns how many rows of logits are best asked for at once: a row is as long as the vocabulary.
    fn logit_rows(&self) -> usize {
        16
    }

    /// Returns a cache that holds at most `budget_bytes` of keys and values.
    fn new_cache(&self, budget_bytes: usize) -> Result<Self::Cache, Error>;

    /// Appends each segment's tokens to its sequence; returns the hidden states of the wanted tokens, in the
    /// segments' order.
    ///
    /// Errors if a token is outside the vocabulary, a sequence grows past the context, or the cache is full.
    fn forward(&self, cache: &mut Self::Cache, segments: &[Segment<'_>]) -> Result<Self::Hidden, Error>;

    /// Returns how likely each `(row, token)` of `targets` is. Rows ascend; a row's logits are computed once
    /// however many of its tokens are asked for, and few rows at a time.
    fn score(&self, hidden: &Self::Hidden, targets: &[(usize, u32)]) -> Result<Vec<Scored>, Error>;

    /// Returns the logits of `rows`, `[rows.len(), vocab_size]` row-major.
    fn logits(&self, hidden: &Self::Hidden, rows: Range<usize>) -> Result<Vec<f32>, Error>;
}

/// Sequences' keys and values, in pages that forks share.
pub trait SequenceCache {
    /// Positions per page; a page starts at a multiple of it.
    const PAGE: usize;

    /// Returns the bytes of one page over all layers.
    fn page_bytes(&self) -> usize;

    /// Returns a new, empty sequence.
    fn create(&mut self) -> SequenceId;

    /// Returns a new sequence that holds the first `len` tokens of `sequence`; whole pages are shared, the
    /// partial one is copied.
    ///
    /// Errors if the cache is full.
    fn fork(&mut self, sequence: SequenceId, len: usize) -> Result<SequenceId, Error>;

    /// Forgets all tokens of a sequence but the first `len`.
    fn truncate(&mut self, sequence: SequenceId, len: usize);

    /// Forgets a sequence.
    fn free(&mut self, sequence: SequenceId);
}
