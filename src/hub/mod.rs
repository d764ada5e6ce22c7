//! Models and data sets from a hub (or its cache): `lctl pull`, hub ids as arguments, files that suites name.
//!
//! The cache is the one Python's `huggingface_hub` keeps (`models--ORG--NAME/{blobs,refs,snapshots}`), so what
//! is pulled here is found there and the other way round. Talking to a hub needs the cargo feature `hub`;
//! finding what is already in the cache does not.

mod cache;
mod dataset;
mod error;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod git_oid;
mod id;
mod options;
#[cfg(feature = "hub")]
mod remote;
mod select;

use std::path::PathBuf;

pub use dataset::DatasetFile;
pub use error::Error;
pub use id::{RepoId, RepoKind, looks_like_id};
pub use options::Options;
pub use select::{Selection, SkipReason, is_pickle};

/// What happens during a pull, for whoever shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The revision was resolved to a commit.
    Resolved { commit: String },
    /// A remark that deserves the user's eye.
    Warning { message: String },
    /// A file of the repository that is not downloaded.
    Skipped { path: String, bytes: u64, reason: SkipReason },
    /// A file that the cache already holds.
    Cached { path: String, bytes: u64 },
    /// A transfer starts; `have` bytes came from an earlier, interrupted one.
    Started { path: String, bytes: u64, have: u64 },
    /// `bytes` more bytes of the current file are on disk.
    Received { bytes: u64 },
    /// The transfer broke at byte `at` and is taken up again.
    Retrying { path: String, at: u64, reason: String },
    /// The file is complete and its digest is right.
    Finished { path: String, bytes: u64 },
}

/// A listener for [`Event`]s.
pub type Observer<'a> = dyn FnMut(Event) + 'a;

/// How a file of a snapshot came to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Cached,
    Downloaded,
    /// Downloaded, continuing an interrupted transfer.
    Resumed,
}

/// One file of a pulled snapshot.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PulledFile {
    pub path: String,
    pub bytes: u64,
    /// SHA-256 of the content for LFS files, else git's blob id (SHA-1 of header and content); lower-case hex.
    pub digest: String,
    pub origin: Origin,
}

/// One file of the repository that was left there.
#[derive(Debug, Clone, serde::Serialize)]
pub struct SkippedFile {
    pub path: String,
    pub bytes: u64,
    pub reason: SkipReason,
}

/// What a pull did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Pulled {
    pub id: String,
    pub revision: String,
    /// The 40-digit commit the revision stood for.
    pub commit: String,
    /// The snapshot directory: a directory that looks like the repository.
    #[serde(serialize_with = "as_text")]
    pub snapshot: PathBuf,
    pub files: Vec<PulledFile>,
    pub skipped: Vec<SkippedFile>,
    /// Bytes that came over the network in this call.
    pub received_bytes: u64,
}

/// JSON has no names that are not Unicode; serializing such a path as it is would fail.
fn as_text<S: serde::Serializer>(path: &std::path::Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Returns the snapshot directory of hub id `id` (`ORG/NAME[@REVISION]`).
///
/// A complete snapshot in the cache is used as it is, without a network call; otherwise the model is
/// pulled with the default selection, unless `options.offline`.
pub fn resolve(id: &str, options: &Options, observer: &mut Observer) -> Result<PathBuf, Error> {
    let id: RepoId = id.parse()?;
    let cached = cache::lookup(&options.cache_dir, &id)?;
    match cached.complete() {
        Some(snapshot) => {
            observer(Event::Resolved { commit: snapshot.commit.clone() });
            Ok(snapshot.dir.clone())
        }
        None if options.offline => Err(cached.offline_error(&id, &options.cache_dir)),
        None => pull(&id, &Selection::default(), options, observer).map(|pulled| pulled.snapshot),
    }
}

/// Downloads what `selection` chooses of `id` into the cache, resuming what an earlier pull left unfinished.
///
/// Offline (`options.offline`) nothing is asked of the network: the snapshot is reported from the cache
/// if it is complete, and `options.verify_cached` is an error: what a file should be, the hub knows.
pub fn pull(
    id: &RepoId,
    selection: &Selection,
    options: &Options,
    observer: &mut Observer,
) -> Result<Pulled, Error> {
    if options.offline && options.verify_cached {
        return Err(Error::VerifyOffline);
    }
    if options.offline {
        let cached = cache::lookup(&options.cache_dir, id)?;
        let Some(snapshot) = cached.complete() else {
            return Err(cached.offline_error(id, &options.cache_dir));
        };
        observer(Event::Resolved { commit: snapshot.commit.clone() });
        let pulled = snapshot.report(id, selection)?;
        if selection.is_explicit() && pulled.files.is_empty() {
            let missing = "a file that --include matches".to_owned();
            return Err(Error::NotCached {
                id: id.to_string(),
                cache_dir: options.cache_dir.clone(),
                missing,
            });
        }
        return Ok(pulled);
    }
    #[cfg(feature = "hub")]
    {
        fetch::pull(id, selection, options, observer)
    }
    #[cfg(not(feature = "hub"))]
    {
        Err(Error::NoNetwork { id: id.to_string() })
    }
}
