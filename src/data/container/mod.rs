//! Kinds of files that hold rows.

mod json;
#[cfg(feature = "parquet")]
mod parquet;
pub mod separated;
mod text;

use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Error, Row, RowError, hex};
use crate::read::read_bytes;

/// A kind of file.
pub struct Container {
    pub name: &'static str,
    /// One line for docs and hints.
    pub about: &'static str,
    /// Endings of file names, in lower case.
    pub extensions: &'static [&'static str],
    read: fn(&Path, &[u8]) -> Result<Rows, Error>,
}

/// Every kind, by name.
pub static CONTAINERS: &[Container] = &[
    json::LINES,
    json::ARRAY,
    separated::COMMAS,
    separated::TABS,
    #[cfg(feature = "parquet")]
    parquet::PARQUET,
    text::TEXT,
];

/// Returns the names of all kinds.
pub fn names() -> String {
    CONTAINERS.iter().map(|container| container.name).collect::<Vec<_>>().join(", ")
}

/// Returns the kind of that name.
pub fn by_name(name: &str) -> Option<&'static Container> {
    CONTAINERS.iter().find(|container| container.name == name)
}

/// The first bytes of a Parquet file.
const PARQUET_MAGIC: &[u8] = b"PAR1";

/// Rows of a file or what is wrong with them, each with its line from 1 (its number where there are no lines).
pub type Rows = Vec<(usize, Result<Row, RowError>)>;

/// A file's rows.
pub struct File {
    pub rows: Rows,
    pub container: &'static Container,
    /// Of its bytes, lower-case hex.
    pub sha256: String,
}

/// Reads a file, of the kind that it looks like if none is given. Errors if the file is not of its kind at all; what is
/// wrong with single rows stands in their place.
pub fn read(path: &Path, container: Option<&'static Container>) -> Result<File, Error> {
    let bytes = read_bytes(path)?;
    check_build(path, &bytes)?;
    let unknown = || Error::UnknownContainer { path: path.to_owned() };
    let container = container.or_else(|| detect(path, &bytes)).ok_or_else(unknown)?;
    let rows = (container.read)(path, &bytes)?;
    if rows.is_empty() {
        return Err(Error::Empty { path: path.to_owned() });
    }
    Ok(File { rows, container, sha256: hex(&Sha256::digest(&bytes)) })
}

/// Errors if this program was built without what the file needs.
fn check_build(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    match cfg!(not(feature = "parquet")) && bytes.starts_with(PARQUET_MAGIC) {
        true => Err(Error::NoParquet { path: path.to_owned() }),
        false => Ok(()),
    }
}

/// Returns the rows of a Parquet file's bytes, each with its number from 1.
pub fn parquet_rows(path: &Path, bytes: &[u8]) -> Result<Rows, Error> {
    check_build(path, bytes)?;
    match by_name("parquet") {
        Some(container) => (container.read)(path, bytes),
        // only a build without Parquet lacks it, and the bytes are not Parquet's
        None => Err(Error::Parquet { path: path.to_owned(), what: "it does not begin with PAR1".to_owned() }),
    }
}

/// Tells the kind by the first bytes where they tell it, else by the name's ending. A .json file may hold an object per
/// line, as many published data sets do.
fn detect(path: &Path, bytes: &[u8]) -> Option<&'static Container> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let extension = extension.to_ascii_lowercase();
    let first = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start().first();
    let name = match (first, extension.as_str()) {
        _ if bytes.starts_with(PARQUET_MAGIC) => "parquet",
        (Some(b'['), "json" | "jsonl" | "ndjson" | "") => "json",
        (Some(b'{'), "json" | "jsonl" | "ndjson" | "") => "jsonl",
        _ => {
            let by_ending = |container: &&Container| container.extensions.contains(&extension.as_str());
            return CONTAINERS.iter().find(by_ending);
        }
    };
    by_name(name)
}

fn malformed<T>(what: impl Into<String>) -> Result<T, RowError> {
    Err(RowError::Malformed(what.into()))
}

#[cfg(test)]
mod tests;
