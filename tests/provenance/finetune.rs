//! A training run again from its manifest.

use serde_json::{Value as Json, json};

use super::{flip, lctl, manifest, succeed};
use crate::finetune::{Setup, adapter_bytes};

fn trained() -> Setup {
    let setup = Setup::new(&json!({
        "train": {"max_steps": 5},
        "eval": {"forgetting": {"text": "general.txt", "max_increase": 9.0, "max_tokens": 200}},
        "checkpoint": {"keep_best": true},
        "export": ["peft", "gguf-lora", {"merged-gguf": "q8_0"}],
    }));
    let (code, _, stderr) =
        setup.run(&["--quiet", "--out", "run", "--set", "train.lr=0.02", "--threads", "2"]);
    assert_eq!(code, 0, "{stderr}");
    setup
}

#[test]
fn a_training_run_is_replayed_to_the_bit() {
    let setup = trained();
    let dir = setup.dir.path();
    // the result need not be there, nor may it be touched
    std::fs::rename(setup.path("run/result"), setup.path("kept")).unwrap();
    let out = succeed(dir, "replay run/result.manifest.json --json --quiet --threads 1");
    let said: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&said["command"], &said["rerun"], &said["agrees"]),
        (&json!("finetune"), &json!(true), &json!(true)),
        "{said}"
    );
    assert_eq!(said["outputs"].as_array().unwrap().len(), 3);
    assert!(!setup.path("run/result").exists());
    // elsewhere, by other paths
    std::fs::create_dir(setup.path("moved")).unwrap();
    for name in ["base", "rows.jsonl"] {
        std::fs::rename(setup.path(name), setup.path("moved").join(name)).unwrap();
    }
    let (status, _, stderr) = lctl(dir, "replay run/result.manifest.json");
    assert!(status == 2 && stderr.contains("is not there") && stderr.contains("say where"), "{stderr}");
    let out = succeed(
        dir,
        "replay run/result.manifest.json --model moved/base --input rows.jsonl=moved/rows.jsonl --quiet",
    );
    assert!(out.is_empty(), "{out}");
}

#[test]
fn what_changed_since_the_run_is_named() {
    let setup = trained();
    let dir = setup.dir.path();
    // another result than the run's
    let mut edited = manifest(dir, "run/result.manifest.json");
    edited["outputs"][0]["sha256"] = json!("0".repeat(64));
    std::fs::write(setup.path("edited.json"), format!("{edited:#}\n")).unwrap();
    let (status, stdout, _) = lctl(dir, "replay edited.json");
    assert!(status == 3 && stdout.contains("differs") && stdout.contains("the bits differ"), "{stdout}");
    assert_eq!(stdout.matches("same     ").count(), 2, "{stdout}");
    // another seed in the manifest's recipe is another result
    let recipe = edited["job"]["settings"]["recipe"].as_str().unwrap();
    assert!(recipe.contains("seed: 5\n"), "{recipe}");
    let mut edited = manifest(dir, "run/result.manifest.json");
    edited["job"]["settings"]["recipe"] = json!(recipe.replace("seed: 5\n", "seed: 6\n"));
    std::fs::write(setup.path("edited.json"), format!("{edited:#}\n")).unwrap();
    let (status, stdout, _) = lctl(dir, "replay edited.json");
    assert_eq!((status, stdout.matches("differs  ").count()), (3, 3), "{stdout}");
    // a file that is no input is not read
    let mut edited = manifest(dir, "run/result.manifest.json");
    edited["job"]["settings"]["recipe"] = json!(recipe.replace("path: rows.jsonl", "path: other.jsonl"));
    std::fs::write(setup.path("edited.json"), format!("{edited:#}\n")).unwrap();
    std::fs::write(setup.path("other.jsonl"), "{}").unwrap();
    let (status, _, stderr) = lctl(dir, "replay edited.json");
    assert!(status == 2 && stderr.contains("other.jsonl") && stderr.contains("no input"), "{stderr}");
    // other rows
    let before = adapter_bytes(&setup.path("run"));
    flip(&setup.path("rows.jsonl"), 5);
    let (status, _, stderr) = lctl(dir, "replay run/result.manifest.json");
    assert!(status == 2 && stderr.contains("data rows.jsonl: SHA-256"), "{stderr}");
    assert!(adapter_bytes(&setup.path("run")) == before);
}
