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
    let mut bad = bad_quotes(text, delimiter).into_iter().peekable();
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(text.as_bytes());
    let mut rows = Rows::new();
    let mut columns: Option<Vec<String>> = None;
    let mut record = csv::StringRecord::new();
    let mut lines = Lines::of(text);
    loop {
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Ok(rows),
            Err(error) => {
                let line = error.position().map_or(1, csv::Position::line) as usize;
                rows.push((line, malformed(error.to_string())));
                continue;
            }
        }
        let line = lines.of_record(&record);
        let end = reader.position().byte();
        let first = bad.next_if(|quote| (quote.at as u64) < end);
        while bad.next_if(|quote| (quote.at as u64) < end).is_some() {}
        if let Some(BadQuote { line, what, .. }) = first {
            rows.push((line, malformed(what)));
            match columns {
                Some(_) => continue,
                // without a header no row can be read
                None => return Ok(rows),
            }
        }
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
}

/// Tells on which line of a text a record begins, for records one behind the other.
///
/// The reader's own numbers count the end of a line with its second byte, so that behind `\r\n` they are one short, and take
/// empty lines for the beginning of the record behind them.
pub struct Lines<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
}

impl<'a> Lines<'a> {
    /// Returns a count that begins with a text.
    pub fn of(text: &'a str) -> Lines<'a> {
        Lines { text: text.as_bytes(), at: 0, line: 1 }
    }

    /// Returns the line, from 1, on which a record that was read from the text begins; never one before those asked for earlier.
    pub fn of_record(&mut self, record: &csv::StringRecord) -> usize {
        let read_from = record.position().map_or(0, csv::Position::byte) as usize;
        let mut begin = read_from.clamp(self.at, self.text.len());
        while matches!(self.text.get(begin), Some(b'\r' | b'\n')) {
            begin += 1;
        }
        self.line += self.text[self.at..begin].iter().filter(|byte| **byte == b'\n').count();
        self.at = begin;
        self.line
    }
}

/// A quote that RFC 4180 does not allow, where reading on would take something else for the value.
#[derive(Debug, PartialEq, Eq)]
pub struct BadQuote {
    /// The opening quote's byte in the text.
    pub at: usize,
    /// From 1: of the opening quote if it is never closed, else of what stands behind the closing one.
    pub line: usize,
    pub what: String,
}

/// Returns the quotes that are opened and never closed, and those behind whose end something else than `delimiter` or the
/// end of the line stands, in the text's order. A quote within a value that does not begin with one is part of the value.
pub fn bad_quotes(text: &str, delimiter: u8) -> Vec<BadQuote> {
    let between = if delimiter == b'\t' { "a tab" } else { "a comma" };
    let is_end = |byte: u8| byte == delimiter || matches!(byte, b'\r' | b'\n');
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        // at the beginning of a value
        if bytes[at] == b'"' {
            let (opened, opened_line) = (at, line);
            at += 1;
            loop {
                match bytes.get(at) {
                    None => {
                        let what = "a quote is opened and never closed".to_owned();
                        found.push(BadQuote { at: opened, line: opened_line, what });
                        return found;
                    }
                    Some(b'"') if bytes.get(at + 1) == Some(&b'"') => at += 1,
                    Some(b'"') => break,
                    Some(byte) => line += usize::from(*byte == b'\n'),
                }
                at += 1;
            }
            at += 1;
            if let Some(next) =
                text[at..].chars().next().filter(|next| !u8::try_from(*next).is_ok_and(is_end))
            {
                let what =
                    format!("behind a closing quote stands `{next}`, not {between} or the end of the line");
                found.push(BadQuote { at: opened, line, what });
            }
        }
        while at < bytes.len() && !is_end(bytes[at]) {
            at += 1;
        }
        line += usize::from(bytes.get(at) == Some(&b'\n'));
        at += 1;
    }
    found
}

fn row(columns: &[String], record: &csv::StringRecord) -> Result<Row, RowError> {
    if record.len() != columns.len() {
        return malformed(format!("{} values, but there are {} columns", record.len(), columns.len()));
    }
    Ok(columns.iter().cloned().zip(record.iter().map(Into::into)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(usize, Result<String, String>)> {
        let rows = read(Path::new("rows.csv"), text.as_bytes(), b',').unwrap();
        let shown = |row: Result<Row, RowError>| {
            row.map(|row| serde_json::Value::from(row).to_string()).map_err(|error| error.to_string())
        };
        rows.into_iter().map(|(line, row)| (line, shown(row))).collect()
    }

    #[test]
    fn a_quote_that_swallows_rows_is_told_by_its_line() {
        let opened = "a quote is opened and never closed";
        let good = |text: &str| Ok(text.to_owned());
        let found = lines("a,b\n1,\"x\"\"\n,y\"\n\n2,\"z\n3,4\n5,6\n");
        assert_eq!(found, [(2, good(r#"{"a":"1","b":"x\"\n,y"}"#)), (5, Err(opened.to_owned()))]);
        // what follows is read on with
        let found = lines("a,b\n\"2\"x,1\n3,say \"no\"\n");
        let behind = "behind a closing quote stands `x`, not a comma or the end of the line".to_owned();
        assert_eq!(found, [(2, Err(behind)), (3, good(r#"{"a":"3","b":"say \"no\""}"#))]);
        assert_eq!(lines("a,\"b\n1,2\n"), [(1, Err(opened.to_owned()))]);
    }

    #[test]
    fn a_record_is_told_by_the_line_it_begins_on() {
        let text = "a,b\n1,x\n\"over\ntwo\",y\n\n\n2,z\n3\n";
        for (end, text) in [("\\n", text.to_owned()), ("\\r\\n", text.replace('\n', "\r\n"))] {
            let found: Vec<usize> = lines(&text).into_iter().map(|(line, _)| line).collect();
            assert_eq!(found, [2, 3, 7, 8], "{end}");
        }
    }

    #[test]
    fn quotes_as_rfc_4180_has_them_are_good() {
        for text in ["", "a", "\"a\"", "\"a\",\"\"\r\n\"b\"\"\",\"c\nd\"\n", "a\"b,c\"\n", ",\"\"\"\"\r"] {
            assert_eq!(bad_quotes(text, b','), [], "{text}");
        }
        let what =
            |text: &str| bad_quotes(text, b'\t').into_iter().map(|quote| quote.what).collect::<Vec<_>>();
        assert_eq!(
            what("\"a\",\tb"),
            ["behind a closing quote stands `,`, not a tab or the end of the line"]
        );
        assert_eq!(what("\"a\"é"), ["behind a closing quote stands `é`, not a tab or the end of the line"]);
    }
}
