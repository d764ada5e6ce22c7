//! What can be wrong with training data.

use std::path::PathBuf;

use crate::error::Diagnostic;
use crate::read::ReadError;
use crate::text::{self, chat};

use super::Place;

/// Problems with rows that a message lists; the rest is counted.
const LISTED: usize = 20;

/// Why a training set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] ReadError),

    #[error("{path}: cannot tell what kind of file it is")]
    UnknownContainer { path: PathBuf },

    #[error("{path}: not Parquet: {what}")]
    Parquet { path: PathBuf, what: String },

    #[error("{path}: a Parquet file, which this program was built without")]
    NoParquet { path: PathBuf },

    #[error("{path}:{line}: cannot tell the format of its rows; their fields are: {fields}")]
    UnknownFormat { path: PathBuf, line: usize, fields: String },

    #[error("{path}:{line}: its rows fit several formats: {formats}")]
    ManyFormats { path: PathBuf, line: usize, formats: String },

    #[error("{path}: no rows")]
    Empty { path: PathBuf },

    #[error("{}", listed(.0))]
    Rows(Vec<Problem>),

    #[error("{}", found(.what, .lines))]
    Scan { what: String, lines: Vec<String> },

    #[error("nothing is left to train on: all {rows} rows were {how}")]
    Nothing { rows: usize, how: &'static str },

    #[error("nothing is left to train on: {held} of {rows} rows are held out for validation")]
    NothingButValidation { rows: usize, held: usize },

    #[error(transparent)]
    Text(#[from] text::Error),

    #[error(transparent)]
    Template(#[from] chat::Error),
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::UnknownContainer { .. } => {
                Some(format!("name it with `type`, one of: {}", super::container::names()))
            }
            Error::Parquet { what, .. } if what.contains("Disabled feature") => {
                Some("its compression is not supported: write it anew with Snappy, gzip or none".into())
            }
            Error::NoParquet { .. } => {
                Some("build it with `--features parquet`, or write the rows as JSONL".into())
            }
            Error::UnknownFormat { .. } | Error::ManyFormats { .. } => {
                Some(format!("name it with `format`, one of: {}", super::format::names()))
            }
            Error::Rows(problems) => {
                let first = problems.first()?.error.hint();
                let is_shared = problems.iter().all(|problem| problem.error.hint() == first);
                first.filter(|_| is_shared)
            }
            Error::Scan { .. } => Some(
                "remove what was found, or set the scan to `warn` or `off` in the recipe's `data.scan`"
                    .into(),
            ),
            Error::Nothing { .. } => Some("a larger `max_seq_len` keeps more rows".into()),
            Error::NothingButValidation { .. } => Some("make `val_fraction` smaller".into()),
            Error::Text(source) => source.hint(),
            Error::Template(source) => source.hint(),
            Error::File(source) => source.hint(),
            _ => None,
        }
    }
}

/// One thing wrong with a row.
#[derive(Debug)]
pub struct Problem {
    pub place: Place,
    pub error: RowError,
}

fn listed(problems: &[Problem]) -> String {
    let mut lines: Vec<String> =
        problems.iter().take(LISTED).map(|problem| format!("{}: {}", problem.place, problem.error)).collect();
    if problems.len() > LISTED {
        lines.push(format!("and {} more", problems.len() - LISTED));
    }
    lines.join("\n")
}

fn found(what: &str, lines: &[String]) -> String {
    let shown = lines.iter().take(LISTED).map(String::as_str);
    let more = (lines.len() > LISTED).then(|| format!("and {} more", lines.len() - LISTED));
    let all: Vec<&str> = [what].into_iter().chain(shown).chain(more.as_deref()).collect();
    all.join("\n")
}

/// Why a row is no example.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// It does not read as its file's kind says.
    #[error("{0}")]
    Malformed(String),

    /// It does not have its format's shape.
    #[error("{0}")]
    Shape(String),

    #[error("{field} is not supported in training data: {why}")]
    Unsupported { field: String, why: &'static str },

    #[error("the chat template leaves out {what}")]
    NotRendered { what: String },

    #[error(
        "message {message}: the chat template does not keep the text before it as it was, so what the assistant \
         wrote cannot be told"
    )]
    NotPrefixPreserving {
        /// From 1.
        message: usize,
    },

    #[error("no chat template, and the row is a conversation")]
    NoTemplate,

    #[error("no token of it is trained")]
    NoTarget,

    #[error("{tokens} tokens, more than `max_seq_len` {max}")]
    TooLong { tokens: usize, max: usize },

    #[error("chosen and rejected are the same")]
    SameAnswers,

    #[error("{0}")]
    Template(#[from] chat::Error),

    #[error("{0}")]
    Text(#[from] text::Error),
}

impl RowError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            RowError::NotPrefixPreserving { .. } => {
                "train on the last message alone (`train_on: last_assistant`), or give a template with generation tags \
                 (`chat_template: FILE`)"
                    .into()
            }
            RowError::NoTemplate => {
                "name a file with `chat_template: FILE`, or take `chat_template: plain`, which joins the messages as \
                 `lctl eval` does for models without a template"
                    .into()
            }
            RowError::TooLong { .. } => {
                "make `max_seq_len` larger, or say what to do with long rows: `truncation: drop` or `split`".into()
            }
            RowError::NoTarget => "docs/recipes.md says what `train_on` marks".into(),
            RowError::Template(source) => return source.hint(),
            RowError::Text(source) => return source.hint(),
            _ => return None,
        })
    }
}
