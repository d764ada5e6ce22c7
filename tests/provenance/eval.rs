//! Evaluations.

use std::path::Path;

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{flip, lctl, manifest, sha256, succeed, without_run};
use crate::common::names_in;

const SUITE: &str = r#"version: 1
name: demo
data:
  rows: {path: rows.jsonl, format: jsonl}
  more: {format: jsonl}
tasks:
  - id: choice
    type: multiple_choice
    data: rows
    item: "{{ id }}"
    prompt: "Q: {{ q }}\nA:"
    choices: [a, b]
    target: "{{ a }}"
    metrics: [acc]
  - {id: text, type: perplexity, data: more, text: "{{ q }} {{ a }}"}
"#;

const MANIFEST: &str = "out/report.json.manifest.json";

/// Returns a directory with a random model of 352 tokens (`model`), suite.yaml, 12 questions, and results in `out`.
pub fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = crate::common::root().join("tests/golden/convert/Mistral-7B-v0.1");
    std::fs::create_dir(dir.path().join("model")).unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join("model").join(entry.file_name())).unwrap();
    }
    let row = |n: usize| {
        let answer = ["a", "b"][n % 2];
        format!("{{\"id\": \"q{n}\", \"q\": \"number {n}\", \"a\": \"{answer}\"}}\n")
    };
    let rows: String = (0..12).map(row).collect();
    std::fs::write(dir.path().join("rows.jsonl"), &rows).unwrap();
    std::fs::write(dir.path().join("more.jsonl"), &rows).unwrap();
    std::fs::write(dir.path().join("suite.yaml"), SUITE).unwrap();
    std::fs::write(dir.path().join("README.md"), "---\nlicense: cc0-1.0\n---\n").unwrap();
    evaluate(dir.path(), "out", "");
    dir
}

pub fn evaluate(dir: &Path, out: &str, options: &str) -> String {
    let command =
        format!("eval model --suite suite.yaml --data more=more.jsonl --out {out} --quiet {options}");
    succeed(dir, command.trim_end())
}

