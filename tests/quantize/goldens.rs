//! Bytes against the reference's (llama-quantize b11434), per type and per tensor.

use std::path::Path;

use lctl::quantize::Importance;
use lctl::tensor::TensorSource;
use lctl::tensor::gguf::{Gguf, Value};
use sha2::{Digest, Sha256};

use crate::common::{run_lctl, test_data};

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Quantizes and returns the file.
fn quantize(dir: &Path, model: &Path, recipe: &str, imatrix: Option<&Path>) -> Gguf {
    let model = model.to_str().unwrap();
    let mut args =
        vec!["quantize", model, "--type", recipe, "-o", "o.gguf", "--force", "--quiet", "--no-stats"];
    if let Some(path) = imatrix {
        args.extend(["--imatrix", path.to_str().unwrap()]);
    }
    let (status, _, stderr) = run_lctl(dir, &args);
    assert_eq!(status, 0, "{recipe}: {stderr}");
    Gguf::open(&dir.join("o.gguf")).unwrap()
}

/// Every entry: order, types and bytes of all tensors. The whole file too where no importance matrix
/// is involved: with one, the file says by which path it was opened, and the reference's path is its own.
fn check_probe_llama(model: &Path, data: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let golden = std::fs::read_to_string(data.join("golden/quantize/gold-llama.json")).unwrap();
    let golden: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&golden).unwrap();
    assert_eq!(golden.len(), 35);
    let imatrix = data.join("golden/quantize/probe-llama.imatrix.gguf");
    for (entry, expected) in &golden {
        let name = entry.strip_prefix("llama/").unwrap();
        let (recipe, imatrix) = match name.strip_suffix("+imatrix") {
            Some(recipe) => (recipe, Some(imatrix.as_path())),
            None => (name, None),
        };
        let file = quantize(dir.path(), model, recipe, imatrix);
        let order: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
        let expected_order: Vec<&str> =
            expected["order"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        let is_conversion = model.is_dir() && matches!(recipe, "F32" | "F16" | "BF16");
        if !is_conversion {
            assert_eq!(order, expected_order, "{entry}");
        }
        for tensor in file.tensors() {
            let expected = &expected["tensors"][&tensor.name];
            assert_eq!(tensor.dtype.name(), expected[0], "{entry} {}", tensor.name);
            assert_eq!(hex(file.bytes(tensor).unwrap()), expected[1], "{entry} {}", tensor.name);
        }
        if imatrix.is_none() && !is_conversion {
            let bytes = std::fs::read(dir.path().join("o.gguf")).unwrap();
            assert_eq!(hex(&bytes), expected["file_sha256"], "{entry}");
        }
    }
}

#[test]
fn probe_llama_gguf_gives_the_references_bytes() {
    let Some(data) = test_data() else { return };
    check_probe_llama(&data.join("golden/quantize/probe-llama-bf16.gguf"), &data);
}

#[test]
fn importance_is_recorded_with_the_references_keys() {
    let Some(data) = test_data() else { return };
    let dir = tempfile::tempdir().unwrap();
    let imatrix = data.join("golden/quantize/probe-llama.imatrix.gguf");
    let model = data.join("golden/quantize/probe-llama-bf16.gguf");
    let file = quantize(dir.path(), &model, "Q4_K_M", Some(&imatrix));
    let n_keys = file.metadata().len();
    let last: Vec<(&str, &Value)> =
        file.metadata().iter().map(|(k, v)| (k.as_str(), v)).skip(n_keys - 6).collect();
    let path = imatrix.to_str().unwrap();
    let expected = [
        ("general.quantization_version", &Value::U32(2)),
        ("general.file_type", &Value::U32(15)),
        ("quantize.imatrix.file", &Value::from(&path[..path.len().min(127)])),
        ("quantize.imatrix.dataset", &Value::from("calib.txt")),
        ("quantize.imatrix.entries_count", &Value::U32(28)),
        ("quantize.imatrix.chunks_count", &Value::U32(8)),
    ];
    assert_eq!(last, expected);
}

/// Two real files of the legacy form (sums and call counts read by hand), and the GGUF form.
#[test]
fn importance_of_real_models_is_read() {
    let Some(data) = test_data() else { return };
    let open = |name: &str| Importance::open(&data.join(name)).unwrap();
    for (name, n_entries, entry, sum, n_calls) in [
        ("adapters/imatrix/imatrix.dat", 154, "blk.21.ffn_up.weight", 27.720_335_f32, 365),
        ("adapters/imatrix/imatrix2.dat", 238, "blk.33.attn_output.weight", 74.696_57, 320),
    ] {
        let read = open(name);
        assert_eq!(read.len(), n_entries, "{name}");
        let weights = read.weights(entry, &[9, 2048]).unwrap().unwrap();
        assert_eq!((weights.len(), weights[0]), (2048, sum / n_calls as f32), "{name}");
        let keys = read.metadata();
        assert_eq!(keys["quantize.imatrix.dataset"], Value::from("imatrix-training-full-3"));
        assert_eq!(keys["quantize.imatrix.chunks_count"], Value::U32(n_calls));
    }
    let read = open("golden/quantize/probe-llama.imatrix.gguf");
    assert_eq!(read.len(), 28);
    let weights = read.weights("blk.0.attn_k.weight", &[128, 256]).unwrap().unwrap();
    assert_eq!(weights[0], 578.9837_f32 / 1024.0);
}
