//! A text cut into chunks of equal length, as llama-perplexity cuts it, and a model walked over them.

use std::collections::HashMap;
use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::{EngineOptions, Error, LanguageModel, SequenceCache};
use crate::model::{Segment, SequenceId, Wanted};

/// A text's tokens, the first `n_chunks() * chunk_len()` of them in use.
///
/// In each chunk the tokens behind position `chunk_len() / 2` are scored, each predicted from all of the chunk
/// before it; so every scored token has at least half a chunk of context. For a vocabulary that adds a BOS the
/// first token of every chunk is replaced by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunks {
    tokens: Vec<u32>,
    chunk_len: usize,
    bos: Option<u32>,
}

impl Chunks {
    /// Shortest chunk that has a scored token.
    pub const SHORTEST: usize = 4;

    /// Cuts `tokens` (which begin with a BOS if the vocabulary adds one) into at most `limit` chunks; a rest is
    /// left out. `bos` is the token that begins each chunk, if any does.
    ///
    /// Errors if there are fewer than two chunks of tokens, or `chunk_len < 4`.
    pub fn new(
        mut tokens: Vec<u32>,
        chunk_len: usize,
        bos: Option<u32>,
        limit: Option<usize>,
    ) -> Result<Self, Error> {
        if chunk_len < Self::SHORTEST {
            return Err(Error::ChunkTooShort { found: chunk_len, min: Self::SHORTEST });
        }
        if tokens.len() < 2 * chunk_len {
            let (found, needed) = (tokens.len(), 2 * chunk_len);
            return Err(Error::TextTooShort { found, needed, chunk_len });
        }
        let n_chunks = (tokens.len() / chunk_len).min(limit.unwrap_or(usize::MAX)).max(1);
        tokens.truncate(n_chunks * chunk_len);
        Ok(Chunks { tokens, chunk_len, bos })
    }

    /// Returns what [`Chunks::new`] cut to, from tokens that a file holds: any number of chunks.
    pub(super) fn from_parts(tokens: Vec<u32>, chunk_len: usize, bos: Option<u32>) -> Option<Self> {
        let fits =
            chunk_len >= Self::SHORTEST && !tokens.is_empty() && tokens.len().is_multiple_of(chunk_len);
        fits.then_some(Chunks { tokens, chunk_len, bos })
    }

    /// Returns the number of chunks.
    pub fn n_chunks(&self) -> usize {
        self.tokens.len() / self.chunk_len
    }

    /// Returns the tokens per chunk.
    pub fn chunk_len(&self) -> usize {
        self.chunk_len
    }

    /// Returns the token each chunk begins with instead of its own.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Returns the text's tokens, without what `bos` replaces.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Returns the scored tokens per chunk.
    pub fn n_scored(&self) -> usize {
        self.chunk_len - 1 - self.chunk_len / 2
    }

    /// Returns the tokens per chunk that a model computes: the last one is only predicted.
    pub fn n_inputs(&self) -> usize {
        self.chunk_len - 1
    }

    /// Returns the position behind which the tokens of a chunk are scored.
    fn first(&self) -> usize {
        self.chunk_len / 2
    }

    /// Returns the scored tokens of a chunk.
    pub fn targets(&self, chunk: usize) -> &[u32] {
        let start = chunk * self.chunk_len;
        &self.tokens[start + self.first() + 1..start + self.chunk_len]
    }

