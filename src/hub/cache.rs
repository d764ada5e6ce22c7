//! The local cache, in `huggingface_hub`'s layout:
//! `models--ORG--NAME/refs/REVISION` (`datasets--…` of data sets) holds a commit, `snapshots/COMMIT/PATH` links to
//! `blobs/DIGEST`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::id::{is_commit, is_hex};
use super::select::is_weights;
use super::{Error, Origin, Pulled, PulledFile, RepoId, RepoKind, Selection};

/// Index files larger than this are not read.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Returns the repository's folder in the cache.
pub fn repository_dir(cache_dir: &Path, id: &RepoId) -> PathBuf {
    cache_dir.join(format!("{}--{}--{}", id.kind.plural(), id.org, id.name))
}

/// What the cache holds of a revision.
pub enum Cached {
    /// No snapshot of it.
    Absent {
        what: String,
    },
    Present(Snapshot),
}

/// A snapshot directory, and what a model needs that is not in it (of a data set nothing).
pub struct Snapshot {
    pub commit: String,
    pub dir: PathBuf,
    pub missing: Vec<String>,
}

impl Cached {
    /// Returns the snapshot if nothing is missing.
    pub fn complete(&self) -> Option<&Snapshot> {
        match self {
            Cached::Present(snapshot) if snapshot.missing.is_empty() => Some(snapshot),
            _ => None,
        }
    }

    /// Returns the error that says what is missing.
    pub fn offline_error(&self, id: &RepoId, cache_dir: &Path) -> Error {
        let missing = match self {
            Cached::Absent { what } => what.clone(),
            Cached::Present(snapshot) => first_few(&snapshot.missing),
        };
        Error::NotCached { id: id.to_string(), cache_dir: cache_dir.to_owned(), missing }
    }
}

fn first_few(names: &[String]) -> String {
    let shown = names.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    match names.len() {
        0..=4 => shown,
        more => format!("{shown} and {} more", more - 4),
    }
}

/// Returns what the cache holds of `id`, by its refs; opens no connection.
pub fn lookup(cache_dir: &Path, id: &RepoId) -> Result<Cached, Error> {
    let repository = repository_dir(cache_dir, id);
    if !repository.is_dir() {
        return Ok(Cached::Absent { what: format!("the repository {}", id.repository()) });
    }
    let revision = id.revision();
    let reference = repository.join("refs").join(revision);
    let commit = match fs::read_to_string(&reference) {
        Ok(text) => text.trim().to_owned(),
        Err(_) if is_commit(revision) => revision.to_owned(),
        Err(_) => return Ok(Cached::Absent { what: format!("the revision `{revision}`") }),
    };
    if !is_commit(&commit) {
        return Ok(Cached::Absent { what: format!("a commit in {}", reference.display()) });
    }
    let dir = repository.join("snapshots").join(&commit);
    if !dir.is_dir() {
        return Ok(Cached::Absent { what: format!("the snapshot of commit {commit}") });
    }
    let listed = list(&dir)?;
    let mut missing = listed.without_content(id.kind);
    // nothing says which files a data set must have
    if id.kind == RepoKind::Model {
        missing.extend(missing_files(&dir, &listed.names)?);
    }
    let missing = missing.into_iter().collect();
    Ok(Cached::Present(Snapshot { commit, dir, missing }))
}

/// Returns what a model in `dir` lacks: shards its index names, config.json beside safetensors, or any weights.
fn missing_files(dir: &Path, names: &[String]) -> Result<BTreeSet<String>, Error> {
    let mut missing = BTreeSet::new();
    for index in names.iter().filter(|name| name.ends_with(".safetensors.index.json")) {
        for shard in shards_of(&dir.join(index))? {
            if !dir.join(&shard).is_file() {
                missing.insert(shard);
            }
        }
    }
    if !names.iter().any(|name| is_weights(name)) && missing.is_empty() {
        missing.insert("weights (*.safetensors or *.gguf)".to_owned());
    }
    let adapter = names.iter().any(|name| name == "adapter_config.json");
    let has_safetensors = names.iter().any(|name| name.ends_with(".safetensors"));
    if has_safetensors && !adapter && !dir.join("config.json").is_file() {
        missing.insert("config.json".to_owned());
    }
    Ok(missing)
}

