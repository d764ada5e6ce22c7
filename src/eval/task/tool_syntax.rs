//! Tool calls in what a model writes, in the syntaxes that docs/eval.md lists.

use serde_json::{Map, Number, Value as Json};

use super::json_answer::json_values;

/// A call of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub name: String,
    pub arguments: Map<String, Json>,
}

impl Call {
    pub fn json(&self) -> Json {
        serde_json::json!({"name": self.name, "arguments": self.arguments})
    }
}

/// Returns the calls of an answer, in order; what stands before a last `</think>` is not said, only thought.
///
/// JSON comes first; where there is none, `<function=NAME>{..}</function>`; then lines of `name(key=value)`.
pub fn calls(text: &str) -> Vec<Call> {
    let said = text.rsplit("</think>").next().unwrap_or(text);
    let found: Vec<Call> = json_values(said).iter().flat_map(of_json).collect();
    if !found.is_empty() {
        return found;
    }
    let found = tagged(said);
    if found.is_empty() { said.lines().flat_map(of_line).collect() } else { found }
}

/// Returns true if an answer announces a call, whether or not there is one.
pub fn announces_call(text: &str) -> bool {
    let said = text.rsplit("</think>").next().unwrap_or(text);
    ["<tool_call>", "[TOOL_CALLS]", "<function=", "<|python_tag|>", "\"tool_calls\""]
        .iter()
        .any(|marker| said.contains(marker))
}

/// Returns the calls that a JSON value is: one, a list of them, or an object with `tool_calls`.
pub fn of_json(value: &Json) -> Vec<Call> {
    match value {
        Json::Array(items) => items.iter().flat_map(of_json).collect(),
        Json::Object(fields) => match fields.get("tool_calls") {
            Some(calls) => of_json(calls),
            None => of_object(fields).into_iter().collect(),
        },
        _ => Vec::new(),
    }
}

fn of_object(fields: &Map<String, Json>) -> Option<Call> {
    if let Some(Json::Object(function)) = fields.get("function") {
        return of_object(function);
    }
    let name = ["name", "function", "tool"].iter().find_map(|key| fields.get(*key)?.as_str())?;
    // an object with a name alone may be anything
    let arguments = ["arguments", "parameters", "args"].iter().find_map(|key| fields.get(*key))?;
    let arguments = match arguments {
        Json::Object(arguments) => arguments.clone(),
        Json::String(text) => serde_json::from_str(text).ok()?,
        Json::Null => Map::new(),
        _ => return None,
    };
    Some(Call { name: name.to_owned(), arguments })
}

/// `<function=NAME>{..}</function>`.
fn tagged(text: &str) -> Vec<Call> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("<function=") {
        let Some((name, body)) = after.split_once('>') else { break };
        let inner = body.split_once("</function>").map_or(body, |(inner, _)| inner);
        if let Ok(arguments) = serde_json::from_str(inner.trim()) {
            found.push(Call { name: name.trim().to_owned(), arguments });
        }
        rest = body;
    }
    found
}

/// Returns the calls of a line that is nothing but calls: `f(a=1)`, `[f(a=1), g(b="x")]`.
fn of_line(line: &str) -> Vec<Call> {
    let line = line.trim().trim_matches('`').trim();
    let inner = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')).unwrap_or(line);
    let mut reader = Reader { rest: inner, depth: 0 };
    let mut found = Vec::new();
    while let Some(call) = reader.call() {
        found.push(call);
        if !reader.take(',') {
            break;
        }
    }
    reader.skip_space();
    if reader.rest.is_empty() { found } else { Vec::new() }
}

/// Deepest nesting of lists and dictionaries in arguments.
const DEEPEST: usize = 64;

