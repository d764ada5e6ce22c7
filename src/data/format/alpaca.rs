//! Instructions as in Stanford Alpaca's data, read as conversations.

use serde_json::Value as Json;

use super::{Chat, Format, Record, optional_text, present, shape, text};
use crate::data::{Row, RowError};

pub const FORMAT: Format = Format {
    name: "alpaca",
    about: "`instruction`, `output`, and perhaps `input`, `system` and `history` (pairs of earlier texts); the user's message is the \
            instruction, an empty line and the input",
    fields: &["instruction", "output"],
    is_preference: false,
    read,
};

fn read(row: &Row) -> Result<Record, RowError> {
    let mut messages = Vec::new();
    if let Some(system) = optional_text(row, "system")?.filter(|text| !text.is_empty()) {
        messages.push(Chat::message("system", system));
    }
    for turn in earlier(row)? {
        let [user, assistant] = turn;
        messages.push(Chat::message("user", user));
        messages.push(Chat::message("assistant", assistant));
    }
    let mut user = text(row, "instruction")?;
    if let Some(input) = optional_text(row, "input")?.filter(|text| !text.is_empty()) {
        user = format!("{user}\n\n{input}");
    }
    let output = text(row, "output")?;
    if output.is_empty() {
        return shape("`output` is empty");
    }
    messages.push(Chat::message("user", user));
    messages.push(Chat::message("assistant", output));
    Ok(Record::Chat(Chat::new(messages)?))
}

fn earlier(row: &Row) -> Result<Vec<[String; 2]>, RowError> {
    let Some(history) = present(row, "history") else { return Ok(Vec::new()) };
    let turn = |turn: &Json| match turn.as_array().map(Vec::as_slice) {
        Some([Json::String(user), Json::String(assistant)]) => Some([user.clone(), assistant.clone()]),
        _ => None,
    };
    let turns: Option<Vec<_>> = history.as_array().and_then(|turns| turns.iter().map(turn).collect());
    turns.ok_or_else(|| RowError::Shape("`history` is no list of pairs of texts".into()))
}
