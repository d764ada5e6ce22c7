//! Which checkpoint becomes the result, and whether one does: by validation, by patience, by what was forgotten, by a suite.

use serde_json::{Value, json};

use super::{Setup, adapter_bytes, events};
use crate::common::{names_in, run_lctl};

/// Runs with `--json`; returns the exit status and what the run came to.
fn outcome(setup: &Setup, args: &[&str]) -> (i32, Value) {
    let (code, stdout, stderr) = setup.run(&[&["--quiet", "--json"], args].concat());
    let outcome = serde_json::from_str(&stdout);
    (code, outcome.unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}")))
}

/// Returns step and loss of every validation.
fn validations(setup: &Setup) -> Vec<(u64, f64)> {
    let events = events(&setup.path("run"));
    let validations = events.iter().filter(|event| event["event"] == "validation");
    validations.map(|event| (event["step"].as_u64().unwrap(), event["loss"].as_f64().unwrap())).collect()
}

#[test]
fn the_checkpoint_of_the_lowest_validation_loss_is_kept_and_becomes_the_result() {
    // so high a rate spoils what was learned
    let train = json!({"lr": 0.06, "lr_schedule": "constant", "warmup_steps": 0, "max_steps": 16});
    let setup = Setup::new(&json!({
        "train": train,
        "eval": {"every_steps": 1},
        "checkpoint": {"every_steps": 1, "keep": 1, "keep_best": true},
    }));
    let (code, said) = outcome(&setup, &["--out", "run"]);
    assert_eq!(code, 0);
    let all = validations(&setup);
    let (step, loss) = *all.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(all.len() == 16 && 1 < step && step < 16, "nothing to choose from: {all:?}");
    assert_eq!((&said["result_step"], &said["validation_step"]), (&json!(step), &json!(step)));
    assert_eq!(said["validation_loss"].as_f64().unwrap(), loss);
    let checkpoint = |step: u64| format!("step-{step:08}");
    assert_eq!(names_in(&setup.path("run/checkpoints")), [checkpoint(step), checkpoint(16)]);
    let parameters = setup.path("run/checkpoints").join(checkpoint(step)).join("parameters.safetensors");
    assert!(adapter_bytes(&setup.path("run")) == std::fs::read(parameters).unwrap());
}

#[test]
fn a_damaged_best_checkpoint_is_told_when_the_run_goes_on() {
    let train = json!({"lr": 0.06, "lr_schedule": "constant", "warmup_steps": 0, "max_steps": 16});
    let setup = Setup::new(&json!({
        "train": train,
        "eval": {"every_steps": 1},
        "checkpoint": {"every_steps": 1, "keep": 20, "keep_best": true},
    }));
    let damage = |out: &str, step: &Value| {
        let name = format!("checkpoints/step-{:08}/parameters.safetensors", step.as_u64().unwrap());
        let path = setup.path(out).join(name);
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..100]).unwrap();
        path.parent().unwrap().to_owned()
    };
    // with one before it the run goes on from that, to the same end
    let (code, said) = outcome(&setup, &["--out", "run"]);
    assert_eq!(code, 0);
    let (adapter, log) = (adapter_bytes(&setup.path("run")), events(&setup.path("run")));
    let best = said["result_step"].as_u64().unwrap();
    assert!(1 < best && best < 16, "{said}");
    damage("run", &said["result_step"]);
    let (code, _, stderr) = setup.run(&["--out", "run", "--resume"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("passed over"), "{stderr}");
    assert!(stderr.contains(&format!("going on after step {} of 16", best - 1)), "{stderr}");
    assert!(adapter_bytes(&setup.path("run")) == adapter && events(&setup.path("run")) == log);
    // without one nothing is begun anew behind one's back
    let alone = ["--set", "checkpoint.keep=1", "--out", "alone"];
    let (code, said) = outcome(&setup, &alone);
    assert_eq!(code, 0);
    let damaged = damage("alone", &said["result_step"]);
    let kept = names_in(&setup.path("alone/checkpoints"));
    assert_eq!(kept.len(), 2, "{kept:?}");
    for _ in 0..2 {
        let (code, _, stderr) = setup.run(&[&alone[..], &["--quiet", "--resume"]].concat());
        assert_eq!(code, 2, "{stderr}");
        let name = damaged.file_name().unwrap().to_str().unwrap();
        assert!(stderr.contains(&format!("{name}: is the best checkpoint so far")), "{stderr}");
        assert!(stderr.contains("another run with --out") && !stderr.contains("remove it"), "{stderr}");
        assert_eq!(
            (names_in(&setup.path("alone/checkpoints")), events(&setup.path("alone")).len()),
            (kept.clone(), 32)
        );
    }
    // nor if none can be read
    damage("alone", &json!(16));
    let (code, _, stderr) = setup.run(&[&alone[..], &["--quiet", "--resume"]].concat());
    assert!(code == 2 && stderr.contains("cannot be read"), "{stderr}");
    assert_eq!((names_in(&setup.path("alone/checkpoints")), events(&setup.path("alone")).len()), (kept, 32));
}

