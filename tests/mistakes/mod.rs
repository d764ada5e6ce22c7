//! Mistakes that newcomers make, and what they read then: tests/golden/mistakes.txt.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use lctl::provenance::sha256_of_file;

use crate::common::{assert_snapshot, lctl, names_in, run_lctl};
#[cfg(unix)]
use crate::common::{make_pipe, run_without_waiting};

/// What was tried, and with which arguments; the model is `model`, or `model.gguf`.
const MISTAKES: &[(&str, &str)] = &[
    ("British spelling", "quantise model -t int4 -o new.gguf"),
    ("a misspelt option", "quantize model --typ int4 -o new.gguf"),
    ("no type", "quantize model -o new.gguf"),
    ("no output", "quantize model -t int4"),
    ("a width that is no type", "quantize model -t int3 -o new.gguf"),
    ("a method in place of a type", "quantize model -t awq -o new.gguf"),
    ("a misspelt type", "quantize model -t Q4KM -o new.gguf"),
    ("a misspelt format of a tensor", "quantize model -t Q4_K_M --output-tensor-type Q6K -o new.gguf"),
    ("a word for a number", "quantize model -t int4 -o new.gguf --threads many"),
    ("a misspelt path", "quantize modle -t int4 -o new.gguf"),
    ("a path to nothing", "inspect downloads/llama.gguf"),
    ("a model that was never pulled, offline", "inspect meta-llama/Llama-3.2-1B --offline"),
    ("a name without an organization", "pull llama"),
    ("an address in place of an id", "pull https://huggingface.co/Qwen/Qwen3-0.6B"),
    ("a PyTorch file", "quantize model.pt -t int4 -o new.gguf"),
    ("a checkpoint of PyTorch files", "quantize pytorch -t int4 -o new.gguf"),
    ("a clone without Git LFS", "inspect pointer.safetensors"),
    ("a web page saved as a model", "inspect page.safetensors"),
    ("a web page saved as a GGUF", "inspect page.gguf"),
    ("a download cut short", "inspect cut.gguf"),
    ("a checkpoint cut short", "inspect cut.safetensors"),
    ("an empty file", "inspect empty.gguf"),
    ("a text in place of a model", "inspect text.txt"),
    ("an empty directory", "quantize nothing -t int4 -o new.gguf"),
    ("a directory with several models", "inspect several"),
    ("weights without their directory", "generate model/model.safetensors -p hello"),
    ("a GGUF where a checkpoint is needed", "merge model.gguf adapter -o new"),
    ("a model in place of an adapter", "merge model model -o new"),
    ("an output that exists", "quantize model -t F16 -o model.gguf"),
    ("a directory as output", "quantize model -t F16 -o nothing"),
    ("an output in a directory that does not exist", "quantize model -t F16 -o out/new.gguf"),
    ("a device as output", "quantize model -t F16 -o /dev/null --force"),
    ("a text in place of an importance matrix", "quantize model -t int4 -o new.gguf --imatrix text.txt"),
    ("a model without a text to measure it over", "imatrix model -o new.gguf"),
    ("a text too short for one chunk", "imatrix model text.txt -o new.gguf --quiet"),
    ("a suite by its name", "eval model.gguf --suite log-triage"),
    ("a misspelt suite", "eval model.gguf --suite evalsuites/log-triaje.yaml"),
    ("a directory in place of a suite", "eval model.gguf --suite evalsuites"),
    ("a recipe in place of a suite", "eval model.gguf --suite recipe.yaml"),
    ("a key misspelt in a suite", "eval model.gguf --suite misspelt.yaml"),
    ("a suite whose data is not shipped", "eval model.gguf --suite given.yaml"),
    ("a data file that is missing", "eval model.gguf --suite absent.yaml"),
    ("neither suite nor text", "eval model.gguf"),
    (
        "a chat template that a base model lacks",
        "eval model.gguf --suite suite.yaml --chat-template on --quiet",
    ),
    ("a conversation with a base model", "generate model.gguf --chat -p hello --quiet"),
    ("results that exist", "eval model.gguf --suite suite.yaml --out a"),
    ("a text too short to measure", "eval model.gguf --perplexity text.txt --quiet"),
    ("a model in place of a text", "eval model.gguf --perplexity model.gguf --quiet"),
    ("a misspelt text", "eval model.gguf --perplexity texts.txt --quiet"),
    ("a mode that does not exist", "eval model.gguf --suite suite.yaml --compute fp16"),
    ("a recipe by its name", "finetune soc-triage"),
    ("a suite in place of a recipe", "finetune suite.yaml"),
    ("a model in place of a recipe", "finetune model.gguf"),
    ("a key misspelt in a recipe", "recipe validate key.yaml"),
    ("a value misspelt in a recipe", "recipe validate value.yaml"),
    ("a word for a number in a recipe", "recipe validate word.yaml"),
    ("a recipe indented by tabs", "recipe validate tabs.yaml"),
    ("training data that is missing", "recipe data missing.yaml"),
    ("a row that is no JSON", "recipe data broken.yaml"),
    ("a misspelt setting", "recipe show recipe.yaml --set train.lrate=1e-4"),
    ("a setting without a value", "recipe show recipe.yaml --set train.lr"),
    ("a misspelt preset", "recipe new 1b-lorra"),
    ("a recipe that exists", "recipe new 1b-lora -o recipe.yaml"),
    ("one run in place of two", "gate a"),
    ("a model in place of a run", "gate model.gguf a"),
    ("a run that does not exist", "report b"),
    ("a suite in place of a policy", "gate a a --policy suite.yaml"),
    ("a report in place of a manifest", "replay a/report.json"),
    ("nothing to answer", "generate model.gguf"),
    ("a temperature in words", "generate model.gguf -p hello --temp hot"),
    ("a shell that there is none of", "completions cmd"),
];

