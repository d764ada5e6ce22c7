//! `lctl eval --suite`, and suites through the library.

mod benchmarks;
#[cfg(feature = "cuda-host")]
mod device;
mod golden;
mod messages;
mod report;
mod shipped;
mod types;

use std::path::PathBuf;

use tempfile::TempDir;

const ROWS: &str = r#"{"q": "one", "c": ["a", "b"], "a": "a"}
{"q": "two", "c": ["c", "dd"], "a": "dd"}
{"q": "six", "c": ["e", "f"], "a": "f"}
"#;

const SUITE: &str = r#"version: 1
name: good
data:
  rows: {path: rows.jsonl, format: jsonl}
  given: {format: jsonl}
tasks:
  - id: choice
    type: multiple_choice
    data: rows
    few_shot: {n: 1, from: rows}
    system: "Answer."
    system_delimiter: "\n\n"
    prompt: "Q: {{ q }}\nA:"
    choices: {field: c}
    target: "{{ a }}"
    metrics: [acc, acc_norm]
  - {id: ppl, type: perplexity, data: rows, text: "{{ q }} {{ a }}"}
"#;

fn source_model() -> PathBuf {
    crate::common::root().join("tests/golden/convert/Mistral-7B-v0.1")
}

/// Returns a directory with a random model of 352 tokens (`model`), good.yaml and rows.jsonl.
pub fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(source_model()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    write(&dir, "good.yaml", SUITE);
    write(&dir, "rows.jsonl", ROWS);
    dir
}

fn write(dir: &TempDir, name: &str, text: &str) {
    let path = dir.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Gives the model a chat template.
fn set_template(dir: &TempDir, template: &str) {
    let path = dir.path().join("model/tokenizer_config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["chat_template"] = template.into();
    std::fs::write(path, config.to_string()).unwrap();
}
