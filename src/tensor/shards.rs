//! What every source has in common: files held open, and a table of tensors in them.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;

use super::{Error, TensorInfo};

/// One open file of tensors, mapped only when somebody asks for mapped bytes.
pub(super) struct Shard {
    pub path: PathBuf,
    pub file: File,
    /// Bytes, when it was opened.
    pub len: u64,
    map: OnceLock<Arc<Mmap>>,
}

impl Shard {
    pub fn open(path: &Path) -> Result<Shard, Error> {
        let open_error = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound { path: path.to_owned() },
            _ => Error::Io { path: path.to_owned(), action: "open", source },
        };
        // before opening it: that of a pipe waits for a writer
        if !std::fs::metadata(path).map_err(open_error)?.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(open_error)?;
        let meta = file.metadata().map_err(Error::io(path, "read its size"))?;
        Ok(Shard { path: path.to_owned(), file, len: meta.len(), map: OnceLock::new() })
    }

    /// Fills `out` from byte `offset` of the file.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> std::io::Result<()> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset);
        #[cfg(windows)]
        return read_exact_at_windows(&self.file, out, offset);
    }

    fn map(&self) -> Result<&Arc<Mmap>, Error> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        // SAFETY: the mapping is read-only and private to this value. A file truncated by another process
        // while mapped raises SIGBUS, which ends the program; slabs of large tensors use pread instead.
        let map = unsafe { Mmap::map(&self.file) }.map_err(Error::io(&self.path, "map it into memory"))?;
        Ok(self.map.get_or_init(|| Arc::new(map)))
    }
}

#[cfg(windows)]
fn read_exact_at_windows(file: &File, mut out: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        match file.seek_read(out, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// Tensors of one or more shards, found by name, read by offset.
pub(super) struct Table {
    /// The path the user gave.
    pub path: PathBuf,
    pub files: Vec<PathBuf>,
    pub tensors: Vec<TensorInfo>,
    shards: Vec<Shard>,
    by_name: HashMap<String, usize>,
}

impl Table {
    /// Joins the shards' tensors; `tensors[i].shard` indexes `shards`.
    ///
    /// Errors if a name occurs in two shards (within one the header's parser has checked).
    pub fn new(path: &Path, shards: Vec<Shard>, tensors: Vec<TensorInfo>) -> Result<Table, Error> {
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (i, tensor) in tensors.iter().enumerate() {
            if let Some(first) = by_name.insert(tensor.name.clone(), i) {
                return Err(Error::DuplicateAcrossShards {
                    tensor: tensor.name.clone(),
                    first: shards[tensors[first].shard].path.clone(),
                    second: shards[tensor.shard].path.clone(),
                });
            }
        }
        let files = shards.iter().map(|shard| shard.path.clone()).collect();
        Ok(Table { path: path.to_owned(), files, tensors, shards, by_name })
    }

    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    pub fn read_at(&self, tensor: &TensorInfo, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let shard = &self.shards[tensor.shard];
        let end = offset.checked_add(out.len() as u64).filter(|end| *end <= tensor.n_bytes);
        let Some(end) = end else {
            return Err(Error::OutOfRange {
                path: shard.path.clone(),
                tensor: tensor.name.clone(),
                offset,
                end: offset.saturating_add(out.len() as u64),
                n_bytes: tensor.n_bytes,
            });
        };
        shard.read_exact_at(out, tensor.offset + offset).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => self.shrunk(tensor, end),
            _ => Error::Io { path: shard.path.clone(), action: "read", source },
        })
    }

    pub fn bytes(&self, tensor: &TensorInfo) -> Result<&[u8], Error> {
        let shard = &self.shards[tensor.shard];
        let map = shard.map()?;
        // Both fit: the header's parser compared them with the file's length, and that is mapped.
        let (start, len) = (tensor.offset as usize, tensor.n_bytes as usize);
        let now = shard.file.metadata().map_or(0, |meta| meta.len());
        if now < tensor.offset + tensor.n_bytes {
            return Err(self.shrunk(tensor, tensor.n_bytes));
        }
        map.get(start..start + len).ok_or_else(|| self.shrunk(tensor, tensor.n_bytes))
    }

    pub fn mapping(&self, tensor: &TensorInfo) -> Result<Arc<Mmap>, Error> {
        self.bytes(tensor)?;
        self.shards[tensor.shard].map().cloned()
    }

    fn shrunk(&self, tensor: &TensorInfo, end: u64) -> Error {
        let shard = &self.shards[tensor.shard];
        Error::Shrunk {
            path: shard.path.clone(),
            tensor: tensor.name.clone(),
            len: shard.file.metadata().map_or(0, |meta| meta.len()),
            end: tensor.offset + end,
        }
    }
}

/// Gives a source that keeps its tensors in a `table` field the [`super::TensorSource`] methods.
macro_rules! source_from_table {
    ($type:ty) => {
        impl $crate::tensor::TensorSource for $type {
            fn path(&self) -> &std::path::Path {
                &self.table.path
            }

            fn files(&self) -> &[std::path::PathBuf] {
                &self.table.files
            }

            fn tensors(&self) -> &[$crate::tensor::TensorInfo] {
                &self.table.tensors
            }

            fn find(&self, name: &str) -> Option<&$crate::tensor::TensorInfo> {
                self.table.find(name)
            }

            fn read_at(
                &self,
                tensor: &$crate::tensor::TensorInfo,
                offset: u64,
                out: &mut [u8],
            ) -> Result<(), $crate::tensor::Error> {
                self.table.read_at(tensor, offset, out)
            }

            fn bytes(&self, tensor: &$crate::tensor::TensorInfo) -> Result<&[u8], $crate::tensor::Error> {
                self.table.bytes(tensor)
            }

            fn mapping(
                &self,
                tensor: &$crate::tensor::TensorInfo,
            ) -> Result<std::sync::Arc<memmap2::Mmap>, $crate::tensor::Error> {
                self.table.mapping(tensor)
            }
        }
    };
}
pub(super) use source_from_table;
