//! Whole files against llama-quantize's: tests/golden/quantize_files.json, made by tests/scripts/quantize_goldens.py.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::model::Model;
use crate::common::{run_lctl, test_data};

/// Models whose bytes follow from this code alone, by the name the goldens call them.
fn made_models() -> [(&'static str, Model); 4] {
    let base = Model::default;
    [
        ("dense", Model { n_layers: 9, d_model: 256, d_ff: 512, ..base() }),
        ("odd", Model { n_layers: 3, d_model: 96, d_ff: 160, dtype: "F32", tied: true, ..base() }),
        ("moe8", Model { n_experts: 8, d_ff: 256, dtype: "BF16", ..base() }),
        ("moe3", Model { n_experts: 3, d_ff: 256, ..base() }),
    ]
}

/// Writes every made model and its importance matrix to `dir`.
fn write_models(dir: &Path) {
    for (name, model) in made_models() {
        model.write(dir, &format!("{name}.gguf"));
        model.write_importance(dir, &format!("{name}.dat"));
    }
}

/// For the script: `LCTL_MODELS=DIR cargo test -- --ignored write_models_for_the_reference`.
#[test]
#[ignore = "writes the input of tests/scripts/quantize_goldens.py"]
fn write_models_for_the_reference() {
    write_models(&PathBuf::from(std::env::var_os("LCTL_MODELS").expect("LCTL_MODELS names a directory")));
}

/// Returns command line -> SHA-256 of the reference's output, in one section of the goldens.
fn goldens(section: &str) -> BTreeMap<String, String> {
    let path = crate::common::root().join("tests/golden/quantize_files.json");
    let text = std::fs::read_to_string(path).unwrap();
    let mut all: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&text).unwrap();
    all.remove(section).unwrap()
}

/// Runs `lctl quantize` with each command line (model, type, options) in `dir` and compares digests.
fn check(dir: &Path, section: &str, model_of: impl Fn(&str) -> String) {
    let out = tempfile::tempdir().unwrap();
    let output = out.path().join("o.gguf");
    let goldens = goldens(section);
    assert!(goldens.len() > 5, "{section}");
    for (line, expected) in goldens {
        let words: Vec<&str> = line.split(' ').collect();
        let model = model_of(words[0]);
        let mut args = vec!["quantize", &model, "--type", words[1], "-o", output.to_str().unwrap()];
        args.extend(["--force", "--quiet", "--no-stats"]);
        args.extend(&words[2..]);
        let (status, _, stderr) = run_lctl(dir, &args);
        assert_eq!(status, 0, "{line}: {stderr}");
        let digest = Sha256::digest(std::fs::read(&output).unwrap());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, expected, "{line}");
    }
}

#[test]
fn made_models_give_the_references_files() {
    let dir = tempfile::tempdir().unwrap();
    write_models(dir.path());
    check(dir.path(), "made", str::to_owned);
}

/// Rows of 64 and 172 columns: every type falls back. The reference quantized its own F32 conversion.
#[test]
fn real_checkpoints_give_the_references_files() {
    let Some(data) = test_data() else { return };
    check(&data.join("models"), "checkpoints", str::to_owned);
}

/// The same weights stored as F16 and as F32, cast by us, quantized by both.
#[test]
fn casts_give_the_references_files() {
    let Some(data) = test_data() else { return };
    let casts = tempfile::tempdir().unwrap();
    let source = data.join("golden/quantize/probe-llama-bf16.gguf");
    for recipe in ["F16", "F32"] {
        let output = casts.path().join(format!("probe-llama-{recipe}.gguf"));
        let args =
            ["quantize", source.to_str().unwrap(), "-t", recipe, "-o", output.to_str().unwrap(), "--quiet"];
        assert_eq!(run_lctl(casts.path(), &args).0, 0);
    }
    check(&data.join("golden/quantize"), "casts", |name| {
        casts.path().join(name).to_str().unwrap().to_owned()
    });
}