#[test]
fn a_report_has_a_manifest() {
    let dir = workplace();
    let dir = dir.path();
    assert_eq!(
        names_in(&dir.join("out")),
        ["journal.jsonl", "report.json", "report.json.manifest.json", "samples.jsonl"]
    );
    let found = manifest(dir, MANIFEST);
    let inputs = found["inputs"].as_array().unwrap();
    let shown: Vec<(&str, Option<&str>, &str)> = inputs
        .iter()
        .map(|input| {
            (input["role"].as_str().unwrap(), input["name"].as_str(), input["path"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("model", None, "model"),
            ("model_files", None, "model"),
            ("suite", Some("demo"), "suite.yaml"),
            ("data", Some("more"), "more.jsonl"),
            ("suite_data", Some("demo/rows"), "rows.jsonl"),
        ]
    );
    let report: Json =
        serde_json::from_str(&std::fs::read_to_string(dir.join("out/report.json")).unwrap()).unwrap();
    assert_eq!(inputs[0]["sha256"], report["model"]["sha256"]);
    for (input, file) in inputs[2..].iter().zip(["suite.yaml", "more.jsonl", "rows.jsonl"]) {
        assert_eq!(input["sha256"], sha256(&dir.join(file)), "{file}");
    }
    let settings = &found["job"]["settings"];
    assert_eq!((&settings["mode"], &settings["date"]), (&json!("suite"), &json!("2026-01-01")));
    let outputs = found["outputs"].as_array().unwrap();
    assert_eq!((&outputs[0]["role"], &outputs[0]["content"]), (&json!("report"), &json!("json_without_run")));
    assert_eq!(outputs[1]["sha256"], sha256(&dir.join("out/samples.jsonl")));
    assert_eq!(found["samples"]["lines"], 24);
    let licence = |name: &str| json!({"name": name, "licence": "cc0-1.0"});
    assert_eq!(
        found["licences"],
        json!({"base": "unknown", "adapter": null, "data": [licence("more.jsonl"), licence("rows.jsonl")]})
    );
    // the run apart, it is the same again
    evaluate(dir, "out", "--force --threads 1 --batch-tokens 7 --no-prefix-cache");
    assert_eq!(without_run(manifest(dir, MANIFEST)), without_run(found));
    evaluate(dir, "bare", "--no-manifest");
    assert_eq!(names_in(&dir.join("bare")), ["journal.jsonl", "report.json", "samples.jsonl"]);
}

#[test]
fn a_replay_agrees() {
    let dir = workplace();
    let dir = dir.path();
    let before = names_in(dir);
    std::fs::create_dir(dir.join("out/work")).unwrap();
    let stdout = succeed(dir, &format!("replay {MANIFEST} --threads 1 --work out/work"));
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{stdout}");
    assert!(lines[0].starts_with("same     ") && lines[0].ends_with(" out/report.json"), "{stdout}");
    assert!(
        lines[2].starts_with("same     24 samples, Merkle root ") && lines[3] == "the bits agree",
        "{stdout}"
    );
    assert_eq!((names_in(dir), names_in(&dir.join("out/work"))), (before, Vec::new()));
    succeed(dir, &format!("replay {MANIFEST} --check"));
    // options that decide results come back
    evaluate(
        dir,
        "few",
        "--limit 5 --seed 9 --compute f32 --context 64 --chat-template off --date 2025-05-05",
    );
    succeed(dir, "replay few/report.json.manifest.json --quiet");
    // and what moved is found
    std::fs::create_dir(dir.join("d")).unwrap();
    for name in ["suite.yaml", "rows.jsonl", "more.jsonl"] {
        std::fs::rename(dir.join(name), dir.join("d").join(name)).unwrap();
    }
    let (status, _, stderr) = lctl(dir, &format!("replay {MANIFEST}"));
    assert!(status == 2 && stderr.contains("suite.yaml: the input `suite` is not there"), "{stderr}");
    // data of a suite is where the suite is
    let of_suite = "--input suite.yaml=d/suite.yaml --input rows.jsonl=d/rows.jsonl";
    let (status, _, stderr) = lctl(dir, &format!("replay {MANIFEST} {of_suite}"));
    assert!(status == 2 && stderr.contains("--input rows.jsonl: is data of a suite"), "{stderr}");
    assert!(stderr.contains("lctl pull"), "{stderr}");
    let moved = "--input suite.yaml=d/suite.yaml --input more.jsonl=d/more.jsonl";
    succeed(dir, &format!("replay {MANIFEST} {moved}"));
}

#[test]
fn a_changed_input_is_named() {
    let dir = workplace();
    let dir = dir.path();
    for (file, named) in [
        ("suite.yaml", "suite `demo` suite.yaml: SHA-256 is "),
        ("more.jsonl", "data `more` more.jsonl: SHA-256 is "),
        ("rows.jsonl", "suite_data `demo/rows` rows.jsonl: SHA-256 is "),
        ("model/tokenizer.model", "model_files model (tokenizer.model): SHA-256 is "),
        ("model/config.json", "model model (config.json): SHA-256 is "),
    ] {
        let path = dir.join(file);
        let whole = std::fs::read(&path).unwrap();
        let then = sha256(&path);
        let mut changed = whole.clone();
        // a change that every reader accepts
        changed.push(if file.ends_with(".model") { 0 } else { b'\n' });
        std::fs::write(&path, changed).unwrap();
        let now = sha256(&path);
        let (status, stdout, stderr) = lctl(dir, &format!("replay {MANIFEST} --quiet"));
        assert_eq!((status, stdout.as_str()), (2, ""), "{file}: {stderr}");
        assert!(stderr.contains(&format!("\n  {named}{now}, in the manifest {then}\n")), "{file}: {stderr}");
        assert!(
            stderr.starts_with("error: files of the manifest's inputs that changed: 1\n"),
            "{file}: {stderr}"
        );
        std::fs::write(&path, whole).unwrap();
    }
    let weights =
        names_in(&dir.join("model")).into_iter().find(|name| name.ends_with(".safetensors")).unwrap();
    flip(&dir.join("model").join(&weights), 3);
    let (status, _, stderr) = lctl(dir, &format!("replay {MANIFEST}"));
    assert!(status == 2 && stderr.contains(&format!("model model ({weights}): SHA-256 is ")), "{stderr}");
}

#[test]
fn the_first_sample_that_differs_is_shown() {
    let dir = workplace();
    let dir = dir.path();
    let samples = dir.join("out/samples.jsonl");
    let whole = std::fs::read_to_string(&samples).unwrap();
    // what another arithmetic, or a fault, would have written
    let lines: Vec<&str> = whole.lines().collect();
    let edited = lines[4].replacen("-", "-9", 1);
    let other = whole.replace(lines[4], &edited);
    assert_ne!(other, whole);
    std::fs::write(&samples, &other).unwrap();
    let (root, other_root) = (merkle(&whole), merkle(&other));
    let path = dir.join(MANIFEST);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&root));
    std::fs::write(&path, text.replace(&root, &other_root)).unwrap();
    let (status, stdout, _) = lctl(dir, &format!("replay {MANIFEST}"));
    assert_eq!(status, 3, "{stdout}");
    assert!(stdout.contains("the first sample that differs is line 5\n"), "{stdout}");
    assert!(stdout.ends_with("the bits differ\n"), "{stdout}");
    let (status, stdout, _) = lctl(dir, &format!("replay {MANIFEST} --json --quiet"));
    let json: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &json["samples"]["merkle_root"]), (3, &json!(root)));
    assert_eq!(json["samples"]["first_difference"], json!({"line": 5, "then": edited, "now": lines[4]}));
    // samples that no run wrote lie there, and are not the first run's
    std::fs::write(&samples, other.replacen("-9", "-8", 1)).unwrap();
    for words in ["replay out/report.json.manifest.json --check", "replay out/report.json.manifest.json"] {
        let (status, stdout, _) = lctl(dir, words);
        assert_eq!(status, 3, "{stdout}");
        assert!(
            stdout.contains("the samples beside the manifest are not the first run's: which one"),
            "{stdout}"
        );
        assert!(!stdout.contains("do not lie beside"), "{stdout}");
    }
    // without the first run's samples only that much can be said
    std::fs::remove_file(&samples).unwrap();
    let (status, stdout, _) = lctl(dir, &format!("replay {MANIFEST}"));
    assert!(status == 3 && stdout.contains("which one differs first cannot be said"), "{stdout}");
}

