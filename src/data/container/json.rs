//! JSON: one object per line, or an array of objects.

use std::path::Path;

use serde_json::Value as Json;

use super::{Container, Rows, malformed};
use crate::data::json::{item_lines, kind_of, repeated_key, without_place};
use crate::data::{Error, Row, RowError};
use crate::read::text_of;

pub const LINES: Container = Container {
    name: "jsonl",
    about: "one JSON object per line; empty lines are skipped",
    extensions: &["jsonl", "ndjson"],
    read: lines,
};

pub const ARRAY: Container =
    Container { name: "json", about: "an array of JSON objects", extensions: &["json"], read: array };

fn lines(path: &Path, bytes: &[u8]) -> Result<Rows, Error> {
    let lines = text_of(path, bytes)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    Ok(lines.map(|(index, line)| (index + 1, row(line))).collect())
}

fn row(line: &str) -> Result<Row, RowError> {
    let value = serde_json::from_str(line)
        .map_err(|error| RowError::Malformed(format!("not JSON: {}", without_place(&error))))?;
    match repeated_key(line) {
        Some((_, key)) => malformed(format!("the key `{key}` comes twice in one object")),
        None => object(value),
    }
}

fn array(path: &Path, bytes: &[u8]) -> Result<Rows, Error> {
    let text = text_of(path, bytes)?;
    let whole = |line, what: String| Ok(vec![(line, malformed(what))]);
    let items = match serde_json::from_str(text) {
        Ok(Json::Array(items)) => items,
        Ok(other) => return whole(1, format!("the file holds {}, not an array", kind_of(&other))),
        Err(error) => return whole(error.line().max(1), format!("not JSON: {}", without_place(&error))),
    };
    if let Some((line, key)) = repeated_key(text) {
        return whole(line, format!("the key `{key}` comes twice in one object"));
    }
    let lines = item_lines(text, None);
    let line = |index: usize| lines.get(index).copied().unwrap_or(1);
    Ok(items.into_iter().enumerate().map(|(index, item)| (line(index), object(item))).collect())
}

fn object(value: Json) -> Result<Row, RowError> {
    match value {
        Json::Object(fields) => Ok(fields),
        other => malformed(format!("the row is {}, not an object", kind_of(&other))),
    }
}
