//! Files that are read whole, and why they cannot be.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::error::{Diagnostic, unread_hint};

/// Why a file's bytes, or its text, are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{path}: cannot read")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("{path}: not a regular file")]
    NotAFile { path: PathBuf },

    #[error("{path}:{line}: not UTF-8")]
    NotUtf8 { path: PathBuf, line: usize },

    #[error("{path}: {bytes} bytes; at most {most} are read of such a file")]
    TooLarge { path: PathBuf, bytes: u64, most: u64 },

    #[error("{path}: {bytes} bytes, and no memory for them and what is made of them")]
    NoMemory { path: PathBuf, bytes: u64 },
}

/// That a file is longer than any of its kind is, as the cause of an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{bytes} bytes; at most {most} are read of such a file")]
struct TooLarge {
    bytes: u64,
    most: u64,
}

/// Bytes that are read at most of a settings file of a model's directory: of one whose kind [`LONGEST`] does not name.
pub const MAX_SETTINGS_BYTES: u64 = 16 << 20;

/// Bytes that are read at most of a chat template.
pub const MAX_TEMPLATE_BYTES: u64 = 16 << 20;

/// Ends of names of files that have a list in them, and the bytes that are read of one at most: of vocabularies, and of an
/// entry per tensor.
const LONGEST: [(&str, u64); 5] = [
    ("tokenizer.json", 512 << 20),
    ("tokenizer.model", 512 << 20),
    ("vocab.json", 512 << 20),
    ("merges.txt", 512 << 20),
    (".index.json", 256 << 20),
];

/// Returns the bytes that are read at most of a file of a model's directory.
fn longest(path: &Path) -> u64 {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    LONGEST.iter().find(|(end, _)| name.ends_with(end)).map_or(MAX_SETTINGS_BYTES, |(_, most)| *most)
}

impl Diagnostic for ReadError {
    fn hint(&self) -> Option<String> {
        match self {
            ReadError::Io { path, source } => unread_hint(path, source),
            ReadError::NotAFile { .. } => {
                Some("devices and pipes have no end: write what is in it to a file, and name that".into())
            }
            ReadError::NotUtf8 { .. } => None,
            ReadError::TooLarge { .. } => Some("is it the file that was meant?".into()),
            ReadError::NoMemory { .. } => Some("name a shorter file, or a part of it".into()),
        }
    }
}

/// Errors on a device or a pipe without opening it: it may never end, and a digest of it says nothing of what a second
/// reader gets.
pub fn refuse_endless(path: &Path) -> Result<(), ReadError> {
    match is_endless(path) {
        Ok(false) => Ok(()),
        Ok(true) => Err(ReadError::NotAFile { path: path.to_owned() }),
        Err(source) => Err(ReadError::Io { path: path.to_owned(), source }),
    }
}

/// Returns a file's bytes. Errors on a device or a pipe as [`refuse_endless`], and on a file that there is no memory for: room for
/// twice its bytes more is tried, since rows, words or tokens are made of what is read here, and they cannot be refused it.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, ReadError> {
    refuse_endless(path)?;
    let io = |source| ReadError::Io { path: path.to_owned(), source };
    let bytes = match std::fs::read(path) {
        Err(source) if source.kind() == io::ErrorKind::OutOfMemory => {
            let bytes = std::fs::metadata(path).map_err(io)?.len();
            return Err(ReadError::NoMemory { path: path.to_owned(), bytes });
        }
        read => read.map_err(io)?,
    };
    match has_room(bytes.len().saturating_mul(2)) {
        true => Ok(bytes),
        false => Err(ReadError::NoMemory { path: path.to_owned(), bytes: bytes.len() as u64 }),
    }
}

/// Returns whether the system would give so many bytes now; they are not touched.
fn has_room(n_bytes: usize) -> bool {
    let mut room = Vec::<u8>::new();
    let given = room.try_reserve_exact(n_bytes).is_ok();
    // memory that nothing is done with need not be asked for at all
    std::hint::black_box(&mut room);
    given
}

/// As [`std::fs::read`], for files of a model's directory, whose errors have a type of their own: errors on a device or a pipe
/// without opening it, and on a file longer than any of its kind is, which its name tells.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let most = longest(path);
    // not FileTooLarge, which is said of what cannot be written
    let too_large = |bytes| io::Error::new(io::ErrorKind::InvalidData, TooLarge { bytes, most });
    let file = open_regular(path)?;
    let length = file.metadata()?.len();
    if length > most {
        return Err(too_large(length));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX))?;
    // it may grow meanwhile
    file.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        read if read > most => Err(too_large(read)),
        _ => Ok(bytes),
    }
}

/// As [`read_regular`], `None` if there is no such file. Whatever else is there is to be read: a link that leads nowhere is an
/// error.
pub fn read_present(path: &Path) -> io::Result<Option<Vec<u8>>> {
    if_present(path, read_regular)
}

