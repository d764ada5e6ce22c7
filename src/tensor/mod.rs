//! The shared tensor layer: every file of tensors, whatever its format, is a [`TensorSource`].

mod error;
pub mod format;
pub mod gguf;
mod open;
mod row_map;
pub mod safetensors;
mod shards;
mod sink;
mod staged;
mod stream;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::Error;
pub use format::BlockFormat;
pub use open::{Opened, open};
pub use row_map::RowMap;
pub(crate) use sink::check_interrupted;
pub use sink::{AtomicFile, WrittenFile, available_bytes, cleanup_partial_files, is_same_file};
pub use staged::{StagedDir, remove_dir_whole, remove_partial_dirs};
pub use stream::TensorDecl;

/// The element type of a tensor: a block format of the registry, compared by name.
#[derive(Clone, Copy)]
pub struct Dtype(pub &'static dyn BlockFormat);

impl std::ops::Deref for Dtype {
    type Target = dyn BlockFormat;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl PartialEq for Dtype {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for Dtype {}

impl std::hash::Hash for Dtype {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl fmt::Debug for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.name())
    }
}

/// What a file's header says of one tensor. No data is read to build it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: Dtype,
    /// Outermost dimension first (row-major, as in safetensors); GGUF's `ne` reversed.
    /// Never empty for a GGUF tensor; empty for a safetensors scalar.
    pub shape: Vec<usize>,
    /// Bytes of data; checked against the file's length when the header is read.
    pub n_bytes: u64,
    /// Index into [`TensorSource::files`].
    pub shard: usize,
    /// Absolute byte offset of the data in its shard.
    pub offset: u64,
}

impl TensorInfo {
    /// Returns the number of elements; the readers have checked that it fits.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the innermost dimension, 1 for a scalar.
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Returns the number of rows: the product of all dimensions but the innermost.
    pub fn n_rows(&self) -> usize {
        let outer = self.shape.len().saturating_sub(1);
        self.shape[..outer].iter().product()
    }

    /// Returns the bytes of one row. Rows are whole blocks in every file our readers accept.
    pub fn row_bytes(&self) -> usize {
        self.row_len() / self.dtype.block_len() * self.dtype.block_bytes()
    }
}

/// A set of named tensors in one or more files, headers read, data not.
pub trait TensorSource: Send + Sync {
    /// Returns the path the user gave, for messages.
    fn path(&self) -> &Path;

    /// Returns the files that hold the data; [`TensorInfo::shard`] indexes it.
    fn files(&self) -> &[PathBuf];

    /// Returns all tensors in file order (shards in order).
    fn tensors(&self) -> &[TensorInfo];

    /// Returns the tensor of that name.
    fn find(&self, name: &str) -> Option<&TensorInfo>;

    /// Fills `out` from byte `offset` of the tensor's data, by `pread` (no page stays mapped).
    ///
    /// Errors if the range leaves the tensor, or the file has shrunk since it was opened.
    fn read_at(&self, tensor: &TensorInfo, offset: u64, out: &mut [u8]) -> Result<(), Error>;

    /// Returns the tensor's bytes, mapped. Pages count toward this process's resident set.
    fn bytes(&self, tensor: &TensorInfo) -> Result<&[u8], Error>;

    /// Returns the mapping of the whole file that holds the tensor, at [`TensorInfo::offset`]; it outlives the source.
    ///
    /// Errors as [`TensorSource::bytes`] does.
    fn mapping(&self, tensor: &TensorInfo) -> Result<Arc<memmap2::Mmap>, Error>;
}
