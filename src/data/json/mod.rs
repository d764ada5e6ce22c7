//! JSON texts: what messages call a value, keys that come twice, and the lines that an array's items begin on.

mod lines;
mod repeated;

use serde_json::Value as Json;

pub use lines::item_lines;
pub use repeated::repeated_key;

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

/// Returns serde_json's message with the column alone.
///
/// serde_json ends its messages with a line and column of its own, relative to the row.
pub fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => format!("{} (column {})", &text[..end], error.column()),
        None => text,
    }
}
