//! Every task type through the program: prompts, a model's answers, report and samples.

use serde_json::Value as Json;

use super::{workplace, write};
use crate::common::run_lctl;

const SUITE: &str = r#"version: 1
name: types
data:
  rows: {path: rows.jsonl, format: jsonl}
tasks:
  - {id: generation, type: generation, data: rows, prompt: "{{ q }}", target: "{{ n }}", generation: &short {max_tokens: 3}, metrics: [numeric]}
  - {id: classification, type: classification, data: rows, prompt: "{{ q }}", labels: [good, bad], target: "{{ label }}", generation: *short}
  - {id: likelihood, type: classification, by: likelihood, data: rows, prompt: "{{ q }}", labels: [good, bad], target: "{{ label }}", chat_template: off}
  - {id: extraction, type: extraction, data: rows, prompt: "{{ q }}", target: {field: items}, items: lines, generation: *short}
  - {id: structured, type: structured, data: rows, prompt: "{{ q }}", target: {field: object}, schema: {required: [a]}, generation: *short}
  - {id: cvss, type: cvss, data: rows, prompt: "{{ q }}", target: "{{ vector }}", version: '3.1', generation: *short}
  - {id: refusal, type: refusal, data: rows, prompt: "{{ q }}", expect: "{{ expect }}", generation: *short}
  - {id: injection, type: injection, data: rows, prompt: "{{ q }}", canaries: ["{{ canary }}"], expect: "{{ q }}", generation: *short}
  - {id: tool_call, type: tool_call, data: rows, prompt: "{{ q }}", target: {field: calls}, forbidden: [wipe], generation: *short}
"#;

const ROW: &str = r#"{"q": "one", "n": "1", "label": "good", "items": ["x"], "object": {"a": 1}, "vector": "AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", "expect": "comply", "canary": "ZX-81", "calls": [{"name": "f", "arguments": {}}]}"#;

#[test]
fn every_type_goes_from_suite_to_report() {
    let dir = workplace();
    write(&dir, "types.yaml", SUITE);
    let long = ROW.replace("\"one\"", &format!("\"{}\"", "one ".repeat(400)));
    write(&dir, "rows.jsonl", &format!("{ROW}\n{long}\n"));
    let args =
        ["eval", "model", "--suite", "types.yaml", "--json", "--quiet", "--context", "64", "--out", "out"];
    let (status, stdout, stderr) = run_lctl(dir.path(), &args);
    assert_eq!(status, 0, "{stderr}");
    let report: Json = serde_json::from_str(&stdout).unwrap();
    let tasks = report["suites"][0]["tasks"].as_array().unwrap();
    let mut figures = Vec::new();
    for task in tasks {
        let id = task["id"].as_str().unwrap();
        // the second prompt does not fit: it counts, as wrong; log-likelihoods cut it instead
        let n_errors = if id == "likelihood" { 0 } else { 1 };
        assert_eq!((task["documents"].as_u64(), task["errors"].as_u64()), (Some(2), Some(n_errors)), "{id}");
        let first = &task["metrics"][0];
        assert!(first["value"].as_f64().unwrap().is_finite(), "{id}");
        figures.push(format!("{id} {}", first["name"].as_str().unwrap()));
    }
    assert_eq!(
        figures,
        [
            "generation numeric",
            "classification acc",
            "likelihood acc",
            "extraction f1",
            "structured exact_match",
            "cvss mean_abs_deviation",
            "refusal acc",
            "injection resisted",
            "tool_call exact_match"
        ]
    );
    assert_eq!(tasks[1]["confusion"]["labels"], serde_json::json!(["good", "bad"]));
    assert!(tasks[1]["confusion"]["no_label"][0].as_u64().unwrap() >= 1);
    // of an answer without a vector, the most that a score of 9.8 allows, twice
    assert_eq!(tasks[5]["metrics"][0]["value"], serde_json::json!(9.8));
    let samples = std::fs::read_to_string(dir.path().join("out/samples.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 18);
}

#[test]
fn targets_that_cannot_be_are_errors_with_their_line() {
    let dir = workplace();
    write(&dir, "types.yaml", SUITE);
    for (from, to, message) in [
        ("\"good\"", "\"goood\"", "rows.jsonl:2: task `classification`"),
        ("[\"x\"]", "[\"\"]", "rows.jsonl:2: task `extraction`"),
        ("{\"a\": 1}", "{\"b\": 1}", "rows.jsonl:2: task `structured`"),
        ("PR:N", "PR:X", "rows.jsonl:2: task `cvss`"),
        ("comply", "answer", "rows.jsonl:2: task `refusal`"),
        ("ZX-81", " ", "rows.jsonl:2: task `injection`"),
        ("\"arguments\"", "\"argument\"", "rows.jsonl:2: task `tool_call`"),
    ] {
        write(&dir, "rows.jsonl", &format!("{ROW}\n{}\n", ROW.replace(from, to)));
        let (status, _, stderr) =
            run_lctl(dir.path(), &["eval", "model", "--suite", "types.yaml", "--quiet"]);
        assert_eq!(status, 2, "{stderr}");
        assert!(stderr.contains(message), "{message}: {stderr}");
    }
}
