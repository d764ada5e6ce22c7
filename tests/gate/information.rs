//! What a verdict says and does not decide by: licences, and the divergence of the models.

use serde_json::{Value as Json, json};

use super::eval::{eval, workplace};
use crate::common::run_lctl;

fn gate(dir: &tempfile::TempDir, words: &str) -> (i32, String, String) {
    let words: Vec<&str> = ["gate"].into_iter().chain(words.split(' ')).collect();
    run_lctl(dir.path(), &words)
}

fn write(dir: &tempfile::TempDir, name: &str, text: &str) {
    std::fs::write(dir.path().join(name), text).unwrap();
}

#[test]
fn licences_are_carried_to_the_verdict() {
    let dir = workplace();
    write(&dir, "model/README.md", "---\nlicense: other\nlicense_name: acme-1.0\n---\n");
    write(&dir, "NOTICE", "facts from a catalogue");
    assert_eq!(eval(&dir, "a", "").0, 0);
    assert_eq!(eval(&dir, "b", "").0, 0);
    let (status, stdout, stderr) = gate(&dir, "a b --markdown gate.md");
    assert_eq!((status, stderr.as_str()), (0, ""));
    let line = "licences   base other (acme-1.0), data see NOTICE (rows.jsonl)\n";
    assert!(stdout.contains(line), "{stdout}");
    let markdown = std::fs::read_to_string(dir.path().join("gate.md")).unwrap();
    assert!(
        markdown.contains("Licences: base other (acme-1.0), data see NOTICE (rows.jsonl)  \n"),
        "{markdown}"
    );
    let (_, stdout, _) = gate(&dir, "a b --json");
    let verdict: Json = serde_json::from_str(&stdout).unwrap();
    let expected = json!({"base": "other (acme-1.0)", "adapter": null,
                          "data": [{"name": "rows.jsonl", "licence": "see NOTICE"}]});
    assert_eq!((&verdict["baseline"]["licences"], &verdict["candidate"]["licences"]), (&expected, &expected));
    assert_eq!(verdict["divergence"], Json::Null);
    // those of a quantized model are its base's, in an evaluation with a baseline, too
    let (status, ..) =
        run_lctl(dir.path(), &["quantize", "model", "--type", "F32", "-o", "m.gguf", "--quiet"]);
    assert_eq!(status, 0);
    let args = ["eval", "m.gguf", "--suite", "suite.yaml", "--out", "c", "--baseline", "a"];
    let (_, stdout, stderr) = run_lctl(dir.path(), &args);
    assert!(stdout.contains(line), "{stdout}{stderr}");
    // without manifests, or with one of another run, nothing is known
    assert_eq!(eval(&dir, "d", "--no-manifest --limit 30").0, 0);
    let (status, stdout, _) = gate(&dir, "a d");
    assert_eq!(status, 5);
    assert!(
        stdout.contains("licences   candidate unknown (no manifest beside the report); baseline base other"),
        "{stdout}"
    );
    let manifest = "report.json.manifest.json";
    std::fs::copy(dir.path().join("a").join(manifest), dir.path().join("d").join(manifest)).unwrap();
    assert!(gate(&dir, "a d").1.contains("candidate unknown (no manifest beside the report)"));
}

