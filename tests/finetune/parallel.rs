//! A run in several processes on one machine: what one computes, the same bits every time, an end that all share.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use lctl::tensor::TensorSource as _;
use lctl::tensor::safetensors::SafeTensors;
use serde_json::{Value, json};

use super::{Setup, adapter_bytes, events};
use crate::common::{lctl, names_in, run_lctl};

/// Returns a port that nobody listens at; below those that systems give to connections.
fn free_port() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() % 9000) as u16;
    let mut ports = (0..9000).map(|_| 20_000 + (first + NEXT.fetch_add(1, Ordering::SeqCst)) % 9000);
    let free = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.expect("a free port").to_string()
}

/// What a process came to: its exit status (`None` if a signal ended it), stdout and stderr.
pub type Ended = (Option<i32>, String, String);

/// Starts `size` processes of one run; `args` are those of a rank.
pub fn start<'a>(setup: &Setup, size: usize, args: impl Fn(usize) -> Vec<&'a str>) -> Vec<Child> {
    let port = free_port();
    let start = |rank: usize| {
        let mut command = lctl(setup.dir.path(), &[&["finetune", "recipe.yaml"], &args(rank)[..]].concat());
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
        command.env("LOCAL_RANK", rank.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    (0..size).map(start).collect()
}

pub fn ended(processes: Vec<Child>) -> Vec<Ended> {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let wait = |process: Child| {
        let output = process.wait_with_output().unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    processes.into_iter().map(wait).collect()
}

/// Runs all processes with the same arguments to their end.
pub fn run_all(setup: &Setup, size: usize, args: &[&str]) -> Vec<Ended> {
    ended(start(setup, size, |_| args.to_vec()))
}

fn assert_all(ended: &[Ended], code: i32) {
    assert!(ended.iter().all(|(found, ..)| *found == Some(code)), "{ended:?}");
}

/// Returns all values of an adapter, by the tensors' names in order.
fn adapter(run: &Path) -> Vec<(String, Vec<f32>)> {
    let source = SafeTensors::open_file(&run.join("result/adapter/adapter_model.safetensors")).unwrap();
    let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
    let values = |info| source.bytes(info).unwrap().chunks_exact(4).map(value).collect();
    let mut all: Vec<_> = source.tensors().iter().map(|info| (info.name.clone(), values(info))).collect();
    all.sort_by(|a: &(String, Vec<f32>), b| a.0.cmp(&b.0));
    all
}

/// Asserts that two runs differ by no more than the order of sums explains: f32 has 7 digits, and a step's losses follow from the
/// steps before it.
fn assert_alike(one: &Path, other: &Path) {
    let (a, b) = (events(one), events(other));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        for key in ["event", "step", "epoch", "lr", "tokens", "targets"] {
            assert_eq!(a[key], b[key], "{a} {b}");
        }
        let (x, y) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
        assert!((x - y).abs() <= 1e-5 * x.abs(), "{a} {b}");
    }
    let (one, other) = (adapter(one), adapter(other));
    assert_eq!(one.len(), other.len());
    for ((name, x), (other_name, y)) in one.iter().zip(&other) {
        assert_eq!((name, x.len()), (other_name, y.len()));
        let far = x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(far <= 1e-4, "{name}: {far}");
    }
}

fn digests(stderr: &str) -> Vec<&str> {
    stderr
        .lines()
        .filter_map(|line| line.split_once("parameters of step 10: SHA-256 ").map(|p| p.1))
        .collect()
}

#[test]
fn two_processes_learn_what_one_does_and_the_same_bits_again() {
    // AdamW divides by the gradients' size: without an eps above their rounding errors, those of values near zero become whole steps.
    // Three micro-batches a step: the ranks have different numbers of them
    let setup = Setup::new(&json!({
        "train": {"grad_accum": 3, "eps": 1e-4},
        "eval": {"forgetting": {"text": "general.txt", "max_increase": 9.0, "max_tokens": 200}},
    }));
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "one"]);
    assert_eq!(code, 0, "{stderr}");
    let two = run_all(&setup, 2, &["--out", "two", "--verbose", "--threads", "1"]);
    assert_all(&two, 0);
    assert_alike(&setup.path("one"), &setup.path("two"));

    // the first alone speaks; the others end with its parameters
    let [(_, first_out, first), (_, second_out, second)] = &two[..] else { panic!("{two:?}") };
    assert!(first_out.contains("finished after 10 of 10 steps") && second_out.is_empty(), "{two:?}");
    assert!(first.contains("step 10/10") && !first.contains("rank 1"), "{first}");
    assert!(second.lines().all(|line| line.starts_with("rank 1: ")), "{second}");
    assert_eq!(second.lines().count(), 3, "what runs, its parameters, what it took: {second}");
    assert_eq!((digests(first).len(), digests(first)), (1, digests(second)));

    let log = std::fs::read_to_string(setup.path("two/metrics.jsonl")).unwrap();
    assert_eq!(log.lines().next(), Some(r#"{"event":"run","world_size":2}"#));
    assert!(std::fs::read_to_string(setup.path("two/report.html")).unwrap().contains("Processes"));
    let manifest = std::fs::read(setup.path("two/result.manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["job"]["settings"]["world_size"], 2);
    let (code, _, stderr) = run_lctl(setup.dir.path(), &["replay", "two/result.manifest.json"]);
    assert!(code == 2 && stderr.contains("2 processes trained together"), "{stderr}");

    assert_all(&run_all(&setup, 2, &["--out", "again", "--quiet", "--threads", "2"]), 0);
    assert_eq!(events(&setup.path("two")), events(&setup.path("again")));
    assert!(adapter_bytes(&setup.path("two")) == adapter_bytes(&setup.path("again")));
    let state = |run: &str| {
        let text = std::fs::read(setup.path(run).join("checkpoints/step-00000010/state.json")).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()
    };
    assert_eq!(state("two")["digests"], state("again")["digests"]);
    assert_eq!(state("two")["identity"]["world_size"], 2);
}

#[test]
fn three_processes_learn_preferences_as_one_does() {
    let setup = Setup::new(&json!({
        "kind": "dpo",
        "data": {"packing": null},
        "dpo": {"beta": 0.2},
        "train": {"micro_batch_size": 1, "grad_accum": 4, "max_steps": 6, "eps": 1e-4},
    }));
    let row = |i: usize| {
        json!({"prompt": format!("event {i}:"), "chosen": " deny host", "rejected": " allow user"})
            .to_string()
    };
    std::fs::write(setup.path("rows.jsonl"), (0..20).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "one"]);
    assert_eq!(code, 0, "{stderr}");
    assert_all(&run_all(&setup, 3, &["--out", "three", "--quiet", "--threads", "1"]), 0);
    assert_alike(&setup.path("one"), &setup.path("three"));
    let accuracy =
        |run: &str| events(&setup.path(run)).iter().map(|e| e["accuracy"].clone()).collect::<Vec<_>>();
    assert_eq!(accuracy("one"), accuracy("three"));
}

#[test]
fn a_world_of_one_is_a_run_without_a_world() {
    let setup = Setup::new(&json!({"train": {"max_steps": 4}}));
    assert_eq!(setup.run(&["--quiet", "--out", "plain"]).0, 0);
    assert_all(&run_all(&setup, 1, &["--quiet", "--out", "world"]), 0);
    assert_eq!(events(&setup.path("plain")), events(&setup.path("world")));
    assert!(adapter_bytes(&setup.path("plain")) == adapter_bytes(&setup.path("world")));
    for run in ["plain", "world"] {
        let log = std::fs::read_to_string(setup.path(run).join("metrics.jsonl")).unwrap();
        let state = setup.path(run).join("checkpoints/step-00000004/state.json");
        let manifest = setup.path(run).join("result.manifest.json");
        let texts = [state, manifest].map(|path| std::fs::read_to_string(path).unwrap());
        assert!(
            !log.contains("world_size") && texts.iter().all(|text| !text.contains("world_size")),
            "{run}"
        );
    }
}

/// Starts two processes and sends a signal to the second when the log has `lines` lines.
fn cut(setup: &Setup, out: &str, lines: usize, signal: libc::c_int) -> Vec<Ended> {
    let args = ["--quiet", "--out", out, "--threads", "1"];
    let mut processes = start(setup, 2, |_| args.to_vec());
    let log = setup.path(out).join("metrics.jsonl");
    let begun = Instant::now();
    while processes.iter_mut().all(|process| process.try_wait().unwrap().is_none()) {
        if std::fs::read_to_string(&log).map_or(0, |text| text.lines().count()) >= lines {
            // SAFETY: the child is ours and has not been waited for
            unsafe { libc::kill(processes[1].id() as libc::pid_t, signal) };
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(600), "the run does not go on");
        std::thread::sleep(Duration::from_millis(2));
    }
    ended(processes)
}

#[test]
fn a_process_that_ends_ends_the_run_and_all_go_on_together() {
    let setup = Setup::new(&json!({
        "train": {"max_steps": 30},
        "data": {"val_fraction": 0.0},
        "eval": null,
    }));
    assert_all(&run_all(&setup, 2, &["--quiet", "--out", "whole", "--threads", "1"]), 0);
    for (name, signal, first_code) in [("killed", libc::SIGKILL, 2), ("asked", libc::SIGTERM, 130)] {
        // a busy machine may let the run end first
        let mut runs = (0..20).map(|attempt| {
            let out = format!("{name}-{attempt}");
            let ended = cut(&setup, &out, 6, signal);
            (out, ended)
        });
        let (out, ended) =
            runs.find(|(_, ended)| ended[0].0 != Some(0)).expect("every run ended before the signal");
        let [(code, _, first), (other_code, _, second)] = &ended[..] else { panic!("{ended:?}") };
        assert_eq!(*code, Some(first_code), "{ended:?}");
        let last = names_in(&setup.path(&out).join("checkpoints")).pop().expect("a checkpoint");
        if signal == libc::SIGKILL {
            assert_eq!(*other_code, None);
            assert!(first.starts_with("error: rank 1 is gone: its connection ended"), "{first}");
            assert!(first.contains(&format!("{last} is kept")) && first.contains("--resume"), "{first}");
        } else {
            assert_eq!(*other_code, Some(130));
            for said in [first, second] {
                assert!(said.contains("interrupted after") && said.contains("of 30 steps"), "{said}");
            }
            assert!(second.starts_with("rank 1: error: "), "{second}");
            // of the step that was done last, which the log ends with
            let steps = events(&setup.path(&out)).len();
            assert_eq!(last, format!("step-{steps:08}"));
        }
        assert!(!setup.path(&out).join("result").exists());
        let resume = ["--out", &out, "--resume"];
        let (code, _, stderr) = setup.run(&resume);
        assert!(code == 2 && stderr.contains("the number of processes: 1, was 2"), "{stderr}");
        assert_all(&run_all(&setup, 2, &[&["--quiet", "--threads", "2"], &resume[..]].concat()), 0);
        assert_eq!(events(&setup.path("whole")), events(&setup.path(&out)));
        assert!(adapter_bytes(&setup.path("whole")) == adapter_bytes(&setup.path(&out)), "{out}");
    }
}

#[test]
fn processes_that_do_not_belong_together_write_nothing() {
    let setup = Setup::new(&json!({}));
    let other = |rank| match rank {
        0 => vec!["--quiet", "--out", "run"],
        _ => vec!["--quiet", "--out", "run", "--set", "train.lr=0.5"],
    };
    let ended = ended(start(&setup, 2, other));
    assert_all(&ended, 2);
    for (_, _, stderr) in &ended {
        assert!(stderr.contains("rank 1 cannot take part: its recipe's SHA-256 is "), "{stderr}");
        assert!(stderr.contains("hint: start all processes with the same"), "{stderr}");
    }
    // two micro-batches a step
    let many = run_all(&setup, 3, &["--quiet", "--out", "run"]);
    assert_all(&many, 2);
    assert!(
        many.iter().any(|(_, _, stderr)| stderr.contains("3 processes, and a step has at most 2")),
        "{many:?}"
    );
    for (variables, expected) in [
        (&[("RANK", "2"), ("WORLD_SIZE", "2")][..], "the environment's RANK is `2`: WORLD_SIZE is 2"),
        (&[("RANK", "0"), ("WORLD_SIZE", "2")], "the environment has WORLD_SIZE, but no MASTER_ADDR"),
        (&[("WORLD_SIZE", "two")], "the environment has WORLD_SIZE, but no RANK"),
        (
            &[
                ("SLURM_STEP_ID", "0"),
                ("SLURM_PROCID", "0"),
                ("SLURM_NTASKS", "2"),
                ("SLURM_STEP_NODELIST", "a[1"),
            ],
            "the environment's SLURM_STEP_NODELIST is `a[1`: a bracket is not closed",
        ),
    ] {
        let mut command = lctl(setup.dir.path(), &["finetune", "recipe.yaml", "--out", "run"]);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && stderr.contains(expected), "{stderr}");
        assert!(stderr.contains("hint: "), "{stderr}");
    }
    assert!(!setup.path("run").exists());
}

#[test]
fn a_plan_says_what_each_process_computes() {
    let setup = Setup::new(&json!({"train": {"grad_accum": 3}}));
    let ended = run_all(&setup, 2, &["--plan", "--json", "--quiet"]);
    assert_all(&ended, 0);
    assert!(ended[1].1.is_empty() && ended[1].2.is_empty(), "{ended:?}");
    let plan: Value = serde_json::from_str(&ended[0].1).unwrap();
    assert_eq!(plan["world_size"], 2);
    let ranks = plan["ranks"].as_array().unwrap();
    let micro_batches: Vec<_> = ranks.iter().map(|rank| rank["micro_batches_per_step"].clone()).collect();
    assert_eq!(micro_batches, [2, 1]);
    // parameters, gradients and two moments
    assert_eq!(plan["trained_bytes_per_rank"], 16 * plan["trainable_parameters"].as_u64().unwrap());
    let (code, stdout, stderr) = setup.run(&["--plan", "--json", "--quiet"]);
    assert_eq!(code, 0, "{stderr}");
    let alone: Value = serde_json::from_str(&stdout).unwrap();
    assert!(alone.get("ranks").is_none());
    for key in ["steps", "epochs", "tokens", "trained_tokens"] {
        assert_eq!(plan[key], alone[key]);
    }
    let text = &run_all(&setup, 2, &["--plan"])[0].1;
    assert!(
        text.contains("processes      2") && text.contains("rank 1         at most 1 micro-batches"),
        "{text}"
    );
}
