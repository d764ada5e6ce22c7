//! A pull: list, choose, then file by file resume, check and link.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::{check_path, io, repository_dir};
use super::git_oid::Sha1;
use super::id::{hex, is_commit};
use super::remote::{Listed, Remote};
use super::select::{is_data, is_weights};
use super::{
    Error, Event, Observer, Options, Origin, Pulled, PulledFile, RepoId, RepoKind, Selection, SkippedFile,
};

/// Downloads the selected files of `id` into the cache.
pub fn pull(
    id: &RepoId,
    selection: &Selection,
    options: &Options,
    observer: &mut Observer,
) -> Result<Pulled, Error> {
    warn_of_clear_text(options, observer);
    let remote = Remote::new(id, options)?;
    let commit = remote.commit()?;
    observer(Event::Resolved { commit: commit.clone() });
    let (chosen, skipped) = choose(id, selection, &commit, remote.files(&commit)?, observer)?;
    let mut pull =
        Pull { remote, options, commit, repository: repository_dir(&options.cache_dir, id), received: 0 };
    let files = chosen.iter().map(|file| pull.file(file, observer)).collect::<Result<Vec<_>, _>>()?;
    // Written last: a ref stands for a snapshot that is complete.
    if !is_commit(id.revision()) {
        pull.write_ref(id.revision())?;
    }
    Ok(Pulled {
        id: id.repository(),
        revision: id.revision().to_owned(),
        snapshot: pull.repository.join("snapshots").join(&pull.commit),
        commit: pull.commit,
        files,
        skipped,
        received_bytes: pull.received,
    })
}

fn warn_of_clear_text(options: &Options, observer: &mut Observer) {
    let Some(rest) = options.endpoint.strip_prefix("http://") else { return };
    let local = ["127.", "localhost", "[::1]"].iter().any(|host| rest.starts_with(host));
    if options.token.is_some() && !local {
        let message = format!("the token travels unencrypted to {}", options.endpoint);
        observer(Event::Warning { message });
    }
}

/// Returns the files to take, small ones first so that a broken pull leaves the index that tells what is missing.
fn choose(
    id: &RepoId,
    selection: &Selection,
    commit: &str,
    listed: Vec<Listed>,
    observer: &mut Observer,
) -> Result<(Vec<Listed>, Vec<SkippedFile>), Error> {
    let unsafe_path = listed.iter().find(|file| check_path(&file.path).is_none());
    if let Some(file) = unsafe_path {
        return Err(Error::UnsafePath { id: id.to_string(), path: file.path.escape_debug().to_string() });
    }
    let paths: Vec<&str> = listed.iter().map(|file| file.path.as_str()).collect();
    let (taken, left) = selection.split(id.kind, &paths);
    let find = |path: &str| listed.iter().find(|file| file.path == path).cloned();
    let mut chosen: Vec<Listed> = taken.into_iter().filter_map(find).collect();
    let (is_main, wanted): (fn(&str) -> bool, _) = match id.kind {
        _ if selection.is_explicit() => (|_| true, "matched by --include"),
        RepoKind::Model => (is_weights, "a *.safetensors file"),
        RepoKind::Dataset => (is_data, "JSON, CSV, TSV, Parquet or text"),
    };
    if !chosen.iter().any(|file| is_main(&file.path)) {
        let readable =
            |path: &&&str| path.ends_with(".gguf") || id.kind == RepoKind::Dataset && is_data(path);
        let examples = paths.iter().filter(readable).take(3);
        return Err(Error::NothingSelected {
            id: id.repository(),
            commit: commit.to_owned(),
            count: listed.len(),
            wanted: wanted.to_owned(),
            examples: examples.map(|path| path.to_string()).collect(),
        });
    }
    chosen.sort_by(|a, b| (is_weights(&a.path), &a.path).cmp(&(is_weights(&b.path), &b.path)));
    let mut skipped = Vec::new();
    for (path, reason) in left {
        let bytes = find(path).map_or(0, |file| file.bytes);
        observer(Event::Skipped { path: path.to_owned(), bytes, reason });
        skipped.push(SkippedFile { path: path.to_owned(), bytes, reason });
    }
    Ok((chosen, skipped))
}

struct Pull<'a> {
    remote: Remote,
    options: &'a Options,
    commit: String,
    /// The repository's folder in the cache.
    repository: PathBuf,
    received: u64,
}

