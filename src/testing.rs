//! What tests within the library share.

use std::path::PathBuf;

/// Returns the repository's folder, or the one of `LCTL_TEST_ROOT` that has its files: for tests that run where they were not built.
pub fn root() -> PathBuf {
    let given = std::env::var_os("LCTL_TEST_ROOT").map(PathBuf::from);
    given.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
}
