//! What a suite's documents have in common with training files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::data::DataSet;
use crate::data::scan::SharedRuns;
use crate::data::shingles::texts_of;
use crate::error::Diagnostic;
use crate::read::{ReadError, read_text};

/// Why a training file cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] ReadError),

    #[error("{path}:{line}: not JSON")]
    NotJson {
        path: PathBuf,
        line: usize,
        #[source]
        source: serde_json::Error,
    },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NotJson { .. } => Some("a .jsonl file has one JSON value per line".into()),
            Error::File(ReadError::NotUtf8 { .. }) => {
                Some("training files are .jsonl, .json or plain text".into())
            }
            Error::File(source) => source.hint(),
        }
    }
}

/// A document whose words also stand in a training file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// Position of the document in its data set.
    pub document: usize,
    /// Of the training file, from 1; of the first place found.
    pub line: usize,
}

/// Runs of words of a data set's documents.
pub struct Runs {
    runs: SharedRuns,
    /// Documents with no text long enough to tell.
    pub untold: Vec<usize>,
}

impl Runs {
    pub fn new(data: &DataSet) -> Runs {
        let mut runs = Runs { runs: SharedRuns::default(), untold: Vec::new() };
        for document in &data.documents {
            if !runs.runs.add(document.index, texts_of(&document.fields)) {
                runs.untold.push(document.index);
            }
        }
        runs
    }

    /// Returns the documents that share a run with a training file, each once. A .jsonl file is read by line, a .json
    /// file as one value, their texts each by itself; anything else is plain text.
    pub fn overlaps(&self, path: &Path) -> Result<Vec<Overlap>, Error> {
        let text = read_text(path)?;
        let mut found: HashMap<usize, usize> = HashMap::new();
        for (line, text) in texts_in(path, &text)? {
            for document in self.runs.holders_of(&text) {
                found.entry(document).or_insert(line);
            }
        }
        let mut overlaps: Vec<Overlap> =
            found.into_iter().map(|(document, line)| Overlap { document, line }).collect();
        overlaps.sort_unstable();
        Ok(overlaps)
    }
}

/// Returns the texts of a training file and the line each begins on.
fn texts_in(path: &Path, text: &str) -> Result<Vec<(usize, String)>, Error> {
    let parse = |line: usize, text: &str| -> Result<Json, Error> {
        serde_json::from_str(text).map_err(|source| Error::NotJson { path: path.to_owned(), line, source })
    };
    let mut texts = Vec::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl") => {
            for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                strings(&parse(index + 1, line)?, index + 1, &mut texts);
            }
        }
        Some("json") => strings(&parse(1, text)?, 1, &mut texts),
        _ => texts.push((1, text.to_owned())),
    }
    Ok(texts)
}

fn strings(value: &Json, line: usize, texts: &mut Vec<(usize, String)>) {
    match value {
        Json::String(text) => texts.push((line, text.clone())),
        Json::Array(items) => items.iter().for_each(|item| strings(item, line, texts)),
        Json::Object(fields) => fields.values().for_each(|field| strings(field, line, texts)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::data::{Options, format, read};

    fn runs(rows: &str) -> (tempfile::TempDir, Runs) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, rows).unwrap();
        let data = read(&path, format("jsonl").unwrap(), &Options::default()).unwrap();
        (dir, Runs::new(&data))
    }

    fn overlaps(dir: &tempfile::TempDir, runs: &Runs, name: &str, text: &str) -> Vec<(usize, usize)> {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        runs.overlaps(&path).unwrap().into_iter().map(|overlap| (overlap.document, overlap.line)).collect()
    }

    const ROWS: &str = concat!(
        r#"{"id": "a", "q": "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"}"#,
        "\n",
        r#"{"id": "b", "q": "red orange yellow green blue indigo violet black"}"#,
        "\n",
        r#"{"id": "too short to tell anything at all by chance", "q": "alpha beta"}"#
    );

    #[test]
    fn thirteen_words_in_a_row_are_found_whatever_the_case_and_punctuation() {
        let (dir, runs) = runs(ROWS);
        assert_eq!(runs.untold, [2]);
        let text = "zero. ONE, two three four five six seven eight nine ten eleven twelve thirteen!";
        assert_eq!(overlaps(&dir, &runs, "t.txt", text), [(0, 1)]);
        let twelve = "one two three four five six seven eight nine ten eleven twelve 13 fourteen";
        assert_eq!(overlaps(&dir, &runs, "t.txt", twelve), []);
    }

    #[test]
    fn a_short_text_is_found_as_a_whole_only() {
        let (dir, runs) = runs(ROWS);
        let lines = "{\"messages\": [{\"content\": \"x\"}]}\n{\"messages\": [{\"content\": \"say red orange yellow green blue indigo violet black now\"}]}";
        assert_eq!(overlaps(&dir, &runs, "t.jsonl", lines), [(1, 2)]);
        let part = r#"{"t": "red orange yellow green blue indigo violet"}"#;
        assert_eq!(overlaps(&dir, &runs, "t.json", part), []);
        let split = r#"["red orange yellow green", "blue indigo violet black"]"#;
        assert_eq!(overlaps(&dir, &runs, "t.json", split), []);
    }

    #[test]
    fn a_broken_training_file_is_an_error_with_its_line() {
        let (dir, runs) = runs(ROWS);
        let path = dir.path().join("t.jsonl");
        std::fs::write(&path, "{}\n{").unwrap();
        let error = runs.overlaps(&path).unwrap_err();
        assert!(error.to_string().ends_with("t.jsonl:2: not JSON"), "{error}");
    }
}
