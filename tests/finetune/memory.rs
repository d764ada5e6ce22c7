//! What a plan says of memory, beside what a run takes.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Setup, make_checkpoint};
use clap::Parser as _;

/// A Llama of four layers of 256, and rows of which every pack has 512 tokens.
fn setup(recipe: Value) -> Setup {
    let setup = Setup::new(&json!({
        "output": "run",
        "model": {"compute": "bf16"},
        "data": {"max_seq_len": 512, "truncation": "split", "val_fraction": null},
        "train": {"max_steps": 3, "grad_accum": 1, "gradient_checkpointing": false, "micro_batch_size": 1},
        "eval": null,
        "checkpoint": null,
        "adapter": {"dropout": 0.0},
    }));
    let mut whole: Value =
        serde_json::from_slice(&std::fs::read(setup.path("recipe.yaml")).unwrap()).unwrap();
    super::merge(&mut whole, &recipe);
    std::fs::write(setup.path("recipe.yaml"), whole.to_string()).unwrap();
    let base = setup.path("base");
    std::fs::remove_dir_all(&base).unwrap();
    let args = ["make", "--shape", "demo", "--dtype", "bf16", "--out", base.to_str().unwrap()];
    make_checkpoint::run(make_checkpoint::Args::parse_from(args)).unwrap();
    let text: String = (0..20_000u32).map(|i| char::from(b'a' + (i * i % 101 % 26) as u8)).collect();
    std::fs::write(setup.path("rows.jsonl"), json!({"text": text}).to_string()).unwrap();
    setup
}

/// Returns the most memory that a process had resident, read again and again until it ends.
fn high_water(child: &mut Child) -> u64 {
    let path = format!("/proc/{}/status", child.id());
    let mut bytes = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let found = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        bytes = bytes.max(found.unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    bytes
}

/// Returns the estimate of a plan, and the peak of the run.
fn estimated_and_taken(setup: &Setup) -> (u64, u64) {
    let (code, plan, err) = setup.run(&["--plan", "--json", "--quiet", "--threads", "2", "--device", "cpu"]);
    assert_eq!(code, 0, "{err}");
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let estimated = plan["estimated_memory_bytes"].as_u64().unwrap();
    assert!(plan["peak_memory_bytes"].as_u64().unwrap() >= estimated, "{plan:#}");
    let mut run = Command::new(env!("CARGO_BIN_EXE_lctl"))
        .args(["finetune", "recipe.yaml", "--quiet", "--threads", "2", "--device", "cpu"])
        .current_dir(setup.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (estimated, high_water(&mut run))
}

#[test]
fn a_plan_says_at_least_what_a_run_takes_and_little_more() {
    let full = json!({"adapter": {"type": "none", "r": null, "alpha": null, "dropout": null, "target_modules": null}, "export": ["merged-safetensors"]});
    let mut random = full.clone();
    super::merge(&mut random, &json!({"model": {"init": "random"}}));
    for (kind, recipe) in [
        ("lora", json!({})),
        ("q4_k", json!({"model": {"quantization": "q4_k"}})),
        ("nf4", json!({"model": {"quantization": "nf4"}})),
        ("full", full),
        ("random", random),
    ] {
        let (estimated, taken) = estimated_and_taken(&setup(recipe));
        assert!(estimated >= taken, "{kind}: {estimated} said, {taken} taken");
        // 5 %, and the 12 MB that the estimate takes the program to need besides, of any model
        assert!(estimated <= taken + taken / 20 + 12_000_000, "{kind}: {estimated} said, {taken} taken");
    }
}
