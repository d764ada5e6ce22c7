//! What should not be in training data: secrets, personal data, rows that come twice, and the questions of the suites
//! that the model will be measured by.

mod duplicates;
mod overlap;
mod personal;
mod secrets;

use serde::Serialize;

use super::Place;
use super::format::Record;

pub use overlap::{LEAST, RUN, SharedRuns};

/// What a finding leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    #[default]
    Off,
    /// It is told.
    Warn,
    /// It is an error.
    Fail,
}

impl Level {
    /// Every level by name.
    pub const NAMES: [(&str, Level); 3] = [("off", Level::Off), ("warn", Level::Warn), ("fail", Level::Fail)];
}

/// A level for each scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub secrets: Level,
    pub personal: Level,
    pub duplicates: Level,
    pub near_duplicates: Level,
    pub eval_overlap: Level,
}

/// What one scan found.
#[derive(Clone, Debug, PartialEq)]
pub struct Findings {
    /// As messages call it: `secrets`.
    pub what: &'static str,
    pub level: Level,
    pub rows: usize,
    pub findings: Vec<Finding>,
}

/// Something found in a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub place: Place,
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

impl Findings {
    /// Returns one line: how many rows, of which scan.
    pub fn summary(&self) -> String {
        let n = self.rows;
        format!("{}: found in {n} {}", self.what, if n == 1 { "row" } else { "rows" })
    }
}

/// Evaluation documents that must not be trained on.
#[derive(Default)]
pub struct Suites {
    runs: SharedRuns,
    /// What messages call each document.
    names: Vec<String>,
    /// Documents whose texts are too short to tell.
    pub untold: usize,
}

impl Suites {
    /// Adds a document by name and texts.
    pub fn add<'a>(&mut self, name: String, texts: impl IntoIterator<Item = &'a str>) {
        let is_told = self.runs.add(self.names.len(), texts);
        self.untold += usize::from(!is_told);
        self.names.push(name);
    }

    /// Returns the number of documents.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Returns what of a record stands in a document, the first of them named.
    fn overlap(&self, record: &Record) -> Option<String> {
        let found: std::collections::BTreeSet<usize> =
            record.texts().iter().flat_map(|text| self.runs.holders_of(text)).collect();
        let first = &self.names[*found.first()?];
        Some(match found.len() {
            1 => format!("shares {RUN} words in a row with {first}"),
            n => format!("shares {RUN} words in a row with {first} and {} more documents", n - 1),
        })
    }
}

/// Returns what the scans that are on found, scans without findings left out.
pub fn scan(rows: &[&(Place, Record)], policy: &Policy, suites: Option<&Suites>) -> Vec<Findings> {
    let mut all = Vec::new();
    let mut add = |what, level, found: &dyn Fn() -> Vec<Finding>| {
        if level != Level::Off {
            all.push(of(what, level, found()));
        }
    };
    add("secrets", policy.secrets, &|| in_texts(rows, secrets::find));
    add("personal data", policy.personal, &|| in_texts(rows, personal::find));
    add("duplicates", policy.duplicates, &|| duplicates::exact(rows));
    add("near-duplicates", policy.near_duplicates, &|| duplicates::near(rows));
    add("overlap with evaluation suites", policy.eval_overlap, &|| {
        let overlap = |(place, record): &&(Place, Record)| {
            let what = suites?.overlap(record)?;
            Some(Finding { place: place.clone(), what })
        };
        rows.iter().filter_map(overlap).collect()
    });
    all.retain(|findings| !findings.findings.is_empty());
    all
}

fn of(what: &'static str, level: Level, findings: Vec<Finding>) -> Findings {
    let mut places: Vec<&Place> = findings.iter().map(|finding| &finding.place).collect();
    places.dedup();
    Findings { what, level, rows: places.len(), findings }
}

/// Returns what `find` finds in the texts of each row, each kind once per row.
fn in_texts(rows: &[&(Place, Record)], find: fn(&str) -> Vec<String>) -> Vec<Finding> {
    use rayon::prelude::*;
    let of_row = |(place, record): &&(Place, Record)| -> Vec<Finding> {
        let mut found: Vec<String> = Vec::new();
        for what in record.texts().into_iter().flat_map(find) {
            if !found.contains(&what) {
                found.push(what);
            }
        }
        found.into_iter().map(|what| Finding { place: place.clone(), what }).collect()
    };
    rows.par_iter().flat_map_iter(of_row).collect()
}

/// Returns the first characters of what must not be shown whole.
fn masked(text: &str) -> String {
    let shown: String = text.chars().take(4).collect();
    format!("`{shown}…` ({} characters)", text.chars().count())
}

#[cfg(test)]
mod tests;
