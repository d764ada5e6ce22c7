//! Input that is wrong: errors that say where, and nothing half-written.

use std::process::Stdio;
use std::time::{Duration, Instant};

use lctl::finetune::run::RunLock;
use lctl::tensor::TensorSource as _;
use lctl::tensor::safetensors::SafeTensors;
use lctl::text::{EncodeOptions, Tokenizer};
use serde_json::json;

use super::parallel::run_all;
use super::{Setup, events};
use crate::common::{lctl, names_in, run_lctl};

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
    // a text is a pattern for whole names, and a name of another rank must be one of a layer with an adapter
    let base = ["--set", "model.path=base", "--out", "run", "--set"];
    let said = refused(&setup, &[&base[..], &["adapter.target_modules=q_proj"]].concat());
    assert!(said.contains("write `[q_proj]`") && !said.contains("did you mean"), "{said}");
    for (set, expected) in [
        (
            "adapter.rank_pattern={q_prj: 2}",
            "`rank_pattern`: `q_prj` fits no layer with an adapter of this model",
        ),
        (
            "adapter.alpha_pattern={'q_proj': 2, 'x.*': 3}",
            "`alpha_pattern`: `x.*` fits no layer with an adapter",
        ),
        (
            "adapter={type: lora, r: 2, alpha: 2, target_modules: [v_proj], rank_pattern: {q_proj: 4}}",
            "`q_proj` fits no layer with an adapter",
        ),
    ] {
        let said = refused(&setup, &[&base[..], &[set]].concat());
        assert!(said.contains(expected), "{said}");
    }
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
fn a_directory_has_one_run_at_a_time() {
    let setup = Setup::new(&json!({"train": {"max_steps": 3}}));
    let lock = RunLock::take(&setup.path("run"), false).unwrap();
    let in_use = |args: &[&str]| {
        let said = refused(&setup, &[&["--out", "run"], args].concat());
        assert!(
            said.contains("error: run: another run is writing into it") && said.contains("--out names"),
            "{said}"
        );
    };
    in_use(&[]);
    in_use(&["--resume"]);
    assert_eq!(names_in(&setup.path("run")), ["run.lock"]);
    // of several processes the first has it, and tells the others
    for (code, _, stderr) in run_all(&setup, 2, &["--quiet", "--out", "run"]) {
        assert!(code == Some(2) && stderr.contains("another run is writing into it"), "{stderr}");
    }
    assert_eq!(names_in(&setup.path("run")), ["run.lock"]);
    drop(lock);
    assert_eq!(setup.run(&["--quiet", "--out", "run"]).0, 0);
    assert_eq!(setup.run(&["--quiet", "--out", "run", "--resume"]).0, 0);
}

#[test]
fn a_log_with_a_torn_line_is_told_before_anything_is_computed() {
    let setup = Setup::new(&json!({"train": {"max_steps": 3}}));
    assert_eq!(setup.run(&["--quiet", "--out", "run"]).0, 0);
    let path = setup.path("run/metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"loss\"", "\"los\n ", 1)).unwrap();
    let report = setup.path("run/report.html");
    std::fs::remove_file(&report).unwrap();
    let said = refused(&setup, &["--out", "run", "--resume"]);
    assert!(
        said.contains("run/metrics.jsonl:1: is no event of a run") && said.contains("with --out"),
        "{said}"
    );
    assert!(!report.exists());
}

#[test]
fn an_adapter_for_a_model_and_a_directory_for_a_gguf_are_refused() {
    let setup = Setup::new(&json!({}));
    let dir = setup.dir.path();
    std::fs::create_dir(setup.path("adapter")).unwrap();
    std::fs::write(setup.path("adapter/adapter_config.json"), "{}").unwrap();
    let (code, _, said) = run_lctl(dir, &["eval", "adapter", "--perplexity", "general.txt"]);
    assert!(code == 2 && said.contains("adapter: holds an adapter, and no model"), "{said}");
    assert!(said.contains("--adapter adapter"), "{said}");
    let (code, _, said) = run_lctl(dir, &["merge", "base", "adapter", "-o", "m.gguf"]);
    assert!(code == 2 && said.contains("m.gguf: a checkpoint is merged into a directory"), "{said}");
    assert!(said.contains("--type F16") && !setup.path("m.gguf").exists(), "{said}");
}

