//! JSON in what a model writes: in prose, in code fences, behind reasoning.

use serde_json::{Deserializer, Value as Json};

/// Returns the JSON objects and arrays of a text that stand in no other, in order. Fences and prose around them do not matter.
pub fn json_values(text: &str) -> Vec<Json> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(begin) = text[at..].find(['{', '[']).map(|offset| at + offset) {
        let mut stream = Deserializer::from_str(&text[begin..]).into_iter::<Json>();
        at = match stream.next() {
            Some(Ok(value)) => {
                found.push(value);
                begin + stream.byte_offset()
            }
            _ => begin + 1,
        };
    }
    found
}

/// Returns the last of [`json_values`] that is wanted.
pub fn last_json(text: &str, is_wanted: impl Fn(&Json) -> bool) -> Option<Json> {
    json_values(text).into_iter().rfind(is_wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_found_wherever_they_stand() {
        let text = "I think [sic] {x}: ```json\n{\"a\": [1, {\"b\": \"}\"}]}\n``` or {\"c\": 2} see [1].";
        assert_eq!(json_values(text), [json!({"a": [1, {"b": "}"}]}), json!({"c": 2}), json!([1])]);
        assert_eq!(last_json(text, Json::is_object), Some(json!({"c": 2})));
        assert_eq!(last_json("{\"a\": 1", Json::is_object), None);
    }

    #[test]
    fn hostile_nesting_ends() {
        let text = "[{".repeat(20_000);
        assert_eq!(json_values(&text), Vec::<Json>::new());
    }
}
