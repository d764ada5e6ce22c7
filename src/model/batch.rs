//! The rows of one forward: which tokens of which sequences, how they turn, which outputs are wanted.

use std::sync::Arc;

use super::Error;
use super::config::{ModelConfig, RopeScaling};
use super::decode::{Segment, SequenceId, Wanted};
use super::rope_scaling::{frequencies, local_frequencies};
use crate::kernel::KvCache;
use crate::kernel::attention::Span;
use crate::kernel::kv_cache::Ledger;
use crate::kernel::rope::RopeTable;
use crate::nn::Turns;

/// The rows of one forward: the tokens of all segments, one after another.
#[derive(Default)]
pub(super) struct Batch {
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    pub tables: Vec<(usize, Arc<RopeTable>)>,
    pub spans: Vec<Span>,
    /// Rows whose output is wanted, ascending.
    pub wanted: Vec<usize>,
    /// Sequences computed anew, each with the one that takes its place.
    pub anew: Vec<(SequenceId, SequenceId)>,
}

/// A cache of keys and values in which segments get room.
pub(super) trait Cache {
    fn ledger(&self) -> &Ledger;

    /// Returns the ledger, for what takes no pages.
    fn ledger_mut(&mut self) -> &mut Ledger;

    /// Lengthens a sequence by `n` positions.
    ///
    /// Errors if there is no room; the sequence is then as it was.
    fn extend(&mut self, sequence: SequenceId, n: usize) -> Result<(), Error>;
}

impl Cache for KvCache {
    fn ledger(&self) -> &Ledger {
        KvCache::ledger(self)
    }

    fn ledger_mut(&mut self) -> &mut Ledger {
        KvCache::ledger_mut(self)
    }

    fn extend(&mut self, sequence: SequenceId, n: usize) -> Result<(), Error> {
        Ok(KvCache::extend(self, sequence, n)?)
    }
}

/// What bounds the rows of a model.
pub(super) struct Bounds<'a> {
    pub vocab_size: usize,
    pub context: usize,
    pub ropes: &'a Ropes,
}

impl Bounds<'_> {
    /// Lays the segments out as rows with room in the cache, and returns what `run` makes of them.
    ///
    /// Errors as `Decoder::forward`, and with what `run` returns; the cache is then as it was.
    ///
    /// # Panics
    /// As `Decoder::forward`.
    pub fn forward<C: Cache, H>(
        &self,
        cache: &mut C,
        segments: &[Segment<'_>],
        run: impl FnOnce(&mut C, &Batch) -> Result<H, Error>,
    ) -> Result<H, Error> {
        let lengths: Vec<usize> =
            segments.iter().map(|segment| cache.ledger().len(segment.sequence)).collect();
        let mut batch = Batch::default();
        let laid_out = segments.iter().try_for_each(|segment| self.lay_out(cache, segment, &mut batch));
        let result = laid_out.and_then(|()| run(cache, &batch));
        let ledger = cache.ledger_mut();
        for (sequence, by) in batch.anew {
            match result {
                Ok(_) => ledger.replace(sequence, by),
                Err(_) => ledger.free(by),
            }
        }
        if result.is_err() {
            for (segment, length) in segments.iter().zip(lengths) {
                ledger.truncate(segment.sequence, length);
            }
        }
        result
    }

    /// Lays a segment's tokens out as rows, and makes room for them in the cache.
    fn lay_out(&self, cache: &mut impl Cache, segment: &Segment<'_>, batch: &mut Batch) -> Result<(), Error> {
        let vocab_size = self.vocab_size;
        if let Some(token) = segment.tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { token: *token, vocab_size });
        }
        let mut others =
            batch.spans.iter().map(|span| span.sequence).chain(batch.anew.iter().map(|(old, _)| *old));
        assert!(!others.any(|other| other == segment.sequence), "a sequence in two segments");
        let held = cache.ledger().len(segment.sequence);
        let end = held + segment.tokens.len();
        if end > self.context {
            return Err(Error::ContextOverflow { length: end, context: self.context });
        }
        let (mut sequence, mut start) = (segment.sequence, held);
        let mut tokens = Vec::new();
        if self.ropes.change_between(held, end) {
            tokens = cache.ledger().tokens(sequence).to_vec();
            (sequence, start) = (cache.ledger_mut().create(), 0);
            batch.anew.push((segment.sequence, sequence));
        }
        tokens.extend_from_slice(segment.tokens);
        cache.extend(sequence, tokens.len())?;
        if self.ropes.long.is_some() {
            cache.ledger_mut().note_tokens(sequence, &tokens);
        }
        let first_row = batch.tokens.len();
        batch.spans.push(Span { sequence, start, first_row, n_rows: tokens.len() });
        batch.tables.push((tokens.len(), self.ropes.of_length(end)));
        // contexts are below 2^32: counts in a config are
        batch.positions.extend(start as u32..end as u32);
        batch.tokens.append(&mut tokens);
        let (first, n_rows) = (first_row + held - start, batch.tokens.len());
        match segment.wanted {
            Wanted::None => {}
            Wanted::Last => batch.wanted.extend((first..n_rows).next_back()),
            Wanted::All => batch.wanted.extend(first..n_rows),
            Wanted::At(at) => batch.wanted.extend(at.iter().map(|at| first + at)),
        }
        Ok(())
    }
}

