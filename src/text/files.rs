//! The files of a checkpoint's tokenizer: read once, JSON faults with line and column.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use super::error::Error;
use super::tokenizer_json::TokenizerJson;
use crate::read::read_present;

/// The parsed tokenizer files of one checkpoint directory; absent files are `None`.
pub struct Files {
    pub dir: PathBuf,
    pub tokenizer: Option<TokenizerJson>,
    /// tokenizer_config.json.
    pub config: Option<Map<String, Json>>,
}

impl Files {
    /// Returns what `dir` holds. tokenizer.json is parsed here, the other files when asked for.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Files {
            dir: dir.to_owned(),
            tokenizer: read_json(&dir.join("tokenizer.json"))?,
            config: read_json(&dir.join("tokenizer_config.json"))?,
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns a value of tokenizer_config.json.
    pub fn config_value(&self, key: &str) -> Option<&Json> {
        self.config.as_ref()?.get(key)
    }
}

/// Returns the file's bytes, `None` if there is no such file; errors as [`read_present`].
pub fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    read_present(path).map_err(|source| Error::Io { path: path.to_owned(), action: "read it", source })
}

/// Returns the file's text with `\r\n` and `\r` as `\n`, `None` if there is no such file.
///
/// The line ends follow the reference converter, which reads in Python's text mode.
pub fn read_text(path: &Path) -> Result<Option<String>, Error> {
    let Some(bytes) = read_bytes(path)? else { return Ok(None) };
    match String::from_utf8(bytes) {
        Ok(text) if text.contains('\r') => Ok(Some(text.replace("\r\n", "\n").replace('\r', "\n"))),
        Ok(text) => Ok(Some(text)),
        Err(error) => Err(Error::Utf8 { path: path.to_owned(), offset: error.utf8_error().valid_up_to() }),
    }
}

/// Returns the file's JSON as a `T`, `None` if there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let Some(bytes) = read_bytes(path)? else { return Ok(None) };
    // one pass over the bytes: serde_json's own check is slower, and names no offset
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| Error::Utf8 { path: path.to_owned(), offset: error.valid_up_to() })?;
    match serde_json::from_str(text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(json_error(path, &error)),
    }
}

fn json_error(path: &Path, error: &serde_json::Error) -> Error {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    Error::Json {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
        message: message.strip_suffix(&place).unwrap_or(&message).to_owned(),
    }
}

/// Returns the error for a JSON value of the wrong kind.
pub fn shape_error(path: &Path, field: impl Into<String>, expected: &'static str, found: &Json) -> Error {
    Error::Shape { path: path.to_owned(), field: field.into(), expected, found: kind_of(found) }
}

/// Returns what the value is, in a few words.
pub fn kind_of(value: &Json) -> String {
    match value {
        Json::Null => "null".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Number(number) => number.to_string(),
        Json::String(text) if text.chars().count() > 60 => format!("a string of {} bytes", text.len()),
        Json::String(text) => format!("the string {text:?}"),
        Json::Array(items) => format!("an array of {}", items.len()),
        Json::Object(fields) => format!("an object of {}", fields.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_file_that_cannot_be_read_is_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Files::open(dir.path()).unwrap().config.is_none());
        let path = dir.path().join("tokenizer_config.json");
        let refused = |cause: &str| {
            let error = Files::open(dir.path()).err().expect(cause);
            assert!(error.to_string().ends_with("tokenizer_config.json: cannot read it"), "{error}");
            let source = std::error::Error::source(&error).expect(cause).to_string();
            assert!(source.contains(cause), "{source}");
        };
        std::os::unix::fs::symlink("../blobs/gone", &path).unwrap();
        refused("a link to a file that is not there");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        refused("directory");
        std::fs::remove_dir(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        refused("not a regular file");
    }
}
