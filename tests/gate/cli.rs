//! The command: exit status, text (tests/golden/gate), JSON, Markdown, and what it refuses.

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{Task, task, write_run};
use crate::common::{assert_snapshot, run_lctl};

fn tasks() -> Vec<Task> {
    let critical = json!({"critical": true, "margin": 0.03, "zero_tolerance": false});
    let zero = json!({"critical": false, "margin": null, "zero_tolerance": true});
    vec![
        Task { gate: critical, cluster: 4, ..task("questions", 1000) },
        task("labels", 800),
        Task { gate: zero, ..task("canaries", 60) },
        task("small", 90),
    ]
}

/// Returns a directory with the run `base`, and a run per change of its tasks.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let base = tasks();
    let changed = |changes: [(usize, usize); 4]| -> Vec<Task> {
        base.iter().cloned().zip(changes).map(|(task, (lost, gained))| task.change(lost, gained)).collect()
    };
    write_run(dir.path(), "base", "f32", &base);
    write_run(dir.path(), "same", "f32", &base);
    write_run(dir.path(), "equal", "f32", &changed([(20, 19), (20, 20), (0, 2), (4, 1)]));
    write_run(dir.path(), "worse", "f32", &changed([(90, 20), (20, 20), (1, 9), (4, 1)]));
    write_run(dir.path(), "unclear", "f32", &changed([(50, 33), (20, 20), (0, 0), (4, 1)]));
    write_run(dir.path(), "bf16", "bf16", &base);
    let mut other = tasks();
    other[1].prompts = "other";
    other.remove(3);
    other.push(task("new", 50));
    write_run(dir.path(), "other", "f32", &other);
    dir
}

fn gate(dir: &TempDir, args: &str) -> (i32, String, String) {
    let args: Vec<&str> = ["gate"].into_iter().chain(args.split(' ')).collect();
    run_lctl(dir.path(), &args)
}

#[test]
fn verdicts_read_like_this() {
    let dir = workplace();
    let mut text = String::new();
    for (args, expected) in [
        ("base same", 0),
        ("base equal", 0),
        ("base worse", 3),
        ("base unclear", 4),
        ("base bf16", 5),
        ("base/report.json other", 5),
        ("--power base", 0),
        ("--power --items 1000,800 --cluster-size 4 --margin 0.03", 0),
    ] {
        let (status, stdout, stderr) = gate(&dir, args);
        assert_eq!((status, stderr.as_str()), (expected, ""), "{args}\n{stdout}");
        text.push_str(&format!("$ lctl gate {args}\n{stdout}[{status}]\n\n"));
    }
    assert_snapshot("gate/verdicts.txt", &text);
}

#[test]
fn json_and_markdown_say_the_same() {
    let dir = workplace();
    let (status, stdout, stderr) = gate(&dir, "base worse --json --markdown gate.md");
    assert_eq!((status, stderr.as_str()), (3, ""));
    let verdict: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&verdict["lctl_gate"], &verdict["outcome"]), (&1.into(), &"fail".into()));
    assert_eq!((&verdict["exit_code"], &verdict["policy"]["margin"]), (&3.into(), &0.02.into()));
    let questions = &verdict["tasks"][0];
    assert_eq!(questions["lost"].as_array().unwrap().len(), 90);
    assert_eq!((&questions["role"], &questions["status"]), (&"critical".into(), &"worse".into()));
    assert_eq!(questions["measured"]["difference"], -0.07);
    assert_eq!(verdict["tasks"][2]["status"], "new_failures");
    assert_eq!(verdict["pool"]["measured"]["items"], 1890);
    let markdown = std::fs::read_to_string(dir.path().join("gate.md")).unwrap();
    assert_snapshot("gate/worse.md", &markdown);
    // the Markdown is not overwritten by accident
    let (status, _, stderr) = gate(&dir, "base worse --markdown gate.md --quiet");
    assert!(status == 2 && stderr.contains("gate.md"), "{stderr}");
    assert_eq!(gate(&dir, "base worse --markdown gate.md --quiet --force").0, 3);
}

