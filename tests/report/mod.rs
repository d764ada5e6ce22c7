//! What is made of a run: Markdown, JUnit XML, an HTML page (tests/scripts/report_page.py looks at it in a browser).

mod cli;
mod html;
mod junit;

use std::path::Path;

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// What must never reach a page as markup, a script or a comment.
const HOSTILE: &str = "</script><script>window.pwned=1</script><!-- \"><img src=x onerror=window.pwned=1> ]]> & {{ 7*7 }} | \u{1b}[31m \u{2028} é";

/// A run in the making: tasks of the suite `demo`, and the lines of their samples.
struct MadeUp {
    model: String,
    tasks: Vec<Json>,
    samples: String,
}

impl MadeUp {
    fn new(model: &str) -> MadeUp {
        MadeUp { model: model.to_owned(), tasks: Vec::new(), samples: String::new() }
    }

    /// Adds a task; `lines` are its samples without suite, task and document, `keys` what its report has beside.
    fn task(mut self, id: &str, task_type: &str, metrics: Json, lines: &[Json], keys: Json) -> MadeUp {
        let mut text = String::new();
        for (document, line) in lines.iter().enumerate() {
            let mut whole = json!({"suite": "demo", "task": id, "document": document, "line": document + 1});
            let whole_map = whole.as_object_mut().unwrap();
            whole_map.extend(line.as_object().unwrap().clone());
            text.push_str(&format!("{whole}\n"));
        }
        let digest: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
        let n_errors = lines.iter().filter(|line| line.get("error").is_some()).count();
        let mut task = json!({
            "id": id, "type": task_type, "description": "", "data": {"file": "rows.jsonl", "sha256": format!("d-{id}")},
            "few_shot": null, "chat": false, "documents": lines.len(), "errors": n_errors, "truncated": 0,
            "gate": {"critical": false, "margin": null, "zero_tolerance": false},
            "task_sha256": "t", "prompts_sha256": "p", "requests_sha256": "r", "samples_sha256": digest,
            "metrics": metrics, "first_prompt": null,
        });
        task.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        self.tasks.push(task);
        self.samples.push_str(&text);
        self
    }

    fn write(&self, dir: &Path) {
        let report = json!({
            "lctl_report": 2, "lctl": "0.1.0",
            "model": {"name": self.model, "sha256": "0123456789abcdef", "adapter": null, "tokenizer_sha256": "1", "chat_template": null},
            "settings": {"compute": "f32", "context": 512, "seed": 0, "limit": null, "few_shot": null, "chat_template": "auto"},
            "suites": [{"name": "demo", "description": "made up", "sha256": "2", "tasks": self.tasks}],
            "run": {"isa": "avx2", "threads": 2, "engine_seconds": 1.5},
        });
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("report.json"), format!("{report:#}\n")).unwrap();
        std::fs::write(dir.join("samples.jsonl"), &self.samples).unwrap();
    }
}

fn acc(value: f64, n: usize) -> Json {
    json!([{"name": "acc", "value": value, "stderr": 0.1, "ci95": {"lower": value - 0.1, "upper": value + 0.1}, "n": n, "higher_is_better": true}])
}

/// A question with four choices: `chosen` has 73 %, the others 9 %.
fn choice(question: &str, target: usize, chosen: usize) -> Json {
    let log_probs: Vec<f64> =
        (0..4).map(|place| if place == chosen { 0.73f64.ln() } else { 0.09f64.ln() }).collect();
    json!({
        "cluster": format!("c{}", target / 2), "truncated": false, "question": question, "target": target, "prediction": chosen,
        "choices": ["A", "B", "C", "D"], "log_probs": log_probs, "scores": {"acc": if target == chosen { 1.0 } else { 0.0 }},
    })
}

/// An answer to classify.
fn label(target: &str, answer: Option<&str>, text: &str) -> Json {
    json!({
        "item": format!("item {target} {text}"), "truncated": false, "question": "which?", "target": target, "prediction": answer,
        "text": text, "n_tokens": 3, "finish_reason": "stop",
        "scores": {"acc": if Some(target) == answer { 1.0 } else { 0.0 }},
    })
}

/// A run of three tasks; `is_worse` changes answers, one of them in a task of zero tolerance.
fn run(model: &str, is_worse: bool) -> MadeUp {
    let chosen = |place: usize| if is_worse && place == 1 { 2 } else { place };
    let mut questions: Vec<Json> = (0..4).map(|place| choice("which one?", place, chosen(place))).collect();
    questions.push(choice(HOSTILE, 0, 3));
    questions.push(json!({"cluster": "c9", "truncated": false, "question": "too long", "error": "the prompt has 600 tokens", "scores": {"acc": 0.0}}));
    let answer = if is_worse { "bad" } else { "good" };
    let labels =
        [label("good", Some(answer), answer), label("bad", Some("bad"), "bad"), label("bad", None, HOSTILE)];
    let counts = if is_worse { json!([[0, 1], [0, 1]]) } else { json!([[1, 0], [0, 1]]) };
    let confusion = json!({"labels": ["good", "bad"], "matrix": counts, "no_label": [0, 1], "per_label": []});
    let zero = json!({"critical": false, "margin": null, "zero_tolerance": true});
    let texts = [
        json!({"truncated": false, "n_tokens": 9, "target": null, "prediction": null, "scores": {"log_prob": -0.96 * 30.0 * std::f64::consts::LN_2, "words": 5.0, "bytes": 30.0}}),
    ];
    let perplexity = json!([{"name": "bits_per_byte", "value": 0.96, "stderr": null, "ci95": null, "n": 1, "higher_is_better": false}]);
    let right = if is_worse { 0.5 } else { 4.0 / 6.0 };
    MadeUp::new(model)
        .task("choose", "multiple_choice", acc(right, 6), &questions, json!({"first_prompt": HOSTILE}))
        .task(
            "label",
            "classification",
            acc(if is_worse { 1.0 / 3.0 } else { 2.0 / 3.0 }, 3),
            &labels,
            json!({"confusion": confusion, "gate": zero}),
        )
        .task("text", "perplexity", perplexity, &texts, json!({"description": HOSTILE}))
}

/// Returns a directory with the runs `base`, `same` and `worse`.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    run("base", false).write(&dir.path().join("base"));
    run("same", false).write(&dir.path().join("same"));
    run("worse", true).write(&dir.path().join("worse"));
    dir
}

fn read(dir: &TempDir, name: &str) -> String {
    std::fs::read_to_string(dir.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