const SUITE: &str = "version: 1
name: small
data:
  rows: {path: rows.jsonl, format: jsonl}
tasks:
  - id: choice
    type: multiple_choice
    data: rows
    prompt: \"Q: {{ q }}\\nA:\"
    choices: {field: c}
    target: \"{{ a }}\"
    metrics: [acc]
";

const ROWS: &str = r#"{"q": "one", "c": ["a", "b"], "a": "a"}
{"q": "two", "c": ["c", "dd"], "a": "dd"}
"#;

const RECIPE: &str = "version: 1
kind: finetune
model: {path: model}
output: run
adapter: {type: lora, r: 8, alpha: 16}
data:
  train: [{path: train.jsonl}]
  max_seq_len: 64
train:
  max_steps: 2
  lr: 0.001
";

/// Fills a directory with what the mistakes are made with.
pub fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let source = crate::common::root().join("tests/golden/convert/Mistral-7B-v0.1");
    for name in names_in(&source) {
        write(&format!("model/{name}"), &std::fs::read(source.join(&name)).unwrap());
    }
    let args = ["quantize", "model", "-t", "F16", "-o", "model.gguf", "--quiet", "--no-manifest"];
    assert_eq!(run_lctl(dir, &args).0, 0);
    let gguf = std::fs::read(dir.join("model.gguf")).unwrap();
    let safetensors = std::fs::read(dir.join("model/model.safetensors")).unwrap();
    write("cut.gguf", &gguf[..gguf.len() - 500]);
    write("cut.safetensors", &safetensors[..safetensors.len() - 500]);
    write("empty.gguf", b"");
    write("several/a.gguf", &gguf);
    write("several/b.gguf", &gguf);
    let archive = b"PK\x03\x04 data.pkl";
    write("model.pt", archive);
    write("pytorch/config.json", b"{}");
    write("pytorch/pytorch_model.bin", archive);
    write(
        "pointer.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    );
    let page = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n";
    write("page.safetensors", page);
    write("page.gguf", page);
    write("text.txt", b"The rain fell on the hills all day.\n");
    std::fs::create_dir(dir.join("nothing")).unwrap();

    let suite = |name: &str, from: &str, to: &str| {
        assert!(SUITE.contains(from), "{from}");
        write(name, SUITE.replace(from, to).as_bytes());
    };
    suite("suite.yaml", "small", "small");
    suite("misspelt.yaml", "target:", "tagret:");
    suite("given.yaml", "{path: rows.jsonl, format: jsonl}", "{format: jsonl}");
    suite("absent.yaml", "path: rows.jsonl", "path: row.jsonl");
    suite("evalsuites/log-triage.yaml", "small", "log-triage");
    write("rows.jsonl", ROWS.as_bytes());

    let recipe = |name: &str, from: &str, to: &str| {
        assert!(RECIPE.contains(from), "{from}");
        write(name, RECIPE.replace(from, to).as_bytes());
    };
    recipe("recipe.yaml", "run", "run");
    recipe("recipes/soc-triage.yaml", "run", "run");
    recipe("key.yaml", "max_steps", "max_step");
    recipe("value.yaml", "type: lora", "type: lorra");
    recipe("word.yaml", "lr: 0.001", "lr: fast");
    recipe("tabs.yaml", "  max_steps", "\tmax_steps");
    recipe("missing.yaml", "train.jsonl", "trian.jsonl");
    recipe("broken.yaml", "train.jsonl", "broken.jsonl");
    write("train.jsonl", b"{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    write("broken.jsonl", b"{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\",\n");

    for (suite, out) in [("suite.yaml", "a"), ("evalsuites/log-triage.yaml", "other")] {
        write("evalsuites/rows.jsonl", ROWS.as_bytes());
        let args = ["eval", "model.gguf", "--suite", suite, "--out", out, "--quiet", "--no-manifest"];
        let (status, _, stderr) = run_lctl(dir, &args);
        assert_eq!(status, 0, "{stderr}");
    }
    place
}

/// Runs the program with the user's own hub cache out of sight.
fn run(dir: &Path, args: &str) -> (i32, String, String) {
    let words: Vec<&str> = args.split(' ').collect();
    let mut command = lctl(dir, &words);
    command.env("HF_HUB_CACHE", "cache").env_remove("HF_HUB_OFFLINE").stdin(std::process::Stdio::null());
    said(command)
}

fn said(mut command: Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Returns everything below a directory: of files the SHA-256, of directories nothing.
fn everything_in(dir: &Path) -> BTreeMap<PathBuf, Option<String>> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let is_dir = path.symlink_metadata().unwrap().is_dir();
            all.insert(path.clone(), (!is_dir).then(|| sha256_of_file(&path).unwrap()));
            dirs.extend(is_dir.then_some(path));
        }
    }
    all
}

