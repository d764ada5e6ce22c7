//! A model over all of a text, for sums of what goes into its products.

use std::ops::Range;

use super::chunks::Piece;
use super::{Chunks, EngineOptions, Error, LanguageModel, SequenceCache};
use crate::kernel::KvCache;
use crate::model::observe::{InputSums, SiteSums, SiteTensors};
use crate::model::{self, Decoder, Segment, Wanted};

/// A model the inputs of whose products can be summed.
pub trait Observable: LanguageModel {
    /// Running sums, where the model is computed.
    type Sums;

    /// Returns sums of nothing at these sites, which see no others.
    ///
    /// Errors if there is no room.
    fn new_sums(&self, sites: Vec<SiteTensors>) -> Result<Self::Sums, model::Error>;

    /// As [`LanguageModel::forward`]; the inputs of all products are added to the sums, of the last layer and the output layer
    /// for the wanted tokens.
    ///
    /// Errors as there, and if squared inputs add up to no finite f32.
    fn forward_observed(
        &self,
        cache: &mut Self::Cache,
        segments: &[Segment<'_>],
        sums: &mut Self::Sums,
    ) -> Result<Self::Hidden, model::Error>;

    /// Returns what the sums came to.
    ///
    /// Errors if a device is lost.
    fn read_sums(&self, sums: Self::Sums) -> Result<Vec<SiteSums>, model::Error>;

    /// Returns true if a sequence that grows to `length` tokens in several calls is computed anew on its way.
    fn starts_anew_within(&self, length: usize) -> bool;
}

impl Observable for Decoder {
    type Sums = InputSums;

    fn new_sums(&self, sites: Vec<SiteTensors>) -> Result<InputSums, model::Error> {
        Ok(self.input_sums(sites))
    }

