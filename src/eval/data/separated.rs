//! Values separated by commas or tabs, under a header or named by `columns`; every value is text.

use super::{Error, Format, Input, Row, Rows};
use crate::data::container::separated::{BadQuote, Lines, bad_quotes};

pub const COMMAS: Format = Format {
    name: "csv",
    about: "comma-separated values, quoted as in RFC 4180, under a header",
    is_text: true,
    parts: &[],
    read: commas,
};

pub const TABS: Format = Format {
    name: "tsv",
    about: "tab-separated values under a header; quotes mean nothing",
    is_text: true,
    parts: &[],
    read: tabs,
};

fn commas(input: &Input) -> Result<Rows, Error> {
    let mut records = comma_records(input)?.into_iter();
    let columns = match &input.options.columns {
        Some(columns) => columns.clone(),
        None => match records.next() {
            Some((line, header)) => checked_header(input, line, header)?,
            None => return Ok(Vec::new()),
        },
    };
    records.map(|(line, values)| row(input, line, &columns, values)).collect()
}

/// Returns the records of an RFC 4180 file, each with the line it begins on.
///
/// Errors at a quote that is never closed, or with text behind its end.
pub fn comma_records(input: &Input) -> Result<Vec<(usize, Vec<String>)>, Error> {
    if let Some(BadQuote { line, what, .. }) = bad_quotes(input.text, b',').into_iter().next() {
        return Err(Error::row(input, line, what));
    }
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(input.text.as_bytes());
    let (mut records, mut lines) = (Vec::new(), Lines::of(input.text));
    for record in reader.records() {
        let record = record.map_err(|error| {
            let line = error.position().map_or(1, csv::Position::line);
            Error::row(input, line as usize, error.to_string())
        })?;
        let line = lines.of_record(&record);
        records.push((line, record.iter().map(str::to_owned).collect()));
    }
    Ok(records)
}

/// Returns the rows of a file of tab-separated values.
pub fn tabs(input: &Input) -> Result<Rows, Error> {
    let mut lines = input.text.lines().enumerate().filter(|(_, line)| !line.is_empty());
    let split = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let columns = match &input.options.columns {
        Some(columns) => columns.clone(),
        None => match lines.next() {
            Some((index, header)) => checked_header(input, index + 1, split(header))?,
            None => return Ok(Vec::new()),
        },
    };
    lines.map(|(index, line)| row(input, index + 1, &columns, split(line))).collect()
}

fn checked_header(input: &Input, line: usize, header: Vec<String>) -> Result<Vec<String>, Error> {
    for (index, name) in header.iter().enumerate() {
        if header[..index].contains(name) {
            return Err(Error::row(input, line, format!("two columns are called `{name}`")));
        }
    }
    Ok(header)
}

fn row(input: &Input, line: usize, columns: &[String], values: Vec<String>) -> Result<(usize, Row), Error> {
    if values.len() != columns.len() {
        let what = format!("{} values, but there are {} columns", values.len(), columns.len());
        let hint = Some(format!("the columns are: {}", columns.join(", ")));
        return Err(Error::BadRow { path: input.path.to_owned(), line, what, hint });
    }
    let fields = columns.iter().cloned().zip(values.into_iter().map(Into::into)).collect();
    Ok((line, fields))
}