#[test]
fn a_policy_changes_what_is_demanded() {
    let dir = workplace();
    let check = |policy: &str, candidate: &str, expected: i32| {
        std::fs::write(dir.path().join("p.yaml"), format!("version: 1\n{policy}\n")).unwrap();
        let (status, stdout, stderr) = gate(&dir, &format!("base {candidate} --policy p.yaml"));
        assert_eq!(status, expected, "{policy}\n{stdout}{stderr}");
        stderr
    };
    check("inconclusive: allow", "unclear", 0);
    check("margin: 0.05\ntasks: {demo/*: {margin: 0.08}}", "unclear", 0);
    check("tasks: {demo/small: {critical: true}}", "equal", 4);
    check("tasks: {demo/labels: {zero_tolerance: true}}", "equal", 3);
    check("tasks: {demo/canaries: {gating: false}, demo/questions: {gating: false}}", "worse", 0);
    let stderr = check("tasks: {demo/smal: {critical: true}}", "equal", 2);
    assert!(stderr.contains("`demo/smal`") && stderr.contains("did you mean `demo/small`?"), "{stderr}");
    let stderr = check("tasks: {demo/small: {metric: f1}}", "equal", 2);
    assert!(stderr.contains("no score per item called `f1`"), "{stderr}");
    let stderr = check("marign: 0.05", "equal", 2);
    assert!(stderr.contains("p.yaml:2:1: unknown key `marign`; did you mean `margin`?"), "{stderr}");
}

/// A model with too short a context scores 0 on long documents, as its twin does: that says nothing about either.
#[test]
fn documents_that_nobody_was_asked_about_decide_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let critical = json!({"critical": true, "margin": 0.02, "zero_tolerance": false});
    let short = |n| Task { gate: critical.clone(), ..task("long", 400) }.without(n);
    let other = || task("short", 1000);
    write_run(dir.path(), "none", "f32", &[short(400), other()]);
    write_run(dir.path(), "half", "f32", &[short(300), other()]);
    write_run(dir.path(), "half-changed", "f32", &[short(300).change(1, 0), other()]);
    write_run(dir.path(), "all", "f32", &[short(0), other()]);
    let (status, stdout, _) = gate(&dir, "none none");
    assert_eq!(status, 5, "{stdout}");
    assert!(
        stdout.contains("- demo/long: neither run could be asked about a single document\nNOT COMPARABLE"),
        "{stdout}"
    );
    let (status, stdout, _) = gate(&dir, "half half --json");
    let verdict: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (status, &verdict["tasks"][0]["measured"]["items"]),
        (0, &100.into()),
        "equal to the last bit"
    );
    // 100 documents cannot show 2 points, 400 with 300 certain zeros could
    let (status, stdout, _) = gate(&dir, "half half-changed");
    assert!(status == 4 && stdout.contains("demo/long: -1.00 points with 100 items"), "{stdout}");
    // what only the baseline was asked about is lost
    let (status, stdout, _) = gate(&dir, "all half");
    assert!(status == 3 && stdout.contains("demo/long: worse by 50.00 points"), "{stdout}");
    // a task that is not critical is left out with a note
    std::fs::write(dir.path().join("p.yaml"), "version: 1\ntasks: {demo/long: {critical: false}}\n").unwrap();
    let (status, stdout, _) = gate(&dir, "none none --policy p.yaml");
    assert!(status == 0 && stdout.contains("note: demo/long: neither run could be asked"), "{stdout}");
}

/// Reports of older programs have no `acc.valid` of a document that could not be asked about.
#[test]
fn a_document_that_one_run_could_not_ask_counts_as_wrong_whatever_scores_answers_have_besides() {
    let dir = tempfile::tempdir().unwrap();
    let run = |n| Task { of_answers: &["acc.valid"], ..task("numbers", 400) }.without(n);
    write_run(dir.path(), "all", "f32", &[run(0)]);
    write_run(dir.path(), "most", "f32", &[run(4)]);
    write_run(dir.path(), "bare", "f32", &[task("numbers", 400)]);
    for (args, difference) in [("all most --json", -0.005), ("most all --json", 0.005)] {
        let (status, stdout, stderr) = gate(&dir, args);
        assert!([0, 4].contains(&status), "{args}: {stdout}{stderr}");
        let verdict: Json = serde_json::from_str(&stdout).unwrap();
        let measured = &verdict["tasks"][0]["measured"];
        assert_eq!(
            (&measured["items"], &measured["difference"]),
            (&400.into(), &difference.into()),
            "{args}"
        );
    }
    // an answer with other scores is another task's
    let (status, stdout, _) = gate(&dir, "all bare");
    assert!(status == 5 && stdout.contains("demo/numbers: document 0 has scores of other names"), "{stdout}");
}