/// Reads calls with keyword arguments that are Python literals.
struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl Reader<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, c: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn name(&mut self, allows_dots: bool) -> Option<String> {
        self.skip_space();
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || (c == '.' && allows_dots);
        let end = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        begins_well.then(|| {
            self.rest = rest;
            name.to_owned()
        })
    }

    fn call(&mut self) -> Option<Call> {
        let name = self.name(true)?;
        let mut arguments = Map::new();
        if !self.take('(') {
            return None;
        }
        while !self.take(')') {
            if !arguments.is_empty() && !self.take(',') {
                return None;
            }
            let key = self.name(false)?;
            if !self.take('=') {
                return None;
            }
            arguments.insert(key, self.value()?);
        }
        Some(Call { name, arguments })
    }

    fn value(&mut self) -> Option<Json> {
        self.skip_space();
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        let value = match self.rest.chars().next()? {
            quote @ ('"' | '\'') => self.text(quote).map(Json::String),
            '[' => self.list(),
            '{' => self.dictionary(),
            c if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => self.number(),
            _ => match self.name(false)?.as_str() {
                "True" | "true" => Some(Json::Bool(true)),
                "False" | "false" => Some(Json::Bool(false)),
                "None" | "null" => Some(Json::Null),
                _ => None,
            },
        };
        self.depth -= 1;
        value
    }

    fn number(&mut self) -> Option<Json> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        match text.parse::<i64>() {
            Ok(number) => Some(number.into()),
            Err(_) => Number::from_f64(text.parse().ok()?).map(Json::Number),
        }
    }

    fn text(&mut self, quote: char) -> Option<String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => text.push(match chars.next()?.1 {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    other => other,
                }),
                c if c == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Some(text);
                }
                c => text.push(c),
            }
        }
        None
    }

    fn list(&mut self) -> Option<Json> {
        let mut items = Vec::new();
        self.take('[');
        while !self.take(']') {
            if !items.is_empty() && !self.take(',') {
                return None;
            }
            items.push(self.value()?);
        }
        Some(items.into())
    }

    fn dictionary(&mut self) -> Option<Json> {
        let mut fields = Map::new();
        self.take('{');
        while !self.take('}') {
            if !fields.is_empty() && !self.take(',') {
                return None;
            }
            let Json::String(key) = self.value()? else { return None };
            if !self.take(':') {
                return None;
            }
            fields.insert(key, self.value()?);
        }
        Some(fields.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(text: &str) -> Vec<Json> {
        calls(text).iter().map(Call::json).collect()
    }

    #[test]
    fn every_documented_syntax_is_read() {
        let call = json!({"name": "block_ip", "arguments": {"ip": "192.0.2.1", "hours": 2}});
        for text in [
            r#"{"name": "block_ip", "arguments": {"ip": "192.0.2.1", "hours": 2}}"#,
            r#"<tool_call>{"name": "block_ip", "parameters": {"ip": "192.0.2.1", "hours": 2}}</tool_call>"#,
            r#"Fine. ```json
[{"tool": "block_ip", "args": {"ip": "192.0.2.1", "hours": 2}}]
```"#,
            r#"{"tool_calls": [{"type": "function", "function": {"name": "block_ip", "arguments": "{\"ip\": \"192.0.2.1\", \"hours\": 2}"}}]}"#,
            r#"[TOOL_CALLS] [{"name": "block_ip", "arguments": {"ip": "192.0.2.1", "hours": 2}}]"#,
            r#"<function=block_ip>{"ip": "192.0.2.1", "hours": 2}</function>"#,
            "[block_ip(ip='192.0.2.1', hours=2)]",
            "I call\n`block_ip(ip=\"192.0.2.1\", hours=2)`",
            r#"<think>{"name": "no", "arguments": {}}</think>{"name": "block_ip", "arguments": {"ip": "192.0.2.1", "hours": 2}}"#,
        ] {
            assert_eq!(found(text), std::slice::from_ref(&call), "{text}");
        }
    }

    #[test]
    fn literals_of_python_become_json() {
        let found = found(r#"[a.b(x=[1, -2.5], y={'k': None, "q": 'it\'s'}, z=True), c()]"#);
        assert_eq!(found[0]["arguments"], json!({"x": [1, -2.5], "y": {"k": null, "q": "it's"}, "z": true}));
        assert_eq!((found.len(), &found[1]["name"]), (2, &json!("c")));
    }

    #[test]
    fn what_is_no_call_is_none() {
        for text in [
            "",
            "I would call block_ip(ip='x') now.",
            "print(x)",
            r#"{"name": "Bob"}"#,
            r#"{"name": "f", "arguments": [1]}"#,
            "f(a=",
            "f(a='x)",
            "f(a=b)",
        ] {
            assert_eq!(found(text), Vec::<Json>::new(), "{text}");
        }
        assert!(announces_call("<tool_call>{broken</tool_call>") && !announces_call("no"));
        assert_eq!(found(&format!("f(a={})", "[".repeat(10_000))), Vec::<Json>::new());
    }
}