#[test]
fn a_checkpoint_that_stands_nowhere_is_refused() {
    let setup = Setup::new(&json!({"train": {"max_steps": 3}}));
    assert_eq!(setup.run(&["--quiet", "--out", "run"]).0, 0);
    let path = setup.path("run/checkpoints/step-00000003/state.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for (key, value) in [("step_in_epoch", json!(1_000_000)), ("epoch", json!(u32::MAX)), ("epoch", json!(3))]
    {
        let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
        state[key] = value.clone();
        std::fs::write(&path, state.to_string()).unwrap();
        let said = refused(&setup, &["--out", "run", "--resume"]);
        assert!(said.contains("step-00000003: is no checkpoint"), "{key} {value}: {said}");
        assert!(said.contains("state.json is at step 3 of 3") && said.contains("hint: "), "{said}");
    }
    std::fs::write(&path, text).unwrap();
    assert_eq!(setup.run(&["--quiet", "--out", "run", "--resume"]).0, 0);
}

/// The rows are shorter than the model's context, `max_seq_len` is not.
#[test]
fn a_general_text_is_cut_to_the_context() {
    let setup = Setup::new(&json!({
        "data": {"val_fraction": 0.0},
        "train": {"max_steps": 1},
        "eval": {
            "every_steps": null,
            "forgetting": {"text": "general.txt", "max_increase": 9.0, "max_tokens": 200},
        },
    }));
    let path = setup.path("base/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(120);
    std::fs::write(&path, config.to_string()).unwrap();
    let (code, stdout, stderr) = setup.run(&["--json", "--out", "run"]);
    assert_eq!(code, 0, "{stderr}");
    let said: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(said["forgetting"]["after"].as_f64().unwrap() > 0.0, "{said}");
}

#[test]
fn a_checkpoint_goes_on_with_no_other_tokenizer_template_or_text() {
    let forgetting = json!({"text": "general.txt", "max_increase": 9.0, "max_tokens": 200});
    let setup = Setup::new(&json!({
        "data": {"chat_template": "template.jinja", "val_fraction": 0.0},
        "train": {"max_steps": 3},
        "eval": {"every_steps": null, "forgetting": forgetting},
    }));
    let template = "{% for m in messages %}{{ '### ' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}";
    std::fs::write(setup.path("template.jinja"), template).unwrap();
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let row = |i: usize| {
        let question = format!("event {i}?");
        json!({"messages": [message("user", &question), message("assistant", "deny host")]}).to_string()
    };
    std::fs::write(setup.path("rows.jsonl"), (0..8).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "run"]);
    assert_eq!(code, 0, "{stderr}");
    let without_merges = |text: &str| {
        let mut tokenizer: serde_json::Value = serde_json::from_str(text).unwrap();
        tokenizer["model"]["merges"].as_array_mut().unwrap().truncate(1);
        tokenizer.to_string()
    };
    let (rows, general) = ("what the rows are encoded to", "the tokens of `eval.forgetting.text`");
    type Edit<'a> = &'a dyn Fn(&str) -> String;
    let edits: [(&str, Edit<'_>, &[&str]); 3] = [
        ("template.jinja", &|text| text.replace("###", "##"), &[rows]),
        ("base/tokenizer.json", &without_merges, &[rows, general]),
        ("general.txt", &|text| text.replace("rain", "snow"), &[general]),
    ];
    for (name, edit, expected) in edits {
        let text = std::fs::read_to_string(setup.path(name)).unwrap();
        std::fs::write(setup.path(name), edit(&text)).unwrap();
        let said = refused(&setup, &["--out", "run", "--resume"]);
        assert!(said.contains("the checkpoint is of another run"), "{name}: {said}");
        for what in [rows, general] {
            assert_eq!(said.contains(what), expected.contains(&what), "{name}: {said}");
        }
        std::fs::write(setup.path(name), text).unwrap();
    }
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "run", "--resume"]);
    assert_eq!(code, 0, "{stderr}");
    // of another version of the program
    let state = setup.path("run/checkpoints/step-00000003/state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    assert!(text.contains("\"version\": 2,"), "{text}");
    std::fs::write(&state, text.replace("\"version\": 2,", "\"version\": 1,")).unwrap();
    let said = refused(&setup, &["--out", "run", "--resume"]);
    assert!(said.contains("is of version 1") && said.contains("the lctl that began it"), "{said}");
}

/// Words of a document that is both asked about and trained on.
const SHARED: &str = "the user logged in from a host that was never seen before at three in the morning";

