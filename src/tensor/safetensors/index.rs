//! Which files make up a checkpoint's directory.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use indexmap::IndexMap;

use super::SafeTensors;
use super::header::{Strings, unique};
use crate::tensor::{Error, TensorSource};

#[derive(serde::Deserialize)]
struct Index {
    weight_map: Strings,
}

/// Opens the shards `index` names and checks that each holds what the index says.
///
/// `metadata.total_size` is not compared: files in the wild disagree with it (tied weights counted twice,
/// a checkpoint saved again in another float type), and a truncated shard is found by its own header.
pub(super) fn open(dir: &Path, index: &Path) -> Result<SafeTensors, Error> {
    let bad = |why| Error::BadIndex { index: index.to_owned(), why };
    let text = crate::read::read_regular(index).map_err(Error::io(index, "read"))?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    let weight_map = unique(parsed.weight_map.0).map_err(|twice| bad(twice.to_string()))?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file) in &weight_map {
        if !is_plain_name(file) {
            let (tensor, file) = (tensor.clone(), file.clone());
            return Err(Error::IndexEscapes { index: index.to_owned(), tensor, file });
        }
        shards.entry(file).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(bad("`weight_map` is empty".to_owned()));
    }
    for (shard, tensors) in &shards {
        if !dir.join(shard).exists() {
            return Err(Error::IndexShardMissing {
                index: index.to_owned(),
                shard: (*shard).to_owned(),
                tensors: tensors.len(),
                first: tensors[0].to_owned(),
            });
        }
    }
    let files: Vec<PathBuf> = shards.keys().map(|shard| dir.join(shard)).collect();
    let source = SafeTensors::from_files(dir, &files)?;
    check_map(index, &weight_map, &source)?;
    Ok(source)
}

fn check_map(index: &Path, map: &IndexMap<String, String>, source: &SafeTensors) -> Result<(), Error> {
    for (tensor, shard) in map {
        let found = source.find(tensor).map(|info| &source.files()[info.shard]);
        if found.and_then(|file| file.file_name()) != Some(shard.as_ref()) {
            let (tensor, shard) = (tensor.clone(), shard.clone());
            return Err(Error::IndexTensorMissing { index: index.to_owned(), tensor, shard });
        }
    }
    Ok(())
}

/// Returns true for a name that can only lie beside the index: no separator, drive, `.` or `..`.
fn is_plain_name(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    plain && !file.contains(['/', '\\', ':', '\0'])
}

/// Returns the files of a directory without an index, sorted: `model*.safetensors`, else all `*.safetensors`.
///
/// Names that count (`-00001-of-00003`) must be complete.
pub(super) fn files_without_index(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let name = entry.map_err(Error::io(dir, "list"))?.file_name();
        if let Some(name) = name.to_str()
            && name.ends_with(".safetensors")
            && !name.starts_with('.')
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    if names.iter().any(|name| name.starts_with("model")) {
        names.retain(|name| name.starts_with("model"));
    }
    check_complete(dir, &names)?;
    Ok(names.iter().map(|name| dir.join(name)).collect())
}

fn check_complete(dir: &Path, names: &[String]) -> Result<(), Error> {
    for name in names {
        let Some((prefix, _, count)) = numbered(name) else { continue };
        for no in 1..=count {
            let file = format!("{prefix}-{no:05}-of-{count:05}.safetensors");
            if !names.contains(&file) {
                return Err(Error::ShardMissing { path: dir.to_owned(), missing: no, count, file });
            }
        }
    }
    Ok(())
}

/// Splits `PREFIX-NNNNN-of-MMMMM.safetensors`.
fn numbered(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (prefix, no) = rest.rsplit_once('-')?;
    if count.len() != 5 || no.len() != 5 {
        return None;
    }
    Some((prefix, no.parse().ok()?, count.parse().ok()?))
}
