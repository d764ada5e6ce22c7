//! Keys and values of sequences, in pages aligned to logical positions.

/// A sequence in a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub usize);
