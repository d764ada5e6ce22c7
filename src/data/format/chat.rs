//! Conversations as OpenAI's API has them: `messages` of `role` and `content`, `tools`.

use serde_json::{Map, Value as Json};

use super::{Format, Record, list, present, shape, text, unsupported};
use crate::data::json::kind_of;
use crate::data::{Row, RowError};

pub const FORMAT: Format = Format {
    name: "chat",
    about: "`messages`: a list of objects with `role` and `content`; `tools` and an assistant's `tool_calls` go to the chat template",
    fields: &["messages"],
    is_preference: false,
    read,
};

/// A conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// Objects with `role` and, as a rule, `content`; nothing in them is null.
    pub messages: Vec<Json>,
    /// JSON schemas of functions.
    pub tools: Option<Vec<Json>>,
    /// Variables of the template for this row (`chat_template_kwargs`).
    pub variables: Map<String, Json>,
    /// Messages before this one are a prompt and never trained.
    pub prompt: usize,
    /// Messages that are not trained although the assistant wrote them (`weight: 0`).
    pub untrained: Vec<usize>,
}

impl Chat {
    /// Returns a conversation of these messages. Errors if one has not the shape of a message.
    pub fn new(messages: Vec<Json>) -> Result<Chat, RowError> {
        let mut chat = Chat {
            messages: Vec::new(),
            tools: None,
            variables: Map::new(),
            prompt: 0,
            untrained: Vec::new(),
        };
        for (index, value) in messages.into_iter().enumerate() {
            let is_trained = chat.push(value).map_err(|error| match error {
                RowError::Shape(what) => RowError::Shape(format!("message {}: {what}", index + 1)),
                other => other,
            })?;
            chat.untrained.extend((!is_trained).then_some(index));
        }
        match chat.messages.is_empty() {
            true => shape("a conversation without messages"),
            false => Ok(chat),
        }
    }

    /// Returns a message of a role and a text.
    pub fn message(role: &str, content: impl Into<String>) -> Json {
        serde_json::json!({"role": role, "content": content.into()})
    }

    /// Adds a message; returns whether its weight lets it be trained.
    fn push(&mut self, value: Json) -> Result<bool, RowError> {
        let Json::Object(mut fields) = value else {
            return shape(format!("it is {}, not an object", kind_of(&value)));
        };
        fields.retain(|_, value| !value.is_null());
        let role = text(&fields, "role")?;
        if fields.contains_key("function_call") {
            return Err(unsupported("function_call", "the API replaced it by `tool_calls`"));
        }
        check_content(&fields)?;
        parse_arguments(&mut fields)?;
        let is_trained = match fields.shift_remove("weight") {
            None => true,
            Some(weight) if role != "assistant" => {
                return shape(format!("`weight` {weight} of a message that the assistant did not write"));
            }
            Some(weight) => match weight.as_f64() {
                Some(0.0) => false,
                Some(1.0) => true,
                _ => return shape(format!("`weight` is {weight}, neither 0 nor 1")),
            },
        };
        self.messages.push(Json::Object(fields));
        Ok(is_trained)
    }
}

/// Errors unless the content is text, or a list of texts; a message that calls tools needs none.
fn check_content(fields: &Map<String, Json>) -> Result<(), RowError> {
    match fields.get("content") {
        Some(Json::String(_)) => Ok(()),
        Some(Json::Array(parts)) => {
            for part in parts {
                match part.get("type").and_then(Json::as_str) {
                    Some("text") if part.get("text").is_some_and(Json::is_string) => {}
                    Some("text") => return shape("a part of its content has no `text`"),
                    Some(_) => return Err(unsupported("content", "a part of it is not text")),
                    None => return shape("a part of its content has no `type`"),
                }
            }
            Ok(())
        }
        Some(other) => shape(format!("`content` is {}, not text", kind_of(other))),
        None if fields.get("tool_calls").is_some_and(Json::is_array) => Ok(()),
        None => shape("there is no `content`"),
    }
}

/// OpenAI writes the arguments of a call as JSON in a text; chat templates expect the object.
fn parse_arguments(fields: &mut Map<String, Json>) -> Result<(), RowError> {
    let Some(calls) = fields.get_mut("tool_calls") else { return Ok(()) };
    let Json::Array(calls) = calls else {
        return shape(format!("`tool_calls` is {}, not a list", kind_of(calls)));
    };
    for call in calls {
        let Some(function) = call.get_mut("function").and_then(Json::as_object_mut) else {
            return shape("a call in `tool_calls` has no `function`");
        };
        if let Some(Json::String(arguments)) = function.get("arguments") {
            let Ok(Json::Object(arguments)) = serde_json::from_str(arguments) else {
                return shape("the `arguments` of a call are no JSON object");
            };
            function.insert("arguments".into(), Json::Object(arguments));
        }
    }
    Ok(())
}

/// Reads the tools of a row, and the variables for its template.
fn read_settings(row: &Row, chat: &mut Chat) -> Result<(), RowError> {
    if present(row, "functions").is_some() {
        return Err(unsupported("functions", "the API replaced it by `tools`"));
    }
    let tools = present(row, "tools").map(|_| list(row, "tools")).transpose()?;
    if let Some(bad) = tools.iter().flatten().find(|tool| !tool.is_object()) {
        return shape(format!("an item of `tools` is {}, not an object", kind_of(bad)));
    }
    // an empty list of tools says as little as none
    chat.tools = tools.filter(|tools| !tools.is_empty());
    chat.variables = match present(row, "chat_template_kwargs") {
        None => Map::new(),
        Some(Json::Object(variables)) => variables.clone(),
        Some(other) => return shape(format!("`chat_template_kwargs` is {}, not an object", kind_of(other))),
    };
    Ok(())
}

fn read(row: &Row) -> Result<Record, RowError> {
    let mut chat = Chat::new(list(row, "messages")?)?;
    read_settings(row, &mut chat)?;
    Ok(Record::Chat(chat))
}
