//! Tables of facts: text files, a row per line, cells between ` | `, comments behind `#`.
//!
//! A line `@ key value` sets a property of the rows below it, until another line sets it anew.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: cannot read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("{path}:{line}: {what}")]
    Row { path: PathBuf, line: usize, what: String },
}

/// The directory that tables are in.
pub struct Tables {
    dir: PathBuf,
}

/// A row and where it stands.
#[derive(Clone)]
pub struct Row {
    pub cells: Vec<String>,
    pub properties: HashMap<String, String>,
    path: PathBuf,
    line: usize,
}

impl Tables {
    pub fn new(dir: &Path) -> Tables {
        Tables { dir: dir.to_owned() }
    }

    /// Returns the directory of the suites, which stands beside that of the data.
    pub fn suites(&self) -> PathBuf {
        self.dir.join("../../evalsuites")
    }

    /// Returns the rows of a table. Errors if a row has fewer than `least` or more than `most` cells, or an empty one.
    pub fn read(&self, name: &str, least: usize, most: usize) -> Result<Vec<Row>, Error> {
        let path = self.dir.join(name);
        let text =
            std::fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let mut properties = HashMap::new();
        let mut rows = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(property) = line.strip_prefix("@ ") {
                let (key, value) = property.split_once(' ').unwrap_or((property, ""));
                properties.insert(key.to_owned(), value.trim().to_owned());
                continue;
            }
            let cells: Vec<String> = line.split(" | ").map(|cell| cell.trim().to_owned()).collect();
            let row = Row { cells, properties: properties.clone(), path: path.clone(), line: index + 1 };
            let n = row.cells.len();
            if n < least || n > most {
                return Err(row.error(format!("{n} cells where {least} to {most} belong")));
            }
            if let Some(empty) = row.cells.iter().position(String::is_empty) {
                return Err(row.error(format!("cell {} is empty", empty + 1)));
            }
            rows.push(row);
        }
        Ok(rows)
    }
}

impl Row {
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::Row { path: self.path.clone(), line: self.line, what: what.into() }
    }

    /// Returns a property that must be set.
    pub fn property(&self, key: &str) -> Result<&str, Error> {
        self.properties
            .get(key)
            .map(String::as_str)
            .ok_or_else(|| self.error(format!("`@ {key}` is not set")))
    }
}
