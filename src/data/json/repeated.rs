//! Keys that come twice in one object: which of the values counts would be anyone's guess.

use std::collections::HashSet;

/// Returns the first key that its object has already, and its line from 1; the text is valid JSON.
pub fn repeated_key(text: &str) -> Option<(usize, String)> {
    let bytes = text.as_bytes();
    // of each open bracket the keys so far, `None` for an array's
    let mut open: Vec<Option<HashSet<String>>> = Vec::new();
    let mut is_key_due = false;
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        at += 1;
        match bytes[start] {
            b'{' => open.push(Some(HashSet::new())),
            b'[' => open.push(None),
            b'}' | b']' => {
                open.pop();
            }
            b'"' => {
                while bytes[at] != b'"' {
                    at += 1 + usize::from(bytes[at] == b'\\');
                }
                at += 1;
                if let (true, Some(Some(keys))) = (is_key_due, open.last_mut()) {
                    let key: String = serde_json::from_slice(&bytes[start..at]).ok()?;
                    if !keys.insert(key.clone()) {
                        return Some((1 + text[..start].matches('\n').count(), key));
                    }
                }
            }
            _ => {}
        }
        if !bytes[start].is_ascii_whitespace() {
            is_key_due = matches!(bytes[start], b'{' | b',');
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_of_one_object_count() {
        for text in
            [r#"{"a": "a", "b": {"a": ["a", "a"]}, "c": "\"a\": 1, "}"#, r#"[{"a": 1}, {"a": 2}, "a"]"#, "1"]
        {
            assert_eq!(repeated_key(text), None, "{text}");
        }
        assert_eq!(repeated_key("{\"a\": 1,\n \"b\": 2,\n \"\\u0061\": 3}"), Some((3, "a".into())));
        assert_eq!(repeated_key(r#"[{"k": {"x": [], "x": []}}]"#), Some((1, "x".into())));
    }
}
