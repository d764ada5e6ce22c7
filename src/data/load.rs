//! From files to examples: read, check, encode, scan, hold out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::container::{self, Container, Rows};
use super::encode::Encoder;
use super::format::{self, Format, Record};
use super::json::kind_of;
use super::scan::{self, Findings, Level, Suites};
use super::{Error, Mixture, Part, Place, Problem, Row, RowError, Unit, held_out, hex};

/// A file to train or validate on.
#[derive(Clone)]
pub struct Source {
    pub path: PathBuf,
    /// What it looks like if `None`.
    pub container: Option<&'static Container>,
    /// What its first row fits if `None`.
    pub format: Option<&'static Format>,
    /// How often an epoch has each of its rows.
    pub weight: f64,
}

/// What the run validates on.
#[derive(Clone)]
pub enum Held {
    Nothing,
    /// A share of the training rows; rows that have the same value in field `group` stay together.
    Share {
        share: f64,
        group: Option<String>,
    },
    Files(Vec<Source>),
}

/// What becomes of rows that are too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    #[default]
    Error,
    /// They are left out.
    Drop,
    /// They are cut into pieces.
    Split,
}

impl Truncation {
    /// Every choice by name.
    pub const NAMES: [(&str, Truncation); 3] =
        [("error", Truncation::Error), ("drop", Truncation::Drop), ("split", Truncation::Split)];
}

/// A training set.
pub struct Spec {
    pub train: Vec<Source>,
    pub held: Held,
    /// Most tokens of a sequence, at least 2.
    pub max_seq_len: usize,
    pub truncation: Truncation,
    /// Of the choice of what is held out.
    pub seed: u64,
    pub scan: scan::Policy,
}

/// A training set in memory.
pub struct Loaded<T> {
    /// In the order of files and lines.
    pub train: Vec<T>,
    pub mixture: Mixture,
    pub validation: Vec<T>,
    /// Training files, then those to validate on.
    pub files: Vec<FileCounts>,
    /// What scans found that only warn.
    pub findings: Vec<Findings>,
    pub notes: Vec<String>,
}

/// What a file gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FileCounts {
    pub path: PathBuf,
    /// Of its bytes, lower-case hex.
    pub sha256: String,
    pub container: &'static str,
    pub format: &'static str,
    pub weight: f64,
    pub is_validation: bool,
    pub rows: usize,
    /// Rows that are held out for validation.
    pub held_out: usize,
    /// Rows that were too long and are left out, or were cut.
    pub dropped: usize,
    pub cut: usize,
    /// Sequences to train or, of a validation file, to validate on; pairs count once.
    pub examples: usize,
    pub tokens: usize,
    /// Tokens of these that are trained.
    pub targets: usize,
}

/// A file's records and what they became.
struct Read<T> {
    counts: FileCounts,
    records: Vec<(Place, Record)>,
    /// By record: what decides whether it is held out.
    keys: Vec<String>,
    /// By record: its examples, none if it is dropped.
    units: Vec<Vec<T>>,
}

/// How records of a run become examples: [`Encoder::example`] or [`Encoder::pair`].
pub type Make<'a, T> = fn(&Encoder<'a>, &Record, &Place) -> Result<T, RowError>;

/// Loads a training set.
///
/// Errors with everything that is wrong with the rows of all files; then with what scans found that is to fail; and if
/// nothing is left to train on.
pub fn load<'a, T: Unit>(
    spec: &Spec,
    encoder: &Encoder<'a>,
    make: Make<'a, T>,
    suites: Option<&Suites>,
) -> Result<Loaded<T>, Error> {
    let validation: &[Source] = match &spec.held {
        Held::Files(files) => files,
        Held::Nothing | Held::Share { .. } => &[],
    };
    let reader = Reader { spec, encoder, make };
    let mut problems = Vec::new();
    let mut read = Vec::new();
    for (sources, is_validation) in [(spec.train.as_slice(), false), (validation, true)] {
        for source in sources {
            read.push(reader.read(source, is_validation, &mut problems)?);
        }
    }
    if !problems.is_empty() {
        return Err(Error::Rows(problems));
    }
    let findings = scanned(&read, &spec.scan, suites)?;
    let mut loaded = divided(spec, read)?;
    loaded.findings = findings;
    loaded.notes = encoder.notes();
    Ok(loaded)
}