#[test]
fn a_directory_of_suites_is_compared_with_the_rows() {
    let scan = json!({"near_duplicates": "off", "eval_overlap": "fail", "suites": ["suites"]});
    let setup = Setup::new(&json!({"data": {"scan": scan}, "train": {"max_steps": 3}}));
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("data.scan.suites.0") && said.contains("suites"), "{said}");
    std::fs::create_dir_all(setup.path("suites/inner")).unwrap();
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("has no suite in it"), "{said}");
    for (name, text) in [("plain", "who is there"), ("inner/shared", SHARED)] {
        let own = name.rsplit('/').next().unwrap();
        let suite = json!({
            "version": 1,
            "name": own,
            "data": {"rows": {"path": format!("{own}.jsonl"), "format": "jsonl"}},
            "tasks": [{
                "id": "word", "type": "multiple_choice", "data": "rows", "prompt": "{{ text }}",
                "choices": ["deny", "allow"], "target": "deny", "metrics": ["acc"],
            }],
        });
        std::fs::write(setup.path(&format!("suites/{name}.yaml")), suite.to_string()).unwrap();
        std::fs::write(setup.path(&format!("suites/{name}.jsonl")), json!({"text": text}).to_string())
            .unwrap();
    }
    let rows = std::fs::read_to_string(setup.path("rows.jsonl")).unwrap();
    let row = json!({"prompt": SHARED, "completion": " deny"}).to_string();
    std::fs::write(setup.path("rows.jsonl"), format!("{rows}{row}\n")).unwrap();
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("rows.jsonl:25") && said.contains("shared.jsonl:1"), "{said}");
    assert!(!setup.path("run").exists());
    let (code, _, stderr) = setup.run(&["--set", "data.scan.eval_overlap=warn", "--out", "run"]);
    assert!(code == 0 && stderr.contains("overlap with evaluation suites"), "{stderr}");
    // both suites are inputs
    let dir = setup.dir.path();
    let (code, _, stderr) = run_lctl(dir, &["replay", "run/result.manifest.json", "--quiet"]);
    assert_eq!(code, 0, "{stderr}");
    let path = setup.path("suites/inner/shared.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text + "\n").unwrap();
    let (code, _, stderr) = run_lctl(dir, &["replay", "run/result.manifest.json", "--quiet"]);
    assert!(code == 2 && stderr.contains("suite suites (inner/shared.yaml): SHA-256"), "{stderr}");
}

/// Puts NaN into the row of a token in a table of the base.
fn poison(setup: &Setup, table: &str, token: u32) {
    let path = setup.path("base/model.safetensors");
    let source = SafeTensors::open_file(&path).unwrap();
    let info = source.find(table).unwrap();
    let at = info.offset as usize + token as usize * info.row_bytes();
    let end = at + info.row_bytes();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at..end].chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&f32::NAN.to_le_bytes()));
    std::fs::write(&path, bytes).unwrap();
}

/// Returns the steps that a checkpoint is of; every value in it is finite.
fn finite_checkpoints(setup: &Setup) -> Vec<u64> {
    let dir = setup.path("run/checkpoints");
    let names = names_in(&dir);
    for name in &names {
        for file in ["parameters.safetensors", "moments.safetensors"] {
            let source = SafeTensors::open_file(&dir.join(name).join(file)).unwrap();
            for info in source.tensors() {
                let bytes = source.bytes(info).unwrap().chunks_exact(4);
                let mut values = bytes.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
                assert!(values.all(f32::is_finite), "{name}: {file}: {}", info.name);
            }
        }
    }
    names.iter().map(|name| name.strip_prefix("step-").unwrap().parse().unwrap()).collect()
}

