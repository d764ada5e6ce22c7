//! `lctl finetune` on a device, the stand-in or a GPU (`under_test`).

use std::path::Path;

use lctl::cuda::under_test;
use serde_json::{Value, json};

use super::parallel::{ended, run_all, start};
use super::resume::cut_short;
use super::{Setup, adapter_bytes, events};

fn losses(run: &Path) -> Vec<f64> {
    events(run).iter().map(|event: &Value| event["loss"].as_f64().unwrap()).collect()
}

fn assert_near(found: &[f64], expected: &[f64], allowed: f64) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= allowed * b, "{found:?} {expected:?}");
    }
}

#[test]
fn a_run_on_cuda_host_goes_on_to_the_same_bits_and_is_near_the_cpu_s() {
    let recipe = json!({
        "checkpoint": {"keep_best": true, "every_steps": 1},
        "eval": {"forgetting": {"text": "general.txt", "max_increase": 9.0, "max_tokens": 64}},
        "train": {"max_steps": 4},
    });
    let (setup, device) = (Setup::new(&recipe), under_test::name());
    let run = |args: &[&str]| {
        let (code, out, stderr) = setup.run(&[&["--device", &device, "--quiet"], args].concat());
        (code, out + &stderr)
    };
    let (code, said) = run(&["--out", "whole", "--json"]);
    assert_eq!(code, 0, "{said}");
    assert!(serde_json::from_str::<Value>(&said).unwrap()["forgetting"]["after"].is_f64(), "{said}");
    let (code, _, stderr) = setup.run(&["--device", "cpu", "--quiet", "--out", "cpu"]);
    assert_eq!(code, 0, "{stderr}");
    assert_near(&losses(&setup.path("whole")), &losses(&setup.path("cpu")), 1e-4);

    let out = if under_test::is_stand_in("a device that is lost in a step") {
        lost_in_a_step(&setup)
    } else {
        let cut = cut_short(&setup, 2, libc::SIGKILL, &["--device", &device]);
        assert_eq!(cut.code, None);
        cut.out
    };
    let (code, said) = run(&["--out", &out, "--resume"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(events(&setup.path("whole")), events(&setup.path(&out)));
    assert!(adapter_bytes(&setup.path("whole")) == adapter_bytes(&setup.path(&out)));
}

/// Returns a run whose device was lost in the middle of a step: what was saved before is whole.
fn lost_in_a_step(setup: &Setup) -> String {
    let cut = |launches: usize| {
        let (device, out) = (format!("host:{launches}"), format!("cut-{launches}"));
        let (code, _, said) = setup.run(&["--device", &device, "--quiet", "--out", &out]);
        assert_eq!(code, 2, "{said}");
        let kept = setup.path(&out).join("checkpoints").is_dir();
        let advice = if kept { "is kept, and --resume goes on from it" } else { "was lost" };
        assert!(said.contains("was lost") && said.contains(advice), "{said}");
        kept.then_some((out, said))
    };
    // behind the first checkpoint, whatever a step takes
    let (out, said) = (1..).find_map(|times| cut(400 * times)).unwrap();
    let kept = crate::common::names_in(&setup.path(&out).join("checkpoints"));
    assert!(said.contains("could not be computed") && said.contains(kept.last().unwrap()), "{said}");
    out
}

#[test]
fn two_processes_on_cuda_host_learn_what_one_does_and_the_same_bits_again() {
    // an eps above the rounding errors of gradients near zero
    let setup = Setup::new(&json!({"train": {"grad_accum": 3, "max_steps": 4, "eps": 1e-4}}));
    let device = under_test::name();
    let (code, _, stderr) = setup.run(&["--device", &device, "--quiet", "--out", "one"]);
    assert_eq!(code, 0, "{stderr}");
    for out in ["two", "again"] {
        let ended = run_all(&setup, 2, &["--device", &device, "--quiet", "--threads", "1", "--out", out]);
        assert!(ended.iter().all(|(code, ..)| *code == Some(0)), "{ended:?}");
    }
    let (one, two) = (losses(&setup.path("one")), losses(&setup.path("two")));
    assert_near(&two, &one, 1e-4);
    // sums in another order: were a rank's part not added, they would differ by more
    assert_eq!(events(&setup.path("two")), events(&setup.path("again")));
    assert!(adapter_bytes(&setup.path("two")) == adapter_bytes(&setup.path("again")));

    // one computes on the CPU: its bits would be others
    let on =
        |rank| ["--quiet", "--out", "mixed", "--device", if rank == 0 { &device } else { "cpu" }].to_vec();
    let mixed = ended(start(&setup, 2, on));
    for (code, _, stderr) in &mixed {
        let expected = "rank 1 cannot take part: its device is the CPU, that of rank 0 is ";
        assert!(*code == Some(2) && stderr.contains(expected), "{mixed:?}");
    }
    assert!(!setup.path("mixed").exists());
}

#[test]
fn full_quantized_and_preference_runs_on_cuda_host_are_near_the_cpu_s() {
    let rows: Vec<String> = (0..20)
        .map(|i| json!({"prompt": format!("event {i}:"), "chosen": " deny host", "rejected": " allow user"}))
        .map(|row| row.to_string())
        .collect();
    for (what, recipe, allowed) in [
        ("full", json!({}), 1e-4),
        ("bf16", json!({"model": {"compute": "bf16"}}), 2e-2),
        ("nf4_double", json!({"model": {"quantization": "nf4_double"}}), 1e-4),
        ("dpo", json!({"kind": "dpo", "data": {"packing": null}, "dpo": {"beta": 0.2}}), 1e-4),
    ] {
        let setup = Setup::new(&recipe);
        let more: &[&str] = match what {
            "full" => &["--set", "adapter={type: none}", "--set", "export=[merged-safetensors]"],
            _ => &[],
        };
        if what == "dpo" {
            std::fs::write(setup.path("rows.jsonl"), rows.join("\n")).unwrap();
        }
        for (out, device) in [("cpu", "cpu"), ("device", &under_test::name())] {
            let sets = ["--quiet", "--set", "train.max_steps=2", "--out", out, "--device", device];
            let (code, _, stderr) = setup.run(&[&sets[..], more].concat());
            assert_eq!(code, 0, "{what} on {device}: {stderr}");
        }
        let (found, expected) = (losses(&setup.path("device")), losses(&setup.path("cpu")));
        assert_near(&found, &expected, allowed);
    }
}

#[test]
fn a_model_that_no_cuda_device_trains_is_refused_before_anything_is_written() {
    let (setup, device) = (Setup::new(&json!({})), under_test::name());
    // two heads of 512 values
    super::write_base_of(&setup.path("wide"), 1024, 64);
    let (code, _, stderr) = setup.run(&["--device", &device, "--out", "run", "--set", "model.path=wide"]);
    assert_eq!(code, 2);
    let expected = "a model with heads of more than 256 values cannot be trained on a GPU yet";
    assert!(stderr.contains(expected) && stderr.contains("--device cpu"), "{stderr}");
    assert!(!setup.path("run").exists());
    let (code, plan, stderr) = setup.run(&["--device", &device, "--plan", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let plan: Value = serde_json::from_str(&plan).unwrap();
    // a base of 131,072 values in f32, at least
    let peak = plan["peak_memory_bytes"].as_u64().unwrap();
    assert!((500_000..50_000_000).contains(&peak), "{peak}");
}
