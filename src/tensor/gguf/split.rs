//! Split models: one GGUF per shard, `NAME-00001-of-00003.gguf`, keys `split.*` in each.

use std::path::{Path, PathBuf};

use super::value::{Metadata, Value};
use crate::tensor::Error;

/// u16: this shard's place, from 0.
pub const SPLIT_NO: &str = "split.no";
/// u16: how many shards there are.
pub const SPLIT_COUNT: &str = "split.count";
/// i32: tensors of all shards together.
pub const SPLIT_TENSORS: &str = "split.tensors.count";

/// What a first shard says of the whole.
pub(super) struct SplitKeys {
    pub count: u64,
    tensors: u64,
}

impl SplitKeys {
    /// Returns the first shard's keys, `None` for a model in one file.
    ///
    /// Errors if the keys contradict each other or the file is not the first shard.
    pub fn of(path: &Path, metadata: &Metadata) -> Result<Option<SplitKeys>, Error> {
        if !metadata.contains_key(SPLIT_COUNT) {
            return Ok(None);
        }
        let count = number(path, metadata, SPLIT_COUNT)?;
        if count <= 1 {
            return Ok(None);
        }
        let no = number(path, metadata, SPLIT_NO)?;
        if no >= count {
            return Err(Error::SplitNo { path: path.to_owned(), no, count });
        }
        if no != 0 {
            let first = prefix(path, no, count).map(|prefix| file_name(&prefix, 0, count));
            return Err(Error::NotFirstShard { path: path.to_owned(), no: no + 1, count, first });
        }
        let tensors = number(path, metadata, SPLIT_TENSORS)?;
        Ok(Some(SplitKeys { count, tensors }))
    }

    /// Returns the shards after the first, numbered from 1, beside it.
    pub fn other_files(&self, first: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
        let count = self.count;
        let Some(prefix) = prefix(first, 0, count) else {
            let suffix = file_name("", 0, count);
            return Err(Error::SplitName { path: first.to_owned(), no: 1, count, suffix });
        };
        // `count` comes from the file: stop at the first shard that is not there.
        let mut files = Vec::new();
        for no in 1..count {
            let file = first.with_file_name(file_name(&prefix, no, count));
            if !file.exists() {
                return Err(missing(first, &file, no, count));
            }
            files.push((no, file));
        }
        Ok(files)
    }

    /// Checks that shard `no` says it is that, of as many.
    pub fn check_shard(&self, file: &Path, metadata: &Metadata, no: u64) -> Result<(), Error> {
        for (key, expected) in [(SPLIT_NO, no), (SPLIT_COUNT, self.count), (SPLIT_TENSORS, self.tensors)] {
            // The peer's loader asks later shards for their place only, and so do we.
            if key != SPLIT_NO && !metadata.contains_key(key) {
                continue;
            }
            let found = number(file, metadata, key)?;
            if found != expected {
                return Err(Error::SplitKey { path: file.to_owned(), key, found, expected });
            }
        }
        Ok(())
    }

    pub fn check_total(&self, path: &Path, shards: usize, actual: usize) -> Result<(), Error> {
        if self.tensors == actual as u64 {
            return Ok(());
        }
        Err(Error::SplitTensorCount { path: path.to_owned(), stated: self.tensors, shards, actual })
    }
}

/// Returns what all shards of a model have in common, prefix and number of shards, if the name is a shard's.
pub fn shared_by_shards(name: &str) -> Option<(&str, &str)> {
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, no) = rest.rsplit_once('-')?;
    (is_number(no) && is_number(count)).then_some((prefix, count))
}

/// Returns `PREFIX-00001-of-00003.gguf` for shard `no` (from 0).
pub fn file_name(prefix: &str, no: u64, count: u64) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", no + 1)
}

pub(super) fn missing(first: &Path, file: &Path, no: u64, count: u64) -> Error {
    let file = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Error::ShardMissing { path: first.to_owned(), missing: no as usize + 1, count: count as usize, file }
}

/// Returns the name before the shard's number, if the file has the name of shard `no`.
fn prefix(path: &Path, no: u64, count: u64) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let prefix = name.strip_suffix(&file_name("", no, count))?;
    (!prefix.is_empty()).then(|| prefix.to_owned())
}

fn number(path: &Path, metadata: &Metadata, key: &'static str) -> Result<u64, Error> {
    let value = metadata.get(key).and_then(Value::as_u64);
    value.ok_or_else(|| Error::BadSplitKey { path: path.to_owned(), key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_of_a_model_share_prefix_and_number() {
        assert_eq!(shared_by_shards(&file_name("a-b", 1, 3)), Some(("a-b", "00003")));
        assert_eq!(shared_by_shards("m-00001-of-00003.gguf"), shared_by_shards("m-00003-of-00003.gguf"));
        for other in [
            "m.gguf",
            "m-1-of-3.gguf",
            "m-0000x-of-00003.gguf",
            "m-00001-of-00003.bin",
            "00001-of-00003.gguf",
        ] {
            assert_eq!(shared_by_shards(other), None, "{other}");
        }
    }
}
