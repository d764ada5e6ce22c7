//! A run that is killed and goes on computes what one computes that is left alone.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Setup, adapter_bytes, events};
use crate::common::lctl;

/// Starts a run and sends a signal when its log has `lines` lines; returns its exit status. What it says goes to OUT.said.
fn run_and_kill(setup: &Setup, out: &str, more: &[&str], lines: usize, signal: libc::c_int) -> Option<i32> {
    let args = [&["finetune", "recipe.yaml", "--quiet", "--out", out], more].concat();
    let said = std::fs::File::create(setup.path(&format!("{out}.said"))).unwrap();
    let mut child = lctl(setup.dir.path(), &args).stderr(said).stdout(Stdio::null()).spawn().unwrap();
    let log = setup.path(out).join("metrics.jsonl");
    let begun = Instant::now();
    loop {
        let written = std::fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if written >= lines {
            // SAFETY: the child is ours and has not been waited for
            unsafe { libc::kill(child.id() as libc::pid_t, signal) };
            return child.wait().unwrap().code();
        }
        assert!(begun.elapsed() < Duration::from_secs(600), "the run does not go on");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A run that did not come to its end.
pub struct Cut {
    pub out: String,
    /// `None` if the signal killed it.
    pub code: Option<i32>,
}

/// Runs until the signal, sent when the log has `lines` lines, comes before the run's end.
pub fn cut_short(setup: &Setup, lines: usize, signal: libc::c_int, more: &[&str]) -> Cut {
    // a busy machine may let the run end first
    for attempt in 0..20 {
        let out = format!("cut-{attempt}");
        let code = run_and_kill(setup, &out, more, lines, signal);
        if code != Some(0) {
            return Cut { out, code };
        }
    }
    panic!("every run ended before the signal");
}

fn assert_same(setup: &Setup, whole: &str, cut: &str) {
    let run = |name: &str| setup.path(name);
    assert_eq!(events(&run(whole)), events(&run(cut)));
    assert!(adapter_bytes(&run(whole)) == adapter_bytes(&run(cut)), "{cut}: another adapter");
    let csv = |name: &str| {
        let text = std::fs::read_to_string(run(name).join("metrics.csv")).unwrap();
        text.lines().map(|line| line.rsplit_once(',').unwrap().0.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(csv(whole), csv(cut));
}

fn checkpoints(run: &Path) -> Vec<String> {
    crate::common::names_in(&run.join("checkpoints"))
}

#[test]
fn killed_at_any_step_a_run_goes_on_to_the_same_bits() {
    let setup = Setup::new(
        &json!({"checkpoint": {"keep_best": true}, "eval": {"forgetting": {"text": "general.txt", "max_increase": 9.0}}}),
    );
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "whole", "--threads", "2"]);
    assert_eq!(code, 0, "{stderr}");
    let whole = events(&setup.path("whole"));
    assert_eq!(whole.len(), 10 + 4, "ten steps, validated after 3, 6, 9 and 10");
    let losses: Vec<f64> =
        whole.iter().filter(|e| e["event"] == "step").map(|e| e["loss"].as_f64().unwrap()).collect();
    assert!(losses[9] < losses[0] - 0.3, "{losses:?}");
    // other threads, killed by the log's length: before the first checkpoint, between, and behind the last
    for (name, kills) in [("a", &[(1, "1"), (5, "7"), (12, "1")][..]), ("b", &[(3, "7"), (8, "1")])] {
        let is_killed = |out: &str| {
            let run = |(i, (lines, threads)): (usize, &(usize, &str))| {
                let resume: &[&str] = if i > 0 { &["--resume"] } else { &[] };
                let more = [&["--threads", threads], resume].concat();
                run_and_kill(&setup, out, &more, *lines, libc::SIGKILL)
            };
            // every leg is run, whether or not the one before it was killed
            kills.iter().enumerate().map(run).filter(Option::is_none).count() > 0
        };
        // a busy machine may let every leg end first
        let out = (0..20).map(|attempt| format!("{name}-{attempt}")).find(|out| is_killed(out));
        let out = out.expect("every run ended before it could be killed");
        let (code, _, stderr) = setup.run(&["--quiet", "--out", &out, "--resume", "--threads", "2"]);
        assert_eq!(code, 0, "{stderr}");
        assert_same(&setup, "whole", &out);
    }
    // the three latest and perhaps the best
    let kept = checkpoints(&setup.path("whole"));
    assert!(kept.len() == 3 || kept.len() == 4, "{kept:?}");
    assert!(kept.contains(&"step-00000010".to_owned()) && kept.contains(&"step-00000008".to_owned()));
}

#[test]
fn sigterm_writes_a_checkpoint_and_ends_with_130() {
    let setup = Setup::new(&json!({
        "checkpoint": {"every_steps": 100},
        "train": {"max_steps": 12},
        "data": {"val_fraction": 0.0},
        "eval": null,
    }));
    assert_eq!(setup.run(&["--quiet", "--out", "whole"]).0, 0);
    let cut = cut_short(&setup, 3, libc::SIGTERM, &["--threads", "1"]);
    assert_eq!(cut.code, Some(130));
    // of the step that was done last, which the log ends with
    let last = events(&setup.path(&cut.out)).len();
    assert_eq!(checkpoints(&setup.path(&cut.out)), [format!("step-{last:08}")]);
    assert!(!setup.path(&cut.out).join("result").exists());
    assert!(setup.path(&cut.out).join("report.html").exists());
    let said = std::fs::read_to_string(setup.path(&format!("{}.said", cut.out))).unwrap();
    let way_on = format!("--resume goes on from {}/checkpoints/step-{last:08}", cut.out);
    assert!(
        said.contains(&format!("interrupted after {last} of 12 steps")) && said.contains(&way_on),
        "{said}"
    );
    let (code, _, stderr) = setup.run(&["--quiet", "--out", &cut.out, "--resume"]);
    assert_eq!(code, 0, "{stderr}");
    assert_same(&setup, "whole", &cut.out);
}

#[test]
fn packing_and_accumulation_change_no_bit() {
    // the same six documents a step, in one order
    let shape = |packing: &str, size: usize, accumulation: usize| {
        let setup = Setup::new(&json!({
            "data": {"packing": packing, "val_fraction": 0.0},
            "train": {"micro_batch_size": size, "grad_accum": accumulation, "max_steps": 4},
            "eval": null,
        }));
        let (code, _, stderr) = setup.run(&["--quiet", "--out", "run"]);
        assert_eq!(code, 0, "{stderr}");
        (events(&setup.path("run")), adapter_bytes(&setup.path("run")))
    };
    let whole = shape("off", 6, 1);
    assert!(whole == shape("off", 1, 6), "accumulated");
}

#[test]
fn preferences_are_learned_and_a_killed_run_of_pairs_goes_on() {
    let setup = Setup::new(&json!({
        "kind": "dpo",
        "data": {"packing": null},
        "dpo": {"beta": 0.2},
        "train": {"micro_batch_size": 2, "max_steps": 8},
    }));
    let row = |i: usize| {
        json!({"prompt": format!("event {i}:"), "chosen": " deny host", "rejected": " allow user"})
            .to_string()
    };
    std::fs::write(setup.path("rows.jsonl"), (0..20).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "whole"]);
    assert_eq!(code, 0, "{stderr}");
    let steps = events(&setup.path("whole"));
    assert!((steps[0]["loss"].as_f64().unwrap() - std::f64::consts::LN_2).abs() < 1e-3, "{}", steps[0]);
    let last = steps.iter().rfind(|event| event["event"] == "step").unwrap();
    assert!(last["loss"].as_f64().unwrap() < 0.5 && last["accuracy"] == 1.0, "{last}");
    let cut = cut_short(&setup, 5, libc::SIGKILL, &["--threads", "1"]);
    assert_eq!(setup.run(&["--quiet", "--out", &cut.out, "--resume"]).0, 0);
    assert_same(&setup, "whole", &cut.out);
}
