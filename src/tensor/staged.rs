//! Directories that appear whole or not at all.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::sink::{PARTIAL_FILES, Registry, short_name};

/// A directory on its way: files are written beside its final place, and [`StagedDir::commit`] gives it its name once
/// they are on the disk. Dropped before that, it leaves nothing.
///
/// Several processes may be at one name: each has a place of its own. What a killed one left is removed by the next of the name.
pub struct StagedDir {
    path: PathBuf,
    staging: Option<PathBuf>,
    /// Locked while this process is at it: what is not locked was left by one that was killed.
    _held: Option<File>,
    /// Whether something had the name at the beginning, which the caller then lets be replaced.
    replaces: bool,
    /// The number that an interrupt knows it by.
    listed: Option<(&'static Registry, u64)>,
}

/// Ends the name of a directory on its way.
const SUFFIX: &str = ".partial";
/// Stands between a directory's name and the random digits of its place: nobody else's names have it.
const MARK: &str = ".lctl-";
/// Random hexadecimal digits of a place's name.
const N_DIGITS: usize = 8;

impl StagedDir {
    /// Begins a directory that will be `path`; parents are made. An interrupt leaves it alone: what a run saves as it ends is
    /// written after one.
    pub fn create(path: &Path) -> io::Result<StagedDir> {
        StagedDir::begin(path, None)
    }

    /// Begins a directory that will be `path`, and that [`super::cleanup_partial_files`] removes; parents are made.
    ///
    /// Errors, as [`StagedDir::commit`] then does, with [`io::ErrorKind::Interrupted`] after an interrupt.
    pub fn create_output(path: &Path) -> io::Result<StagedDir> {
        StagedDir::begin(path, Some(&PARTIAL_FILES))
    }

    fn begin(path: &Path, registry: Option<&'static Registry>) -> io::Result<StagedDir> {
        let name =
            path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "has no name"))?;
        fs::create_dir_all(parent(path))?;
        remove_left(parent(path), &place_prefix(&name.to_string_lossy()))?;
        let replaces = path.symlink_metadata().is_ok();
        // two random names are hardly ever one, and a place is hardly ever swept before it is locked
        const N_TRIES: usize = 16;
        for _ in 0..N_TRIES {
            let staging = random_place(path, "");
            let made = match registry {
                Some(registry) => registry.create_dir(&staging).map(|id| Some((registry, id))),
                None => fs::create_dir(&staging).map(|()| None),
            };
            let listed = match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            };
            // some file systems have no locks: nothing is ever swept there, since sweeping takes one
            let held = File::open(&staging).ok().filter(|dir| dir.lock().is_ok());
            let staged =
                StagedDir { path: path.to_owned(), staging: Some(staging), _held: held, replaces, listed };
            if staged.staging.as_ref().is_some_and(|staging| staging.is_dir()) {
                return Ok(staged);
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "no free name for what is on its way"))
    }

    /// Returns where a file of that name is to be written.
    pub fn file(&self, name: &str) -> PathBuf {
        // it is there until commit, which takes self
        self.staging.as_deref().unwrap_or(&self.path).join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(self.file(name))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Writes a safetensors file of f32; returns the file's SHA-256.
    pub fn write_tensors<'a>(
        &self,
        name: &str,
        tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [f32])>,
    ) -> io::Result<String> {
        let tensors: Vec<_> = tensors.collect();
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut at = 0;
        for (name, shape, values) in &tensors {
            let end = at + 4 * values.len();
            header.insert(
                (*name).to_owned(),
                json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}),
            );
            at = end;
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut digest = Sha256::new();
        let file = File::create(self.file(name))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let mut write = |bytes: &[u8]| {
            digest.update(bytes);
            file.write_all(bytes)
        };
        write(&(header.len() as u64).to_le_bytes())?;
        write(&header)?;
        let mut buffer = Vec::new();
        for (_, _, values) in &tensors {
            for chunk in values.chunks(1 << 16) {
                buffer.clear();
                buffer.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
                write(&buffer)?;
            }
        }
        file.flush()?;
        file.get_ref().sync_all()?;
        Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Makes all durable and gives the directory its name; one that had it at the beginning is replaced.
    ///
    /// Errors with [`io::ErrorKind::AlreadyExists`] if another process has given the name meanwhile where nothing had it, or at the
    /// same moment; what stands there is whole then.
    pub fn commit(mut self) -> io::Result<()> {
        let Some(staging) = self.staging.clone() else { return Ok(()) };
        for entry in fs::read_dir(&staging)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(&staging)?.sync_all()?;
        let rename = || give_name(&staging, &self.path, self.replaces);
        let replaced = match self.listed.take() {
            Some((registry, id)) => {
                let renamed = registry.rename_dir(id, rename);
                registry.forget(id);
                renamed?
            }
            None => rename()?,
        };
        self.staging = None;
        File::open(parent(&self.path))?.sync_all()?;
        replaced.map_or(Ok(()), |replaced| remove(&replaced))
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        // what stays is taken away by the next one of the name
        self.staging.iter().for_each(|staging| drop(fs::remove_dir_all(staging)));
        self.listed.iter().for_each(|(registry, id)| registry.forget(*id));
    }
}

