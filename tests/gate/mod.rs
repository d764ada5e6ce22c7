//! `lctl gate`: two directories of results -> verdict and exit status.

mod cli;
mod eval;
mod information;
mod planted;
mod simulation;

use std::path::Path;

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

/// A task of a made-up run.
#[derive(Clone)]
struct Task {
    id: &'static str,
    /// Right answers, by document.
    scores: Vec<f64>,
    /// Documents per cluster; 0 for none.
    cluster: usize,
    gate: Json,
    prompts: &'static str,
    /// Documents at the beginning that could not be asked about; their score is 0.
    errors: usize,
    /// Scores that only documents have that were asked about.
    of_answers: &'static [&'static str],
}

/// A task of `n` documents of which every third is wrong.
fn task(id: &'static str, n: usize) -> Task {
    let scores = (0..n).map(|index: usize| if index.is_multiple_of(3) { 0.0 } else { 1.0 }).collect();
    let gate = json!({"critical": false, "margin": null, "zero_tolerance": false});
    Task { id, scores, cluster: 0, gate, prompts: "p", errors: 0, of_answers: &[] }
}

impl Task {
    /// Makes `lost` right answers wrong and `gained` wrong ones right, here and there.
    fn change(mut self, mut lost: usize, mut gained: usize) -> Task {
        let mut order: Vec<usize> = (0..self.scores.len()).collect();
        order.sort_by_key(|index| (*index as u32 + 1).wrapping_mul(2_654_435_761));
        for index in order {
            let score = &mut self.scores[index];
            let left = if *score == 1.0 { &mut lost } else { &mut gained };
            if *left > 0 {
                *left -= 1;
                *score = 1.0 - *score;
            }
        }
        assert_eq!((lost, gained), (0, 0));
        self
    }

    /// Makes the first `n` documents ones that could not be asked about.
    fn without(mut self, n: usize) -> Task {
        self.errors = n;
        self.scores[..n].fill(0.0);
        self
    }

    fn samples(&self) -> String {
        let line = |(document, score): (usize, &f64)| {
            let mut line =
                json!({"suite": "demo", "task": self.id, "document": document, "line": document + 1});
            line["item"] = format!("{}-{document}", self.id).into();
            if let Some(cluster) = document.checked_div(self.cluster) {
                line["cluster"] = format!("c{cluster}").into();
            }
            line["truncated"] = false.into();
            if document < self.errors {
                line["error"] = "the prompt has 900 tokens, the context has room for 512".into();
            } else {
                line["target"] = 1.into();
                line["prediction"] = (*score as u64).into();
            }
            line["scores"] = json!({"acc": score});
            for name in self.of_answers.iter().filter(|_| document >= self.errors) {
                line["scores"][name] = 1.into();
            }
            format!("{line}\n")
        };
        self.scores.iter().enumerate().map(line).collect()
    }

    fn report(&self) -> Json {
        let digest: String =
            Sha256::digest(self.samples()).iter().map(|byte| format!("{byte:02x}")).collect();
        let mean = self.scores.iter().sum::<f64>() / self.scores.len() as f64;
        json!({
            "id": self.id, "type": "multiple_choice", "description": "",
            "data": {"file": "rows.jsonl", "sha256": self.id}, "few_shot": null, "chat": false,
            "documents": self.scores.len(), "errors": self.errors, "truncated": 0, "gate": self.gate,
            "task_sha256": "t", "prompts_sha256": self.prompts, "requests_sha256": "r", "samples_sha256": digest,
            "metrics": [{"name": "acc", "value": mean, "stderr": null, "n": self.scores.len(), "higher_is_better": true}],
            "first_prompt": null,
        })
    }
}

/// Writes a run into `dir`/`name` as `lctl eval` would.
fn write_run(dir: &Path, name: &str, compute: &str, tasks: &[Task]) {
    let report = json!({
        "lctl_report": 2, "lctl": "0.1.0",
        "model": {"name": name, "sha256": "0123456789abcdef", "adapter": null, "tokenizer_sha256": "1", "chat_template": null},
        "settings": {"compute": compute, "context": 512, "seed": 0, "limit": null, "few_shot": null, "chat_template": "auto"},
        "suites": [{"name": "demo", "description": "", "sha256": "2", "tasks": tasks.iter().map(Task::report).collect::<Vec<_>>()}],
        "run": {},
    });
    let dir = dir.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("report.json"), format!("{report:#}\n")).unwrap();
    std::fs::write(dir.join("samples.jsonl"), tasks.iter().map(Task::samples).collect::<String>()).unwrap();
}
