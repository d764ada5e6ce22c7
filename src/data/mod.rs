//! Training data: local files become token ids with a mask of what is trained.
//!
//! ```text
//! file -> rows                      container: JSONL, JSON, CSV, Parquet, plain text
//!   -> records                      format: chat, prompt/completion, text, alpaca, sharegpt, preference
//!   -> examples                     encode: chat template, mask, truncation
//!   -> scans, split, order, packs   scan, split, mixture, pack
//! ```
//!
//! Everything that is wrong with the rows of all files is said at once, each with file and line. Nothing depends on
//! the number of threads, and every random choice on seed, epoch and content alone (Philox).

pub mod container;
pub mod encode;
mod error;
mod example;
pub mod format;
pub mod json;
mod load;
mod mixture;
pub mod pack;
pub mod scan;
pub mod shingles;
mod split;
#[cfg(test)]
pub(crate) mod testing;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

pub use error::{Error, Problem, RowError};
pub use example::{Example, Pair, Unit};
pub use load::{FileCounts, Held, Loaded, Make, Source, Spec, Truncation, load, records};
pub use mixture::{Mixture, Part};
pub use split::held_out;

/// Fields of a row.
pub type Row = Map<String, Json>;

/// Where a row is from, as messages name it: `test.csv:12`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: Arc<Path>,
    /// From 1; the row's number in a file that has no lines.
    pub line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// Returns lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
