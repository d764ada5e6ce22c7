//! Data sets: local files become documents, each row checked and known by file and line.

mod cti_taa;
mod cybermetric;
mod json;
mod mmlu;
mod parquet;
mod separated;
mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use crate::error::Diagnostic;
use crate::read::{ReadError, read_bytes, text_of};

pub use crate::data::json::kind_of;
pub use crate::data::{Place, Row, hex};

/// One row of a data set.
#[derive(Clone, Debug)]
pub struct Document {
    /// Position in the data set, from 0, rows that `where` drops not counted.
    pub index: usize,
    pub place: Place,
    pub fields: Row,
}

/// A way to read a file.
#[derive(Debug)]
pub struct Format {
    pub name: &'static str,
    /// One line for docs and hints.
    pub about: &'static str,
    /// Whether its files are UTF-8.
    pub is_text: bool,
    /// Names of further files it needs; `--data SET.PART=FILE` gives them.
    pub parts: &'static [&'static str],
    read: fn(&Input) -> Result<Rows, Error>,
}

/// Every format, by name.
pub static FORMATS: &[Format] = &[
    json::LINES,
    json::ARRAY,
    separated::COMMAS,
    separated::TABS,
    text::WHOLE,
    text::LINES,
    mmlu::FORMAT,
    cybermetric::FORMAT,
    cti_taa::FORMAT,
    parquet::FORMAT,
];

/// Rows, each with the line it begins on.
type Rows = Vec<(usize, Row)>;

/// Returns the format of that name.
pub fn format(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}

/// What a reader gets.
struct Input<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    /// Of a format that is no text, empty.
    text: &'a str,
    options: &'a Options,
    /// The texts of the format's parts, in their order.
    parts: &'a [Part],
}

/// A further file of a data set.
struct Part {
    path: PathBuf,
    text: String,
}

/// How to read a data set, besides its format.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Key of the array of records in a JSON object.
    pub records: Option<String>,
    /// Names of the columns of a file without a header.
    pub columns: Option<Vec<String>>,
    /// New name and old name of fields.
    pub fields: Vec<(String, String)>,
    /// Only rows whose field has this value (numbers and bools by their JSON text).
    pub only: Vec<(String, String)>,
    /// Lower-case hex.
    pub sha256: Option<String>,
}

/// Why a data set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] ReadError),

    #[error("{path}: SHA-256 is {found}, but the suite expects {expected}")]
    OtherDigest { path: PathBuf, found: String, expected: String },

    #[error("{path}:{line}: {what}")]
    BadRow { path: PathBuf, line: usize, what: String, hint: Option<String> },

    #[error("{path}: its format needs a further file, `{part}`")]
    NoPart { path: PathBuf, part: &'static str },

    #[error("{path}: no rows")]
    Empty { path: PathBuf },

    #[error(transparent)]
    Container(#[from] crate::data::Error),
}

impl Error {
    fn row(input: &Input, line: usize, what: impl Into<String>) -> Error {
        Error::BadRow { path: input.path.to_owned(), line, what: what.into(), hint: None }
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::BadRow { hint, .. } => hint.clone(),
            Error::OtherDigest { .. } => {
                Some("this is another version of the data: scores would not compare".into())
            }
            Error::File(source) => source.hint(),
            Error::Empty { .. } => Some("is the format right? does `where` drop every row?".into()),
            Error::Container(source) => source.hint(),
            _ => None,
        }
    }
}

/// A data set in memory.
pub struct DataSet {
    pub path: Arc<Path>,
    /// Of the file's bytes, lower-case hex; with parts, of the digests of all files one behind the other.
    pub sha256: String,
    pub documents: Vec<Document>,
}

/// Reads a data set of a format without parts. Errors at the first row that breaks its format.
pub fn read(path: &Path, format: &Format, options: &Options) -> Result<DataSet, Error> {
    read_with_parts(path, format, options, &[])
}

/// Reads a data set, with a file for each of the format's parts.
pub fn read_with_parts(
    path: &Path,
    format: &Format,
    options: &Options,
    files: &[(&str, PathBuf)],
) -> Result<DataSet, Error> {
    let bytes = read_bytes(path)?;
    let mut sha256 = hex(&Sha256::digest(&bytes));
    if let Some(expected) = options.sha256.as_ref().filter(|expected| **expected != sha256) {
        let expected = expected.clone();
        return Err(Error::OtherDigest { path: path.to_owned(), found: sha256, expected });
    }
    let text = if format.is_text { text_of(path, &bytes)? } else { "" };
    let mut parts = Vec::new();
    let mut digests = Sha256::new();
    digests.update(&sha256);
    for part in format.parts {
        let file = files.iter().find(|(name, _)| name == part).map(|(_, file)| file.clone());
        let file = file.ok_or_else(|| Error::NoPart { path: path.to_owned(), part })?;
        let bytes = read_bytes(&file)?;
        let text = text_of(&file, &bytes)?.to_owned();
        digests.update(hex(&Sha256::digest(&bytes)));
        parts.push(Part { path: file, text });
    }
    if !parts.is_empty() {
        sha256 = hex(&digests.finalize());
    }
    let input = Input { path, bytes: &bytes, text, options, parts: &parts };
    let mut rows = (format.read)(&input)?;
    for (line, row) in &mut rows {
        rename(&input, *line, row)?;
    }
    let rows = keep_only(&input, rows)?;
    let path: Arc<Path> = path.into();
    let documents: Vec<Document> = rows
        .into_iter()
        .enumerate()
        .map(|(index, (line, fields))| Document { index, place: Place { path: path.clone(), line }, fields })
        .collect();
    if documents.is_empty() {
        return Err(Error::Empty { path: path.to_path_buf() });
    }
    Ok(DataSet { path, sha256, documents })
}

fn rename(input: &Input, line: usize, row: &mut Row) -> Result<(), Error> {
    // all are of the row as the file has it: two fields may change places
    let value = |(new, old): &(String, String)| {
        let value = row.get(old).ok_or_else(|| no_field(input, line, old, row))?;
        Ok((new.clone(), value.clone()))
    };
    let renamed = input.options.fields.iter().map(value).collect::<Result<Vec<_>, Error>>()?;
    row.extend(renamed);
    Ok(())
}

fn keep_only(input: &Input, rows: Rows) -> Result<Rows, Error> {
    let mut kept = Vec::with_capacity(rows.len());
    'rows: for (line, row) in rows {
        for (field, wanted) in &input.options.only {
            let value = row.get(field).ok_or_else(|| no_field(input, line, field, &row))?;
            if plain(value) != *wanted {
                continue 'rows;
            }
        }
        kept.push((line, row));
    }
    Ok(kept)
}

fn no_field(input: &Input, line: usize, name: &str, row: &Row) -> Error {
    let known: Vec<&str> = row.keys().map(String::as_str).collect();
    Error::BadRow {
        path: input.path.to_owned(),
        line,
        what: format!("the row has no field `{name}`"),
        hint: Some(format!("its fields are: {}", known.join(", "))),
    }
}

/// Returns text as it is, everything else as JSON.
fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns the fields of a multiple-choice row: `question`, `choices`, `answer` (index from 0) and `letter`.
fn multiple_choice(question: String, choices: Vec<String>, answer: usize) -> Row {
    let letter = char::from(b'A' + answer as u8).to_string();
    let mut row = Row::new();
    row.insert("question".into(), question.into());
    row.insert("choices".into(), choices.into());
    row.insert("answer".into(), answer.into());
    row.insert("letter".into(), letter.into());
    row
}

#[cfg(test)]
mod tests;