/// Returns the first `most` bytes of a file, all if it has fewer, `None` if there is no such file; errors as [`read_present`].
pub fn read_start(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    if_present(path, |path| {
        let mut bytes = Vec::new();
        open_regular(path)?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

fn if_present<T>(path: &Path, read: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<Option<T>> {
    let is_absence =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    match path.symlink_metadata() {
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
        Ok(found) if found.is_symlink() && path.metadata().is_err_and(|error| is_absence(&error)) => {
            Err(io::Error::other("a link to a file that is not there"))
        }
        Ok(_) => read(path).map(Some),
    }
}

fn open_regular(path: &Path) -> io::Result<std::fs::File> {
    match is_endless(path)? {
        true => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        false => std::fs::File::open(path),
    }
}

/// Returns whether a path is that of a device, a pipe or a socket. Reading a directory fails with the system's own words.
fn is_endless(path: &Path) -> std::io::Result<bool> {
    let metadata = std::fs::metadata(path)?;
    Ok(!metadata.is_file() && !metadata.is_dir())
}

/// Returns a file's bytes as text, a byte order mark left out; the error has the line, from 1, that is no text.
pub fn text_of<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, ReadError> {
    let text = std::str::from_utf8(bytes).map_err(|error| ReadError::NotUtf8 {
        path: path.to_owned(),
        line: line_at(bytes, error.valid_up_to()),
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Returns a file's text, a byte order mark left out.
pub fn read_text(path: &Path) -> Result<String, ReadError> {
    let bytes = read_bytes(path)?;
    text_of(path, &bytes).map(str::to_owned)
}

/// Returns the text of a chat template's file, a byte order mark left out; errors on one longer than [`MAX_TEMPLATE_BYTES`].
pub fn read_template(path: &Path) -> Result<String, ReadError> {
    const MOST: u64 = MAX_TEMPLATE_BYTES;
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() > MOST => {
            Err(ReadError::TooLarge { path: path.to_owned(), bytes: found.len(), most: MOST })
        }
        _ => read_text(path),
    }
}

/// Returns the line, from 1, of a byte.
fn line_at(bytes: &[u8], offset: usize) -> usize {
    1 + bytes[..offset].iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_without_its_mark_and_refused_with_its_line() {
        let path = Path::new("rows.txt");
        assert_eq!(text_of(path, "\u{feff}größe\n".as_bytes()).unwrap(), "größe\n");
        let error = text_of(path, b"one\ntwo\xff\n").unwrap_err();
        assert_eq!(error.to_string(), "rows.txt:2: not UTF-8");
        assert_eq!(read_text(Path::new("/nowhere/x")).unwrap_err().to_string(), "/nowhere/x: cannot read");
    }

    #[test]
    fn no_file_is_read_beyond_what_its_kind_has() {
        let dir = tempfile::tempdir().unwrap();
        let sparse = |name: &str, bytes: u64| {
            let path = dir.path().join(name);
            std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
            path
        };
        for (name, most) in
            [("config.json", 16 << 20), ("tokenizer.json", 512 << 20), ("a.index.json", 256 << 20)]
        {
            let error = read_regular(&sparse(name, 6 << 30)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let expected = format!("6442450944 bytes; at most {most} are read of such a file");
            assert_eq!(error.to_string(), expected);
        }
        assert_eq!(read_regular(&sparse("config.json", 16 << 20)).unwrap().len(), 16 << 20);
        let path = sparse("t.jinja", MAX_TEMPLATE_BYTES + 1);
        assert!(matches!(
            read_template(&path),
            Err(ReadError::TooLarge { bytes: 16_777_217, most: 16_777_216, .. })
        ));
        let path = sparse("README.md", 6 << 30);
        assert_eq!(read_start(&path, 100).unwrap(), Some(vec![0; 100]));
        // more than any machine has, so that no memory is a matter of the test alone
        assert!(!has_room(1 << 62) && has_room(1 << 20));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_is_absent_only_if_nothing_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert_eq!(read_present(&path("config.json")).unwrap(), None);
        assert_eq!(read_start(&path("config.json"), 1).unwrap(), None);
        std::fs::write(path("file"), "x").unwrap();
        assert_eq!(read_present(&path("file/config.json")).unwrap(), None);
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        assert_eq!(read_present(&path("link")).unwrap(), Some(b"x".to_vec()));
        std::os::unix::fs::symlink("gone", path("dangling")).unwrap();
        let error = read_present(&path("dangling")).unwrap_err();
        assert_eq!(error.to_string(), "a link to a file that is not there");
        std::fs::create_dir(path("directory")).unwrap();
        assert!(read_present(&path("directory")).is_err() && read_start(&path("directory"), 1).is_err());
        let error = read_present(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.to_string(), "not a regular file");
    }

    #[cfg(unix)]
    #[test]
    fn devices_and_pipes_are_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe, "/dev/zero".into(), "/dev/null".into()] {
            let (sender, receiver) = std::sync::mpsc::channel();
            let expected = format!("{}: not a regular file", path.display());
            // nobody writes into the pipe: who opens it waits for ever
            std::thread::spawn(move || {
                let regular = read_regular(&path).map_err(|error| error.to_string());
                assert_eq!(regular, Err("not a regular file".to_owned()));
                sender.send(read_bytes(&path).map_err(|error| error.to_string()))
            });
            let found = receiver.recv_timeout(std::time::Duration::from_secs(20)).expect(&expected);
            assert_eq!(found, Err(expected));
        }
        assert!(matches!(read_bytes(dir.path()), Err(ReadError::Io { .. })));
    }
}
