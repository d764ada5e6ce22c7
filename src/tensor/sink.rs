//! Output files that appear whole or not at all.

/// A file written under a temporary name in its final directory, then fsynced and renamed.
pub struct AtomicFile {}
