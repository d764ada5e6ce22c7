//! Values separated by commas or tabs under a header; every value is text.

use std::path::Path;

use super::{Container, Rows, malformed};
use crate::data::{Error, Row, RowError};
use crate::read::text_of;

pub const COMMAS: Container = Container {
    name: "csv",
    about: "comma-separated values, quoted as in RFC 4180, under a header",
    extensions: &["csv"],
    read: |path, bytes| read(path, bytes, b','),
};

pub const TABS: Container = Container {
    name: "tsv",
    about: "tab-separated values, quoted as in RFC 4180, under a header",
    extensions: &["tsv"],
    read: |path, bytes| read(path, bytes, b'\t'),
};

fn read(path: &Path, bytes: &[u8], delimiter: u8) -> Result<Rows, Error> {
    let text = text_of(path, bytes)?;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(text.as_bytes());
    let mut rows = Rows::new();
    let mut columns: Option<Vec<String>> = None;
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = error.position().map_or(1, csv::Position::line) as usize;
                rows.push((line, malformed(error.to_string())));
                continue;
            }
        };
        let line = record.position().map_or(1, csv::Position::line) as usize;
        match &columns {
            Some(columns) => rows.push((line, row(columns, &record))),
            None => {
                let names: Vec<String> = record.iter().map(str::to_owned).collect();
                let twice = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name));
                if let Some((_, name)) = twice {
                    return Ok(vec![(line, malformed(format!("two columns are called `{name}`")))]);
                }
                columns = Some(names);
            }
        }
    }
    Ok(rows)
}

fn row(columns: &[String], record: &csv::StringRecord) -> Result<Row, RowError> {
    if record.len() != columns.len() {
        return malformed(format!("{} values, but there are {} columns", record.len(), columns.len()));
    }
    Ok(columns.iter().cloned().zip(record.iter().map(Into::into)).collect())
}