/// Rows a layer's queries are computed for: all of the batch, or those picked.
pub(super) struct RowsOf<'a> {
    pub batch: &'a Batch,
    pub spans: &'a [Span],
    pub picked: Option<&'a [usize]>,
}

impl RowsOf<'_> {
    /// Returns the turns of these rows, out of those of all.
    pub fn turns(&self, all: Turns) -> Turns {
        let Some(picked) = self.picked else { return all };
        let positions: Vec<u32> = picked.iter().map(|row| all.positions[*row]).collect();
        let mut tables = Vec::with_capacity(all.tables.len());
        let mut first = 0;
        for (n, table) in all.tables {
            let picked_here = picked.iter().filter(|row| (first..first + n).contains(*row)).count();
            tables.push((picked_here, table));
            first += n;
        }
        Turns { positions: positions.into(), tables }
    }
}

/// Returns the wanted rows as spans of consecutive positions, rows counted among the wanted ones.
pub(super) fn wanted_spans(batch: &Batch) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut segment = 0;
    for (row, wanted) in batch.wanted.iter().enumerate() {
        while *wanted >= batch.spans[segment].first_row + batch.spans[segment].n_rows {
            segment += 1;
        }
        let Span { sequence, start, first_row, .. } = batch.spans[segment];
        let position = start + wanted - first_row;
        match spans.last_mut() {
            Some(last) if last.sequence == sequence && last.start + last.n_rows == position => {
                last.n_rows += 1
            }
            _ => spans.push(Span { sequence, start: position, first_row: row, n_rows: 1 }),
        }
    }
    spans
}

/// Tables of rotary embedding.
#[derive(Clone)]
pub(super) struct Ropes {
    pub full: Arc<RopeTable>,
    /// Of sequences past the original context, where it matters (LongRoPE).
    pub long: Option<(usize, Arc<RopeTable>)>,
    /// Of layers with sliding attention, where it differs.
    pub local: Option<Arc<RopeTable>>,
}

impl Ropes {
    pub fn new(config: &ModelConfig) -> Self {
        let table = |length: usize| {
            let frequencies = frequencies(&config.rope, length);
            Arc::new(RopeTable::new(&frequencies.inv_freq, frequencies.attention_factor))
        };
        let long = match &config.rope.scaling {
            RopeScaling::LongRope(long) => {
                Some((long.original_context, table(long.original_context.saturating_add(1))))
            }
            _ => None,
        };
        let local = config.rope.theta_swa.map(|theta| {
            let frequencies = local_frequencies(theta, config.rope.dim);
            Arc::new(RopeTable::new(&frequencies.inv_freq, frequencies.attention_factor))
        });
        Ropes { full: table(0), long, local }
    }

    /// Returns true if a sequence that grows so is computed anew, because all of its positions turn differently.
    pub fn change_between(&self, held: usize, end: usize) -> bool {
        self.long.as_ref().is_some_and(|(original, _)| 0 < held && held <= *original && *original < end)
    }

    /// Returns the table of full attention in a sequence of that many tokens.
    pub fn of_length(&self, length: usize) -> Arc<RopeTable> {
        match &self.long {
            Some((original_context, long)) if length > *original_context => long.clone(),
            _ => self.full.clone(),
        }
    }
}