#[test]
fn a_row_whose_loss_is_nan_ends_the_run_and_is_named() {
    const POISONED: usize = 15;
    let setup = Setup::new(&json!({
        "data": {"val_fraction": 0.0, "packing": "off"},
        "train": {"grad_accum": 3},
        "checkpoint": {"every_steps": 1, "keep": 2},
        "eval": null,
    }));
    // one row has a token that no other has, and the model's vector of it is NaN
    let tokenizer = Tokenizer::open(&setup.path("base")).unwrap();
    let tokens = tokenizer.encode("Z", EncodeOptions::default()).unwrap();
    poison(&setup, "model.embed_tokens.weight", tokens[0]);
    let rows = std::fs::read_to_string(setup.path("rows.jsonl")).unwrap();
    let mut rows: Vec<String> = rows.lines().map(str::to_owned).collect();
    rows[POISONED - 1] = json!({"prompt": "event Z:", "completion": " deny host"}).to_string();
    std::fs::write(setup.path("rows.jsonl"), rows.join("\n")).unwrap();
    let said = refused(&setup, &["--out", "run"]);
    let step = events(&setup.path("run")).len() as u64 + 1;
    assert!(step > 3, "the row comes too early for this test: in step {step}");
    assert!(said.contains(&format!("step {step}: loss NaN, gradient norm NaN; micro-batch ")), "{said}");
    assert_eq!(said.matches("rows.jsonl:").count(), 1, "{said}");
    assert!(said.contains(&format!("of 3:\n    rows.jsonl:{POISONED}\n")), "{said}");
    // what was reached before stays, and is good
    assert_eq!(finite_checkpoints(&setup), [step - 2, step - 1]);
    assert!(said.contains(&format!("run/checkpoints/step-{:08} is kept", step - 1)), "{said}");
    assert!(!setup.path("run/result").exists() && !setup.path("run/result.manifest.json").exists());
    assert_eq!(refused(&setup, &["--out", "run", "--resume"]), said);
    // of two processes each knows, whichever of them has the row
    let two = run_all(&setup, 2, &["--quiet", "--out", "two"]);
    let said = said.replace("run/", "two/");
    for ((code, _, stderr), expected) in two.into_iter().zip([said.clone(), format!("rank 1: {said}")]) {
        assert_eq!((code, stderr), (Some(2), expected));
    }
    // without the row the run goes well
    rows.remove(POISONED - 1);
    std::fs::write(setup.path("rows.jsonl"), rows.join("\n")).unwrap();
    assert_eq!(setup.run(&["--quiet", "--out", "without"]).0, 0);
}

#[test]
fn a_model_that_is_nan_is_told_before_the_first_checkpoint() {
    let setup = Setup::new(&json!({"train": {"max_steps": 3}}));
    poison(&setup, "model.layers.0.self_attn.q_proj.weight", 0);
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("step 1: loss NaN") && said.contains("the model itself may hold a NaN"), "{said}");
    assert!(!setup.path("run/checkpoints").exists() && !setup.path("run/result").exists());
}

#[test]
fn a_run_that_overflows_keeps_the_checkpoint_from_before() {
    // B is 10 after the first step, and 2.5e37 times what is added to the outputs
    let train = json!({
        "lr": 10.0, "max_steps": 4, "warmup_steps": 0, "lr_schedule": "constant", "optimizer": "lion", "weight_decay": 0.0,
    });
    let parts = json!({
        "adapter": {"alpha": 1e38, "dropout": 0.0},
        "train": train,
        "data": {"val_fraction": 0.0},
        "eval": null,
        "checkpoint": {"every_steps": 1},
    });
    let setup = Setup::new(&parts);
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("step 2: loss NaN") && said.contains("rows.jsonl:"), "{said}");
    assert_eq!(finite_checkpoints(&setup), [1]);
    // seen by a validation first, its rows are named
    let mut parts = parts;
    (parts["eval"], parts["data"]["val_fraction"]) = (json!({"every_steps": 1}), json!(0.2));
    let setup = Setup::new(&parts);
    let said = refused(&setup, &["--out", "run"]);
    assert!(
        said.contains("validation after step 1: the loss is NaN; its batch 1:\n    rows.jsonl:"),
        "{said}"
    );
    assert!(!setup.path("run/result").exists());
    // parameters that overflow by themselves are never written
    parts["adapter"]["alpha"] = json!(8);
    parts["train"]["weight_decay"] = json!(1e39);
    let setup = Setup::new(&parts);
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("step 1: parameters overflow; loss "), "{said}");
    assert!(!setup.path("run/checkpoints").exists());
    // neither are moments: B is 0 and the loss as ever, but its gradient is some 1e28 and has no square in f32
    parts["adapter"]["alpha"] = json!(1e30);
    parts["train"] = json!({
        "lr": 1e-30, "max_steps": 2, "warmup_steps": 0, "lr_schedule": "constant", "max_grad_norm": 0.0,
    });
    let setup = Setup::new(&parts);
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("step 1: the optimizer's moments overflow; loss "), "{said}");
    assert!(!setup.path("run/checkpoints").exists() && !setup.path("run/result").exists());
    // by a clipped gradient they are not reached
    parts["train"]["max_grad_norm"] = json!(1.0);
    let setup = Setup::new(&parts);
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "run"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(finite_checkpoints(&setup), [1, 2]);
}