#[test]
fn a_run_ends_when_validation_has_not_improved_for_long_enough() {
    let setup = Setup::new(&json!({
        "train": {"max_steps": 30, "lr": 1e-12},
        "eval": {"every_steps": 1, "early_stopping": {"patience": 2, "min_delta": 0.1}},
    }));
    let (code, said) = outcome(&setup, &["--out", "run"]);
    // the first validation sets the mark, two more miss it
    assert_eq!((code, &said["ended"], &said["steps"]), (0, &json!("early"), &json!(3)));
    assert_eq!(validations(&setup).len(), 3);
    assert!(names_in(&setup.path("run/checkpoints")).contains(&"step-00000003".to_owned()));
    let adapter = adapter_bytes(&setup.path("run"));
    // there is nothing left to do
    let (code, said) = outcome(&setup, &["--out", "run", "--resume"]);
    assert_eq!((code, &said["ended"], &said["steps"]), (0, &json!("early"), &json!(3)));
    assert!(adapter_bytes(&setup.path("run")) == adapter);
    // a loss that falls by more each time is not stopped
    let setup = Setup::new(&json!({
        "train": {"max_steps": 6, "lr": 0.02, "warmup_steps": 0, "lr_schedule": "constant"},
        "eval": {"every_steps": 1, "early_stopping": {"patience": 1, "min_delta": 0.0}},
    }));
    let (code, said) = outcome(&setup, &["--out", "run"]);
    let all = validations(&setup);
    assert!(all.windows(2).all(|pair| pair[1].1 < pair[0].1), "{all:?}");
    assert_eq!((code, &said["ended"], &said["steps"]), (0, &json!("finished"), &json!(6)));
}

#[test]
fn forgetting_is_measured_and_allowed_warned_of_or_refused() {
    let setup = |max_increase: f64, action: &str| {
        let forgetting =
            json!({"text": "general.txt", "max_increase": max_increase, "max_tokens": 200, "action": action});
        let train = json!({"lr": 0.05, "lr_schedule": "constant", "warmup_steps": 0, "max_steps": 24});
        let setup = Setup::new(&json!({"train": train, "eval": {"forgetting": forgetting}}));
        // signs that no row has: they become less likely
        std::fs::write(setup.path("general.txt"), "ZQXJ#KVWY~".repeat(30)).unwrap();
        setup
    };
    let allowed = setup(100.0, "fail");
    let (code, said) = outcome(&allowed, &["--out", "run"]);
    let loss = |when: &str| said["forgetting"][when].as_f64().unwrap();
    let rise = loss("after") - loss("before");
    assert!(code == 0 && rise > 0.01, "{said}");
    // a hair's breadth to both sides of the rise
    let (code, said) = outcome(&setup(rise + 1e-6, "fail"), &["--out", "run"]);
    assert_eq!((code, said["outputs"].as_array().unwrap().len()), (0, 1));
    let refusing = setup(rise - 1e-6, "fail");
    let (code, stdout, stderr) = refusing.run(&["--quiet", "--json", "--out", "run"]);
    assert!(code == 2 && stdout.is_empty() && stderr.contains("general text rose by"), "{stdout}{stderr}");
    assert!(!refusing.path("run/result").exists() && !refusing.path("run/result.manifest.json").exists());
    assert!(refusing.path("run/report.html").exists());
    let warning = setup(rise - 1e-6, "warn");
    let (code, _, stderr) = warning.run(&["--out", "run"]);
    assert!(code == 0 && stderr.contains("warning: the loss on the general text rose by"), "{stderr}");
    assert!(adapter_bytes(&warning.path("run")) == adapter_bytes(&allowed.path("run")));
}

/// Documents of the suite.
const DOCUMENTS: usize = 60;

