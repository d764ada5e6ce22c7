//! The model inside the program, and `lctl demo`.

use std::path::Path;

use lctl::provenance::sha256_of_file;
use serde_json::Value as Json;

use crate::common::{lctl, names_in, run_lctl};

/// Of src/demo/model/model.safetensors; src/demo/README.md says how it is made.
const SHA256: &str = "a56c104988ff365d9f0523c619fff22e464059438a66a63662e7b8f8668e42d4";

/// Right answers of the model, of 217 that it was trained for and of 100 that it was not.
const SOC: f64 = 191.0;
const QUEUE: f64 = 0.0;

fn root() -> &'static Path {
    crate::common::root()
}

#[test]
fn the_model_is_the_one_that_was_trained_and_scores_as_recorded() {
    let model = root().join("src/demo/model/model.safetensors");
    assert_eq!(sha256_of_file(&model).unwrap(), SHA256);
    assert!(model.metadata().unwrap().len() < 2_000_000);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let suites = ["--suite", "evalsuites/demo-soc.yaml", "--suite", "evalsuites/demo-queue.yaml"];
    let args =
        [&["eval", "src/demo/model"], &suites[..], &["--quiet", "--out", out.to_str().unwrap()]].concat();
    let (code, _, stderr) = run_lctl(root(), &args);
    assert_eq!(code, 0, "{stderr}");
    let report: Json = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    let value = |suite: usize| report["suites"][suite]["tasks"][0]["metrics"][0]["value"].as_f64().unwrap();
    assert_eq!((value(0), value(1)), (SOC / 217.0, QUEUE / 100.0));
}

#[test]
fn its_tokenizer_is_what_lctl_learns_from_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let files = ["datasets/demo-soc-train.jsonl", "datasets/demo-queue-train.jsonl"];
    let options = ["--vocab-size", "512", "--pad", "<|endoftext|>", "--quiet", "-o", out.to_str().unwrap()];
    let (code, _, stderr) = run_lctl(root(), &[&["tokenizer", "train"], &files[..], &options[..]].concat());
    assert_eq!(code, 0, "{stderr}");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let made = std::fs::read_to_string(out.join(name)).unwrap();
        let kept = std::fs::read_to_string(root().join("src/demo/model").join(name)).unwrap();
        assert!(made == kept, "{name} differs");
    }
}

#[test]
fn the_demonstration_lays_out_files_that_fit_each_other() {
    let dir = tempfile::tempdir().unwrap();
    lctl::demo::write(dir.path()).unwrap();
    let run = |args: &str| run_lctl(dir.path(), &args.split(' ').collect::<Vec<_>>());
    let (code, stdout, stderr) = run("recipe validate recipes/demo-queue.yaml");
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "recipes/demo-queue.yaml: nothing wrong\n", ""));
    let (code, _, stderr) = run("recipe data recipes/demo-queue.yaml");
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = run("suite validate evalsuites/demo-soc.yaml evalsuites/demo-queue.yaml");
    assert_eq!(code, 0, "{stderr}");
    let text = std::fs::read_to_string(dir.path().join(lctl::demo::TEXT)).unwrap();
    assert!(text.starts_with("Name the service on 20.\nftp data\n"), "{text}");
    assert!(text.lines().count() >= 2 * 217);
    let (code, _, stderr) = run("demo --out .");
    assert_eq!(
        (code, stderr.as_str()),
        (2, "error: . is there already\nhint: remove it, or name another directory with --out\n")
    );
}

#[test]
fn a_step_that_fails_says_what_stays() {
    let dir = tempfile::tempdir().unwrap();
    let output = lctl(dir.path(), &["demo", "--out", "new/d"]).env("LCTL_ISA", "nope").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let error = "error: unknown instruction set `nope` (LCTL_ISA)\nhint: ";
    let note = "\nnote: new/d has what the finished steps wrote; before the next try remove it, or name another with --out\n";
    assert!(stderr.contains(error) && stderr.ends_with(note), "{stderr}");
    assert_eq!(names_in(&dir.path().join("new")), ["d"]);
    assert_eq!(names_in(&dir.path().join("new/d")), ["base", "datasets", "evalsuites", "recipes", "texts"]);
}

#[cfg(unix)]
#[test]
fn a_directory_that_has_no_room_for_the_first_files_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("sh");
    // blocks of 512 or 1024 bytes: the model has 1.8 MB
    command.args(["-c", "ulimit -f 100; exec \"$LCTL\" demo --out new/d"]);
    let output = command.env("LCTL", crate::common::program()).current_dir(dir.path()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: new/d/base/model.safetensors: cannot write\n"), "{stderr}");
    assert_eq!(names_in(dir.path()), Vec::<String>::new());
}
