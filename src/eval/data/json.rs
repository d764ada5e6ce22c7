//! JSON: one object per line, or an array of objects.

mod repeated;

use serde_json::Value as Json;

use super::{Error, Format, Input, Row, Rows};

pub const LINES: Format = Format {
    name: "jsonl",
    about: "one JSON object per line; empty lines are skipped",
    parts: &[],
    read: lines,
};

pub const ARRAY: Format = Format {
    name: "json",
    about: "an array of JSON objects, or an object that holds it under the key `records` names",
    parts: &[],
    read: array,
};

fn lines(input: &Input) -> Result<Rows, Error> {
    let mut rows = Vec::new();
    for (index, text) in input.text.lines().enumerate() {
        if text.trim().is_empty() {
            continue;
        }
        let value = serde_json::from_str(text)
            .map_err(|error| Error::row(input, index + 1, format!("not JSON: {}", without_place(&error))))?;
        check_keys(input, text, index)?;
        rows.push((index + 1, object(input, index + 1, value)?));
    }
    Ok(rows)
}

fn array(input: &Input) -> Result<Rows, Error> {
    records(input, input.options.records.as_deref())?
        .into_iter()
        .map(|(line, value)| Ok((line, object(input, line, value)?)))
        .collect()
}

/// Returns the items, each with its line, of the array at the top of the file or under its key `key`.
pub fn records(input: &Input, key: Option<&str>) -> Result<Vec<(usize, Json)>, Error> {
    let value: Json = serde_json::from_str(input.text)
        .map_err(|error| Error::row(input, error.line(), format!("not JSON: {}", without_place(&error))))?;
    check_keys(input, input.text, 0)?;
    let array = match (key, value) {
        (None, Json::Array(items)) => items,
        (None, other) => {
            let what = format!("the file holds {}, not an array", kind_of(&other));
            let hint = Some("name the array's key with `records`".into());
            return Err(Error::BadRow { path: input.path.to_owned(), line: 1, what, hint });
        }
        (Some(key), Json::Object(mut fields)) => match fields.remove(key) {
            Some(Json::Array(items)) => items,
            Some(other) => {
                return Err(Error::row(input, 1, format!("`{key}` is {}, not an array", kind_of(&other))));
            }
            None => return Err(Error::row(input, 1, format!("there is no key `{key}`"))),
        },
        (Some(key), other) => {
            return Err(Error::row(
                input,
                1,
                format!("the file holds {}, not an object with the key `{key}`", kind_of(&other)),
            ));
        }
    };
    let lines = item_lines(input.text, key);
    let line = |index: usize| lines.get(index).copied().unwrap_or(1);
    Ok(array.into_iter().enumerate().map(|(index, value)| (line(index), value)).collect())
}

/// Errors if an object of the text, which begins after `lines_before` lines, has a key twice.
fn check_keys(input: &Input, text: &str, lines_before: usize) -> Result<(), Error> {
    match repeated::repeated_key(text) {
        Some((line, key)) => {
            Err(Error::row(input, lines_before + line, format!("the key `{key}` comes twice in one object")))
        }
        None => Ok(()),
    }
}

fn object(input: &Input, line: usize, value: Json) -> Result<Row, Error> {
    match value {
        Json::Object(fields) => Ok(fields),
        other => Err(Error::row(input, line, format!("the row is {}, not an object", kind_of(&other)))),
    }
}

/// Returns how messages call a value.
pub fn kind_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "true or false",
        Json::Number(_) => "a number",
        Json::String(_) => "text",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

/// serde_json ends its messages with a line and column of its own, relative to the row.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => format!("{} (column {})", &text[..end], error.column()),
        None => text,
    }
}

/// Returns the line on which each item of the array begins; the text is valid JSON.
fn item_lines(text: &str, key: Option<&str>) -> Vec<usize> {
    let mut scan =
        Scan { line: 1, depth: 0, wanted_depth: 1 + usize::from(key.is_some()), ..Scan::default() };
    scan.is_inside = key.is_none();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        at = match bytes[at] {
            b'"' => scan.string(bytes, at, key),
            byte => {
                scan.byte(byte);
                at + 1
            }
        };
    }
    scan.lines
}

/// State of the walk over a JSON text.
#[derive(Default)]
struct Scan {
    line: usize,
    depth: usize,
    /// Brackets open around an item.
    wanted_depth: usize,
    /// The last key at depth 1 is the wanted one.
    is_inside: bool,
    /// An item may begin: behind `[` or `,`.
    is_due: bool,
    lines: Vec<usize>,
}

impl Scan {
    fn begin(&mut self) {
        if self.is_due && self.is_inside && self.depth == self.wanted_depth {
            self.lines.push(self.line);
        }
        self.is_due = false;
    }

    fn byte(&mut self, byte: u8) {
        match byte {
            b'\n' => self.line += 1,
            b' ' | b'\t' | b'\r' | b':' => {}
            b'[' | b'{' => {
                self.begin();
                self.depth += 1;
                self.is_due = true;
            }
            b']' | b'}' => {
                self.depth -= 1;
                self.is_due = false;
            }
            b',' => self.is_due = true,
            _ => self.begin(),
        }
    }

    /// Walks over the string that begins at `start`; returns where it ends.
    fn string(&mut self, bytes: &[u8], start: usize, key: Option<&str>) -> usize {
        let is_key = self.depth == 1 && self.is_due && key.is_some();
        self.begin();
        let mut at = start + 1;
        while bytes[at] != b'"' {
            at += 1 + usize::from(bytes[at] == b'\\');
        }
        if let (true, Some(key)) = (is_key, key) {
            self.is_inside =
                serde_json::from_slice::<String>(&bytes[start..=at]).is_ok_and(|text| text == key);
        }
        at + 1
    }
}
