//! What is wrong with a configuration file, and where.

use std::path::{Path, PathBuf};

use crate::error::{Diagnostic, unread_hint};
use crate::read::ReadError;

/// A configuration file is written by hand: what is larger is some other file.
pub(super) const LARGEST: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: cannot read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error(transparent)]
    File(#[from] ReadError),

    #[error("{path}: more than {LARGEST} bytes, the most that a configuration file has")]
    TooLarge { path: PathBuf },

    #[error("{path}: not UTF-8 at byte {offset}")]
    NotUtf8 { path: PathBuf, offset: usize },

    #[error("{}: not YAML", place(path, source))]
    Syntax {
        path: PathBuf,
        /// Of the line that the parser stopped at.
        has_tabs: bool,
        #[source]
        source: serde_yaml::Error,
    },

    #[error("{path}:{line}:{column}: the key `{key}` comes twice in one mapping")]
    Duplicate { path: PathBuf, line: usize, column: usize, key: String },

    #[error("{path}: {}, not {}", .found.name(), .wanted.name())]
    OtherKind { path: PathBuf, wanted: FileKind, found: FileKind },

    #[error("{}", listed(.problems))]
    Invalid { problems: Vec<Problem> },

    #[error("--set {given}: {what}")]
    Set { given: String, what: String },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Invalid { problems } => match problems.as_slice() {
                [problem] => problem.hint.clone(),
                // one line's hint would read as if it were about all of them
                _ => None,
            },
            Error::Set { .. } => {
                Some("as in --set train.lr=1e-4 or --set data.train.0.path=rows.jsonl".into())
            }
            Error::TooLarge { .. } => {
                Some("is it a data file? a suite names its data, it does not hold it".into())
            }
            Error::Read { path, source } => shipped(path, source).or_else(|| unread_hint(path, source)),
            Error::File(source) => source.hint(),
            Error::NotUtf8 { .. } => {
                Some("a text file in YAML was expected: is this another file, a model perhaps?".into())
            }
            Error::OtherKind { found: FileKind::Suite, .. } => {
                Some("suites are for `lctl eval MODEL --suite FILE` and `lctl suite`".into())
            }
            Error::OtherKind { .. } => Some("recipes are for `lctl finetune` and `lctl recipe`".into()),
            Error::Duplicate { .. } => Some("YAML has each key once: join both, or take one away".into()),
            Error::Syntax { has_tabs: true, .. } => Some("YAML is indented by spaces, never by tabs".into()),
            Error::Syntax { .. } => None,
        }
    }
}

/// Returns what to say where the name of a suite or recipe stands for its file.
fn shipped(path: &Path, source: &std::io::Error) -> Option<String> {
    if source.kind() != std::io::ErrorKind::NotFound {
        return None;
    }
    let name = path.file_name()?.to_str()?;
    let file = if name.contains('.') { name.to_owned() } else { format!("{name}.yaml") };
    let mut places =
        ["evalsuites", "recipes", "recipes/presets"].iter().map(|dir| Path::new(dir).join(&file));
    places.find(|place| place.is_file()).map(|place| format!("did you mean {}?", place.display()))
}

/// What a configuration file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Suite,
    /// Of a fine-tuning run.
    Recipe,
    /// Of a gate.
    Policy,
}

impl FileKind {
    fn name(self) -> &'static str {
        match self {
            FileKind::Suite => "a suite of tasks",
            FileKind::Recipe => "a recipe of a fine-tuning run",
            FileKind::Policy => "a gate's policy",
        }
    }
}

/// One thing wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    pub message: String,
    pub hint: Option<String>,
}

/// Where in a file, or in what was set from outside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Line and column from 1.
    File { path: PathBuf, line: usize, column: usize },
    /// As it was given: `--set train.lr=1e-4`.
    Override(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Place::Override(given) => f.write_str(given),
        }
    }
}

fn place(path: &Path, error: &serde_yaml::Error) -> String {
    match error.location() {
        Some(at) => format!("{}:{}:{}", path.display(), at.line(), at.column()),
        None => path.display().to_string(),
    }
}

pub(super) fn listed(problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| format!("{}: {}", problem.place, problem.message));
    lines.collect::<Vec<_>>().join("\n")
}
