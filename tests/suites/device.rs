//! `lctl eval` and `lctl generate` on a device, the stand-in or a GPU (`under_test`), beside the CPU.

use lctl::cuda::under_test;
use serde_json::Value as Json;
use tempfile::TempDir;

use super::{workplace, write};
use crate::common::run_lctl;

/// Likelihoods, written answers and a perplexity.
const SUITE: &str = r#"version: 1
name: good
data:
  rows: {path: rows.jsonl, format: jsonl}
tasks:
  - id: choice
    type: multiple_choice
    data: rows
    few_shot: {n: 1, from: rows}
    prompt: "Q: {{ q }}\nA:"
    choices: {field: c}
    target: "{{ a }}"
    metrics: [acc, acc_norm]
  - id: written
    type: generation
    data: rows
    prompt: "Q: {{ q }}\nA:"
    generation: {max_tokens: 6}
    target: "{{ a }}"
    metrics: [exact_match]
  - {id: ppl, type: perplexity, data: rows, text: "{{ q }} {{ a }}"}
"#;

fn place() -> TempDir {
    let dir = workplace();
    write(&dir, "suite.yaml", SUITE);
    dir
}

fn run(dir: &TempDir, args: &str) -> (i32, String, String) {
    let args: Vec<&str> = args.split_whitespace().collect();
    run_lctl(dir.path(), &args)
}

fn succeed(dir: &TempDir, args: &str) -> String {
    let (code, stdout, stderr) = run(dir, args);
    assert_eq!(code, 0, "{args}: {stderr}");
    stdout
}

fn read(dir: &TempDir, path: &str) -> String {
    std::fs::read_to_string(dir.path().join(path)).unwrap()
}