#[test]
fn every_mistake_gets_an_answer() {
    let dir = workplace();
    let before = everything_in(dir.path());
    assert!(before.len() > 30, "{before:?}");
    let mut text = String::new();
    for (what, args) in MISTAKES {
        let (status, stdout, stderr) = run(dir.path(), args);
        assert_eq!((status, stdout.as_str()), (2, ""), "{args}: {stderr}");
        assert!(stderr.starts_with("error: "), "{args}: {stderr}");
        // either the message shows its place in the file, or something says how to go on
        let helps = ["hint: ", "tip: ", "Usage: ", "--help", ".yaml:", ".jsonl:", "did you mean"];
        assert!(helps.iter().any(|help| stderr.contains(help)), "{args}: {stderr}");
        text.push_str(&format!("# {what}\n$ lctl {args}\n{stderr}\n"));
    }
    assert!(MISTAKES.len() >= 40);
    assert_eq!(everything_in(dir.path()), before, "a mistake leaves nothing behind");
    assert_snapshot("mistakes.txt", &text);
}

#[test]
fn runs_of_different_suites_are_not_compared() {
    let dir = workplace();
    let (status, stdout, _) = run(dir.path(), "gate a other");
    assert_eq!(status, 5, "{stdout}");
    assert!(stdout.contains("small/choice: the candidate was not asked"), "{stdout}");
    assert!(stdout.ends_with("NOT COMPARABLE\n"), "{stdout}");
}

/// What a command reads, each time from a pipe that nobody writes into.
#[cfg(unix)]
const PIPES: &[&str] = &[
    "eval model.gguf --perplexity pipe --quiet",
    "eval model.gguf --kl-base model.gguf --text pipe --quiet",
    "eval model.gguf --base-logits pipe --quiet",
    "eval model.gguf --suite pipe",
    "suite validate pipe",
    "gate a a --policy pipe",
    "recipe validate pipe",
    "recipe validate recipe.yaml --set eval.forgetting.text=pipe",
    "recipe data recipe.yaml --set data.chat_template=pipe",
    "finetune pipe",
    "finetune recipe.yaml --out run --set data.chat_template=pipe",
    "finetune recipe.yaml --out run --set eval.forgetting.text=pipe",
    "finetune recipe.yaml --out run --set eval.gate.suite=pipe",
    "quantize model -t Q4_K_M -o new.gguf --imatrix pipe",
    "quantize piped -t F16 -o new.gguf",
    "inspect piped",
];

#[cfg(unix)]
#[test]
fn pipes_are_refused_before_they_are_opened() {
    let dir = workplace();
    let pipe = |name: &str| make_pipe(&dir.path().join(name));
    pipe("pipe");
    std::fs::create_dir(dir.path().join("piped")).unwrap();
    std::fs::copy(dir.path().join("model/model.safetensors"), dir.path().join("piped/model.safetensors"))
        .unwrap();
    pipe("piped/config.json");
    for args in PIPES {
        let words: Vec<&str> = args.split(' ').collect();
        let (status, stderr) = run_without_waiting(lctl(dir.path(), &words));
        assert_eq!(status, 2, "{args}: {stderr}");
        assert!(stderr.contains("not a regular file"), "{args}: {stderr}");
        if !args.contains("piped") {
            assert!(stderr.contains("pipe: not a regular file"), "{args}: {stderr}");
            assert!(stderr.contains("hint: devices and pipes have no end"), "{args}: {stderr}");
        }
        assert!(!dir.path().join("run").exists() && !dir.path().join("new.gguf").exists(), "{args}");
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_named() {
    let dir = workplace();
    let program = crate::common::program();
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("LCTL", program).current_dir(dir.path());
        said(command)
    };
    // blocks of 512 bytes: less than the file to be written
    let (status, _, stderr) =
        shell("ulimit -f 8; exec \"$LCTL\" quantize model -t F16 -o new.gguf --no-manifest --quiet");
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.starts_with("error: new.gguf: "), "{stderr}");
    assert!(stderr.contains("File too large") && stderr.contains("ulimit -f"), "{stderr}");
    assert!(!names_in(dir.path()).iter().any(|name| name.contains("new.gguf")));
    if Path::new("/dev/full").exists() {
        let (status, _, stderr) = shell("exec \"$LCTL\" inspect model.gguf > /dev/full");
        assert_eq!(status, 2, "{stderr}");
        assert!(stderr.contains("standard output") && stderr.contains("No space left"), "{stderr}");
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = workplace();
    let path = dir.path().join("model.gguf");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(&path).is_ok() {
        println!("skipped: this user may read everything");
        return;
    }
    let (status, _, stderr) = run(dir.path(), "inspect model.gguf");
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.contains("model.gguf: cannot") && stderr.contains("Permission denied"), "{stderr}");
}
