//! Manifests and `lctl replay`: what is written is replayed to the bit, what changed is named, what is hostile is
//! refused.

#[cfg(feature = "cuda-host")]
mod cuda;
mod eval;
mod finetune;
mod hostile;
mod merge;
mod quantize;

use std::path::Path;

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use crate::common::run_lctl;

fn sha256(path: &Path) -> String {
    Sha256::digest(std::fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn manifest(dir: &Path, name: &str) -> Json {
    let text = std::fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    serde_json::from_str(&text).unwrap()
}

fn without_run(mut manifest: Json) -> Json {
    assert!(manifest.as_object_mut().unwrap().shift_remove("run").is_some());
    manifest
}

/// Runs the program with words; returns status, stdout and stderr.
fn lctl(dir: &Path, words: &str) -> (i32, String, String) {
    run_lctl(dir, &words.split(' ').collect::<Vec<_>>())
}

/// Runs what must succeed; returns stdout.
fn succeed(dir: &Path, words: &str) -> String {
    let (status, stdout, stderr) = lctl(dir, words);
    assert_eq!(status, 0, "{words}: {stdout}{stderr}");
    stdout
}

/// Flips the lowest bit of a byte, counted from the end.
fn flip(path: &Path, from_end: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - from_end;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// What was replaced had a manifest that speaks of other bytes.
#[test]
fn what_is_replaced_without_a_manifest_keeps_none() {
    let dir = eval::workplace();
    let dir = dir.path();
    merge::place(dir);
    std::fs::write(dir.join("t.txt"), "a line of a text. ".repeat(40)).unwrap();
    for (command, output) in [
        ("quantize model -t F16 -o m.gguf --quiet", "m.gguf"),
        ("imatrix model t.txt -o i.gguf --context 32 --quiet", "i.gguf"),
        ("merge base adapter -o merged --quiet", "merged"),
        ("eval model --perplexity t.txt --context 32 --out ppl --quiet", "ppl/report.json"),
        ("eval model --perplexity t.txt --context 32 --save-logits l.bin --quiet", "l.bin"),
        ("eval model --suite suite.yaml --data more=more.jsonl --out run --quiet", "run/report.json"),
        ("gate run run --markdown verdict.md --quiet", "verdict.md"),
    ] {
        let manifest = dir.join(format!("{output}.manifest.json"));
        succeed(dir, command);
        assert!(manifest.exists(), "{command}");
        succeed(dir, &format!("{command} --force"));
        assert!(manifest.exists(), "{command}");
        succeed(dir, &format!("{command} --force --no-manifest"));
        assert!(dir.join(output).exists() && !manifest.exists(), "{command}");
        // one that is none stays
        std::fs::write(&manifest, "mine").unwrap();
        succeed(dir, &format!("{command} --force --no-manifest"));
        assert_eq!(std::fs::read_to_string(&manifest).unwrap(), "mine", "{command}");
    } // two outputs with one manifest, which was the other's before
    succeed(dir, "eval model --perplexity t.txt --context 32 --save-logits two.bin --quiet");
    let both = "eval model --perplexity t.txt --context 32 --save-logits two.bin --out two --force --quiet";
    succeed(dir, both);
    assert!(dir.join("two/report.json.manifest.json").exists());
    assert!(!dir.join("two.bin.manifest.json").exists());
    // a verdict of a gate becomes a mere rendering
    std::fs::remove_file(dir.join("verdict.md.manifest.json")).unwrap();
    succeed(dir, "gate run run --markdown verdict.md --quiet --force");
    assert!(dir.join("verdict.md.manifest.json").exists());
    succeed(dir, "report run --markdown verdict.md --force");
    assert!(!dir.join("verdict.md.manifest.json").exists());
    // what is read is not taken away
    let manifest = "two/report.json.manifest.json";
    let (status, _, stderr) = lctl(
        dir,
        &format!("eval model --perplexity {manifest} --context 32 --out two --force --no-manifest --quiet"),
    );
    assert!(status == 2 && dir.join(manifest).exists(), "{stderr}");
    let text = "i.gguf.manifest.json";
    let (status, _, stderr) =
        lctl(dir, &format!("imatrix model {text} -o i.gguf --context 32 --force --no-manifest --quiet"));
    assert!(status == 2 && dir.join(text).exists(), "{stderr}");
}
