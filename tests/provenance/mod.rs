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