impl Pull<'_> {
    /// Brings one file into the snapshot.
    fn file(&mut self, file: &Listed, observer: &mut Observer) -> Result<PulledFile, Error> {
        let digest = self.remote.digest(&self.commit, file)?;
        let blobs = self.repository.join("blobs");
        fs::create_dir_all(&blobs).map_err(io(&blobs, "create"))?;
        let blob = blobs.join(&digest);
        let _lock = Lock::take(&self.lock_path(&digest))?;
        let origin = if self.is_cached(&blob, file, &digest)? {
            observer(Event::Cached { path: file.path.clone(), bytes: file.bytes });
            Origin::Cached
        } else {
            let origin = self.download(file, &digest, &blob, observer)?;
            observer(Event::Finished { path: file.path.clone(), bytes: file.bytes });
            origin
        };
        self.link(&blob, file)?;
        Ok(PulledFile { path: file.path.clone(), bytes: file.bytes, digest, origin })
    }

    fn lock_path(&self, digest: &str) -> PathBuf {
        let folder = self.repository.file_name().unwrap_or_default();
        self.options.cache_dir.join(".locks").join(folder).join(format!("{digest}.lock"))
    }

    fn is_cached(&self, blob: &Path, file: &Listed, digest: &str) -> Result<bool, Error> {
        let right_size = fs::metadata(blob).is_ok_and(|found| found.is_file() && found.len() == file.bytes);
        if !right_size || !self.options.verify_cached {
            return Ok(right_size);
        }
        let mut hasher = Hasher::for_digest(digest, file.bytes);
        hasher.take_file(blob)?;
        Ok(hasher.hex() == digest)
    }

    /// Fills `blob` through `blob.incomplete`, which survives a broken transfer.
    fn download(
        &mut self,
        file: &Listed,
        digest: &str,
        blob: &Path,
        observer: &mut Observer,
    ) -> Result<Origin, Error> {
        let partial = blob.with_file_name(format!("{digest}.incomplete"));
        let mut transfer = Transfer::open(partial, file, digest)?;
        let resumed = transfer.written > 0;
        observer(Event::Started { path: file.path.clone(), bytes: file.bytes, have: transfer.written });
        let mut fresh = !resumed;
        loop {
            self.fill(&mut transfer, file, observer)?;
            match transfer.check(&self.remote.name(file), digest) {
                Ok(()) => break,
                // What an earlier run left, or a hub that ignores ranges, may be to blame: once more from zero.
                Err(_) if !fresh => {
                    let reason = "the resumed content was wrong".to_owned();
                    observer(Event::Retrying { path: file.path.clone(), at: 0, reason });
                    transfer.restart()?;
                    fresh = true;
                }
                Err(error) => {
                    transfer.discard()?;
                    return Err(error);
                }
            }
        }
        transfer.finish(blob)?;
        Ok(if resumed { Origin::Resumed } else { Origin::Downloaded })
    }

    /// Receives until the file has its length, taking up broken transfers; progress renews the patience.
    fn fill(&mut self, transfer: &mut Transfer, file: &Listed, observer: &mut Observer) -> Result<(), Error> {
        let mut failures = 0;
        while transfer.written < file.bytes {
            let before = transfer.written;
            let received = &mut self.received;
            let outcome = self.remote.stream(&self.commit, file, before, &mut |bytes| {
                *received += bytes.len() as u64;
                transfer.write(bytes)?;
                observer(Event::Received { bytes: bytes.len() as u64 });
                Ok(())
            });
            let error = match outcome {
                Ok(()) if transfer.written >= file.bytes => break,
                Ok(()) => Error::Transfer {
                    what: self.remote.name(file),
                    source: Box::new(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
                },
                Err(error @ Error::Transfer { .. }) => error,
                // The hub ignored the range, and `transfer` has started over.
                Err(error @ Error::SizeMismatch { .. }) if before > 0 => error,
                // A disk error, a refusal, or more bytes than announced: trying again changes nothing.
                Err(error) => return Err(error),
            };
            failures = if transfer.written > before { 1 } else { failures + 1 };
            if failures > self.options.retries {
                transfer.flush()?;
                return Err(error);
            }
            observer(Event::Retrying {
                path: file.path.clone(),
                at: transfer.written,
                reason: error.to_string(),
            });
            std::thread::sleep(self.options.backoff * (1 << (failures - 1).min(6)));
        }
        Ok(())
    }

    /// Makes the snapshot's name for the blob.
    fn link(&self, blob: &Path, file: &Listed) -> Result<(), Error> {
        let pointer = self.repository.join("snapshots").join(&self.commit).join(&file.path);
        let folder = pointer.parent().unwrap_or(&pointer);
        fs::create_dir_all(folder).map_err(io(folder, "create"))?;
        let up = "../".repeat(2 + file.path.matches('/').count());
        let target = PathBuf::from(up).join("blobs").join(blob.file_name().unwrap_or_default());
        if fs::read_link(&pointer).is_ok_and(|found| found == target) {
            return Ok(());
        }
        if pointer.symlink_metadata().is_ok() {
            fs::remove_file(&pointer).map_err(io(&pointer, "replace"))?;
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(&target, &pointer).map_err(io(&pointer, "create the link"))?;
        #[cfg(not(unix))]
        fs::copy(blob, &pointer).map(|_| ()).map_err(io(&pointer, "copy the file to"))?;
        Ok(())
    }

    fn write_ref(&self, revision: &str) -> Result<(), Error> {
        let path = self.repository.join("refs").join(revision);
        let folder = path.parent().unwrap_or(&path);
        fs::create_dir_all(folder).map_err(io(folder, "create"))?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io(folder, "write to"))?;
        file.write_all(self.commit.as_bytes()).map_err(io(&path, "write"))?;
        file.persist(&path).map(|_| ()).map_err(|e| e.error).map_err(io(&path, "replace"))
    }
}