/// A report of which one file cannot be written is none.
#[test]
fn no_file_with_a_verdict_is_left_of_a_command_that_failed() {
    let dir = workplace();
    std::fs::create_dir(dir.path().join("page")).unwrap();
    let left = || {
        let names = ["gate.md", "gate.xml", "gate.html", "gate.md.manifest.json"];
        names.into_iter().filter(|name| dir.path().join(name).exists()).collect::<Vec<_>>()
    };
    for force in ["", " --force"] {
        let args = format!("base same --markdown gate.md --junit gate.xml --html page --quiet{force}");
        let (status, _, stderr) = gate(&dir, &args);
        assert_eq!(status, 2, "{stderr}");
        assert!(!stderr.contains("--force replaces it"), "{stderr}");
        assert_eq!(left(), [""; 0]);
    }
    assert!(gate(&dir, "base same --html page").2.contains("hint: it is a directory: name a file"));
    let args = "base same --markdown gate.md --junit gate.xml --html gate.html --quiet";
    assert_eq!(gate(&dir, args).0, 0);
    assert_eq!(left().len(), 4);
}

/// The figures of a report are those of its samples.
#[test]
fn an_edited_figure_is_an_error() {
    let dir = workplace();
    let path = dir.path().join("equal/report.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut report: Json = serde_json::from_str(&text).unwrap();
    report["suites"][0]["tasks"][1]["metrics"][0]["value"] = json!(0.9);
    std::fs::write(&path, format!("{report:#}\n")).unwrap();
    for args in [&["gate", "base", "equal"][..], &["report", "equal"]] {
        let (status, stdout, stderr) = run_lctl(dir.path(), args);
        assert_eq!((status, stdout.as_str()), (2, ""), "{args:?}");
        let expected = "task `demo/labels`: `acc` is 0.9, but its samples come to 0.66625";
        assert!(stderr.contains("equal/report.json:") && stderr.contains(expected), "{stderr}");
    }
}

#[test]
fn bad_runs_are_errors_not_verdicts() {
    let dir = workplace();
    // before anything is measured or said
    std::fs::write(dir.path().join("g.md.manifest.json"), "mine").unwrap();
    for (args, message) in [
        ("base equal --markdown g.md", "g.md.manifest.json: exists already"),
        ("base equal --markdown h.md --html h.md.manifest.json", "--html and the manifest both write it"),
    ] {
        let (status, stdout, stderr) = gate(&dir, args);
        assert_eq!((status, stdout.as_str()), (2, ""), "{args}");
        assert!(stderr.contains(message), "{args}: {stderr}");
    }
    std::fs::write(dir.path().join("p.yaml"), "version: 1\n").unwrap();
    let (status, _, stderr) = gate(&dir, "base equal --policy p.yaml --html p.yaml --force");
    assert!(status == 2 && stderr.contains("would replace a file that the run reads (--policy)"), "{stderr}");
    let args =
        ["report", "equal", "--baseline", "base", "--policy", "p.yaml", "--junit", "p.yaml", "--force"];
    let (status, _, stderr) = run_lctl(dir.path(), &args);
    assert!(status == 2 && stderr.contains("would replace a file that the run reads (--policy)"), "{stderr}");
    assert_eq!(std::fs::read_to_string(dir.path().join("p.yaml")).unwrap(), "version: 1\n");
    assert_eq!(std::fs::read_to_string(dir.path().join("g.md.manifest.json")).unwrap(), "mine");
    assert!(!dir.path().join("g.md").exists() && !dir.path().join("h.md").exists());
    let samples = dir.path().join("equal/samples.jsonl");
    let whole = std::fs::read_to_string(&samples).unwrap();
    std::fs::write(&samples, &whole[..whole.len() - 30]).unwrap();
    let (status, stdout, stderr) = gate(&dir, "base equal");
    assert_eq!((status, stdout.as_str()), (2, ""));
    assert!(stderr.contains("equal/samples.jsonl:1950: the file breaks off in this line"), "{stderr}");
    for (args, message) in [
        ("base absent", "absent: cannot read"),
        ("base", "<CANDIDATE>"),
        ("--power", "nothing to plan"),
        ("--power --items 0", "0 is not in"),
        ("--power --items 4294967295", "4294967295 is not in 1..=1000000"),
        ("--power base --margin 2", "not a number between 0 and 1"),
        ("base same --flips 0.1", "cannot be used with"),
    ] {
        let (status, stdout, stderr) = gate(&dir, args);
        assert_eq!((status, stdout.as_str()), (2, ""), "{args}");
        assert!(stderr.contains(message), "{args}: {stderr}");
    }
}