/// Renames a directory; returns where one that had the name is now.
fn give_name(staging: &Path, path: &Path, may_replace: bool) -> io::Result<Option<PathBuf>> {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory, NotFound};
    let named = || {
        fs::rename(staging, path).map_err(|error| match error.kind() {
            AlreadyExists | DirectoryNotEmpty | NotADirectory => taken(),
            _ => error,
        })
    };
    if !may_replace {
        // an empty directory would be replaced by a rename
        return if path.symlink_metadata().is_ok() { Err(taken()) } else { named().map(|()| None) };
    }
    let gone = random_place(path, ".gone");
    // nobody sweeps it before the new one stands
    let _held = File::open(path).ok().filter(|dir| dir.try_lock().is_ok());
    match fs::rename(path, &gone) {
        Ok(()) => (),
        Err(error) if error.kind() == NotFound => return named().map(|()| None),
        Err(error) => return Err(error),
    }
    if let Err(error) = named() {
        // the error at hand matters more than one from taking it back; where another process has given the name, what it
        // replaced is gone
        if fs::rename(&gone, path).is_err() && path.symlink_metadata().is_ok() {
            let _ = remove(&gone);
        }
        return Err(error);
    }
    Ok(Some(gone))
}

fn taken() -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, "another process has written it meanwhile")
}

/// Returns a random name beside `path`, of something on its way to or from it.
fn random_place(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // every one begins with random keys of its own
    let random = RandomState::new().hash_one(()) as u32;
    parent(path).join(format!("{}{random:0width$x}{what}{SUFFIX}", place_prefix(&name), width = N_DIGITS))
}

fn place_prefix(name: &str) -> String {
    format!(".{}{MARK}", short_name(name))
}

/// Removes a directory so that none of its name is ever there in part.
pub fn remove_dir_whole(path: &Path) -> io::Result<()> {
    let gone = random_place(path, ".gone");
    fs::rename(path, &gone)?;
    remove(&gone)
}

/// Removes the directories that ended processes left unfinished in a directory.
pub fn remove_partial_dirs(dir: &Path) -> io::Result<()> {
    remove_left(dir, ".")
}

/// Removes directories on their way that no process is at, of those whose names begin with `prefix`.
fn remove_left(dir: &Path, prefix: &str) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let is_place = name.to_str().is_some_and(|name| name.starts_with(prefix) && is_place(name));
        if !is_place || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(held) = File::open(entry.path()) else { continue };
        if held.try_lock().is_ok() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Returns whether [`random_place`] makes such names.
