//! Opening a GGUF file, or all shards of a split one.

use std::path::Path;

use super::cursor::Stop;
use super::header::{self, Header};
use super::split::{self, SplitKeys};
use super::value::Metadata;
use crate::tensor::Error;
use crate::tensor::shards::{Shard, Table, source_from_table};

/// A GGUF model, header read: one file, or the shards of a split model as one.
pub struct Gguf {
    table: Table,
    /// The first shard's header; its tensors have moved to `table`.
    first: Header,
}

source_from_table!(Gguf);

impl Gguf {
    /// Opens a file; if it is the first shard of a split model, the others beside it too.
    pub fn open(path: &Path) -> Result<Gguf, Error> {
        let shard = Shard::open(path)?;
        let mut first = read_header(&shard)?;
        let mut tensors = std::mem::take(&mut first.tensors);
        let mut shards = vec![shard];
        if let Some(split) = SplitKeys::of(path, &first.metadata)? {
            for (no, file) in split.other_files(path)? {
                let shard = open_shard(path, &file, no, &split)?;
                let header = read_header(&shard)?;
                split.check_shard(&file, &header.metadata, no)?;
                tensors.extend(header.tensors.into_iter().map(|mut tensor| {
                    tensor.shard = shards.len();
                    tensor
                }));
                shards.push(shard);
            }
            split.check_total(path, shards.len(), tensors.len())?;
        }
        Ok(Gguf { table: Table::new(path, shards, tensors)?, first })
    }

    /// Returns the keys of the file; of a split model, the first shard's (with its `split.*` keys).
    pub fn metadata(&self) -> &Metadata {
        &self.first.metadata
    }

    /// Returns the format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.first.version
    }

    /// Returns the alignment of tensor data in bytes (the first shard's).
    pub fn alignment(&self) -> u32 {
        self.first.alignment
    }

    /// Returns where the first shard's data section begins.
    pub fn data_offset(&self) -> u64 {
        self.first.data_offset
    }
}

fn open_shard(first: &Path, file: &Path, no: u64, split: &SplitKeys) -> Result<Shard, Error> {
    Shard::open(file).map_err(|error| match error {
        Error::NotFound { .. } => split::missing(first, file, no, split.count),
        other => other,
    })
}

fn read_header(shard: &Shard) -> Result<Header, Error> {
    let read_at = |offset: u64, out: &mut [u8]| shard.read_exact_at(out, offset);
    header::read_header(&read_at, shard.len).map_err(|stop| match stop {
        Stop::Header(problem) => Error::Gguf { path: shard.path.clone(), problem },
        Stop::Io(source) => Error::Io { path: shard.path.clone(), action: "read", source },
    })
}
