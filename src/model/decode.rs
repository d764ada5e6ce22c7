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

/// How likely a token is as the next one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// Natural logarithm, by a log-softmax in f32.
    pub log_prob: f32,
    /// True if no token has a greater logit, and none of a lower id an equal one.
    pub is_greedy: bool,
}
