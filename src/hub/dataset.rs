//! One file of a data set, known by its digest: what a suite asks of.

use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::cache::{self, Cached, io};
use super::id::hex;
use super::{Error, Observer, Options, RepoId, Selection, pull};

/// A file of a data set's repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DatasetFile {
    pub id: RepoId,
    /// Its path in the repository, `/` between folders.
    pub path: String,
    /// Of its bytes, lower-case hex.
    pub sha256: String,
}

impl fmt::Display for DatasetFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.id, self.path)
    }
}

impl DatasetFile {
    /// Returns true if the path can be one in a repository: plain names, and not out of it.
    pub fn is_path(path: &str) -> bool {
        cache::check_path(path).is_some()
    }

    /// Returns where the file lies in the cache, fetched if it is not there; nothing is fetched if `options.offline`.
    ///
    /// Its bytes are hashed every time. Errors if the digest is another, or the file is not to be had.
    pub fn resolve(&self, options: &Options, observer: &mut Observer) -> Result<PathBuf, Error> {
        if let Some(path) = self.cached(options)? {
            return self.checked(path);
        }
        if options.offline || !cfg!(feature = "hub") {
            return Err(Error::FileNotCached {
                id: self.id.to_string(),
                file: self.path.clone(),
                cache_dir: options.cache_dir.clone(),
                is_offline: options.offline,
            });
        }
        let pulled = pull(&self.id, &Selection::only(&self.path)?, options, observer);
        let pulled = pulled.map_err(|error| self.without_file(error))?;
        self.checked(pulled.snapshot.join(&self.path))
    }

    /// Returns where the file lies in the cache; opens no connection and hashes nothing.
    pub fn cached(&self, options: &Options) -> Result<Option<PathBuf>, Error> {
        let Cached::Present(snapshot) = cache::lookup(&options.cache_dir, &self.id)? else { return Ok(None) };
        let path = snapshot.dir.join(&self.path);
        Ok(path.is_file().then_some(path))
    }

    fn checked(&self, path: PathBuf) -> Result<PathBuf, Error> {
        let found = digest(&path)?;
        if found == self.sha256 {
            return Ok(path);
        }
        Err(Error::OtherContent {
            id: self.id.to_string(),
            file: self.path.clone(),
            expected: self.sha256.clone(),
            found,
        })
    }

    fn without_file(&self, error: Error) -> Error {
        match error {
            Error::NothingSelected { id, commit, examples, .. } => {
                Error::NoSuchFile { id, commit, file: self.path.clone(), examples }
            }
            other => other,
        }
    }
}

fn digest(path: &Path) -> Result<String, Error> {
    // what is asked of is read whole later, too
    let bytes = std::fs::read(path).map_err(io(path, "read"))?;
    Ok(hex(&Sha256::digest(bytes)))
}
