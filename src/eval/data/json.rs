//! JSON: one object per line, or an array of objects.

use serde_json::Value as Json;

use super::{Error, Format, Input, Row, Rows};
use crate::data::json::{item_lines, kind_of, repeated_key, without_place};

pub const LINES: Format = Format {
    name: "jsonl",
    about: "one JSON object per line; empty lines are skipped",
    is_text: true,
    parts: &[],
    read: lines,
};

pub const ARRAY: Format = Format {
    name: "json",
    about: "an array of JSON objects, or an object that holds it under the key `records` names",
    is_text: true,
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
    match repeated_key(text) {
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