/// RFC 6962, section 2.1, once more, from outside.
fn merkle(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    fn root(leaves: &[&str]) -> Vec<u8> {
        match leaves {
            [] => Sha256::digest([]).to_vec(),
            [leaf] => Sha256::digest([&[0], leaf.as_bytes()].concat()).to_vec(),
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                Sha256::digest([vec![1], root(left), root(right)].concat()).to_vec()
            }
        }
    }
    root(&text.lines().collect::<Vec<_>>()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_quantized_models_report_ends_the_chain() {
    let dir = workplace();
    let dir = dir.path();
    std::fs::write(dir.join("model/README.md"), "---\nlicense: mit\n---\n").unwrap();
    succeed(dir, "quantize model --type Q8_0 -o q8.gguf --quiet");
    succeed(dir, "eval q8.gguf --suite suite.yaml --data more=more.jsonl --out q8 --quiet");
    let (parent, child) =
        (manifest(dir, "q8.gguf.manifest.json"), manifest(dir, "q8/report.json.manifest.json"));
    std::fs::write(dir.join("t"), format!("{:#}\n", without_run(parent))).unwrap();
    assert_eq!(child["inputs"][0]["manifest"], sha256(&dir.join("t")));
    assert_eq!((&child["licences"]["base"], child["inputs"].as_array().unwrap().len()), (&json!("mit"), 4));
    succeed(dir, "replay q8/report.json.manifest.json --quiet");
}

#[test]
fn a_gate_within_an_evaluation_is_replayed_too() {
    let dir = workplace();
    let dir = dir.path();
    evaluate(dir, "next", "--baseline out --markdown next/gate.md");
    let found = manifest(dir, "next/report.json.manifest.json");
    assert_eq!(
        (&found["inputs"][5]["role"], &found["outputs"][2]["role"]),
        (&json!("baseline"), &json!("verdict"))
    );
    assert_eq!(found["inputs"][5]["manifest"].as_str().map(str::len), Some(64));
    let stdout = succeed(dir, "replay next/report.json.manifest.json");
    assert_eq!(stdout.matches("same ").count(), 4, "{stdout}");
    flip(&dir.join("out/samples.jsonl"), 5);
    let (status, _, stderr) = lctl(dir, "replay next/report.json.manifest.json");
    assert!(status == 2 && stderr.contains("baseline out (samples.jsonl): SHA-256 is "), "{stderr}");
}

#[test]
fn measurements_over_a_text_are_replayed() {
    let dir = workplace();
    let dir = dir.path();
    let text: String = (0..60).map(|n| format!("line {n} of a text. ")).collect();
    std::fs::write(dir.join("t.txt"), text).unwrap();
    succeed(dir, "eval model --perplexity t.txt --context 32 --out ppl --save-logits l.bin --quiet");
    let found = manifest(dir, "ppl/report.json.manifest.json");
    assert_eq!(found["outputs"][1]["sha256"], sha256(&dir.join("l.bin")));
    succeed(dir, "replay ppl/report.json.manifest.json");
    succeed(dir, "eval model --perplexity t.txt --context 32 --save-logits m.bin --quiet");
    succeed(dir, "replay m.bin.manifest.json");
    succeed(dir, "quantize model --type Q8_0 -o q8.gguf --quiet");
    succeed(dir, "eval q8.gguf --kl-base model --text t.txt --context 32 --out kl --quiet");
    succeed(dir, "replay kl/report.json.manifest.json");
    succeed(dir, "eval q8.gguf --base-logits l.bin --out saved --quiet");
    succeed(dir, "replay saved/report.json.manifest.json");
    flip(&dir.join("t.txt"), 1);
    for (out, role) in [("ppl", "text t.txt"), ("kl", "text t.txt")] {
        let (status, _, stderr) = lctl(dir, &format!("replay {out}/report.json.manifest.json"));
        assert!(status == 2 && stderr.contains(&format!("{role}: SHA-256 is ")), "{stderr}");
    }
    flip(&dir.join("model/config.json"), 1);
    let (status, _, stderr) = lctl(dir, "replay kl/report.json.manifest.json --input t.txt=t.txt");
    assert!(status == 2 && stderr.contains("base model (config.json): SHA-256 is "), "{stderr}");
}
