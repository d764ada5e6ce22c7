//! The temporary files and directories alive in this process, so that an interrupt can remove them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

use super::{AtomicFile, write_error};
use crate::tensor::Error;
use crate::tensor::staged::is_place;

/// The files and directories of this process.
pub(in crate::tensor) static PARTIAL_FILES: Registry = Registry::new();

/// The temporary files and directories alive in this process. Creating, renaming and removing happen under its lock, so
/// that an interrupt sees each either listed or not yet (no longer) there.
pub(in crate::tensor) struct Registry {
    state: Mutex<State>,
}

struct State {
    shut: bool,
    next_id: u64,
    live: Vec<(u64, PathBuf)>,
}

impl Registry {
    pub(in crate::tensor) const fn new() -> Registry {
        Registry { state: Mutex::new(State { shut: false, next_id: 0, live: Vec::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn create(&self, path: &Path, dir: &Path) -> Result<(NamedTempFile, u64), Error> {
        let mut state = self.lock();
        if state.shut {
            return Err(Error::Interrupted { path: path.to_owned() });
        }
        let temp = create_temp(path, dir)?;
        let id = state.list(temp.path());
        Ok((temp, id))
    }

    /// Makes a directory; returns its number.
    ///
    /// Errors with [`io::ErrorKind::Interrupted`] after an interrupt.
    pub(in crate::tensor) fn create_dir(&self, dir: &Path) -> io::Result<u64> {
        let mut state = self.lock();
        if state.shut {
            return Err(io::ErrorKind::Interrupted.into());
        }
        std::fs::create_dir(dir)?;
        Ok(state.list(dir))
    }

    /// Gives a directory its name by `rename`, so that an interrupt comes before or after that.
    ///
    /// Errors with [`io::ErrorKind::Interrupted`] after an interrupt.
    pub(in crate::tensor) fn rename_dir<T>(
        &self,
        id: u64,
        rename: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.lock();
        if state.shut {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let result = rename()?;
        state.live.retain(|(live, _)| *live != id);
        Ok(result)
    }

    /// Returns whether there was an interrupt.
    pub(in crate::tensor) fn is_shut(&self) -> bool {
        self.lock().shut
    }

    /// Renames all files under one lock, so that an interrupt comes before the first or after the last. If one cannot get its
    /// name, those before it lose theirs, and what stood there stands there again.
    pub(super) fn persist(&self, files: &mut [AtomicFile]) -> Result<(), Error> {
        let mut state = self.lock();
        // a second name for what is replaced, where the file system has such; one file alone is replaced or not
        let several = files.len() > 1;
        let kept = |file: &AtomicFile| -> Option<tempfile::TempPath> {
            let dir = file.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let spare = tempfile::Builder::new().prefix(".replaced-").tempfile_in(dir).ok()?.into_temp_path();
            std::fs::remove_file(&spare).ok()?;
            std::fs::hard_link(&file.path, &spare).ok()?;
            Some(spare)
        };
        // two processes that replace the same files take turns, so that what stands there in the end is of one of them
        let _turn =
            files.first().filter(|_| several).and_then(|file| turn_in(super::directory_of(&file.path)));
        let mut spares: Vec<Option<tempfile::TempPath>> = Vec::new();
        for i in 0..files.len() {
            let path = files[i].path.clone();
            if state.shut {
                return Err(Error::Interrupted { path });
            }
            spares.push(if several && files[i].replace { kept(&files[i]) } else { None });
            let temp = files[i].temp.take().expect("present until here, and commit consumes the files");
            let named = if files[i].replace { temp.persist(&path) } else { temp.persist_noclobber(&path) };
            if let Err(error) = named {
                for (named, spare) in files[..i].iter().zip(spares) {
                    // The error at hand matters more than one from tidying up.
                    let _ = match spare {
                        Some(spare) => spare.persist(&named.path).map_err(|error| error.error),
                        None => std::fs::remove_file(&named.path),
                    };
                }
                if error.error.kind() == std::io::ErrorKind::AlreadyExists {
                    return Err(Error::OutputExists { path });
                }
                let action = "give the finished file its name";
                return Err(Error::Io { path, action, source: error.error });
            }
            let id = files[i].id;
            state.live.retain(|(live, _)| *live != id);
        }
        Ok(())
    }

    pub(in crate::tensor) fn forget(&self, id: u64) {
        self.lock().live.retain(|(live, _)| *live != id);
    }

    pub(in crate::tensor) fn shut(&self) -> usize {
        let mut state = self.lock();
        state.shut = true;
        let n_live = state.live.len();
        // one that another thread is still filling may not go yet: a second signal tries again
        state.live.retain(|(_, path)| remove(path).is_err());
        n_live - state.live.len()
    }
}

impl State {
    /// Notes a new path; returns its number.
    fn list(&mut self, path: &Path) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.live.push((id, path.to_owned()));
        id
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path)?.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    }
}

/// Returns a lock on a directory, held until it is dropped: waited for a while, since whoever has it renames a few files; none where
/// the file system has no locks, or in a directory on its way, which no other process writes to and which is locked as a whole.
fn turn_in(dir: &Path) -> Option<std::fs::File> {
    const N_TRIES: usize = 500;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
    if dir.file_name().and_then(|name| name.to_str()).is_some_and(is_place) {
        return None;
    }
    let dir = std::fs::File::open(dir).ok()?;
    for _ in 0..N_TRIES {
        match dir.try_lock() {
            Ok(()) => return Some(dir),
            Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            Err(std::fs::TryLockError::Error(_)) => return None,
        }
    }
    None
}

/// Returns as much of a name as leaves room for what a temporary name adds to it: file systems end names at 255 bytes.
pub(in crate::tensor) fn short_name(name: &str) -> &str {
    const LONGEST: usize = 200;
    let end = (0..=LONGEST.min(name.len())).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    &name[..end]
}

fn create_temp(path: &Path, dir: &Path) -> Result<NamedTempFile, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{}.", short_name(&name));
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".partial");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o644));
    }
    builder.tempfile_in(dir).map_err(|source| {
        if source.kind() == std::io::ErrorKind::StorageFull {
            return write_error(path, 0, source);
        }
        Error::Unwritable { path: path.to_owned(), dir: dir.to_owned(), source }
    })
}
