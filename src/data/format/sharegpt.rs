//! Conversations as ShareGPT exports them: `conversations` of `from` and `value`.

use serde_json::Value as Json;

use super::{Chat, Format, Record, list, optional_text, shape, text};
use crate::data::json::kind_of;
use crate::data::{Row, RowError};
use crate::error::nearest;

pub const FORMAT: Format = Format {
    name: "sharegpt",
    about: "`conversations`: a list of objects with `from` (human, gpt, system or chat roles) and `value`; `system`",
    fields: &["conversations"],
    is_preference: false,
    read,
};

/// What `from` says, and the role it is.
const ROLES: [(&str, &str); 8] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("assistant", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
];

fn read(row: &Row) -> Result<Record, RowError> {
    let mut messages = Vec::new();
    if let Some(system) = optional_text(row, "system")?.filter(|text| !text.is_empty()) {
        messages.push(Chat::message("system", system));
    }
    for (index, turn) in list(row, "conversations")?.iter().enumerate() {
        let at = |what: String| RowError::Shape(format!("turn {}: {what}", index + 1));
        let Json::Object(fields) = turn else {
            return Err(at(format!("it is {}, not an object", kind_of(turn))));
        };
        let in_turn = |error: RowError| at(error.to_string());
        let from = text(fields, "from").map_err(in_turn)?;
        let Some((_, role)) = ROLES.iter().find(|(name, _)| *name == from) else {
            let near = nearest(&from, ROLES.iter().map(|(name, _)| *name));
            let near = near.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
            return Err(at(format!("`from` is `{from}`, which is no role{near}")));
        };
        messages.push(Chat::message(role, text(fields, "value").map_err(in_turn)?));
    }
    match messages.is_empty() {
        true => shape("a conversation without turns"),
        false => Ok(Record::Chat(Chat::new(messages)?)),
    }
}