fn samples(dir: &TempDir, out: &str) -> Vec<Json> {
    let text = read(dir, &format!("{out}/samples.jsonl"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Compares numbers within rounding, and all else as it is.
fn assert_near(found: &Json, expected: &Json, at: &str) {
    match (found, expected) {
        (Json::Number(a), Json::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{at}: {a} {b}");
        }
        (Json::Array(a), Json::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{at}");
            a.iter().zip(b).for_each(|(a, b)| assert_near(a, b, at));
        }
        (Json::Object(a), Json::Object(b)) => {
            assert!(a.keys().eq(b.keys()), "{at}");
            a.iter().for_each(|(key, a)| assert_near(a, &b[key], &format!("{at}.{key}")));
        }
        _ => assert_eq!(found, expected, "{at}"),
    }
}

#[test]
fn a_suite_on_cuda_host_gives_the_cpu_s_answers() {
    let dir = place();
    let eval = "eval model --suite suite.yaml --compute f32 --quiet";
    succeed(&dir, &format!("{eval} --device cpu --out cpu"));
    let device = under_test::name();
    let name = under_test::device().facts().name.clone();
    succeed(&dir, &format!("{eval} --device {device} --out device"));
    let (found, expected) = (samples(&dir, "device"), samples(&dir, "cpu"));
    assert_eq!(found.len(), 9);
    for (found, expected) in found.iter().zip(&expected) {
        assert_near(found, expected, "sample");
    }
    let report: Json = serde_json::from_str(&read(&dir, "device/report.json")).unwrap();
    assert_eq!(report["settings"]["device"]["precision"], "f32");
    assert_eq!(report["settings"]["device"]["name"], name);
    let of_cpu: Json = serde_json::from_str(&read(&dir, "cpu/report.json")).unwrap();
    assert!(of_cpu["settings"].get("device").is_none());
    let manifest: Json = serde_json::from_str(&read(&dir, "device/report.json.manifest.json")).unwrap();
    assert_eq!(manifest["job"]["settings"]["device"]["name"], name, "{manifest:#}");
    assert_eq!(manifest["job"]["settings"]["device"]["precision"], "f32");

    // no batch and no shared prefix changes a byte of it
    let more = "--batch-tokens 3 --no-prefix-cache";
    succeed(&dir, &format!("{eval} --device {device} --out again {more}"));
    assert_eq!(read(&dir, "again/samples.jsonl"), read(&dir, "device/samples.jsonl"));

    // no CPU has its bits
    let (code, _, stderr) = run(&dir, "replay device/report.json.manifest.json --quiet");
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains(&format!("was made on {name}")), "{stderr}");
    // and the two are not compared as if they had
    let (code, _, stderr) = run(&dir, "gate cpu device");
    assert_ne!(code, 0);
    let all = stderr + &run(&dir, "gate cpu device").1;
    assert!(
        all.contains("--device: the baseline ran with `the CPU`, the candidate with `a GPU in f32`"),
        "{all}"
    );
}

#[test]
fn a_journal_is_not_gone_on_with_on_another_device() {
    let dir = place();
    let eval = "eval model --suite suite.yaml --compute f32 --quiet";
    let device = under_test::name();
    for (first, second) in [("cpu", &device[..]), (&device[..], "cpu")] {
        // no colon in a folder's name
        let out = format!("{first}-then-{second}").replace(':', "-");
        succeed(&dir, &format!("{eval} --device {first} --out {out}"));
        let (code, _, stderr) = run(&dir, &format!("{eval} --device {second} --out {out} --resume --force"));
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("journal.jsonl") && stderr.contains("device"), "{stderr}");
        let (code, _, stderr) = run(&dir, &format!("{eval} --device {first} --out {out} --resume --force"));
        assert_eq!(code, 0, "{stderr}");
    }
}

#[test]
fn a_journal_is_not_gone_on_with_under_another_driver_or_cublas() {
    let dir = place();
    let eval = "eval model --suite suite.yaml --compute f32 --quiet --device host --out out";
    succeed(&dir, eval);
    let report: Json = serde_json::from_str(&read(&dir, "out/report.json")).unwrap();
    let manifest: Json = serde_json::from_str(&read(&dir, "out/report.json.manifest.json")).unwrap();
    let journal = read(&dir, "out/journal.jsonl");
    for name in ["driver", "cublas"] {
        assert_eq!(report["settings"]["device"][name], "none: the stand-in");
        assert_eq!(manifest["job"]["settings"]["device"][name], "none: the stand-in");
        let key = format!("[\"{name}\",\"none: the stand-in\"]");
        assert!(journal.contains(&key), "{journal}");
        // one that was written with another version, or that does not say
        for other in [format!("[\"{name}\",\"1.2.3\"]"), "[\"other\",\"\"]".to_owned()] {
            write(&dir, "out/journal.jsonl", &journal.replacen(&key, &other, 1));
            let (code, _, stderr) = run(&dir, &format!("{eval} --resume --force"));
            assert_eq!(code, 2, "{stderr}");
            let found = if other.contains(name) { "1.2.3" } else { "not given" };
            let said = format!("journal of another run: {name} is {found}, here none: the stand-in");
            assert!(stderr.contains(&said), "{stderr}");
        }
    }
    write(&dir, "out/journal.jsonl", &journal);
    succeed(&dir, &format!("{eval} --resume --force"));
}

#[test]
fn what_computes_on_the_cpu_alone_is_refused_on_a_device() {
    let dir = place();
    for command in ["eval model --suite suite.yaml", "generate model -p two -n 2"] {
        for weights in ["auto", "mapped"] {
            succeed(&dir, &format!("{command} --weights {weights} --device host --quiet"));
        }
        let (code, stdout, stderr) = run(&dir, &format!("{command} --weights packed --device host --quiet"));
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        let said = "error: --weights packed does nothing on the host's stand-in";
        assert!(stderr.starts_with(said) && stderr.contains("hint: leave --weights out"), "{stderr}");
        succeed(&dir, &format!("{command} --weights packed --device cpu --quiet"));
    }
}

#[test]
fn texts_are_measured_on_cuda_host_as_on_the_cpu() {
    let dir = place();
    let text: String = (0..400).map(|n| format!("word {} ", n * n % 97)).collect();
    write(&dir, "text.txt", &text);
    let json = |device: &str, args: &str| -> Json {
        let command =
            format!("eval model {args} --compute f32 --context 64 --json --quiet --device {device}");
        serde_json::from_str(&succeed(&dir, &command)).unwrap()
    };
    let device = under_test::name();
    let [found, expected] = [&device[..], "cpu"].map(|device| json(device, "--perplexity text.txt"));
    assert_near(&found["perplexity"], &expected["perplexity"], "perplexity");
    assert_eq!(found["model"]["device"]["precision"], "f32");
    let divergence = json(&device, "--kl-base model --text text.txt");
    assert_eq!(divergence["divergence"]["kld"]["mean"]["value"], 0.0, "{divergence:#}");
    // what bf16 costs shows
    let save = "eval model --perplexity text.txt --context 64 --compute f32 --save-logits saved --quiet";
    succeed(&dir, &format!("{save} --device {device}"));
    let rounded = format!("eval model --base-logits saved --compute bf16 --json --quiet --device {device}");
    let rounded: Json = serde_json::from_str(&succeed(&dir, &rounded)).unwrap();
    let kld = rounded["divergence"]["kld"]["mean"]["value"].as_f64().unwrap();
    assert!(kld > 0.0 && kld < 0.01, "{kld}");
}

#[test]
fn greedy_text_on_cuda_host_is_the_cpu_s() {
    let dir = place();
    let json = |device: &str, more: &str| -> Json {
        let command =
            format!("generate model -p two -n 12 --compute f32 --json --quiet --device {device} {more}");
        serde_json::from_str(&succeed(&dir, &command)).unwrap()
    };
    let (found, expected) = (json(&under_test::name(), ""), json("cpu", ""));
    assert_eq!(found["tokens"].as_array().unwrap().len(), 12);
    assert_eq!(found["tokens"], expected["tokens"]);
    assert_eq!(found["device"]["precision"], "f32");
    assert!(expected.get("device").is_none());
}

#[test]
fn what_a_device_cannot_compute_is_refused() {
    let (dir, device) = (place(), under_test::name());
    for command in ["eval model --suite suite.yaml", "generate model -p two -n 2"] {
        let (code, stdout, stderr) =
            run(&dir, &format!("{command} --compute int8 --device {device} --quiet"));
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        assert!(stderr.contains("--compute int8: not on a GPU") && stderr.contains("hint: "), "{stderr}");
        // what the model takes is said before it is copied
        if command.starts_with("eval") {
            let (code, _, stderr) =
                run(&dir, &format!("{command} --device {device} --batch-tokens 4000000000 --quiet"));
            assert_eq!(code, 2, "{stderr}");
            assert!(
                stderr.contains("the model takes about") && stderr.contains("--batch-tokens"),
                "{stderr}"
            );
        }
        if !under_test::is_stand_in("a device that is lost") {
            continue;
        }
        let (code, _, stderr) = run(&dir, &format!("{command} --device host:20 --quiet"));
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("was lost"), "{stderr}");
    }
}
