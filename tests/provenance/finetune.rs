//! A training run again from its manifest.

use std::process::Stdio;
use std::time::{Duration, Instant};

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
fn a_run_of_pairs_with_files_to_validate_on_is_replayed_to_the_bit() {
    let setup = Setup::new(&json!({
        "kind": "dpo",
        "data": {"packing": null, "val_fraction": null, "validation": [{"path": "held.jsonl"}]},
        "dpo": {"beta": 0.2},
        "train": {"max_steps": 3},
        "checkpoint": {"keep_best": true},
    }));
    let row = |i: usize| {
        json!({"prompt": format!("event {i}:"), "chosen": " deny host", "rejected": " allow user"})
            .to_string()
    };
    let rows: Vec<String> = (0..24).map(row).collect();
    std::fs::write(setup.path("rows.jsonl"), rows[..20].join("\n")).unwrap();
    std::fs::write(setup.path("held.jsonl"), rows[20..].join("\n")).unwrap();
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "run"]);
    assert_eq!(code, 0, "{stderr}");
    let dir = setup.dir.path();
    let recipe = manifest(dir, "run/result.manifest.json")["job"]["settings"]["recipe"].clone();
    assert!(recipe.as_str().unwrap().contains("held.jsonl"), "{recipe}");
    succeed(dir, "replay run/result.manifest.json --quiet");
}

#[test]
fn a_run_from_random_weights_is_replayed_from_config_and_tokenizer() {
    let setup = Setup::new(&json!({
        "model": {"init": "random"},
        "train": {"max_steps": 3, "lr": 0.001},
        "export": ["merged-safetensors"],
    }));
    let recipe = std::fs::read_to_string(setup.path("recipe.yaml")).unwrap();
    let mut recipe: Json = serde_json::from_str(&recipe).unwrap();
    recipe["adapter"] = json!({"type": "none"});
    std::fs::write(setup.path("recipe.yaml"), recipe.to_string()).unwrap();
    std::fs::remove_file(setup.path("base/model.safetensors")).unwrap();
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "run"]);
    assert_eq!(code, 0, "{stderr}");
    let dir = setup.dir.path();
    let inputs = manifest(dir, "run/result.manifest.json")["inputs"].clone();
    let of =
        |role: &str| inputs.as_array().unwrap().iter().find(|input| input["role"] == role).unwrap().clone();
    assert_eq!(
        (&of("model")["path"], &of("model")["files"][0]["name"]),
        (&json!("base"), &json!("config.json"))
    );
    succeed(dir, "replay run/result.manifest.json --quiet");
    let tokenizer = std::fs::read_to_string(setup.path("base/tokenizer.json")).unwrap();
    std::fs::write(setup.path("base/tokenizer.json"), format!("{tokenizer} \n")).unwrap();
    let (status, _, stderr) = lctl(dir, "replay run/result.manifest.json");
    assert!(status == 2 && stderr.contains("model_files base (tokenizer.json): SHA-256"), "{stderr}");
    std::fs::write(setup.path("base/tokenizer.json"), tokenizer).unwrap();
    // elsewhere
    std::fs::rename(setup.path("base"), setup.path("moved")).unwrap();
    let (status, _, stderr) = lctl(dir, "replay run/result.manifest.json");
    assert!(status == 2 && stderr.contains("base"), "{stderr}");
    succeed(dir, "replay run/result.manifest.json --model moved --quiet");
}

#[test]
fn an_interrupted_replay_leaves_nothing_and_promises_nothing() {
    let setup = trained();
    let dir = setup.dir.path();
    let mut edited = manifest(dir, "run/result.manifest.json");
    let recipe = edited["job"]["settings"]["recipe"].as_str().unwrap().to_owned();
    assert!(recipe.contains("max_steps: 5\n"), "{recipe}");
    edited["job"]["settings"]["recipe"] = json!(recipe.replace("max_steps: 5\n", "max_steps: 1000000\n"));
    std::fs::write(setup.path("edited.json"), format!("{edited:#}\n")).unwrap();
    let work = setup.path("work");
    std::fs::create_dir(&work).unwrap();
    let said = std::fs::File::create(setup.path("said")).unwrap();
    let said_so_far = || std::fs::read_to_string(setup.path("said")).unwrap();
    let mut command = crate::common::lctl(dir, &["replay", "edited.json", "--work", "work"]);
    let mut child = command.stdout(Stdio::null()).stderr(said).spawn().unwrap();
    let trains = || {
        let mut runs = std::fs::read_dir(&work).unwrap().map(|entry| entry.unwrap().path());
        runs.any(|run| {
            std::fs::read_to_string(run.join("run/metrics.jsonl")).is_ok_and(|log| !log.is_empty())
        })
    };
    let begun = Instant::now();
    while !trains() {
        assert!(child.try_wait().unwrap().is_none(), "{}", said_so_far());
        assert!(begun.elapsed() < Duration::from_secs(600), "the replay does not begin");
        std::thread::sleep(Duration::from_millis(2));
    }
    // SAFETY: the child is ours and has not been waited for
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let said = said_so_far();
    assert!(
        said.contains("of 1000000 steps; nothing is left behind") && !said.contains("--resume"),
        "{said}"
    );
    assert_eq!(crate::common::names_in(&work), Vec::<String>::new());
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