/// Writes a suite that asks for a word behind `event N:`; `answer` says which is right.
fn write_suite(setup: &Setup, name: &str, answer: impl Fn(usize) -> &'static str) {
    let row = |i: usize| json!({"event": i, "answer": answer(i)}).to_string();
    let rows: Vec<String> = (0..DOCUMENTS).map(row).collect();
    std::fs::write(setup.path(&format!("{name}.jsonl")), rows.join("\n")).unwrap();
    let suite = json!({
        "version": 1,
        "name": name,
        "data": {"rows": {"path": format!("{name}.jsonl"), "format": "jsonl"}},
        "tasks": [{
            "id": "word", "type": "multiple_choice", "data": "rows", "critical": true, "margin": 0.1,
            "prompt": "event {{ event }}:", "choices": WORDS, "target": "{{ answer }}", "metrics": ["acc"],
        }],
    });
    std::fs::write(setup.path(&format!("{name}.yaml")), suite.to_string()).unwrap();
}

const WORDS: [&str; 2] = ["deny", "allow"];

/// Returns what the base answers to every document.
fn answers(setup: &Setup) -> Vec<&'static str> {
    let dir = setup.dir.path();
    let (code, _, stderr) = run_lctl(
        dir,
        &["eval", "base", "--suite", "taught.yaml", "--compute", "f32", "--out", "answers", "-q"],
    );
    assert_eq!(code, 0, "{stderr}");
    let samples = std::fs::read_to_string(setup.path("answers/samples.jsonl")).unwrap();
    let answer = |line: &str| {
        let sample: Value = serde_json::from_str(line).unwrap();
        WORDS[sample["prediction"].as_u64().unwrap() as usize]
    };
    samples.lines().map(answer).collect()
}

