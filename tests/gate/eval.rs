//! From `lctl eval` to a verdict.

use serde_json::Value as Json;
use tempfile::TempDir;

use crate::common::run_lctl;

const SUITE: &str = r#"version: 1
name: demo
data:
  rows: {path: rows.jsonl, format: jsonl}
tasks:
  - id: choice
    type: multiple_choice
    data: rows
    item: "{{ id }}"
    cluster: "{{ topic }}"
    critical: true
    margin: 0.05
    prompt: "Q: {{ q }}\nA:"
    choices: [a, b]
    target: "{{ a }}"
    metrics: [acc]
  - {id: text, type: perplexity, data: rows, text: "{{ q }} {{ a }}"}
"#;

/// Returns a directory with a random model of 352 tokens (`model`), suite.yaml and 60 questions.
pub fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = crate::common::root().join("tests/golden/convert/Mistral-7B-v0.1");
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    std::fs::write(dir.path().join("suite.yaml"), SUITE).unwrap();
    write_rows(&dir, |n| if n.is_multiple_of(2) { "a" } else { "b" });
    dir
}

fn write_rows(dir: &TempDir, answer: impl Fn(usize) -> &'static str) {
    let row = |n: usize| {
        let (topic, answer) = (n / 3, answer(n));
        format!("{{\"id\": \"q{n}\", \"q\": \"number {n}\", \"a\": \"{answer}\", \"topic\": \"t{topic}\"}}\n")
    };
    std::fs::write(dir.path().join("rows.jsonl"), (0..60).map(row).collect::<String>()).unwrap();
}

pub fn eval(dir: &TempDir, out: &str, options: &str) -> (i32, String, String) {
    let mut args = vec!["eval", "model", "--suite", "suite.yaml", "--out", out];
    args.extend(options.split(' ').filter(|word| !word.is_empty()));
    run_lctl(dir.path(), &args)
}

#[test]
fn the_same_model_passes_however_it_ran() {
    let dir = workplace();
    assert_eq!(eval(&dir, "a", "--threads 1").0, 0);
    assert_eq!(eval(&dir, "b", "--threads 2 --batch-tokens 7 --no-prefix-cache").0, 0);
    let (status, stdout, stderr) = run_lctl(dir.path(), &["gate", "a", "b"]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert!(stdout.contains("- all samples are equal to the last bit\nPASS\n"), "{stdout}");
    // another rounding of the products is another measurement
    assert_eq!(eval(&dir, "c", "--compute f32").0, 0);
    let (status, stdout, _) = run_lctl(dir.path(), &["gate", "a", "c"]);
    assert_eq!(status, 5);
    assert!(stdout.contains("--compute: the baseline ran with `auto`, the candidate with `f32`"), "{stdout}");
}

#[test]
fn eval_with_a_baseline_is_the_gate() {
    let dir = workplace();
    assert_eq!(eval(&dir, "a", "").0, 0);
    let (status, stdout, stderr) = eval(&dir, "b", "--baseline a --markdown b.md");
    assert_eq!(status, 0, "{stderr}");
    assert!(stdout.contains("demo/choice (critical)") && stdout.ends_with("PASS\n"), "{stdout}");
    assert!(
        std::fs::read_to_string(dir.path().join("b.md")).unwrap().starts_with("## Regression gate: PASS\n")
    );
    let (status, stdout, _) = eval(&dir, "c", "--baseline a --json --limit 30");
    let json: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &json["gate"]["outcome"]), (5, &"not_comparable".into()));
    assert_eq!(json["gate"]["reasons"][0], "demo/choice: 60 documents and 30");
    // other gold answers are other data, though the prompts are the same
    write_rows(&dir, |_| "a");
    let (status, stdout, _) = eval(&dir, "d", "--baseline a");
    assert!(status == 5 && stdout.contains("demo/choice: other data: SHA-256 "), "{stdout}");
    // what cannot be read is said before the model is asked
    let (status, _, stderr) = eval(&dir, "e", "--baseline absent");
    assert!(status == 2 && stderr.contains("absent: cannot read"), "{stderr}");
    assert!(!dir.path().join("e/report.json").exists());
}

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";

/// A wrong chat template is a property of the candidate: it has to be caught, not refused.
#[test]
fn another_chat_template_is_compared() {
    let dir = workplace();
    let set = |template: &str| {
        let path = dir.path().join("model/tokenizer_config.json");
        let mut config: Json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["chat_template"] = template.into();
        std::fs::write(path, config.to_string()).unwrap();
    };
    set(TEMPLATE);
    assert_eq!(eval(&dir, "a", "--chat-template on").0, 0);
    set(&TEMPLATE.replace("<assistant>", "<user>"));
    assert_eq!(eval(&dir, "b", "--chat-template on").0, 0);
    let (status, stdout, stderr) = run_lctl(dir.path(), &["gate", "a", "b"]);
    assert!([0, 3, 4].contains(&status), "{stdout}{stderr}");
    assert!(stdout.contains("demo/choice (critical)"), "{stdout}");
    assert!(stdout.contains("note: chat template: SHA-256 "), "{stdout}");
    // on and auto are not the same question
    assert_eq!(eval(&dir, "c", "").0, 0);
    assert_eq!(run_lctl(dir.path(), &["gate", "a", "c"]).0, 5);
}
