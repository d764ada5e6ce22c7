//! Input that is wrong: errors that say where, and nothing half-written.

use serde_json::json;

use super::{Setup, events};
use crate::common::names_in;

/// Runs and returns what was said; the exit status is 2.
fn refused(setup: &Setup, args: &[&str]) -> String {
    let (code, stdout, stderr) = setup.run(&[&["--quiet"], args].concat());
    assert_eq!(code, 2, "{stdout}{stderr}");
    stderr
}

#[test]
fn a_base_that_is_missing_or_alone_is_refused() {
    let setup = Setup::new(&json!({"model": {"path": "bass"}}));
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("bass: no such file") && said.contains("did you mean base?"), "{said}");
    assert!(!setup.path("run").exists());
    let said = refused(
        &setup,
        &["--set", "model.path=base", "--set", "adapter.target_modules=[q_prj]", "--out", "run"],
    );
    assert!(said.contains("q_prj") && said.contains("q_proj"), "{said}");
    let said = refused(&setup, &["--set", "model.path=base"]);
    assert!(said.contains("output") && said.contains("--out"), "{said}");
}

#[test]
fn malformed_rows_are_named_by_file_and_line() {
    let setup = Setup::new(&json!({}));
    std::fs::write(
        setup.path("rows.jsonl"),
        "{\"prompt\": \"a\", \"completion\": \"b\"}\nnot json\n{\"prompt\": 3}\n",
    )
    .unwrap();
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("rows.jsonl:2:") && said.contains("rows.jsonl:3:"), "{said}");
    assert!(!setup.path("run").exists());
}

#[test]
fn a_checkpoint_goes_on_in_no_other_run() {
    let setup = Setup::new(&json!({"train": {"max_steps": 3}}));
    assert_eq!(setup.run(&["--quiet", "--out", "run"]).0, 0);
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("a run is there already") && said.contains("--resume"), "{said}");
    let said = refused(&setup, &["--out", "run", "--resume", "--set", "train.lr=0.5"]);
    assert!(said.contains("train.lr: 0.5, was 0.01"), "{said}");
    let rows = std::fs::read_to_string(setup.path("rows.jsonl")).unwrap();
    std::fs::write(setup.path("rows.jsonl"), rows.replace("event 3:", "event three:")).unwrap();
    let said = refused(&setup, &["--out", "run", "--resume"]);
    assert!(said.contains("the data file rows.jsonl: "), "{said}");
    std::fs::write(setup.path("rows.jsonl"), rows).unwrap();
    // a damaged checkpoint is passed over, and the run ends as before
    let before = events(&setup.path("run"));
    let last = setup.path("run/checkpoints/step-00000003/parameters.safetensors");
    std::fs::write(&last, &std::fs::read(&last).unwrap()[..100]).unwrap();
    let (code, _, stderr) = setup.run(&["--out", "run", "--resume"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("passed over") && stderr.contains("going on after step 2 of 3"), "{stderr}");
    assert_eq!(events(&setup.path("run")), before);
    let said = refused(&setup, &["--out", "other", "--resume"]);
    assert!(said.contains("no complete checkpoint"), "{said}");
}

#[test]
fn a_loss_that_is_not_finite_names_its_rows_and_keeps_the_checkpoint() {
    let setup = Setup::new(&json!({
        "train": {"lr": 10.0, "max_steps": 40, "max_grad_norm": 0, "warmup_steps": 0, "lr_schedule": "constant", "optimizer": "lion"},
        "eval": {"every_steps": 1000},
        "checkpoint": {"every_steps": 1},
    }));
    let (code, _, said) = setup.run(&["--quiet", "--out", "run"]);
    if code == 0 {
        // huge weights need not overflow f32: then nothing was wrong
        println!("the loss stayed finite");
        return;
    }
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("rows.jsonl:") || said.contains("validation"), "{said}");
    assert!(!names_in(&setup.path("run/checkpoints")).is_empty());
    assert!(!setup.path("run/result").exists());
}

#[test]
fn what_cannot_be_written_is_told_and_leaves_nothing_half_done() {
    let setup = Setup::new(&json!({"train": {"max_steps": 2}}));
    // a file where the directory of checkpoints is to be
    std::fs::create_dir(setup.path("run")).unwrap();
    std::fs::write(setup.path("run/checkpoints"), "").unwrap();
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("checkpoints"), "{said}");
    // a disk without room: every write fails there
    if std::path::Path::new("/dev/full").exists() {
        let setup = Setup::new(&json!({"train": {"max_steps": 2}, "log": ["jsonl", "csv"]}));
        std::fs::create_dir(setup.path("run")).unwrap();
        std::os::unix::fs::symlink("/dev/full", setup.path("run/metrics.csv")).unwrap();
        let said = refused(&setup, &["--out", "run"]);
        assert!(said.contains("metrics.csv") && said.contains("No space left"), "{said}");
        assert!(!setup.path("run/result").exists());
    }
}

#[test]
fn too_much_forgetting_exports_nothing() {
    let forgetting = json!({"text": "general.txt", "max_increase": 0.0, "max_tokens": 200});
    let setup =
        Setup::new(&json!({"train": {"lr": 0.05, "max_steps": 6}, "eval": {"forgetting": forgetting}}));
    // signs that no row has: they become less likely
    std::fs::write(setup.path("general.txt"), "ZQXJ#KVWY~".repeat(30)).unwrap();
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("general text rose by"), "{said}");
    assert!(!setup.path("run/result").exists() && setup.path("run/report.html").exists());
    let (code, _, said) = setup.run(&["--out", "run", "--resume", "--set", "eval.forgetting.action=warn"]);
    assert_eq!(code, 2, "the guard is part of the run: {said}");
}

#[test]
fn a_plan_says_what_a_run_takes_and_writes_nothing() {
    let setup = Setup::new(&json!({"output": "run"}));
    let (code, stdout, stderr) = setup.run(&["--plan", "--json", "--quiet"]);
    assert_eq!(code, 0, "{stderr}");
    let plan: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(plan["steps"], 10);
    assert!(plan["trainable_parameters"].as_u64().unwrap() > 1000 && plan["tokens"].as_u64().unwrap() > 100);
    assert!(!setup.path("run").exists());
}