    fn forward_observed(
        &self,
        cache: &mut KvCache,
        segments: &[Segment<'_>],
        sums: &mut InputSums,
    ) -> Result<Self::Hidden, model::Error> {
        Decoder::forward_observed(self, cache, segments, sums)
    }

    fn read_sums(&self, sums: InputSums) -> Result<Vec<SiteSums>, model::Error> {
        Ok(sums.finish())
    }

    fn starts_anew_within(&self, length: usize) -> bool {
        Decoder::starts_anew_within(self, length)
    }
}

/// Which part of a text is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Tokens per chunk.
    pub chunk_len: usize,
    /// Chunks left out at the text's beginning.
    pub from_chunk: usize,
    /// Most chunks.
    pub limit: Option<usize>,
}

impl Extent {
    /// Cuts `tokens` (which begin with a BOS if the vocabulary adds one) into chunks; a rest is left out. `bos` is the
    /// token that begins each chunk, if any does.
    ///
    /// Errors if there is no whole chunk, or it would be shorter than [`Chunks::SHORTEST`].
    pub fn cut(&self, mut tokens: Vec<u32>, bos: Option<u32>) -> Result<Chunks, Error> {
        let Extent { chunk_len, from_chunk, limit } = *self;
        if chunk_len < Chunks::SHORTEST {
            return Err(Error::ChunkTooShort { found: chunk_len, min: Chunks::SHORTEST });
        }
        let needed = from_chunk.saturating_add(1).saturating_mul(chunk_len);
        let n_chunks = (tokens.len() / chunk_len).saturating_sub(from_chunk).min(limit.unwrap_or(usize::MAX));
        let found = tokens.len();
        let first = needed.saturating_sub(chunk_len).min(found);
        tokens.drain(..first);
        tokens.truncate(n_chunks * chunk_len);
        let no_chunk = Error::NoWholeChunk { found, needed, chunk_len, from_chunk };
        Chunks::from_parts(tokens, chunk_len, bos).ok_or(no_chunk)
    }
}

/// Computes all tokens of all chunks, each chunk for itself; the text's rows are added to the sums in order, however they are cut
/// into batches. `on_chunks` hears how many chunks are done.
///
/// Errors if the chunks are beyond the model, the cache's budget has no room for one of them, or squared inputs add up to no finite f32.
pub fn collect<M: Observable>(
    model: &M,
    options: &EngineOptions,
    text: &Chunks,
    sums: &mut M::Sums,
    on_chunks: &mut dyn FnMut(usize),
) -> Result<(), Error> {
    text.check(model)?;
    let (chunk_len, n_chunks) = (text.chunk_len(), text.n_chunks());
    let mut cache = model.new_cache(options.cache_bytes)?;
    let (needed, budget) = (model.cache_bytes(chunk_len), options.cache_bytes);
    if needed > budget {
        return Err(Error::CacheTooSmall { needed: needed as u64, budget: budget as u64 });
    }
    // rows computed anew would be counted twice
    let whole = model.starts_anew_within(chunk_len);
    let batch_tokens = if whole { options.batch_tokens.max(chunk_len) } else { options.batch_tokens.max(1) };
    let n_at_once = (batch_tokens / chunk_len).clamp(1, budget / needed.max(1));
    for start in (0..n_chunks).step_by(n_at_once) {
        let chunks = start..n_chunks.min(start + n_at_once);
        let sequences: Vec<_> = chunks.clone().map(|_| cache.create()).collect();
        for from in (0..chunk_len).step_by(batch_tokens) {
            let positions = from..chunk_len.min(from + batch_tokens);
            let tokens: Vec<Vec<u32>> = inputs(text, chunks.clone(), &positions);
            let segments: Vec<Segment<'_>> = sequences.iter().zip(&tokens).map(segment).collect();
            model
                .forward_observed(&mut cache, &segments, sums)
                .map_err(|error| in_chunk(error, start, positions.len()))?;
        }
        sequences.into_iter().for_each(|sequence| cache.free(sequence));
        on_chunks(chunks.end);
    }
    Ok(())
}

fn inputs(text: &Chunks, chunks: Range<usize>, positions: &Range<usize>) -> Vec<Vec<u32>> {
    chunks.map(|chunk| text.inputs(&Piece { chunk, positions: positions.clone() })).collect()
}

fn segment<'a>((sequence, tokens): (&model::SequenceId, &'a Vec<u32>)) -> Segment<'a> {
    Segment { sequence: *sequence, tokens, wanted: Wanted::All }
}

/// Says in which chunk the row of a forward is, whose chunks have `n_rows` rows each.
fn in_chunk(error: model::Error, first_chunk: usize, n_rows: usize) -> Error {
    match error {
        model::Error::InputNotFinite(found) => {
            Error::InputNotFinite { chunk: first_chunk + found.row / n_rows.max(1), found }
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_from_the_chunk_asked_for() {
        let cut = |chunk_len, from_chunk, limit| {
            Extent { chunk_len, from_chunk, limit }.cut((0..23).collect(), Some(99))
        };
        let tokens = |chunks: Result<Chunks, Error>| chunks.unwrap().tokens().to_vec();
        assert_eq!(tokens(cut(5, 0, None)), (0..20).collect::<Vec<u32>>());
        assert_eq!(tokens(cut(5, 3, Some(9))), [15, 16, 17, 18, 19]);
        assert_eq!(tokens(cut(23, 0, Some(1))).len(), 23);
        assert_eq!(cut(5, 0, Some(2)).unwrap().n_chunks(), 2);
        let error = |result: Result<Chunks, Error>| result.unwrap_err().to_string();
        assert_eq!(
            error(cut(5, 4, None)),
            "the text has 23 tokens; a chunk of 5 behind the first 4 needs 25"
        );
        assert_eq!(error(cut(24, 0, None)), "the text has 23 tokens; a chunk of 24 needs 24");
        assert_eq!(error(cut(5, usize::MAX, None)).split(';').next(), Some("the text has 23 tokens"));
        assert_eq!(error(cut(3, 0, None)), "a chunk of 3 tokens is too short: the least is 4");
    }
}