#[test]
fn what_cannot_be_written_is_told_and_leaves_nothing_half_done() {
    let setup = Setup::new(&json!({"train": {"max_steps": 2}}));
    // a file where the directory of checkpoints is to be
    std::fs::create_dir(setup.path("run")).unwrap();
    std::fs::write(setup.path("run/checkpoints"), "").unwrap();
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("checkpoints"), "{said}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_leaves_the_checkpoints_and_the_run_goes_on_when_there_is_room() {
    // every write to this log fails
    let setup = Setup::new(&json!({"train": {"max_steps": 2}, "log": ["jsonl", "csv"]}));
    std::fs::create_dir(setup.path("run")).unwrap();
    std::os::unix::fs::symlink("/dev/full", setup.path("run/metrics.csv")).unwrap();
    let said = refused(&setup, &["--out", "run"]);
    assert!(said.contains("metrics.csv") && said.contains("No space left"), "{said}");
    assert!(!setup.path("run/result").exists());
    // from some checkpoint on no file may grow: the next one is written in part
    let setup = Setup::new(
        &json!({"train": {"max_steps": 1_000_000}, "checkpoint": {"every_steps": 1}, "eval": null,
        "data": {"val_fraction": 0.0}, "log": ["jsonl"]}),
    );
    let (code, said) = until_checkpoint(&setup, &["--out", "run"], 3, |child| {
        let limit = libc::rlimit { rlim_cur: 4096, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the child is ours; the limit is read, and the old one not asked for
        assert_eq!(unsafe { libc::prlimit(child, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) }, 0);
    });
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("File too large") && said.contains("error: run/"), "{said}");
    assert!(!setup.path("run/result").exists());
    let kept = finite_checkpoints(&setup);
    let last = *kept.last().unwrap();
    assert!(last >= 3 && kept.len() <= 3, "{kept:?}");
    let (code, said) = until_checkpoint(&setup, &["--out", "run", "--resume"], last + 2, |child| {
        // SAFETY: the child is ours and has not been waited for
        unsafe { libc::kill(child, libc::SIGTERM) };
    });
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains(&format!("going on after step {last} of 1000000")), "{said}");
}

/// Starts a run, does something to it when it has written the checkpoint of that step or a later one, and waits for its end; returns
/// its exit status and what it said.
#[cfg(target_os = "linux")]
fn until_checkpoint(
    setup: &Setup,
    args: &[&str],
    step: u64,
    then: impl FnOnce(libc::pid_t),
) -> (Option<i32>, String) {
    use std::os::unix::process::CommandExt as _;
    let mut command = lctl(setup.dir.path(), &[&["finetune", "recipe.yaml"], args].concat());
    // SAFETY: signal() may be called between fork and exec; a write beyond the limit is then an error
    let ignore = || unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        Ok(())
    };
    // SAFETY: as said, the closure does nothing else
    unsafe { command.pre_exec(ignore) };
    let said = std::fs::File::create(setup.path("said")).unwrap();
    let mut child = command.stdout(Stdio::null()).stderr(said).spawn().unwrap();
    let begun = Instant::now();
    let checkpoints = setup.path("run/checkpoints");
    let latest = || {
        let entries = std::fs::read_dir(&checkpoints).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        names.filter_map(|name| name.strip_prefix("step-")?.parse::<u64>().ok()).max()
    };
    while latest().is_none_or(|latest| latest < step) {
        assert!(
            child.try_wait().unwrap().is_none(),
            "{}",
            std::fs::read_to_string(setup.path("said")).unwrap()
        );
        assert!(begun.elapsed() < Duration::from_secs(600), "the run does not go on");
        std::thread::sleep(Duration::from_millis(2));
    }
    then(child.id() as libc::pid_t);
    let status = child.wait().unwrap();
    (status.code(), std::fs::read_to_string(setup.path("said")).unwrap())
}

#[test]
fn too_much_forgetting_exports_nothing() {
    let forgetting = json!({"text": "general.txt", "max_increase": 0.0, "max_tokens": 200});
    let train = json!({"lr": 0.05, "lr_schedule": "constant", "warmup_steps": 0, "max_steps": 24});
    let setup = Setup::new(&json!({"train": train, "eval": {"forgetting": forgetting}}));
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
    let (code, stdout, stderr) = setup.run(&["--plan", "--quiet"]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "", ""));
    assert!(!setup.path("run").exists());
}
