//! report.json and samples.jsonl: the same bytes whenever the same is measured.

use std::path::Path;

use serde_json::Value as Json;
use tempfile::TempDir;

use super::{set_template, workplace, write};
use crate::common::run_lctl;

/// Runs good.yaml with these options into `out`; returns the report without `run`, `run`, and the samples.
fn measured(dir: &TempDir, out: &str, options: &[&str]) -> (Json, Json, String) {
    let mut args = vec!["eval", "model", "--suite", "good.yaml", "--out", out];
    args.extend(options);
    let (status, _, stderr) = run_lctl(dir.path(), &args);
    assert_eq!(status, 0, "{stderr}");
    let read = |name: &str| std::fs::read_to_string(dir.path().join(out).join(name)).unwrap();
    let mut report: Json = serde_json::from_str(&read("report.json")).unwrap();
    let run = report.as_object_mut().unwrap().remove("run").unwrap();
    (report, run, read("samples.jsonl"))
}

#[test]
fn threads_batches_caches_and_instructions_change_no_byte() {
    let dir = workplace();
    let (report, run, samples) = measured(&dir, "a", &["--threads", "1"]);
    assert_eq!((run["threads"].as_u64(), run["prefix_cache"].as_bool()), (Some(1), Some(true)));
    for (out, options) in [
        ("b", &["--threads", "2", "--no-prefix-cache"][..]),
        ("c", &["--batch-tokens", "3", "--isa", "portable"]),
    ] {
        let (other, other_run, other_samples) = measured(&dir, out, options);
        assert_eq!(format!("{other:#}"), format!("{report:#}"), "{options:?}");
        assert_eq!(other_samples, samples, "{options:?}");
        assert_ne!(other_run, run);
    }
    let (other, _, _) = measured(&dir, "d", &["--few-shot", "0"]);
    assert_ne!(
        other["suites"][0]["tasks"][0]["requests_sha256"],
        report["suites"][0]["tasks"][0]["requests_sha256"]
    );
    assert_eq!(other["suites"][0]["tasks"][1], report["suites"][0]["tasks"][1]);
}

#[test]
fn a_resumed_run_gives_the_same_report() {
    let dir = workplace();
    let (report, run, samples) = measured(&dir, "a", &[]);
    assert_eq!(run["resumed"], 0);
    let journal = std::fs::read_to_string(dir.path().join("a/journal.jsonl")).unwrap();
    let lines: Vec<&str> = journal.lines().collect();
    assert!(lines.len() > 4, "{journal}");
    // cut in the middle of a line, as a crash would
    let torn = format!("{}\n{}", lines[..4].join("\n"), &lines[4][..10]);
    write(&dir, "b/journal.jsonl", &torn);
    let (resumed, run, other_samples) = measured(&dir, "b", &["--resume"]);
    assert_eq!(run["resumed"], 3);
    assert_eq!((resumed, other_samples), (report, samples));
}

#[test]
fn samples_and_json_say_what_the_report_says() {
    let dir = workplace();
    let args = [
        "eval",
        "model",
        "--suite",
        "good.yaml",
        "--json",
        "--samples",
        "s.jsonl",
        "--limit",
        "2",
        "--quiet",
    ];
    let (status, stdout, stderr) = run_lctl(dir.path(), &args);
    assert_eq!((status, stderr.as_str()), (0, ""));
    let report: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["lctl_report"], &report["settings"]["limit"]), (&2.into(), &2.into()));
    let tasks = report["suites"][0]["tasks"].as_array().unwrap();
    let samples = std::fs::read_to_string(dir.path().join("s.jsonl")).unwrap();
    let samples: Vec<Json> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((tasks.len(), samples.len()), (2, 4));
    let right =
        samples.iter().filter(|line| line["task"] == "choice").map(|line| line["scores"]["acc"].as_f64());
    assert_eq!(
        right.map(Option::unwrap).sum::<f64>() / 2.0,
        tasks[0]["metrics"][0]["value"].as_f64().unwrap()
    );
    assert_eq!(tasks[0]["few_shot"]["n"], 1);
    assert_eq!(samples[1]["line"], 2);
    assert_eq!(samples[0]["log_probs"].as_array().unwrap().len(), 2);
}

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";

