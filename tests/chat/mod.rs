//! Chat templates against transformers' apply_chat_template.

mod bombs;

use std::path::Path;

use lctl::text::chat::{ChatRequest, ChatTemplate, Error, Rendered};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::common::test_data;

fn golden(name: &str) -> Value {
    let path = crate::common::root().join("tests/golden/chat").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn render(source: &str, golden: &Value, case: &Value) -> Result<Rendered, Error> {
    let is_set = |name: &str| case.get(name).and_then(Value::as_bool).unwrap_or(false);
    let list = |name: &str| case.get(name).and_then(Value::as_array).map(Vec::as_slice);
    let now = golden["now"].as_str().unwrap().parse().unwrap();
    let request = ChatRequest {
        tools: list("tools"),
        documents: list("documents"),
        add_generation_prompt: is_set("add_generation_prompt"),
        continue_final_message: is_set("continue_final_message"),
        extra: case.get("extra").and_then(Value::as_object).cloned().unwrap_or_default(),
        ..ChatRequest::new(list("messages").unwrap(), now)
    };
    ChatTemplate::new(source, golden["special_tokens"].as_object().unwrap())?.render(&request)
}

/// Returns what differs between our rendering and the golden's, if anything does.
fn difference(ours: &Result<Rendered, Error>, expected: &Map<String, Value>) -> Option<String> {
    let spans = |rendered: &Rendered| serde_json::json!(rendered.generation_spans);
    match (ours, expected.get("error").and_then(Value::as_str)) {
        (Ok(rendered), None) => {
            if let Some(text) = expected.get("text")
                && rendered.text != *text
            {
                return Some(format!("ours:   {:?}\ntheirs: {text}", rendered.text));
            }
            let digest = Sha256::digest(&rendered.text);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            if expected.get("sha256").is_some_and(|sha256| *sha256 != hex) {
                return Some(format!(
                    "{} bytes, theirs {}:\n{}",
                    rendered.text.len(),
                    expected["bytes"],
                    rendered.text
                ));
            }
            let theirs = expected.get("spans").cloned().unwrap_or_else(|| serde_json::json!([]));
            (spans(rendered) != theirs)
                .then(|| format!("spans {:?}, theirs {theirs}", rendered.generation_spans))
        }
        (Ok(rendered), Some(kind)) => Some(format!("theirs is {kind}, ours: {:?}", rendered.text)),
        (Err(error), None) => Some(format!("ours is an error: {error:?}")),
        (Err(error), Some(kind)) => match (kind, error) {
            ("raised", Error::Raised { message }) => {
                (expected["message"] != *message).then(|| format!("{message:?}, theirs {}", expected["message"]))
            }
            ("UndefinedError", Error::Undefined { .. })
            // an attribute that the sandbox hides is undefined to us at once, to Jinja only where it is used
            | ("SecurityError", Error::Security { .. } | Error::Undefined { .. })
            | ("TemplateSyntaxError" | "TemplateAssertionError" | "TemplateRuntimeError", Error::Syntax { .. })
            | ("OverflowError", Error::Limit { .. })
            | ("ValueError", Error::Request { .. })
            | ("TypeError", Error::Type { .. } | Error::Unsupported { .. })
            | ("ZeroDivisionError" | "AttributeError" | "KeyError" | "ValueError", Error::Type { .. }) => None,
            _ => Some(format!("theirs is {kind}, ours {error:?}")),
        },
    }
}

#[test]
fn every_feature_renders_as_in_transformers() {
    let golden = golden("features.json");
    let features = golden["features"].as_object().unwrap();
    assert!(features.len() > 70);
    let mut failures = Vec::new();
    for (name, expected) in features {
        let ours = render(expected["source"].as_str().unwrap(), &golden, &golden["case"]);
        if let Some(difference) = difference(&ours, expected.as_object().unwrap()) {
            failures.push(format!("{name}: {difference}"));
        }
    }
    assert!(failures.is_empty(), "{} differ\n{}", failures.len(), failures.join("\n\n"));
}

#[test]
fn every_real_template_renders_as_in_transformers() {
    let Some(data) = test_data() else { return };
    let golden = golden("templates.json");
    let templates = golden["templates"].as_object().unwrap();
    assert_eq!(templates.len(), jinja_files(&data.join("templates")));
    let mut failures = Vec::new();
    let mut n_rendered = 0;
    for (file, rows) in templates {
        let source = std::fs::read_to_string(data.join("templates").join(file)).unwrap();
        for (name, expected) in rows.as_object().unwrap() {
            let ours = render(&source, &golden, &golden["conversations"][name]);
            n_rendered += 1;
            if let Some(difference) = difference(&ours, expected.as_object().unwrap()) {
                failures.push(format!("{file} {name}: {difference}"));
            }
        }
    }
    assert!(n_rendered > 700, "{n_rendered}");
    assert!(failures.is_empty(), "{} of {n_rendered} differ\n{}", failures.len(), failures.join("\n\n"));
}

fn jinja_files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "jinja")).count()
}
