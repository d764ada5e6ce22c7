//! safetensors files and sharded directories: reading and writing.
//!
//! Format: <https://huggingface.co/docs/safetensors>: u64 header length, JSON header, data.

mod header;
mod index;
mod write;

use std::path::Path;

use indexmap::IndexMap;

use super::shards::{Shard, Table, source_from_table};
use super::{Error, TensorInfo};

pub use header::{Header, HeaderError, MAX_HEADER_BYTES, parse_header};
pub use write::SafeTensorsWriter;

/// One safetensors file, or the shards of a checkpoint, headers read.
///
/// Tensors come in the order of their data, shards in the order of their file names.
pub struct SafeTensors {
    table: Table,
    metadata: Vec<IndexMap<String, String>>,
}

source_from_table!(SafeTensors);

impl SafeTensors {
    /// Opens one file.
    pub fn open_file(path: &Path) -> Result<SafeTensors, Error> {
        SafeTensors::from_files(path, &[path.to_owned()])
    }

    /// Opens a checkpoint's directory: `model.safetensors`; else the shards that
    /// `model.safetensors.index.json` names; else `model*.safetensors`; else every `*.safetensors`.
    ///
    /// Every tensor in the index must lie in the shard it names. Tensors that the index leaves out are
    /// listed too, because Hugging Face's loader loads them; one name in two shards is an error.
    pub fn open_dir(dir: &Path) -> Result<SafeTensors, Error> {
        let single = dir.join("model.safetensors");
        if single.is_file() {
            return SafeTensors::from_files(dir, &[single]);
        }
        let index = dir.join("model.safetensors.index.json");
        if index.is_file() {
            return index::open(dir, &index);
        }
        let files = index::files_without_index(dir)?;
        if files.is_empty() {
            return Err(Error::NothingToOpen { path: dir.to_owned() });
        }
        SafeTensors::from_files(dir, &files)
    }

    /// Returns the `__metadata__` of shard `shard`.
    pub fn metadata(&self, shard: usize) -> &IndexMap<String, String> {
        &self.metadata[shard]
    }

    fn from_files(path: &Path, files: &[std::path::PathBuf]) -> Result<SafeTensors, Error> {
        let mut shards = Vec::with_capacity(files.len());
        let mut tensors: Vec<TensorInfo> = Vec::new();
        let mut metadata = Vec::with_capacity(files.len());
        for (i, file) in files.iter().enumerate() {
            let shard = Shard::open(file)?;
            let header = read_header(&shard)?;
            tensors.extend(header.tensors.into_iter().map(|mut tensor| {
                tensor.shard = i;
                tensor
            }));
            metadata.push(header.metadata);
            shards.push(shard);
        }
        Ok(SafeTensors { table: Table::new(path, shards, tensors)?, metadata })
    }
}

fn read_header(shard: &Shard) -> Result<Header, Error> {
    let problem = |problem| Error::SafeTensors { path: shard.path.clone(), problem };
    let mut prefix = [0; 8];
    if shard.len < prefix.len() as u64 {
        return Err(problem(HeaderError::TooShort { len: shard.len }));
    }
    shard.read_exact_at(&mut prefix, 0).map_err(Error::io(&shard.path, "read"))?;
    let n_bytes = header::checked_len(u64::from_le_bytes(prefix), shard.len).map_err(problem)?;
    let mut json = vec![0; n_bytes];
    shard.read_exact_at(&mut json, 8).map_err(Error::io(&shard.path, "read"))?;
    header::parse_json(&json, shard.len).map_err(problem)
}
