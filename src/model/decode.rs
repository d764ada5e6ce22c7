//! What the decoder takes and gives: ragged batches over shared sequences.

pub use crate::kernel::SequenceId;

/// Of which of a segment's tokens the output is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<'a> {
    None,
    Last,
    All,
    /// Indexes into the segment's tokens, ascending.
    At(&'a [usize]),
}

/// New tokens of one sequence: they follow what the cache already holds of it.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    pub sequence: SequenceId,
    pub tokens: &'a [u32],
    pub wanted: Wanted<'a>,
}
