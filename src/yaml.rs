//! Configuration files in YAML: every problem at once, each with line:column and the nearest known key.
//!
//! A reader takes what it knows out of [`Fields`]; what is missing or of the wrong kind is noted and a
//! placeholder returned, so that reading goes on; what nobody asked for is an unknown key. Nothing read may
//! be used before [`Document::check`] has said that nothing was noted.

mod error;
mod keys;
mod locate;
mod node;
mod set;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_yaml::Value;

use crate::read::{ReadError, refuse_endless};

use error::LARGEST;
use set::Override;

pub use error::{Error, FileKind, Place, Problem};
pub use keys::KeyFacts;
pub use locate::locate;
pub use node::{Fields, Node};

/// A step from a node to one of its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Item(usize),
    /// To a key itself rather than its value; the last step.
    Name(String),
}

/// Returns the text without a byte order mark, which the parser takes for the beginning of a document of its own.
fn body(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// A parsed file, and what is wrong with it.
pub struct Document {
    path: PathBuf,
    text: String,
    root: Value,
    overrides: Vec<Override>,
    problems: RefCell<Vec<Noted>>,
    log: keys::Log,
}

struct Noted {
    at: Vec<Step>,
    message: String,
    hint: Option<String>,
}

impl Document {
    /// Reads a file.
    pub fn open(path: &Path) -> Result<Document, Error> {
        let read_error = |source| Error::Read { path: path.to_owned(), source };
        match refuse_endless(path) {
            Err(ReadError::Io { source, .. }) => return Err(read_error(source)),
            checked => checked?,
        }
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(read_error)?;
        file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(read_error)?;
        if bytes.len() as u64 > LARGEST {
            return Err(Error::TooLarge { path: path.to_owned() });
        }
        let text = String::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
            path: path.to_owned(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        Document::parse(path, text)
    }

    /// Reads text as if it were the file `path`.
    pub fn parse(path: &Path, text: String) -> Result<Document, Error> {
        let root = serde_yaml::from_str(body(&text)).map_err(|source: serde_yaml::Error| {
            if let Some((key, (line, column))) = locate::duplicate(body(&text)) {
                return Error::Duplicate { path: path.to_owned(), line, column, key };
            }
            let line = source.location().and_then(|at| text.lines().nth(at.line().saturating_sub(1)));
            let has_tabs = line.is_some_and(|line| line.trim_start_matches(' ').starts_with('\t'));
            Error::Syntax { path: path.to_owned(), has_tabs, source }
        })?;
        Ok(Document {
            path: path.to_owned(),
            text,
            root,
            overrides: Vec::new(),
            problems: RefCell::default(),
            log: keys::Log::default(),
        })
    }

    /// Returns the keys that were asked for so far, and what was wanted there.
    pub fn keys(&self) -> Vec<KeyFacts> {
        self.log.keys()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the top-level mapping's fields.
    pub fn fields(&self) -> Fields<'_> {
        Node::root(self, &self.root).fields()
    }

    /// Errors if the file is evidently one of another kind: a list of complaints about every key would not say so.
    pub fn expect(&self, wanted: FileKind) -> Result<(), Error> {
        let has = |key: &str| self.root.get(key).is_some();
        let found = match () {
            () if has("kind") && has("model") => FileKind::Recipe,
            () if self.root.get("tasks").is_some_and(Value::is_sequence) => FileKind::Suite,
            () => return Ok(()),
        };
        match found == wanted {
            true => Ok(()),
            false => Err(Error::OtherKind { path: self.path.clone(), wanted, found }),
        }
    }

    /// Errors with everything noted so far, in the file's order.
    pub fn check(&self) -> Result<(), Error> {
        let noted = self.problems.borrow();
        if noted.is_empty() {
            return Ok(());
        }
        let mut problems: Vec<Problem> = noted.iter().map(|noted| self.problem(noted)).collect();
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        problems.dedup();
        Err(Error::Invalid { problems })
    }

    fn problem(&self, noted: &Noted) -> Problem {
        let place = match self.overrides.iter().rev().find(|set| set.made(&noted.at)) {
            Some(set) => Place::Override(set.given.clone()),
            None => {
                let (line, column) = locate::locate(body(&self.text), &noted.at);
                Place::File { path: self.path.clone(), line, column }
            }
        };
        Problem { place, message: noted.message.clone(), hint: noted.hint.clone() }
    }
}