/// Returns the shard names of an index; names that are no plain file names are left to the tensor reader to refuse.
fn shards_of(index: &Path) -> Result<BTreeSet<String>, Error> {
    let length = fs::metadata(index).map_err(io(index, "read"))?.len();
    if length > MAX_INDEX_BYTES {
        return Ok(BTreeSet::new());
    }
    let text = fs::read(index).map_err(io(index, "read"))?;
    let Ok(index) = serde_json::from_slice::<serde_json::Value>(&text) else {
        return Ok(BTreeSet::new());
    };
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let names = map.into_iter().flat_map(|map| map.values()).filter_map(|name| name.as_str());
    Ok(names.filter(|name| check_path(name).is_some()).map(str::to_owned).collect())
}

/// The files below a snapshot's directory: paths that are relative, `/`-joined, sorted.
struct Listed {
    names: Vec<String>,
    /// Links whose blobs are gone.
    dangling: Vec<String>,
}

impl Listed {
    /// Returns the links that lead nowhere, of those that a pull takes unless told otherwise.
    fn without_content(&self, kind: RepoKind) -> BTreeSet<String> {
        let all: Vec<&str> = self.names.iter().chain(&self.dangling).map(String::as_str).collect();
        let taken = Selection::default().split(kind, &all).0;
        self.dangling.iter().filter(|name| taken.contains(&name.as_str())).cloned().collect()
    }
}

/// Returns what is below `dir`.
fn list(dir: &Path) -> Result<Listed, Error> {
    let mut listed = Listed { names: Vec::new(), dangling: Vec::new() };
    let mut pending = vec![(dir.to_owned(), String::new())];
    while let Some((folder, prefix)) = pending.pop() {
        for entry in fs::read_dir(&folder).map_err(io(&folder, "list"))? {
            let entry = entry.map_err(io(&folder, "list"))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            // A link to a folder is no part of the layout; following one could loop.
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir {
                pending.push((entry.path(), format!("{name}/")));
            } else if entry.path().is_file() {
                listed.names.push(name);
            } else if entry.path().is_symlink() && !entry.path().exists() {
                listed.dangling.push(name);
            }
        }
    }
    listed.names.sort();
    listed.dangling.sort();
    Ok(listed)
}

impl Snapshot {
    /// Returns the report of a pull that found everything here.
    pub fn report(&self, id: &RepoId, selection: &Selection) -> Result<Pulled, Error> {
        let names = list(&self.dir)?.names;
        let paths: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut files = Vec::new();
        for path in selection.split(id.kind, &paths).0 {
            let pointer = self.dir.join(path);
            let bytes = fs::metadata(&pointer).map_err(io(&pointer, "read"))?.len();
            files.push(PulledFile {
                path: path.to_owned(),
                bytes,
                digest: linked_digest(&pointer).unwrap_or_default(),
                origin: Origin::Cached,
            });
        }
        Ok(Pulled {
            id: id.repository(),
            revision: id.revision().to_owned(),
            commit: self.commit.clone(),
            snapshot: self.dir.clone(),
            files,
            skipped: Vec::new(),
            received_bytes: 0,
        })
    }
}

/// Returns the digest a snapshot file links to, if it is a link into blobs/.
fn linked_digest(pointer: &Path) -> Option<String> {
    let target = fs::read_link(pointer).ok()?;
    let name = target.file_name()?.to_str()?;
    (is_hex(name, 40) || is_hex(name, 64)).then(|| name.to_owned())
}

/// Returns `path` as a relative path of plain components, or `None` if it could leave its directory or
/// holds control characters, backslashes, or absurd lengths.
pub fn check_path(path: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = path.split('/').collect();
    let sane = |part: &&str| {
        !part.is_empty()
            && part.len() <= 255
            && !part.contains(['\\', ':'])
            && !part.chars().any(char::is_control)
            && !matches!(*part, "." | "..")
    };
    let relative = PathBuf::from(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && parts.len() <= 16 && parts.iter().all(sane)).then_some(relative)
}

/// Returns a closure that turns an I/O error on `path` into ours.
pub fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_snapshot_are_refused() {
        for path in ["../x", "a/../../x", "/etc/passwd", "a//b", "", "a/./b", "a\\b", "c:x", "a\nb", "a/"] {
            assert!(check_path(path).is_none(), "{path:?} was accepted");
        }
        let deep = vec!["d"; 17].join("/");
        assert!(check_path(&deep).is_none() && check_path(&"n".repeat(256)).is_none());
        assert_eq!(check_path("a/b c.json"), Some(PathBuf::from("a/b c.json")));
    }
}