#[test]
fn chats_are_rendered_and_a_refused_system_message_is_folded() {
    let dir = workplace();
    set_template(&dir, TEMPLATE);
    let (report, _, _) = measured(&dir, "a", &["--chat-template", "on", "--few-shot", "0"]);
    let task = &report["suites"][0]["tasks"][0];
    assert_eq!(
        (&task["chat"], &task["first_prompt"]),
        (&true.into(), &"<system>Answer.<user>Q: one\nA:<assistant>".into())
    );
    assert_eq!(report["model"]["chat_template"]["date"], "2026-01-01");
    let (plain, _, _) = measured(&dir, "b", &[]);
    assert_eq!(
        (&plain["suites"][0]["tasks"][0]["chat"], &plain["model"]["chat_template"]),
        (&false.into(), &Json::Null)
    );

    let refusing = format!(
        "{{% if messages[0].role == 'system' %}}{{{{ raise_exception('no') }}}}{{% endif %}}{TEMPLATE}"
    );
    set_template(&dir, &refusing);
    let args =
        ["eval", "model", "--suite", "good.yaml", "--chat-template", "on", "--out", "c", "--few-shot", "0"];
    let (status, _, stderr) = run_lctl(dir.path(), &args);
    assert_eq!(status, 0, "{stderr}");
    assert!(stderr.contains("the chat template refuses a system message"), "{stderr}");
    let report = std::fs::read_to_string(Path::new(dir.path()).join("c/report.json")).unwrap();
    let report: Json = serde_json::from_str(&report).unwrap();
    assert_eq!(report["suites"][0]["tasks"][0]["first_prompt"], "<user>Answer.\n\nQ: one\nA:<assistant>");
}

#[test]
fn a_broken_template_is_of_no_matter_to_plain_prompts() {
    let dir = workplace();
    set_template(&dir, "{% for m in messages %}");
    let (report, _, _) = measured(&dir, "a", &[]);
    assert_eq!(report["suites"][0]["tasks"][0]["chat"], false);
}

#[test]
fn a_prompt_longer_than_the_context_is_counted() {
    let dir = workplace();
    let (report, _, samples) = measured(&dir, "a", &["--context", "8"]);
    let task = &report["suites"][0]["tasks"][0];
    assert_eq!((&task["truncated"], &task["errors"]), (&3.into(), &0.into()));
    assert!(samples.lines().next().unwrap().contains("\"truncated\":true"));
}

const WRITING: &str = r#"version: 1
name: good
data:
  rows: {path: rows.jsonl, format: jsonl}
tasks:
  - id: write
    type: generation
    data: rows
    prompt: "Q: {{ q }}\nA:"
    target: "{{ a }}"
    generation: {max_tokens: 6, temperature: 1.5, top_k: 40, stop: ["\n"]}
    metrics: [exact_match, {name: found, kind: f1, extract: {regex: '[a-z]+'}}]
"#;

/// Draws depend on the seed and the document alone.
#[test]
fn written_answers_are_the_same_every_way_and_after_an_interruption() {
    let dir = workplace();
    write(&dir, "good.yaml", WRITING);
    let (report, _, samples) = measured(&dir, "a", &["--threads", "1"]);
    let (other, _, other_samples) = measured(&dir, "b", &["--batch-tokens", "2", "--no-prefix-cache"]);
    assert_eq!((&other, &other_samples), (&report, &samples));
    let journal = std::fs::read_to_string(dir.path().join("a/journal.jsonl")).unwrap();
    let begun: Vec<&str> = journal.lines().take(2).collect();
    write(&dir, "c/journal.jsonl", &(begun.join("\n") + "\n"));
    let (resumed, run, other_samples) = measured(&dir, "c", &["--resume"]);
    assert_eq!((&resumed, &other_samples, &run["resumed"]), (&report, &samples, &1.into()));
    for line in samples.lines() {
        let line: Json = serde_json::from_str(line).unwrap();
        let n_tokens = line["n_tokens"].as_u64().unwrap();
        assert!((1..=6).contains(&n_tokens) && line["text"].is_string(), "{line}");
        assert!(!line["text"].as_str().unwrap().contains('\n'), "{line}");
    }
    let (_, _, seeded) = measured(&dir, "d", &["--seed", "1"]);
    assert_ne!(seeded, samples);
    // room for the first prompts' tokens only
    let (short, _, lines) = measured(&dir, "e", &["--context", "4"]);
    assert_eq!(short["suites"][0]["tasks"][0]["errors"], 3);
    assert!(lines.contains("the context has room for 4"), "{lines}");
}