#[test]
fn the_models_divergence_stands_beside_the_verdict() {
    let dir = workplace();
    let text: String = (0..400).map(|n| format!("line {n} of a text. ")).collect();
    write(&dir, "t.txt", &text);
    for (kind, out) in [("F32", "f32.gguf"), ("Q4_0", "q4.gguf")] {
        let (status, _, stderr) =
            run_lctl(dir.path(), &["quantize", "model", "--type", kind, "-o", out, "--quiet"]);
        assert_eq!(status, 0, "{stderr}");
    }
    for (model, out) in [("f32.gguf", "f"), ("q4.gguf", "q")] {
        let args = ["eval", model, "--suite", "suite.yaml", "--compute", "f32", "--out", out, "--quiet"];
        assert_eq!(run_lctl(dir.path(), &args).0, 0);
    }
    let (status, stdout, stderr) =
        gate(&dir, "f f --baseline-model f32.gguf --candidate-model f32.gguf --text t.txt --quiet --json");
    assert_eq!((status, stderr.as_str()), (0, ""));
    let verdict: Json = serde_json::from_str(&stdout).unwrap();
    let same = &verdict["divergence"];
    assert_eq!(same["mean_kl"], json!({"value": 0.0, "interval": {"lower": 0.0, "upper": 0.0}}));
    assert_eq!(same["same_top"], json!({"value": 1.0, "interval": {"lower": 1.0, "upper": 1.0}}));
    let models = "--baseline-model f32.gguf --candidate-model q4.gguf --text t.txt";
    let (status, stdout, _) = gate(&dir, &format!("f q {models} --quiet --json --markdown g.md"));
    let verdict: Json = serde_json::from_str(&stdout).unwrap();
    let found = &verdict["divergence"];
    assert_eq!((&found["over"], found["tokens_sha256"].as_str().unwrap().len()), (&json!("t.txt"), 64));
    let kl = |key: &str| found["mean_kl"].pointer(key).unwrap().as_f64().unwrap();
    let (lower, value, upper) = (kl("/interval/lower"), kl("/value"), kl("/interval/upper"));
    assert!(0.0 < value && lower < value && value < upper, "{found}");
    // it decides nothing
    assert_eq!(gate(&dir, "f q").0, status);
    // the mean is that of `lctl eval --kl-base` over the same chunks
    let chunk_len = found["chunk_len"].to_string();
    let args = [
        "eval",
        "q4.gguf",
        "--kl-base",
        "f32.gguf",
        "--text",
        "t.txt",
        "--context",
        &chunk_len,
        "--limit",
        "64",
    ];
    let (_, stdout, _) =
        run_lctl(dir.path(), &[&args[..], &["--compute", "f32", "--json", "--quiet"]].concat());
    let eval: Json = serde_json::from_str(&stdout).unwrap();
    let mean = eval["divergence"]["kld"]["mean"]["value"].as_f64().unwrap();
    assert!((mean - value).abs() < 1e-12 * mean.abs().max(1.0), "{mean} {value}");

    // the verdict's manifest has the models, and replays
    let (status, stdout, stderr) = run_lctl(dir.path(), &["replay", "g.md.manifest.json"]);
    assert!(status == 0 && stdout.ends_with("the bits agree\n"), "{stdout}{stderr}");
    let markdown = std::fs::read_to_string(dir.path().join("g.md")).unwrap();
    assert!(markdown.contains("\nDivergence: mean KL 0.0"), "{markdown}");
    std::fs::write(dir.path().join("t.txt"), "changed").unwrap();
    let (status, _, stderr) = run_lctl(dir.path(), &["replay", "g.md.manifest.json"]);
    assert!(status == 2 && stderr.contains("text t.txt: SHA-256 is "), "{stderr}");
    // another model is not what was measured
    let (status, stdout, stderr) =
        gate(&dir, "f q --baseline-model q4.gguf --candidate-model q4.gguf --text t.txt");
    assert_eq!((status, stdout.as_str()), (2, ""));
    assert!(
        stderr.contains("q4.gguf: SHA-256 is ") && stderr.contains("but the report was measured on "),
        "{stderr}"
    );
    for (words, message) in [
        ("f q --baseline-model f32.gguf", "--candidate-model"),
        ("f q --text t.txt", "--baseline-model"),
        (&format!("f q {models} --candidate-adapter t.txt"), "was measured without an adapter"),
        (&format!("f q {models}"), "error: --text: t.txt has "),
    ] {
        let (status, stdout, stderr) = gate(&dir, words);
        assert_eq!((status, stdout.as_str()), (2, ""), "{words}");
        // the length of chunks is no option here
        assert!(!stderr.contains("--context"), "{words}: {stderr}");
        assert!(stderr.contains(message), "{words}: {stderr}");
    }
}

#[test]
fn an_evaluation_measures_divergence_over_its_prompts() {
    let dir = workplace();
    let (status, ..) =
        run_lctl(dir.path(), &["quantize", "model", "--type", "Q4_0", "-o", "q4.gguf", "--quiet"]);
    assert_eq!(status, 0);
    assert_eq!(eval(&dir, "a", "--context 64").0, 0);
    let args = "eval q4.gguf --suite suite.yaml --context 64 --out b --baseline a --baseline-model model --markdown b/g.md";
    let (status, stdout, stderr) = run_lctl(dir.path(), &args.split(' ').collect::<Vec<_>>());
    assert!([0, 3, 4].contains(&status), "{stdout}{stderr}");
    assert!(stdout.contains("\ndivergence mean KL 0."), "{stdout}{stderr}");
    assert!(stdout.contains(" tokens of the suites' prompts\n"), "{stdout}");
    let (status, stdout, stderr) = run_lctl(dir.path(), &["replay", "b/report.json.manifest.json"]);
    assert!(status == 0 && stdout.matches("same ").count() == 4, "{stdout}{stderr}");
    // the wrong model is said before the run, few prompts after it
    let (status, _, stderr) = eval(&dir, "c", "--baseline a --baseline-model q4.gguf");
    assert!(status == 2 && stderr.contains("but the report was measured on "), "{stderr}");
    assert!(!dir.path().join("c/report.json").exists());
    assert_eq!(eval(&dir, "few", "--limit 1").0, 0);
    let (_, stdout, _) = eval(&dir, "d", "--limit 1 --baseline few --baseline-model model");
    assert!(stdout.contains("note: no divergence: the prompts fill no two chunks\n"), "{stdout}");
}
