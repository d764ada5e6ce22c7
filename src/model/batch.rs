//! The rows of one forward: which tokens of which sequences, how they turn, which outputs are wanted.

use std::sync::Arc;

use super::config::{ModelConfig, RopeScaling};
use super::decode::SequenceId;
use super::rope_scaling::{frequencies, local_frequencies};
use crate::kernel::attention::Span;
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
