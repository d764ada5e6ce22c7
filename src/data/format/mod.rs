//! Formats of rows: which fields a row has and what they mean.

mod alpaca;
mod chat;
mod completion;
mod preference;
mod sharegpt;
mod text;

use serde_json::{Map, Value as Json};

use super::json::kind_of;
use super::{Row, RowError};

pub use chat::Chat;

/// A format of rows.
pub struct Format {
    pub name: &'static str,
    /// One line for docs and hints.
    pub about: &'static str,
    /// Fields that a row must have to be of this format.
    pub fields: &'static [&'static str],
    /// Whether a row is a pair of answers, for preference training.
    pub is_preference: bool,
    read: fn(&Row) -> Result<Record, RowError>,
}

/// Every format, by name.
pub static FORMATS: &[Format] =
    &[chat::FORMAT, completion::FORMAT, text::FORMAT, alpaca::FORMAT, sharegpt::FORMAT, preference::FORMAT];

/// Returns the names of all formats.
pub fn names() -> String {
    FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(", ")
}

/// Returns the format of that name.
pub fn by_name(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}

/// Returns the formats that a row has the fields of.
pub fn fitting(row: &Row) -> Vec<&'static Format> {
    let has = |field: &&str| row.get(*field).is_some_and(|value| !value.is_null());
    FORMATS.iter().filter(|format| format.fields.iter().all(has)).collect()
}

impl Format {
    /// Returns what a row says. Errors if it has not the format's shape.
    pub fn read(&self, row: &Row) -> Result<Record, RowError> {
        if self.name != chat::FORMAT.name {
            refuse_tools(row)?;
        }
        (self.read)(row)
    }
}

/// What a row says.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Chat(Chat),
    Completion { prompt: String, completion: String },
    Text(String),
    Preference { chosen: Box<Record>, rejected: Box<Record> },
}

impl Record {
    /// Returns every text in it, e.g. for scans.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Record::Text(text) => vec![text],
            Record::Completion { prompt, completion } => vec![prompt, completion],
            Record::Preference { chosen, rejected } => [chosen.texts(), rejected.texts()].concat(),
            Record::Chat(chat) => {
                let mut texts = Vec::new();
                chat.messages
                    .iter()
                    .chain(chat.tools.iter().flatten())
                    .for_each(|value| collect(value, &mut texts));
                texts
            }
        }
    }
}

fn collect<'a>(value: &'a Json, texts: &mut Vec<&'a str>) {
    match value {
        Json::String(text) => texts.push(text),
        Json::Array(items) => items.iter().for_each(|item| collect(item, texts)),
        Json::Object(fields) => {
            fields.iter().filter(|(name, _)| *name != "role").for_each(|(_, field)| collect(field, texts));
        }
        _ => {}
    }
}

/// Fields that change what the model would be asked, and that only conversations have a place for.
fn refuse_tools(row: &Row) -> Result<(), RowError> {
    const FIELDS: [&str; 3] = ["tools", "functions", "images"];
    for field in FIELDS {
        if present(row, field).is_some_and(|value| *value != Json::Array(Vec::new())) {
            return Err(unsupported(field, "only rows of format chat have tools, none has images"));
        }
    }
    Ok(())
}

fn unsupported(field: impl Into<String>, why: &'static str) -> RowError {
    RowError::Unsupported { field: format!("`{}`", field.into()), why }
}

fn shape<T>(what: impl Into<String>) -> Result<T, RowError> {
    Err(RowError::Shape(what.into()))
}

/// Returns a field that is there and not null.
fn present<'a>(fields: &'a Map<String, Json>, name: &str) -> Option<&'a Json> {
    fields.get(name).filter(|value| !value.is_null())
}

/// Returns a field that must hold text.
fn text(fields: &Map<String, Json>, name: &str) -> Result<String, RowError> {
    match present(fields, name) {
        Some(Json::String(text)) => Ok(text.clone()),
        Some(other) => shape(format!("`{name}` is {}, not text", kind_of(other))),
        None => shape(format!("there is no `{name}`")),
    }
}

/// Returns a field that holds text if it is there.
fn optional_text(fields: &Map<String, Json>, name: &str) -> Result<Option<String>, RowError> {
    present(fields, name).map(|_| text(fields, name)).transpose()
}

/// Returns a field that must hold a list; in a file whose values are all text, the list is JSON.
fn list(fields: &Map<String, Json>, name: &str) -> Result<Vec<Json>, RowError> {
    match present(fields, name) {
        Some(Json::Array(items)) => Ok(items.clone()),
        Some(Json::String(text)) => match serde_json::from_str(text) {
            Ok(Json::Array(items)) => Ok(items),
            _ => shape(format!("`{name}` is text, not a list")),
        },
        Some(other) => shape(format!("`{name}` is {}, not a list", kind_of(other))),
        None => shape(format!("there is no `{name}`")),
    }
}

#[cfg(test)]
mod tests;
