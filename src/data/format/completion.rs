//! A prompt and what follows it: two texts, put one behind the other as they are, or two lists of messages.

use serde_json::Value as Json;

use super::{Chat, Format, Record, list, present, shape, text};
use crate::data::{Row, RowError};

pub const FORMAT: Format = Format {
    name: "completion",
    about: "`prompt` and `completion`: texts that no chat template sees, or lists of messages",
    fields: &["prompt", "completion"],
    is_preference: false,
    read,
};

fn read(row: &Row) -> Result<Record, RowError> {
    answer(row, "completion")
}

/// Returns the record of `prompt` and an answer to it in another field; conversations may leave out the prompt.
pub fn answer(row: &Row, name: &str) -> Result<Record, RowError> {
    if present(row, name).is_none_or(Json::is_string) {
        let (prompt, completion) = (text(row, "prompt")?, text(row, name)?);
        return match completion.is_empty() {
            true => shape(format!("`{name}` is empty")),
            false => Ok(Record::Completion { prompt, completion }),
        };
    }
    let mut messages = match present(row, "prompt") {
        Some(Json::String(prompt)) => vec![Chat::message("user", prompt.as_str())],
        Some(_) => list(row, "prompt")?,
        None => Vec::new(),
    };
    let prompt = messages.len();
    messages.extend(list(row, name)?);
    let mut chat = Chat::new(messages)?;
    chat.prompt = prompt;
    Ok(Record::Chat(chat))
}
