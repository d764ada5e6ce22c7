//! What the stand-in for a GPU computed, again.

use serde_json::{Value as Json, json};

use super::eval::{evaluate, workplace};
use super::{lctl, manifest, succeed};
use crate::finetune::Setup;

const STAND_IN: &str = "the host's stand-in";

#[test]
fn an_evaluation_on_cuda_host_is_replayed_there_alone() {
    let dir = workplace();
    let dir = dir.path();
    evaluate(dir, "on-host", "--device host");
    for words in
        ["replay on-host/report.json.manifest.json", "replay on-host/report.json.manifest.json --device cpu"]
    {
        let (status, _, stderr) = lctl(dir, words);
        assert!(status == 2 && stderr.contains(&format!("was made on {STAND_IN}")), "{stderr}");
        assert!(stderr.contains("hint: name such a one with --device cuda:N"), "{stderr}");
    }
    succeed(dir, "replay on-host/report.json.manifest.json --quiet --device host");
    succeed(dir, "replay on-host/report.json.manifest.json --quiet --check");
    let (status, _, stderr) = lctl(dir, "replay on-host/report.json.manifest.json --check --device host");
    assert!(status == 2 && stderr.contains("`lctl replay --check` cannot compute on host"), "{stderr}");

    // the CPU's bits are not the device's
    let (status, _, stderr) = lctl(dir, "replay out/report.json.manifest.json --device host");
    assert!(status == 2 && stderr.contains("was made on the CPU, whose bits host has not"), "{stderr}");

    // another model of GPU
    let path = dir.join("on-host/report.json.manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(STAND_IN, "NVIDIA H100 80GB HBM3")).unwrap();
    let (status, _, stderr) = lctl(dir, "replay on-host/report.json.manifest.json --device host");
    let expected = format!("was made on NVIDIA H100 80GB HBM3, and host is {STAND_IN}");
    assert!(status == 2 && stderr.contains(&expected), "{stderr}");
}

#[test]
fn a_verdict_with_a_divergence_on_cuda_host_is_replayed_there() {
    let dir = workplace();
    let dir = dir.path();
    evaluate(dir, "next", "");
    let text: String = (0..400).map(|n| format!("word {} ", n * n % 97)).collect();
    std::fs::write(dir.join("t.txt"), text).unwrap();
    let (status, _, stderr) = lctl(dir, "gate out next --device host");
    assert!(status == 2 && stderr.contains("has nothing to compute on host"), "{stderr}");
    let models = "--baseline-model model --candidate-model model --text t.txt --quiet";
    for (device, name) in [("host", json!(STAND_IN)), ("auto", Json::Null)] {
        let verdict = format!("{device}.md");
        succeed(dir, &format!("gate out next {models} --device {device} --markdown {verdict}"));
        let manifest = manifest(dir, &format!("{verdict}.manifest.json"));
        assert_eq!(manifest["job"]["settings"]["device"]["name"], name, "{manifest:#}");
        succeed(dir, &format!("replay {verdict}.manifest.json --quiet --device {device}"));
    }
}

#[test]
fn a_training_run_on_cuda_host_and_its_gate_stay_there() {
    let setup = Setup::new(&json!({"train": {"max_steps": 3}}));
    let dir = setup.dir.path();
    // a suite whose answers do not matter: what counts is where they were computed
    std::fs::write(
        setup.path("suite.yaml"),
        "{version: 1, name: any, data: {rows: {path: suite.jsonl, format: jsonl}}, tasks: [{id: word, type: multiple_choice, data: rows, \
         item: \"{{ id }}\", prompt: \"event {{ id }}:\", choices: [\" deny\", \" allow\"], target: \"{{ a }}\", metrics: [acc]}]}",
    )
    .unwrap();
    let row = |n: usize| json!({"id": n.to_string(), "a": " deny"}).to_string();
    std::fs::write(setup.path("suite.jsonl"), (0..8).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    std::fs::write(setup.path("policy.yaml"), "version: 1\nmargin: 0.99\ntasks: {any/word: {margin: 1.0}}\n")
        .unwrap();
    let gate = "eval.gate={suite: suite.yaml, policy: policy.yaml}";
    let (code, _, stderr) = setup.run(&["--quiet", "--device", "host", "--out", "run", "--set", gate]);
    assert_eq!(code, 0, "{stderr}");
    for of in ["base", "result"] {
        let report = manifest(dir, &format!("run/gate/{of}/report.json"));
        assert_eq!(report["settings"]["device"]["name"], STAND_IN, "{of}: {report:#}");
    }
    let (status, _, stderr) = lctl(dir, "replay run/result.manifest.json");
    assert!(status == 2 && stderr.contains(&format!("was made on {STAND_IN}")), "{stderr}");
    succeed(dir, "replay run/result.manifest.json --quiet --device host");
}
