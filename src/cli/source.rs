//! The MODEL argument: a path, or a hub id; and the files on a hub that suites name.

use std::path::{Path, PathBuf};

use super::progress::PullProgress;
use crate::error::{Diagnostic, Failure, nearest_sibling};
use crate::eval::run::{Purpose, RunOptions, hub_files};
use crate::eval::suite::Suite;
use crate::hub;

/// A path argument that names nothing.
#[derive(Debug, thiserror::Error)]
#[error("{path}: no such file or directory")]
struct NoSuchPath {
    path: PathBuf,
    nearest: Option<String>,
}

impl Diagnostic for NoSuchPath {
    fn hint(&self) -> Option<String> {
        Some(match &self.nearest {
            Some(name) => format!("did you mean {name}?"),
            None => "give a model directory, a .safetensors or .gguf file, or a hub id ORG/NAME".into(),
        })
    }
}

/// Returns the local path that a MODEL argument stands for: the path itself if it exists, else the
/// snapshot of the hub id it spells (from the cache, or pulled unless offline).
///
/// Talks on stderr when a hub is involved, unless `quiet`.
pub fn model_path(argument: &str, offline: bool, quiet: bool) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(argument);
    if path.exists() {
        return Ok(path);
    }
    if !may_be_id(argument) {
        return Err(no_such_path(&path).into());
    }
    let mut options = hub::Options::from_env();
    options.offline |= offline;
    let mut progress = PullProgress::new(argument, quiet);
    Ok(hub::resolve(argument, &options, &mut |event| progress.show(event))?)
}

/// Fills in where the suites' files on a hub lie here: from the cache, or fetched unless offline. Their digests are checked.
///
/// Talks on stderr when a hub is asked, unless `quiet`.
pub fn find_hub_files(
    suites: &[Suite],
    options: &mut RunOptions,
    purpose: Purpose,
    offline: bool,
    quiet: bool,
) -> Result<(), Failure> {
    let mut hub = hub::Options::from_env();
    hub.offline |= offline;
    for file in hub_files(suites, options, purpose) {
        let mut progress = PullProgress::of_a_file(&file.id.to_string(), quiet);
        let path = file.resolve(&hub, &mut |event| progress.show(event))?;
        options.hub.insert(file, path);
    }
    Ok(())
}

/// Returns whether an argument that names no file can be a hub id: `models/tiny` with a local folder `models` is a mistyped
/// path, not a repository of an organization `models`.
pub fn may_be_id(argument: &str) -> bool {
    let parent = Path::new(argument).parent();
    hub::looks_like_id(argument)
        && !parent.is_some_and(|parent| !parent.as_os_str().is_empty() && parent.is_dir())
}

fn no_such_path(path: &Path) -> NoSuchPath {
    let nearest = nearest_sibling(path).map(|meant| meant.display().to_string());
    NoSuchPath { path: path.to_owned(), nearest }
}