/// A run that teaches one word and is measured by whether that word is right (`taught`), or by whether the base's own answers still
/// are to three documents of four (`kept`). `adapter` says how.
fn gated(suite: &str, adapter: &Value) -> Setup {
    let setup = Setup::new(&json!({
        "adapter": adapter,
        "data": {"val_fraction": 0.0},
        "train": {"max_steps": 24, "lr": 0.02, "micro_batch_size": 4, "grad_accum": 1},
        "eval": {"every_steps": null, "gate": {"suite": format!("{suite}.yaml")}},
        "checkpoint": {"every_steps": 100},
    }));
    write_suite(&setup, "taught", |_| WORDS[0]);
    let own = answers(&setup);
    let denied = own.iter().filter(|answer| **answer == WORDS[0]).count();
    // the word that the base says less often
    let taught = WORDS[usize::from(2 * denied >= DOCUMENTS)];
    write_suite(&setup, "taught", |_| taught);
    write_suite(&setup, "kept", |i| if i % 4 > 0 { own[i] } else { taught });
    let row =
        |i: usize| json!({"prompt": format!("event {i}:"), "completion": format!(" {taught}")}).to_string();
    std::fs::write(setup.path("rows.jsonl"), (0..DOCUMENTS).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    setup
}

#[test]
fn a_result_that_passes_the_gate_is_promoted() {
    for adapter in [json!({}), json!({"type": "dora"}), json!({"modules_to_save": ["lm_head"]})] {
        let setup = gated("taught", &adapter);
        let (code, said) = outcome(&setup, &["--out", "run"]);
        assert_eq!((code, &said["gate"]), (0, &json!("PASS")), "{adapter}: {said}");
        assert_eq!(said["outputs"], json!(["run/result/adapter"]));
        // what was made for the gate alone is gone
        assert_eq!(names_in(&setup.path("run/result")), ["adapter"], "{adapter}");
        assert!(setup.path("run/result.manifest.json").exists());
        let figure = |of: &str| {
            let report = std::fs::read(setup.path("run/gate").join(of).join("report.json")).unwrap();
            let report: Value = serde_json::from_slice(&report).unwrap();
            report["suites"][0]["tasks"][0]["metrics"][0]["value"].as_f64().unwrap()
        };
        assert!(figure("base") <= 0.5 && figure("result") > 0.9, "{} {}", figure("base"), figure("result"));
        // the candidate is named where it lies now, and measured again
        for of in ["base", "result"] {
            let manifest = format!("run/gate/{of}/report.json.manifest.json");
            let (code, stdout, stderr) = run_lctl(setup.dir.path(), &["replay", &manifest]);
            assert_eq!(code, 0, "{of}: {stdout}{stderr}");
        }
    }
}

#[test]
fn a_candidate_that_is_not_exported_leaves_no_manifest() {
    let setup = gated("taught", &json!({}));
    let (code, said) = outcome(&setup, &["--out", "run", "--set", "export=[gguf-lora]"]);
    assert_eq!((code, &said["outputs"]), (0, &json!(["run/result/adapter.gguf"])), "{said}");
    assert!(!setup.path("run/gate/result/report.json.manifest.json").exists());
    assert!(setup.path("run/gate/result/report.json").exists());
}

#[test]
fn a_result_that_fails_the_gate_is_not_promoted() {
    let setup = gated("kept", &json!({}));
    let (code, said) = outcome(&setup, &["--out", "run"]);
    assert_eq!((code, &said["gate"], &said["outputs"]), (3, &json!("FAIL"), &json!([])), "{said}");
    let run = setup.path("run");
    assert!(!run.join("result").exists() && !run.join("result.manifest.json").exists());
    // neither a part of it: the run's own files, and both reports
    assert_eq!(
        names_in(&run),
        ["checkpoints", "gate", "metrics.csv", "metrics.jsonl", "report.html", "run.lock", "tensorboard"]
    );
    assert_eq!(names_in(&run.join("gate")), ["base", "result"]);
    // what was measured is gone, so no manifest says how to measure it again
    let reports = ["journal.jsonl", "report.json", "samples.jsonl"];
    assert_eq!(names_in(&run.join("gate/result")), reports);
    assert!(run.join("gate/base/report.json.manifest.json").exists());
    assert_eq!(names_in(&run.join("checkpoints")), ["step-00000024"]);
    // asked again the gate says the same
    let (code, _, _) = setup.run(&["--quiet", "--out", "run", "--resume"]);
    assert_eq!(code, 3);
    // and `lctl gate` over the reports does
    let (code, stdout, _) = run_lctl(setup.dir.path(), &["gate", "run/gate/base", "run/gate/result"]);
    assert!(code == 3 && stdout.contains("FAIL"), "{stdout}");
    // a policy that asks for nothing lets it pass
    let recipe = std::fs::read_to_string(setup.path("recipe.yaml")).unwrap();
    let mut recipe: Value = serde_json::from_str(&recipe).unwrap();
    recipe["eval"]["gate"]["policy"] = json!("lenient.yaml");
    std::fs::write(setup.path("recipe.yaml"), recipe.to_string()).unwrap();
    std::fs::write(
        setup.path("lenient.yaml"),
        "version: 1\nmargin: 0.99\ntasks: {kept/word: {margin: 1.0}}\n",
    )
    .unwrap();
    let (code, said) = outcome(&setup, &["--out", "lenient"]);
    assert_eq!((code, &said["gate"]), (0, &json!("PASS")), "{said}");
    assert!(setup.path("lenient/result/adapter/adapter_model.safetensors").exists());
    assert!(setup.path("lenient/result.manifest.json").exists());
    // under a stricter one what passed is a result no more
    std::fs::write(
        setup.path("lenient.yaml"),
        "version: 1\nmargin: 0.01\ntasks: {kept/word: {margin: 0.1}}\n",
    )
    .unwrap();
    let (code, said) = outcome(&setup, &["--out", "lenient", "--resume"]);
    assert_eq!((code, &said["gate"]), (3, &json!("FAIL")), "{said}");
    assert!(!setup.path("lenient/result").exists() && !setup.path("lenient/result.manifest.json").exists());
}

#[test]
fn a_gate_that_cannot_be_asked_is_an_error_before_the_first_step() {
    let setup = gated("kept", &json!({}));
    let refused = |file: &str| {
        let (code, _, stderr) = setup.run(&["--quiet", "--out", "run"]);
        assert!(code == 2 && stderr.contains(file), "{stderr}");
        assert!(!setup.path("run").exists(), "{:?}", names_in(&setup.path("run")));
    };
    let rows = setup.path("kept.jsonl");
    std::fs::rename(&rows, setup.path("away")).unwrap();
    refused("kept.jsonl");
    std::fs::rename(setup.path("away"), &rows).unwrap();
    // examples before the questions are data, too
    let path = setup.path("kept.yaml");
    let mut suite: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    suite["data"]["examples"] = json!({"path": "examples.jsonl", "format": "jsonl"});
    suite["tasks"][0]["few_shot"] = json!({"n": 1, "from": "examples"});
    std::fs::write(&path, suite.to_string()).unwrap();
    refused("examples.jsonl");
}
