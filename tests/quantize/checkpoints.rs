//! From a checkpoint in the Hugging Face layout to GGUF in one step.

use std::path::Path;

use clap::Parser;
use lctl::tensor::TensorSource;
use lctl::tensor::gguf::Gguf;

use crate::common::{make_checkpoint, names_in, run_lctl};

fn make(dir: &Path) {
    let args = ["make_checkpoint", "--out", dir.to_str().unwrap(), "--shape", "demo"];
    make_checkpoint::run(make_checkpoint::Args::parse_from(args)).unwrap();
}

fn ok(dir: &Path, args: &[&str]) {
    let (status, _, stderr) = run_lctl(dir, args);
    assert_eq!(status, 0, "{args:?}: {stderr}");
}

/// One step from the checkpoint gives what conversion and then quantization give.
#[test]
fn one_step_equals_two() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(&dir.join("model"));
    ok(dir, &["quantize", "model", "-t", "BF16", "-o", "bf16.gguf"]);
    for recipe in ["Q4_K_M", "Q8_0"] {
        ok(dir, &["quantize", "model", "-t", recipe, "-o", "one.gguf", "-f"]);
        ok(dir, &["quantize", "bf16.gguf", "-t", recipe, "-o", "two.gguf", "-f"]);
        assert!(
            std::fs::read(dir.join("one.gguf")).unwrap() == std::fs::read(dir.join("two.gguf")).unwrap(),
            "{recipe}"
        );
    }
    // the file itself stands for its directory
    ok(dir, &["quantize", "model/model.safetensors", "-t", "Q8_0", "-o", "file.gguf"]);
    assert!(std::fs::read(dir.join("file.gguf")).unwrap() == std::fs::read(dir.join("two.gguf")).unwrap());
}

/// A plain conversion has the converter's order, and any choice of formats makes it a quantization.
#[test]
fn a_conversion_keeps_the_converters_order() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(&dir.join("model"));
    let order = |options: &[&str]| -> Vec<String> {
        let mut args = vec!["quantize", "model", "-t", "F16", "-o", "o.gguf", "-f"];
        args.extend(options);
        ok(dir, &args);
        let file = Gguf::open(&dir.join("o.gguf")).unwrap();
        file.tensors().iter().map(|t| t.name.clone()).take(3).collect()
    };
    assert_eq!(order(&[]), ["output.weight", "token_embd.weight", "blk.0.attn_norm.weight"]);
    let quantized = order(&["--output-tensor-type", "Q8_0"]);
    assert_eq!(quantized, ["output.weight", "output_norm.weight", "token_embd.weight"]);
}

#[test]
fn broken_checkpoints_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(&dir.join("model"));
    let quantize = ["quantize", "model", "-t", "Q8_0", "-o", "o.gguf"];
    let fails = |what: &str| {
        let (status, stdout, stderr) = run_lctl(dir, &quantize);
        assert_eq!((status, stdout.as_str()), (2, ""), "{what}: {stderr}");
        assert!(stderr.contains(what) && stderr.contains("hint: "), "{what}: {stderr}");
        assert_eq!(names_in(dir), ["model"]);
    };
    let change = |file: &str, from: &str, to: &str| {
        let path = dir.join("model").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        (path, text)
    };
    let (path, text) = change("config.json", "LlamaForCausalLM", "LambdaForCausalLM");
    fails("LambdaForCausalLM");
    std::fs::write(path, text).unwrap();
    let (path, text) = change("config.json", "\"hidden_size\": 256", "\"hidden_size\": 512");
    fails("512");
    std::fs::write(path, text).unwrap();
    let weights = dir.join("model/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    fails("model.safetensors");
    std::fs::write(&weights, &bytes).unwrap();
    std::fs::remove_file(dir.join("model/tokenizer.json")).unwrap();
    fails("tokenizer");
}
