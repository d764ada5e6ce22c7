//! `lctl eval --perplexity`, `--kl-base` and `--base-logits`.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::common::{run_lctl, test_data};

fn json(dir: &Path, args: &[&str]) -> Json {
    let (status, stdout, stderr) = run_lctl(dir, args);
    assert_eq!(status, 0, "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

struct Files {
    stories: String,
    text: String,
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Option<Files> {
        let data: PathBuf = test_data()?;
        let path = |name: &str| data.join(name).display().to_string();
        Some(Files {
            stories: path("models/stories260K-hf"),
            text: path("corpora/tinystories-197k.txt"),
            dir: tempfile::tempdir().unwrap(),
        })
    }

    fn eval(&self, model: &str, args: &[&str]) -> Json {
        let common = ["eval", model, "--json", "--quiet", "--threads", "2"];
        json(self.dir.path(), &[&common, args].concat())
    }

    fn quantized(&self, format: &str) -> String {
        let path = self.dir.path().join(format!("{format}.gguf")).display().to_string();
        let args = ["quantize", &self.stories, "--type", format, "-o", &path];
        let (status, _, stderr) = run_lctl(self.dir.path(), &args);
        assert_eq!(status, 0, "{stderr}");
        path
    }
}

/// llama-perplexity b11434 -c 256 --chunks 40 on stories260K's F32 GGUF: value after 1, 10, 20 and 40 chunks.
#[test]
fn perplexity_is_llama_perplexitys() {
    let Some(files) = Files::new() else { return };
    let args = ["--perplexity", &files.text, "--context", "256", "--limit", "40", "--compute", "f32"];
    let report = files.eval(&files.stories, &args);
    for (chunk, expected) in [(1, 3.7894), (10, 3.9702), (20, 4.0544), (40, 3.9376)] {
        let found = report["running"][chunk - 1].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-3, "after {chunk}: {found}, not {expected}");
    }
    let perplexity = &report["perplexity"];
    assert!((perplexity["ppl"]["uncertainty"].as_f64().unwrap() - 0.10062).abs() < 1e-4);
    assert_eq!(
        (perplexity["n_chunks"].as_u64(), perplexity["n_tokens"].as_u64()),
        (Some(40), Some(40 * 127))
    );
}

#[test]
fn a_live_base_and_saved_logits_give_the_same_report() {
    let Some(files) = Files::new() else { return };
    let q8 = files.quantized("Q8_0");
    let few = ["--context", "128", "--limit", "6"];
    let live = files.eval(&q8, &[&["--kl-base", &files.stories, "--text", &files.text], &few[..]].concat());
    let saved = files.eval(
        &files.stories,
        &[&["--perplexity", &files.text, "--save-logits", "base.logits", "--batch-tokens", "50"], &few[..]]
            .concat(),
    );
    let from_file = files.eval(&q8, &["--base-logits", "base.logits", "--batch-tokens", "100"]);
    assert_eq!(live, from_file);
    let bytes = std::fs::metadata(files.dir.path().join("base.logits")).unwrap().len();
    assert_eq!(saved["saved_logits_bytes"].as_u64(), Some(bytes));

    let divergence = &live["divergence"];
    let kld = divergence["kld"]["mean"]["value"].as_f64().unwrap();
    assert!(kld > 0.0 && kld < 0.01, "{kld}");
    assert_eq!(divergence["n_tokens"].as_u64(), Some(6 * 63));
    let ppl = saved["perplexity"]["ppl"]["value"].as_f64().unwrap();
    assert!((divergence["ppl_base"]["value"].as_f64().unwrap() / ppl - 1.0).abs() < 1e-6);
    // nothing diverges from itself
    let own = files.eval(&files.stories, &["--base-logits", "base.logits"]);
    assert_eq!(own["divergence"]["kld"]["max"].as_f64(), Some(0.0));
    assert_eq!(own["divergence"]["same_top"]["value"].as_f64(), Some(1.0));
}

#[test]
fn tables_name_every_statistic() {
    let Some(files) = Files::new() else { return };
    let few = ["--context", "64", "--limit", "2"];
    let args = ["eval", &files.stories, "--perplexity", &files.text];
    let (status, stdout, stderr) = run_lctl(files.dir.path(), &[&args, &few[..]].concat());
    assert_eq!(status, 0, "{stderr}");
    assert!(
        stdout.starts_with("PPL = ") && stdout.ends_with("62 tokens scored, 2 chunks of 64\n"),
        "{stdout}"
    );
    let args = ["eval", &files.stories, "--kl-base", &files.stories, "--text", &files.text];
    let (status, stdout, _) = run_lctl(files.dir.path(), &[&args, &few[..]].concat());
    assert_eq!(status, 0);
    for name in ["Mean PPL(Q)-PPL(base)", "99.9 % KLD", "Median Δp", "RMS Δp", "Same top p"] {
        assert!(stdout.contains(name), "{name} is not in\n{stdout}");
    }
}

#[test]
fn bad_input_is_named() {
    let Some(files) = Files::new() else { return };
    let dir = files.dir.path();
    std::fs::write(dir.join("short.txt"), "Once upon a time").unwrap();
    std::fs::write(dir.join("bytes.txt"), b"Once\xff").unwrap();
    std::fs::write(dir.join("no.logits"), "text").unwrap();
    let fails = |args: &[&str], message: &str| {
        let (status, _, stderr) = run_lctl(dir, &[&["eval", &files.stories, "--quiet"], args].concat());
        assert!(status == 2 && stderr.contains(message), "{status}: {stderr}");
    };
    fails(&["--perplexity", "short.txt", "--context", "64"], "; 2 chunks of 64 need 128");
    fails(&["--perplexity", "bytes.txt"], "bytes.txt: not UTF-8 at byte 4");
    fails(&["--perplexity", "absent.txt"], "absent.txt: cannot read");
    fails(&["--base-logits", "no.logits"], "no.logits: no file of saved logits");
    fails(
        &["--perplexity", &files.text, "--context", "3"],
        "a chunk of 3 tokens is too short: the least is 4",
    );
    fails(&["--kl-base", &files.stories], "--text");
    fails(&["--perplexity", &files.text, "--resume"], "cannot be used with");
    std::fs::create_dir(dir.join("out")).unwrap();
    std::fs::write(dir.join("out/report.json"), "{}").unwrap();
    fails(&["--perplexity", &files.text, "--out", "out"], "report.json: exists already");
}
