//! One run at a time in a directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::Path;

use super::error::Error;

/// The file that is locked. It stays: one that went could be locked by two, each a file of its own under the name.
const NAME: &str = "run.lock";

/// A directory that no other run writes into; until it is dropped, or the process ends.
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the directory of a run, which is made unless the run is to go on in it.
    ///
    /// Errors if another process has it, or if there is nothing in it to go on with; nothing is touched then.
    pub fn take(dir: &Path, resume: bool) -> Result<RunLock, Error> {
        if resume && !dir.exists() {
            return Err(Error::NothingToResume { path: dir.to_owned() });
        }
        fs::create_dir_all(dir).map_err(Error::io(dir, "make"))?;
        let path = dir.join(NAME);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(Error::io(&path, "write"))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::InUse { path: dir.to_owned() }),
            // a file system without locks is no reason not to run
            Err(TryLockError::Error(_)) | Ok(()) => Ok(RunLock { _file: file }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_once_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("runs/a");
        assert!(matches!(RunLock::take(&run, true), Err(Error::NothingToResume { .. })));
        assert!(!run.exists());
        let lock = RunLock::take(&run, false).unwrap();
        for resume in [false, true] {
            assert!(matches!(RunLock::take(&run, resume), Err(Error::InUse { path }) if path == run));
        }
        drop(lock);
        RunLock::take(&run, true).unwrap();
    }
}
