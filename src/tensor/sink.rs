//! Output files that appear whole or not at all.

mod partial;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempPath;

pub(super) use self::partial::{PARTIAL_FILES, Registry, short_name};
use super::Error;

/// A file that has its name and is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenFile {
    pub path: PathBuf,
    pub bytes: u64,
    /// Absent if hashing was switched off.
    pub sha256: Option<[u8; 32]>,
}

impl WrittenFile {
    /// Returns the digest in lower-case hexadecimal.
    pub fn sha256_hex(&self) -> Option<String> {
        self.sha256.map(|digest| digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// A file written under a temporary name in its final directory, then fsynced and renamed.
///
/// Dropped without [`AtomicFile::commit`], or interrupted, it leaves nothing behind.
pub struct AtomicFile {
    /// `None` once sealed.
    file: Option<File>,
    /// `None` only after a commit has taken it. Removes the file when dropped.
    temp: Option<TempPath>,
    id: u64,
    path: PathBuf,
    bytes: u64,
    hasher: Option<Sha256>,
    replace: bool,
    registry: &'static Registry,
}

impl AtomicFile {
    /// Creates the temporary file beside `path`, with permissions 0644 less the umask.
    ///
    /// `expected` is the final size if it is known: a disk without that much room is an error at once.
    /// `sha256` asks for a digest, computed while writing.
    pub fn create(path: &Path, expected: Option<u64>, sha256: bool) -> Result<AtomicFile, Error> {
        AtomicFile::create_in(&PARTIAL_FILES, path, expected, sha256)
    }

    fn create_in(
        registry: &'static Registry,
        path: &Path,
        expected: Option<u64>,
        sha256: bool,
    ) -> Result<AtomicFile, Error> {
        let path = destination(path)?;
        let dir = directory_of(&path);
        if let Some(needed) = expected {
            check_space(&path, needed)?;
        }
        let (temp, id) = registry.create(&path, dir)?;
        let hasher = sha256.then(Sha256::new);
        let (file, temp) = temp.into_parts();
        Ok(AtomicFile {
            file: Some(file),
            temp: Some(temp),
            id,
            path,
            bytes: 0,
            hasher,
            replace: true,
            registry,
        })
    }

    /// Sets whether committing replaces a file that has the name by then (it does unless told otherwise).
    pub fn set_replace(&mut self, replace: bool) {
        self.replace = replace;
    }

    /// Returns the path the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.bytes
    }

    /// Appends `bytes`, straight to the file.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let file = self.file.as_mut().expect("writers write before they seal");
        file.write_all(bytes).map_err(|source| write_error(&self.path, bytes.len() as u64, source))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Appends `count` zero bytes.
    pub fn write_zeros(&mut self, count: u64) -> Result<(), Error> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut left = count;
        while left > 0 {
            let n = left.min(ZEROS.len() as u64);
            self.write_all(&ZEROS[..n as usize])?;
            left -= n;
        }
        Ok(())
    }

    /// Writes the file's pages to the disk and closes it; there is only `commit` to do after that.
    pub fn seal(&mut self) -> Result<(), Error> {
        let Some(file) = self.file.take() else { return Ok(()) };
        file.sync_all().map_err(|source| write_error(&self.path, 0, source))
    }

    /// Returns what is known of the file when all of it is written: the name it will have, its length and digest.
    pub fn written(&self) -> WrittenFile {
        let sha256 = self.hasher.clone().map(|hasher| hasher.finalize().into());
        WrittenFile { path: self.path.clone(), bytes: self.bytes, sha256 }
    }

    /// Makes the file durable, gives it its name (replacing an old file, see [`AtomicFile::set_replace`]), and makes the name durable.
    pub fn commit(self) -> Result<WrittenFile, Error> {
        let mut written = AtomicFile::commit_all(vec![self])?;
        Ok(written.pop().expect("one file in, one out"))
    }

    /// Commits files that belong together: all of them get their names, or, after an error, none is left.
    pub fn commit_all(mut files: Vec<AtomicFile>) -> Result<Vec<WrittenFile>, Error> {
        for file in &mut files {
            file.seal()?;
        }
        let Some(registry) = files.first().map(|file| file.registry) else { return Ok(Vec::new()) };
        registry.persist(&mut files)?;
        let mut synced: Vec<&Path> = Vec::new();
        for file in &files {
            let dir = directory_of(&file.path);
            if !synced.contains(&dir) {
                sync_directory(dir)?;
                synced.push(dir);
            }
        }
        Ok(files.iter().map(AtomicFile::written).collect())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        self.file = None;
        self.temp = None;
        self.registry.forget(self.id);
    }
}

/// Removes every unfinished output of this process and forbids new ones; returns how many were removed.
///
/// For a Ctrl-C handler that runs in its own thread: whatever other threads do meanwhile, no output
/// is half there afterwards. Later writes and commits fail with [`Error::Interrupted`].
pub fn cleanup_partial_files() -> usize {
    PARTIAL_FILES.shut()
}

/// Errors with [`Error::Interrupted`] once there was a [`cleanup_partial_files`]; `path` is what is not written.
pub(crate) fn check_interrupted(path: &Path) -> Result<(), Error> {
    match PARTIAL_FILES.is_shut() {
        true => Err(Error::Interrupted { path: path.to_owned() }),
        false => Ok(()),
    }
}

/// Returns true if both paths lead to one existing file, by whatever names or links.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (std::fs::metadata(a), std::fs::metadata(b)) {
        use std::os::unix::fs::MetadataExt;
        return a.dev() == b.dev() && a.ino() == b.ino();
    }
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Resolves symbolic links and refuses what a finished file cannot replace.
fn destination(path: &Path) -> Result<PathBuf, Error> {
    let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if let Ok(meta) = std::fs::metadata(&resolved) {
        if meta.is_dir() {
            return Err(Error::OutputIsDirectory { path: path.to_owned() });
        }
        if !meta.is_file() {
            return Err(Error::OutputIsSpecial { path: path.to_owned() });
        }
        // The user's spelling is kept for messages unless it is a link.
        let is_link = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
        return Ok(if is_link { resolved } else { path.to_owned() });
    }
    // a name too long is known now, not when the work is done
    if let Err(source) = path.symlink_metadata()
        && source.kind() == std::io::ErrorKind::InvalidFilename
    {
        return Err(Error::Io { path: path.to_owned(), action: "write", source });
    }
    if path.file_name().is_none() || path.as_os_str().to_string_lossy().ends_with(['/', '\\']) {
        return Err(Error::OutputIsDirectory { path: path.to_owned() });
    }
    let dir = directory_of(path);
    if !dir.is_dir() {
        return Err(Error::NoOutputDirectory { path: path.to_owned(), dir: dir.to_owned() });
    }
    Ok(path.to_owned())
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Errors if the file system of `path` has less than `needed` bytes left for this user.
pub(super) fn check_space(path: &Path, needed: u64) -> Result<(), Error> {
    match available_bytes(directory_of(path)) {
        Some(available) if available < needed => {
            Err(Error::DiskFull { path: path.to_owned(), needed, available })
        }
        _ => Ok(()),
    }
}

/// Returns the bytes that this user may still write to the file system of `dir`, if it says.
#[cfg(unix)]
pub fn available_bytes(dir: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let dir = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `dir` is NUL-terminated and `stat` is writable; it is read only after success.
    let stat = unsafe {
        if libc::statvfs(dir.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between platforms")]
    (stat.f_bavail as u64).checked_mul(stat.f_frsize as u64)
}

/// Returns the bytes that this user may still write to the file system of `dir`, if it says.
#[cfg(not(unix))]
pub fn available_bytes(_dir: &Path) -> Option<u64> {
    None
}

/// Turns "no space left" into [`Error::DiskFull`]; `needed` is what was about to be written.
fn write_error(path: &Path, needed: u64, source: std::io::Error) -> Error {
    if source.kind() == std::io::ErrorKind::StorageFull {
        let available = available_bytes(directory_of(path)).unwrap_or(0);
        return Error::DiskFull { path: path.to_owned(), needed, available };
    }
    Error::Io { path: path.to_owned(), action: "write", source }
}

#[cfg(unix)]
fn sync_directory(dir: &Path) -> Result<(), Error> {
    let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(Error::io(dir, "make the new name durable"))
}

#[cfg(not(unix))]
fn sync_directory(_dir: &Path) -> Result<(), Error> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Diagnostic;

    /// A registry of its own, so that shutting it does not stop other tests.
    fn registry() -> &'static Registry {
        Box::leak(Box::new(Registry::new()))
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_name_appears_with_the_whole_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.bin");
        std::fs::write(&path, "old").unwrap();
        let mut file = AtomicFile::create(&path, Some(6), true).unwrap();
        file.write_all(b"abc").unwrap();
        file.write_zeros(3).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let written = file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abc\0\0\0");
        assert_eq!((written.bytes, names(dir.path())), (6, vec!["out.bin".to_owned()]));
        // printf 'abc\0\0\0' | sha256sum
        let digest = "dd0b251b2bf91037a1e4fc8416a24ae00bcb9a8c252dc7e2361f2fc015f51c16";
        assert_eq!(written.sha256_hex().unwrap(), digest);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_a_plain_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.bin");
        AtomicFile::create(&path, None, false).unwrap().commit().unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777 & !0o644, 0, "{mode:o}");
        assert_eq!(mode & 0o600, 0o600, "{mode:o}");
    }

    #[test]
    fn dropped_it_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&dir.path().join("out.bin"), None, true).unwrap();
        file.write_all(b"abc").unwrap();
        assert_eq!(names(dir.path()).len(), 1);
        drop(file);
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn an_interrupt_removes_partial_files_and_forbids_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.bin");
        let registry = registry();
        let mut file = AtomicFile::create_in(registry, &path, None, false).unwrap();
        let mut sealed = AtomicFile::create_in(registry, &dir.path().join("two"), None, false).unwrap();
        sealed.seal().unwrap();
        file.write_all(b"abc").unwrap();
        assert_eq!(registry.shut(), 2);
        assert_eq!(names(dir.path()), Vec::<String>::new());
        let error = AtomicFile::commit_all(vec![sealed, file]).unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }));
        assert_eq!(error.exit_code(), 130);
        let error = AtomicFile::create_in(registry, &path, None, false).err().unwrap();
        assert!(matches!(error, Error::Interrupted { .. }));
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn an_interrupt_amid_many_writers_leaves_whole_files_only() {
        let dir = tempfile::tempdir().unwrap();
        let registry = registry();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let dir = dir.path();
                scope.spawn(move || {
                    for i in 0.. {
                        let path = dir.join(format!("{thread}-{i}"));
                        let result =
                            AtomicFile::create_in(registry, &path, None, false).and_then(|mut file| {
                                file.write_all(b"half")?;
                                file.write_all(b"full")?;
                                file.commit()
                            });
                        if result.is_err() {
                            break;
                        }
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(30));
            registry.shut();
        });
        for name in names(dir.path()) {
            assert_eq!(std::fs::read(dir.path().join(&name)).unwrap(), b"halffull", "{name}");
        }
    }

    #[test]
    fn files_of_several_writers_are_those_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("model"), dir.path().join("manifest"));
        let commit = |registry, text: &str| {
            let files = [&one, &two].map(|path| {
                let mut file = AtomicFile::create_in(registry, path, None, true).unwrap();
                file.write_all(text.as_bytes()).unwrap();
                let written = file.written();
                assert_eq!((written.bytes, written.path), (text.len() as u64, path.clone()));
                file
            });
            let written = AtomicFile::commit_all(files.into()).unwrap();
            assert_eq!(written[0].sha256, written[1].sha256);
        };
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let commit = &commit;
                // a registry each, as processes have
                let registry = registry();
                scope.spawn(move || (0..20).for_each(|_| commit(registry, &thread.to_string())));
            }
        });
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!(read(&one), read(&two));
        assert_eq!(names(dir.path()), ["manifest", "model"]);
    }

    #[test]
    fn a_failed_rename_takes_back_the_names_given() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let files: Vec<_> = [&one, &two].map(|path| AtomicFile::create(path, None, false).unwrap()).into();
        std::fs::create_dir(&two).unwrap();
        let error = AtomicFile::commit_all(files).unwrap_err();
        assert!(error.to_string().ends_with("two: cannot give the finished file its name"), "{error}");
        assert_eq!(names(dir.path()), ["two"]);
        // what was replaced already stands there again
        std::fs::remove_dir(&two).unwrap();
        [&one, &two].iter().for_each(|path| std::fs::write(path, b"old").unwrap());
        let replacing = || -> Vec<AtomicFile> {
            [&one, &two].map(|path| AtomicFile::create(path, None, true).unwrap()).into()
        };
        let files = replacing();
        std::fs::remove_file(&two).unwrap();
        std::fs::create_dir(&two).unwrap();
        assert!(AtomicFile::commit_all(files).is_err());
        assert_eq!(
            (std::fs::read(&one).unwrap(), names(dir.path())),
            (b"old".to_vec(), vec!["one".into(), "two".into()])
        );
        std::fs::remove_dir(&two).unwrap();
        AtomicFile::commit_all(replacing()).unwrap();
        assert_eq!((std::fs::read(&one).unwrap(), names(dir.path()).len()), (Vec::new(), 2));
    }

    #[test]
    fn bad_destinations() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| AtomicFile::create(path, None, false).err().unwrap();
        let directory = error(dir.path());
        assert_eq!(directory.to_string(), format!("{}: is a directory", dir.path().display()));
        assert_eq!(directory.hint().unwrap(), "give a file name, e.g. `-o model.gguf`");
        let missing = dir.path().join("no/such/out.gguf");
        let dir_name = dir.path().join("no/such");
        assert_eq!(
            error(&missing).to_string(),
            format!("{}: the directory `{}` does not exist", missing.display(), dir_name.display())
        );
        assert!(matches!(error(&dir.path().join("new/")), Error::OutputIsDirectory { .. }));
        #[cfg(unix)]
        assert!(matches!(error(Path::new("/dev/null")), Error::OutputIsSpecial { .. }));
        #[cfg(target_os = "linux")]
        {
            let unwritable = error(Path::new("/proc/out.gguf"));
            let text = "/proc/out.gguf: the directory `/proc` cannot be written";
            assert_eq!(unwritable.to_string(), text);
        }
    }

    #[cfg(unix)]
    #[test]
    fn too_little_space_is_known_before_the_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.gguf");
        let error = AtomicFile::create(&path, Some(u64::MAX), false).err().unwrap();
        let Error::DiskFull { needed, available, .. } = error else { panic!("{error}") };
        assert!(needed == u64::MAX && available > 0);
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn no_space_left_while_writing_names_the_numbers() {
        // /dev/full answers every write with ENOSPC; the mapping of the error is what is under test.
        let dir = tempfile::tempdir().unwrap();
        let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let source = full.write_all(b"x").unwrap_err();
        let error = write_error(&dir.path().join("out"), 1, source);
        assert!(matches!(error, Error::DiskFull { needed: 1, .. }), "{error}");
        assert_eq!(error.hint().unwrap(), "free some space, or write to another disk");
    }

    #[cfg(unix)]
    #[test]
    fn a_name_may_be_as_long_as_the_file_system_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("{}.gguf", "n".repeat(250)));
        AtomicFile::create(&path, None, false).unwrap().commit().unwrap();
        assert!(path.is_file());
        let path = dir.path().join("n".repeat(256));
        let error = AtomicFile::create(&path, None, false).err().unwrap();
        let Error::Io { action: "write", source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind(), std::io::ErrorKind::InvalidFilename);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let mut file = AtomicFile::create(&link, None, false).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert!(link.is_symlink());
        assert!(is_same_file(&link, &target) && !is_same_file(&link, dir.path()));
    }
}