    /// Returns the SHA-256 of the chunk length, the BOS and the tokens, as u32 little-endian (no BOS: 2^32 - 1).
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update((self.chunk_len as u32).to_le_bytes());
        hasher.update(self.bos.unwrap_or(u32::MAX).to_le_bytes());
        for token in &self.tokens {
            hasher.update(token.to_le_bytes());
        }
        hasher.finalize().into()
    }

    /// Errors if a chunk or a token is beyond the model.
    pub fn check<M: LanguageModel>(&self, model: &M) -> Result<(), Error> {
        let max = model.context_length();
        if self.chunk_len > max {
            return Err(Error::ChunkTooLong { found: self.chunk_len, max });
        }
        let vocab_size = model.vocab_size();
        match self.tokens.iter().chain(&self.bos).find(|token| **token as usize >= vocab_size) {
            Some(token) => Err(Error::TextToken { token: *token, vocab_size }),
            None => Ok(()),
        }
    }

    /// Returns the tokens of a piece as the model gets them.
    pub(super) fn inputs(&self, piece: &Piece) -> Vec<u32> {
        let start = piece.chunk * self.chunk_len;
        let mut inputs = self.tokens[start + piece.positions.start..start + piece.positions.end].to_vec();
        if let (0, Some(bos)) = (piece.positions.start, self.bos) {
            inputs[0] = bos;
        }
        inputs
    }

    /// Returns which of a piece's tokens the scored ones are predicted from.
    fn wanted(&self, piece: &Piece) -> Vec<usize> {
        let Range { start, end } = piece.positions;
        (self.first().max(start)..end.max(self.first())).map(|position| position - start).collect()
    }

    /// Returns the pieces of all chunks in order, in batches of at most `batch_tokens` tokens and `n_at_once` chunks.
    pub(super) fn batches(&self, batch_tokens: usize, n_at_once: usize) -> Vec<Vec<Piece>> {
        self.batches_of(0..self.n_chunks(), batch_tokens, n_at_once)
    }

    /// [`Chunks::batches`] of some of the chunks.
    pub(super) fn batches_of(
        &self,
        chunks: Range<usize>,
        batch_tokens: usize,
        n_at_once: usize,
    ) -> Vec<Vec<Piece>> {
        let mut batches = Vec::new();
        let mut batch: Vec<Piece> = Vec::new();
        let mut room = batch_tokens.max(1);
        for chunk in chunks {
            let mut done = 0;
            while done < self.n_inputs() {
                if room == 0 || batch.len() == n_at_once.max(1) {
                    batches.push(std::mem::take(&mut batch));
                    room = batch_tokens.max(1);
                }
                let positions = done..self.n_inputs().min(done + room);
                room -= positions.len();
                done = positions.end;
                batch.push(Piece { chunk, positions });
            }
        }
        batches.push(batch);
        batches
    }
}

/// Some of the inputs of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub chunk: usize,
    pub positions: Range<usize>,
}

/// A row of hidden states: what it predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScoredRow {
    pub chunk: usize,
    /// The token predicted.
    pub target: u32,
    /// True for the last scored token of its chunk.
    pub ends_chunk: bool,
}

/// A model on its way over chunks.
pub(super) struct Walk<'a, M: LanguageModel> {
    pub model: &'a M,
    chunks: &'a Chunks,
    cache: M::Cache,
    sequences: HashMap<usize, SequenceId>,
}

impl<'a, M: LanguageModel> Walk<'a, M> {
    /// Errors if the chunks are beyond the model, or the cache's budget has no room for one of them.
    pub fn new(model: &'a M, chunks: &'a Chunks, options: &EngineOptions) -> Result<Self, Error> {
        chunks.check(model)?;
        let cache = model.new_cache(options.cache_bytes)?;
        let walk = Walk { model, chunks, cache, sequences: HashMap::new() };
        let budget = options.cache_bytes as u64;
        match walk.n_at_once(options) {
            0 => Err(Error::CacheTooSmall { needed: walk.bytes_per_chunk() as u64, budget }),
            _ => Ok(walk),
        }
    }

    fn bytes_per_chunk(&self) -> usize {
        self.chunks.n_inputs().div_ceil(M::Cache::PAGE) * self.cache.page_bytes()
    }

    /// Returns how many chunks the cache's budget has room for.
    pub fn n_at_once(&self, options: &EngineOptions) -> usize {
        options.cache_bytes / self.bytes_per_chunk().max(1)
    }

    /// Computes the next batch; returns the hidden states that scored tokens are predicted from.
    pub fn advance(&mut self, batch: &[Piece]) -> Result<M::Hidden, Error> {
        let inputs: Vec<Vec<u32>> = batch.iter().map(|piece| self.chunks.inputs(piece)).collect();
        let wanted: Vec<Vec<usize>> = batch.iter().map(|piece| self.chunks.wanted(piece)).collect();
        let mut segments = Vec::with_capacity(batch.len());
        for ((piece, tokens), wanted) in batch.iter().zip(&inputs).zip(&wanted) {
            let sequence = self.sequences.entry(piece.chunk).or_insert_with(|| self.cache.create());
            segments.push(Segment { sequence: *sequence, tokens, wanted: Wanted::At(wanted) });
        }
        let hidden = self.model.forward(&mut self.cache, &segments)?;
        for piece in batch.iter().filter(|piece| piece.positions.end == self.chunks.n_inputs()) {
            if let Some(sequence) = self.sequences.remove(&piece.chunk) {
                self.cache.free(sequence);
            }
        }
        Ok(hidden)
    }
}

/// Returns what the rows of a batch's hidden states predict.
pub(super) fn rows(chunks: &Chunks, batch: &[Piece]) -> Vec<ScoredRow> {
    let mut rows = Vec::new();
    for piece in batch {
        for at in chunks.wanted(piece) {
            let number = piece.positions.start + at - chunks.first();
            rows.push(ScoredRow {
                chunk: piece.chunk,
                target: chunks.targets(piece.chunk)[number],
                ends_chunk: number + 1 == chunks.n_scored(),
            });
        }
    }
    rows
}
