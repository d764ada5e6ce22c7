//! Files that are read whole, and why they cannot be.

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
}

impl Diagnostic for ReadError {
    fn hint(&self) -> Option<String> {
        match self {
            ReadError::Io { path, source } => unread_hint(path, source),
            ReadError::NotAFile { .. } => {
                Some("devices and pipes have no end: write what is in it to a file, and name that".into())
            }
            ReadError::NotUtf8 { .. } => None,
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

/// Returns a file's bytes. Errors on a device or a pipe as [`refuse_endless`].
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, ReadError> {
    refuse_endless(path)?;
    std::fs::read(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })
}

/// As [`std::fs::read`], but errors on a device or a pipe without opening it: for files of a model's directory, whose
/// errors have a type of their own.
pub fn read_regular(path: &Path) -> std::io::Result<Vec<u8>> {
    match is_endless(path)? {
        true => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")),
        false => std::fs::read(path),
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
