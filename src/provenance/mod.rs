//! Digests of what was read and written.