/// What became of a row.
struct Item<T> {
    record: Record,
    key: String,
    units: Vec<T>,
    is_cut: bool,
}

/// Reads the files of a training set.
struct Reader<'r, 'a, T> {
    spec: &'r Spec,
    encoder: &'r Encoder<'a>,
    make: Make<'a, T>,
}

impl<T: Unit> Reader<'_, '_, T> {
    fn read(
        &self,
        source: &Source,
        is_validation: bool,
        problems: &mut Vec<Problem>,
    ) -> Result<Read<T>, Error> {
        let file = container::read(&source.path, source.container)?;
        let path: Arc<Path> = source.path.as_path().into();
        let format = match source.format {
            Some(format) => Some(format),
            None => detected(&source.path, &file.rows)?,
        };
        let results: Vec<(Place, Result<Item<T>, RowError>)> = file
            .rows
            .into_par_iter()
            .map(|(line, row)| {
                let place = Place { path: path.clone(), line };
                let item = row.and_then(|row| self.item(&row, format, &place));
                (place, item)
            })
            .collect();
        let counts = FileCounts {
            path: source.path.clone(),
            sha256: file.sha256,
            container: file.container.name,
            // without a row that reads there is no format, and there are problems
            format: format.map_or("", |format| format.name),
            weight: source.weight,
            is_validation,
            rows: results.len(),
            ..FileCounts::default()
        };
        let mut read = Read { counts, records: Vec::new(), keys: Vec::new(), units: Vec::new() };
        for (place, result) in results {
            match result {
                Ok(item) => {
                    read.counts.dropped += usize::from(item.units.is_empty());
                    read.counts.cut += usize::from(item.is_cut && !item.units.is_empty());
                    read.records.push((place, item.record));
                    read.keys.push(item.key);
                    read.units.push(item.units);
                }
                Err(error) => problems.push(Problem { place, error }),
            }
        }
        Ok(read)
    }

    fn item(&self, row: &Row, format: Option<&Format>, place: &Place) -> Result<Item<T>, RowError> {
        let format = format.ok_or_else(|| RowError::Shape("its format is not known".into()))?;
        let record = format.read(row)?;
        let key = match &self.spec.held {
            Held::Share { group: Some(field), .. } => group_of(row, field)?,
            // what stands between texts is in none of them
            _ => hex(&Sha256::digest(record.texts().join("\u{0}"))),
        };
        let unit = (self.make)(self.encoder, &record, place)?;
        let tokens = unit.longest();
        let (units, is_cut) = match self.spec.truncation {
            _ if tokens <= self.spec.max_seq_len => (vec![unit], false),
            Truncation::Error => return Err(RowError::TooLong { tokens, max: self.spec.max_seq_len }),
            Truncation::Drop => (Vec::new(), false),
            Truncation::Split => match unit.cut(self.spec.max_seq_len) {
                Some(pieces) => (pieces, true),
                None => return Err(RowError::TooLong { tokens, max: self.spec.max_seq_len }),
            },
        };
        Ok(Item { record, key, units, is_cut })
    }
}

fn group_of(row: &Row, field: &str) -> Result<String, RowError> {
    use serde_json::Value as Json;
    match row.get(field) {
        Some(Json::String(text)) => Ok(text.clone()),
        Some(value @ (Json::Number(_) | Json::Bool(_))) => Ok(value.to_string()),
        Some(other) => {
            Err(RowError::Shape(format!("`{field}`, by which rows stay together, is {}", kind_of(other))))
        }
        None => Err(RowError::Shape(format!("there is no `{field}`, by which rows stay together"))),
    }
}

