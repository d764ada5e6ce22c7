//! SHA-256 of files, in the background and in parallel.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hex;
use crate::error::Diagnostic;

/// A file that could not be read for its digest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: cannot read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("{path}: is no regular file")]
    NotAFile { path: PathBuf },
}

impl Diagnostic for Error {}

/// A file's name, and the SHA-256 of its bytes in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedDigest {
    pub name: String,
    pub sha256: String,
}

/// Returns the SHA-256 of a file's bytes, lower-case hexadecimal.
///
/// Errors if it is no regular file (a device has no end, a pipe no bytes to read twice) or cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<String, Error> {
    sha256_unless(path, &AtomicBool::new(false)).map(Option::unwrap_or_default)
}

/// Returns `None` if `stop` was set before the file's end.
fn sha256_unless(path: &Path, stop: &AtomicBool) -> Result<Option<String>, Error> {
    let error = |source| Error::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(error)?.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    let mut file = File::open(path).map_err(error)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    while !stop.load(Ordering::Relaxed) {
        match file.read(&mut buffer).map_err(error)? {
            0 => return Ok(Some(hex(&hasher.finalize()))),
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(None)
}

/// Returns one digest of several files: of one file its SHA-256, of more the SHA-256 of what `sha256sum` prints
/// for them in this order, by their names without directories.
pub fn sha256_of_files(paths: &[PathBuf]) -> Result<String, Error> {
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(NamedDigest { name, sha256: sha256_of_file(path)? })
    };
    Ok(sha256_of_named(&paths.par_iter().map(named).collect::<Result<Vec<_>, Error>>()?))
}

/// As [`sha256_of_files`], of digests that are known.
pub fn sha256_of_named(files: &[NamedDigest]) -> String {
    if let [file] = files {
        return file.sha256.clone();
    }
    let mut hasher = Sha256::new();
    for NamedDigest { name, sha256 } in files {
        hasher.update(format!("{sha256}  {name}\n"));
    }
    hex(&hasher.finalize())
}

/// Digests of files, computed by threads of their own while their owner does something else.
///
/// Dropped before they are done, they are given up.
pub struct Digests {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    paths: Vec<PathBuf>,
    next: AtomicUsize,
    stop: AtomicBool,
    done: Mutex<HashMap<PathBuf, Result<String, Error>>>,
}

impl Digests {
    /// Begins to read the files, each once, in at most `n_threads` threads.
    pub fn begin(mut paths: Vec<PathBuf>, n_threads: usize) -> Digests {
        paths.sort();
        paths.dedup();
        let n_threads = n_threads.clamp(1, 8).min(paths.len());
        let shared = Arc::new(Shared {
            paths,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            done: Mutex::new(HashMap::new()),
        });
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.work())
        };
        Digests { threads: (0..n_threads).map(spawn).collect(), shared }
    }

    /// Waits for all of them; returns each file's digest by the path it was given by.
    ///
    /// Errors with the first file, by path, that could not be read.
    pub fn finish(mut self) -> Result<HashMap<PathBuf, String>, Error> {
        for thread in self.threads.drain(..) {
            // a thread that panicked leaves its file without a digest, and the next line reads it
            let _ = thread.join();
        }
        let mut done = std::mem::take(&mut *self.shared.done.lock().unwrap_or_else(PoisonError::into_inner));
        let mut digests = HashMap::with_capacity(done.len());
        for path in &self.shared.paths {
            let digest = done.remove(path).unwrap_or_else(|| sha256_of_file(path))?;
            digests.insert(path.clone(), digest);
        }
        Ok(digests)
    }
}

impl Drop for Digests {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn work(&self) {
        while let Some(path) = self.paths.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let Some(digest) = sha256_unless(path, &self.stop).transpose() else { return };
            self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone(), digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn digests_are_sha256sums() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a"), "abc").unwrap();
        std::fs::write(path("b"), "").unwrap();
        assert_eq!(sha256_of_files(&[path("a")]).unwrap(), ABC);
        // (cd dir; sha256sum a b) | sha256sum
        let both = "09c7e0b8a02d027d95ec0375a600ed4ad4d6b26a1c93f16d9150cab5fec761a6";
        assert_eq!(sha256_of_files(&[path("a"), path("b")]).unwrap(), both);
        assert!(
            sha256_of_files(&[path("a"), path("c")]).unwrap_err().to_string().ends_with("c: cannot read")
        );
    }

    #[test]
    fn in_the_background_they_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..20).map(|n| dir.path().join(format!("{n}"))).collect();
        for (n, path) in paths.iter().enumerate() {
            std::fs::write(path, vec![n as u8; 100_000 * n]).unwrap();
        }
        let twice = [paths.clone(), paths.clone()].concat();
        let digests = Digests::begin(twice, 3).finish().unwrap();
        assert_eq!(digests.len(), 20);
        for path in &paths {
            assert_eq!(digests[path], sha256_of_file(path).unwrap());
        }
        let absent = dir.path().join("absent");
        let error = Digests::begin([paths, vec![absent.clone()]].concat(), 2).finish().unwrap_err();
        assert!(matches!(error, Error::Read { path, .. } if path == absent));
        assert!(Digests::begin(Vec::new(), 2).finish().unwrap().is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn what_has_no_end_is_refused() {
        let error = sha256_of_file(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.to_string(), "/dev/zero: is no regular file");
        assert!(matches!(sha256_of_file(&std::env::temp_dir()), Err(Error::NotAFile { .. })));
    }
}