/// The digest a hub names a content by.
enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    fn for_digest(digest: &str, bytes: u64) -> Self {
        match digest.len() {
            64 => Hasher::Sha256(Sha256::new()),
            _ => Hasher::GitBlob(Sha1::git_blob(bytes)),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    /// Takes a whole file; returns its length.
    fn take_file(&mut self, path: &Path) -> Result<u64, Error> {
        let mut file = File::open(path).map_err(io(path, "open"))?;
        let mut buffer = vec![0; 1 << 20];
        let mut length = 0;
        loop {
            match file.read(&mut buffer).map_err(io(path, "read"))? {
                0 => return Ok(length),
                count => {
                    self.update(&buffer[..count]);
                    length += count as u64;
                }
            }
        }
    }

    fn hex(self) -> String {
        match self {
            Hasher::Sha256(hasher) => hex(&hasher.finalize()),
            Hasher::GitBlob(hasher) => hasher.hex(),
        }
    }
}

/// A file on its way into the cache, hashed as it comes.
struct Transfer {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    written: u64,
    /// Length the hub announced.
    expected: u64,
    name: String,
    digest: String,
}

impl Transfer {
    /// Opens the partial file and hashes what is in it.
    fn open(path: PathBuf, file: &Listed, digest: &str) -> Result<Self, Error> {
        let mut hasher = Hasher::for_digest(digest, file.bytes);
        let mut written = if path.exists() { hasher.take_file(&path)? } else { 0 };
        let options = OpenOptions::new().create(true).append(true).open(&path);
        let out = options.map_err(io(&path, "open"))?;
        if written > file.bytes {
            out.set_len(0).map_err(io(&path, "truncate"))?;
            hasher = Hasher::for_digest(digest, file.bytes);
            written = 0;
        }
        let (name, digest) = (file.path.clone(), digest.to_owned());
        Ok(Transfer { path, file: out, hasher, written, expected: file.bytes, name, digest })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let after = self.written + bytes.len() as u64;
        if after > self.expected {
            // Not kept: a hub that ignored the range would leave a file that can never be right.
            self.restart()?;
            return Err(Error::SizeMismatch {
                file: self.name.clone(),
                expected: self.expected,
                actual: after,
            });
        }
        self.file.write_all(bytes).map_err(io(&self.path, "write to"))?;
        self.hasher.update(bytes);
        self.written = after;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.file.sync_data().map_err(io(&self.path, "write to"))
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).map_err(io(&self.path, "truncate"))?;
        self.hasher = Hasher::for_digest(&self.digest, self.expected);
        self.written = 0;
        Ok(())
    }

    /// Errors if the content is not what the hub announced.
    fn check(&mut self, name: &str, expected: &str) -> Result<(), Error> {
        let fresh = Hasher::for_digest(&self.digest, self.expected);
        let actual = std::mem::replace(&mut self.hasher, fresh).hex();
        if actual == expected {
            return Ok(());
        }
        Err(Error::DigestMismatch { file: name.to_owned(), expected: expected.to_owned(), actual })
    }

    fn discard(self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(io(&self.path, "delete"))
    }

    fn finish(self, blob: &Path) -> Result<(), Error> {
        self.file.sync_all().map_err(io(&self.path, "write to"))?;
        fs::rename(&self.path, blob).map_err(io(blob, "rename the download to"))
    }
}

/// An advisory lock against another process (lctl or Python) that fetches the same blob.
struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock; it is released when dropped.
    fn take(path: &Path) -> Result<Self, Error> {
        let folder = path.parent().unwrap_or(path);
        fs::create_dir_all(folder).map_err(io(folder, "create"))?;
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io(path, "open"))?;
        #[cfg(unix)]
        {
            use std::os::fd::AsRawFd;
            // SAFETY: the descriptor is open, and flock touches no memory of ours.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
                return Err(io(path, "lock")(std::io::Error::last_os_error()));
            }
        }
        Ok(Lock { _file: file })
    }
}