/// Returns the records of a file whose kind and format can be told by it. Errors with everything that is wrong with its rows.
pub fn records(path: &Path) -> Result<Vec<Record>, Error> {
    let file = container::read(path, None)?;
    let format = detected(path, &file.rows)?;
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    let shared: Arc<Path> = path.into();
    for (line, row) in file.rows {
        let unknown = || RowError::Shape("its format is not known".into());
        match row.and_then(|row| format.ok_or_else(unknown)?.read(&row)) {
            Ok(record) => records.push(record),
            Err(error) => problems.push(Problem { place: Place { path: shared.clone(), line }, error }),
        }
    }
    match problems.is_empty() {
        true => Ok(records),
        false => Err(Error::Rows(problems)),
    }
}

/// Returns the format that the first row that reads fits; `None` if no row reads.
fn detected(path: &Path, rows: &Rows) -> Result<Option<&'static Format>, Error> {
    let Some((line, row)) = rows.iter().find_map(|(line, row)| Some((*line, row.as_ref().ok()?))) else {
        return Ok(None);
    };
    let path = path.to_owned();
    match format::fitting(row).as_slice() {
        [format] => Ok(Some(format)),
        [] => {
            let fields: Vec<&str> = row.keys().map(String::as_str).collect();
            Err(Error::UnknownFormat { path, line, fields: fields.join(", ") })
        }
        several => {
            let formats: Vec<&str> = several.iter().map(|format| format.name).collect();
            Err(Error::ManyFormats { path, line, formats: formats.join(", ") })
        }
    }
}

/// Returns what scans of all rows found that warns. Errors with what is to fail.
fn scanned<T>(
    read: &[Read<T>],
    policy: &scan::Policy,
    suites: Option<&Suites>,
) -> Result<Vec<Findings>, Error> {
    let rows: Vec<&(Place, Record)> = read.iter().flat_map(|read| &read.records).collect();
    let (fail, warn): (Vec<Findings>, Vec<Findings>) =
        scan::scan(&rows, policy, suites).into_iter().partition(|findings| findings.level == Level::Fail);
    match fail.first() {
        None => Ok(warn),
        Some(first) => Err(Error::Scan {
            what: first.summary(),
            lines: fail.iter().flat_map(|found| found.findings.iter().map(ToString::to_string)).collect(),
        }),
    }
}

/// Divides the examples into those to train and those to validate on.
fn divided<T: Unit>(spec: &Spec, read: Vec<Read<T>>) -> Result<Loaded<T>, Error> {
    let mut loaded = Loaded {
        train: Vec::new(),
        mixture: Mixture::default(),
        validation: Vec::new(),
        files: Vec::new(),
        findings: Vec::new(),
        notes: Vec::new(),
    };
    let keys: Vec<String> = read.iter().flat_map(|read| read.keys.iter().cloned()).collect();
    let is_held = match &spec.held {
        Held::Share { share, .. } => held_out(&keys, *share, spec.seed),
        Held::Nothing | Held::Files(_) => vec![false; keys.len()],
    };
    let (rows, held) = (keys.len(), is_held.iter().filter(|is_held| **is_held).count());
    let mut is_held = is_held.into_iter();
    for Read { mut counts, units, .. } in read {
        let start = loaded.train.len();
        for units in units {
            let is_held = is_held.next().unwrap_or(false);
            counts.held_out += usize::from(is_held);
            if !is_held {
                counts.examples += units.len();
                counts.tokens += units.iter().map(Unit::tokens).sum::<usize>();
                counts.targets += units.iter().map(Unit::targets).sum::<usize>();
            }
            match is_held || counts.is_validation {
                true => loaded.validation.extend(units),
                false => loaded.train.extend(units),
            }
        }
        if !counts.is_validation {
            loaded.mixture.parts.push(Part { range: start..loaded.train.len(), weight: counts.weight });
        }
        loaded.files.push(counts);
    }
    match loaded.train.is_empty() {
        false => Ok(loaded),
        true if held > 0 && held == rows => Err(Error::NothingButValidation { rows, held }),
        true => Err(Error::Nothing { rows, how: "too long" }),
    }
}

#[cfg(test)]
mod tests;