pub(super) fn is_place(name: &str) -> bool {
    let digits = || {
        let name = name.strip_suffix(SUFFIX)?;
        Some(name.strip_suffix(".gone").unwrap_or(name).rsplit_once(MARK)?.1)
    };
    name.starts_with('.')
        && digits().is_some_and(|digits| {
            digits.len() == N_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    // another process may sweep the same
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_interrupt_removes_a_staged_output_and_no_checkpoint() {
        let registry: &'static Registry = Box::leak(Box::new(Registry::new()));
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let whole = StagedDir::begin(&path("whole"), Some(registry)).unwrap();
        whole.write("a", b"1").unwrap();
        whole.commit().unwrap();
        let saved = StagedDir::create(&path("saved")).unwrap();
        let half = StagedDir::begin(&path("whole"), Some(registry)).unwrap();
        half.write("a", b"2").unwrap();
        let staging = half.staging.clone().unwrap();
        assert!(staging.is_dir());
        assert_eq!(registry.shut(), 1);
        assert!(!staging.exists());
        // what has its name stays, and nothing new gets one
        let error = half.commit().unwrap_err();
        assert!(!staging.exists(), "{error}");
        assert_eq!(fs::read_to_string(path("whole/a")).unwrap(), "1");
        let error = StagedDir::begin(&path("new"), Some(registry)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        saved.write("a", b"3").unwrap();
        saved.commit().unwrap();
        assert_eq!(names(dir.path()), ["saved", "whole"]);
    }

    #[test]
    fn a_directory_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/out");
        let staged = StagedDir::create(&path).unwrap();
        staged.write("a", b"1").unwrap();
        assert!(!path.exists());
        drop(staged);
        assert_eq!(names(&dir.path().join("deep")), [""; 0]);
        for text in ["2", "3"] {
            let staged = StagedDir::create(&path).unwrap();
            staged.write("a", text.as_bytes()).unwrap();
            staged.commit().unwrap();
            assert_eq!(fs::read_to_string(path.join("a")).unwrap(), text);
        }
        assert_eq!(names(&dir.path().join("deep")), ["out"]);
    }

    #[cfg(unix)]
    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let under_way = StagedDir::create(&path("out")).unwrap();
        // the second is another name's, the others are nobody's but the user's
        let left =
            [".out.lctl-0123abcd.partial", ".out.lctl-0123abcd.gone.partial", ".two.lctl-0123abcd.partial"];
        let users =
            [".out.partial", ".out.backup.partial", ".out.lctl-old.partial", "out.lctl-0123abcd.partial"];
        for name in left.iter().chain(&users) {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("a"), "1").unwrap();
        }
        drop(StagedDir::create(&path("out")).unwrap());
        assert_eq!([0, 1, 2].map(|i| path(left[i]).exists()), [false, false, true]);
        remove_partial_dirs(dir.path()).unwrap();
        assert!(!path(left[2]).exists());
        assert!(users.iter().all(|name| path(name).join("a").is_file()));
        assert!(under_way.staging.as_ref().unwrap().is_dir());
        under_way.commit().unwrap();
        assert!(path("out").is_dir());
    }

    #[test]
    fn of_two_that_end_at_once_one_has_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let begin = |text: &str| {
            let staged = StagedDir::create(&path).unwrap();
            staged.write("a", text.as_bytes()).unwrap();
            staged.write("b", text.as_bytes()).unwrap();
            staged
        };
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        let (one, two) = (begin("1"), begin("2"));
        one.commit().unwrap();
        let error = two.commit().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
        assert_eq!(
            (read("a"), read("b"), names(dir.path())),
            ("1".into(), "1".into(), vec!["out".to_owned()])
        );
        // where it stood already it is replaced by each in turn
        let (one, two) = (begin("3"), begin("4"));
        two.commit().unwrap();
        one.commit().unwrap();
        assert_eq!(
            (read("a"), read("b"), names(dir.path())),
            ("3".into(), "3".into(), vec!["out".to_owned()])
        );
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let begin = &begin;
                scope.spawn(move || {
                    for _ in 0..20 {
                        // who is too late at that moment is told so
                        let result = begin(&thread.to_string()).commit();
                        let kind = result.err().map(|error| error.kind());
                        assert!(kind.is_none_or(|kind| kind == io::ErrorKind::AlreadyExists), "{kind:?}");
                    }
                });
            }
        });
        assert_eq!(read("a"), read("b"));
        // what one could not put back as others moved the name to and fro goes with the next
        drop(begin("5"));
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_long_name_has_a_place_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ß".repeat(127));
        for _ in 0..2 {
            StagedDir::create(&path).unwrap().commit().unwrap();
        }
        assert_eq!(names(dir.path()).len(), 1);
    }
}
