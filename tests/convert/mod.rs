//! Checkpoints against what the reference converter makes of them: keys, order, tensor bytes.

mod faults;
mod inverse;
mod real;

use std::path::{Path, PathBuf};

use lctl::kernel::Isa;
use lctl::model::{
    Attention, Checkpoint, Mapped, ModelConfig, RopeScaling, TargetTensor, expected_tensors, map_checkpoint,
};
use lctl::tensor::format::by_name;
use lctl::tensor::gguf::{Array, Metadata, Value};
use lctl::tensor::{Dtype, TensorSource};
use lctl::text::{VocabRequest, gguf_vocab};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

/// Returns the folder of real test data, or says that the test is skipped.
fn test_data() -> Option<PathBuf> {
    let dir = std::env::var_os("LCTL_TEST_DATA").map(PathBuf::from);
    if dir.is_none() {
        println!("skipped: LCTL_TEST_DATA is not set");
    }
    dir
}

fn read_json(path: &Path) -> Json {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the tensor's bytes in `dtype`, read in slabs of `slab` rows.
fn bytes_of(tensor: &TargetTensor, source: &dyn TensorSource, dtype: Dtype, slab: usize) -> Vec<u8> {
    let row_len = *tensor.shape.last().expect("no tensor is a scalar");
    let n_rows: usize = tensor.shape.iter().rev().skip(1).product();
    let mut out = Vec::new();
    let mut scratch = Vec::new();
    for start in (0..n_rows).step_by(slab) {
        let rows = start..(start + slab).min(n_rows);
        let mut values = vec![f32::NAN; rows.len() * row_len];
        tensor.rows.read(source, Isa::detect(), rows.clone(), &mut scratch, &mut values).unwrap();
        let mut bytes = vec![0; values.len() / dtype.block_len() * dtype.block_bytes()];
        dtype.encode(Isa::detect(), &values, row_len, None, &mut bytes);
        if dtype == tensor.source_dtype {
            // a copy of the stored bytes must be what reading and writing gives
            let mut stored = vec![0; bytes.len()];
            if tensor.rows.read_stored(source, rows, &mut stored).unwrap() {
                assert!(stored == bytes, "{}: stored bytes differ", tensor.name);
            }
        }
        out.extend(bytes);
    }
    out
}

fn hex_sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks order, type, shape (innermost first, as the golden has it) and SHA-256 of every tensor.
fn check_tensors(name: &str, mapped: &Mapped, source: &dyn TensorSource, float: Dtype, golden: &Json) {
    let order: Vec<&str> = mapped.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let expected: Vec<&str> =
        golden["order"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(order, expected, "{name}: order of tensors");
    for (i, tensor) in mapped.tensors.iter().enumerate() {
        let dtype = tensor.fixed_dtype.unwrap_or(float);
        let shape: Vec<usize> = tensor.shape.iter().rev().copied().collect();
        // odd slabs cut heads and experts apart
        let sha = hex_sha256(&bytes_of(tensor, source, dtype, [1, 3, 7, 1000][i % 4]));
        let found = serde_json::json!([dtype.name(), shape, sha]);
        assert_eq!(found, golden["tensors"][&tensor.name], "{name}: {}", tensor.name);
    }
}

fn golden_dir() -> PathBuf {
    crate::common::root().join("tests/golden/convert")
}

/// Returns the names of all tiny checkpoints.
fn tiny_names() -> Vec<String> {
    let entries = std::fs::read_dir(golden_dir()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = entries
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 20, "found {} goldens only", names.len());
    names
}

/// Returns a key as the goldens have it: type names and value; a long array as the SHA-256 of its text.
fn golden_form(value: &Value) -> Json {
    let scalar = |name: &str, value: Json| json!([[name], value]);
    match value {
        Value::U32(v) => scalar("UINT32", json!(v)),
        Value::I32(v) => scalar("INT32", json!(v)),
        Value::F32(v) => scalar("FLOAT32", json!(v.to_bits())),
        Value::Bool(v) => scalar("BOOL", json!(v)),
        Value::String(v) => scalar("STRING", json!(v)),
        Value::Array(Array::String(list)) => golden_list("STRING", list.iter().map(|v| json!(v)).collect()),
        Value::Array(Array::I32(list)) => golden_list("INT32", list.iter().map(|v| json!(v)).collect()),
        Value::Array(Array::F32(list)) => {
            golden_list("FLOAT32", list.iter().map(|v| json!(v.to_bits())).collect())
        }
        other => panic!("the reference writes no such value: {other:?}"),
    }
}

fn golden_list(name: &str, items: Vec<Json>) -> Json {
    if items.len() <= 16 {
        return json!([["ARRAY", name], items]);
    }
    let mut text = String::new();
    for item in items {
        let item = item.as_str().map_or_else(|| item.to_string(), str::to_owned);
        text.push_str(&format!("{}:{item}", item.len()));
    }
    json!([["ARRAY", name], format!("sha256:{}", hex_sha256(text.as_bytes()))])
}

/// Returns a golden's key with floats as their bits: JSON has many spellings of a number.
fn with_float_bits(golden: &Json) -> Json {
    let is_float = golden[0].as_array().is_some_and(|types| types.contains(&json!("FLOAT32")));
    let bits = |value: &Json| value.as_f64().map_or_else(|| value.clone(), |v| json!((v as f32).to_bits()));
    match &golden[1] {
        _ if !is_float => golden.clone(),
        Json::Array(items) => json!([golden[0], items.iter().map(bits).collect::<Vec<_>>()]),
        value => json!([golden[0], bits(value)]),
    }
}

/// Checks the keys: which, in what order, of what type and value.
fn check_keys<'a>(
    name: &str,
    found: impl Iterator<Item = (&'a String, &'a Value)>,
    golden: Vec<(&String, &Json)>,
) {
    let found: Vec<_> = found.map(|(key, value)| (key, golden_form(value))).collect();
    let keys: Vec<_> = found.iter().map(|(key, _)| *key).collect();
    let expected: Vec<_> = golden.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, expected, "{name}: keys");
    for ((key, found), (_, expected)) in found.iter().zip(&golden) {
        assert_eq!(*found, with_float_bits(expected), "{name}: {key}");
    }
}

fn is_tokenizer_key(key: &str) -> bool {
    key.starts_with("tokenizer.")
}

/// Returns the tokenizer's keys of a checkpoint that becomes `mapped`.
fn tokenizer_keys(checkpoint: &Checkpoint, mapped: &Mapped) -> Metadata {
    let embedding = mapped.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
    let request = VocabRequest {
        dir: &checkpoint.dir,
        config: &checkpoint.config,
        arch: &mapped.arch,
        vocab_size: Some(checkpoint.model_config().unwrap().vocab_size),
        embedding_rows: embedding.map(|tensor| tensor.shape[0]),
        pre: None,
    };
    gguf_vocab(&request).unwrap_or_else(|error| panic!("{}: {error}", checkpoint.dir.display())).metadata
}

#[test]
fn every_tokenizer_is_the_reference_conversion() {
    let mut failures = Vec::new();
    for name in tiny_names() {
        let golden = &read_json(&golden_dir().join(format!("{name}.json")))["bf16"];
        let check = || {
            let checkpoint = Checkpoint::open(&golden_dir().join(&name)).unwrap();
            let mapped = map_checkpoint(&checkpoint, by_name("BF16").unwrap()).unwrap();
            let kv = golden["kv"].as_object().unwrap().iter();
            let keys = tokenizer_keys(&checkpoint, &mapped);
            check_keys(&name, keys.iter(), kv.filter(|(key, _)| is_tokenizer_key(key)).collect());
        };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err() {
            failures.push(name);
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn every_architecture_is_the_reference_conversion() {
    let mut failures = Vec::new();
    for name in tiny_names() {
        let golden = read_json(&golden_dir().join(format!("{name}.json")));
        let checkpoint = Checkpoint::open(&golden_dir().join(&name)).unwrap();
        for (outtype, golden) in golden.as_object().unwrap() {
            let float = by_name(outtype).unwrap();
            let check = || {
                let mapped =
                    map_checkpoint(&checkpoint, float).unwrap_or_else(|error| panic!("{name}: {error}"));
                let kv = golden["kv"].as_object().unwrap().iter();
                check_keys(
                    &name,
                    mapped.metadata.iter(),
                    kv.filter(|(key, _)| !is_tokenizer_key(key)).collect(),
                );
                check_tensors(&name, &mapped, checkpoint.source.as_ref(), float, golden);
            };
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err() {
                failures.push(format!("{name} {outtype}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn config_json_and_gguf_keys_give_one_config() {
    for name in tiny_names() {
        let checkpoint = Checkpoint::open(&golden_dir().join(&name)).unwrap();
        let mapped = map_checkpoint(&checkpoint, by_name("BF16").unwrap()).unwrap();
        let mut from_hf = checkpoint.model_config().unwrap();
        let mut keys = mapped.metadata.clone();
        if !keys.contains_key(&format!("{}.vocab_size", mapped.arch)) {
            // stands in for the tokenizer's list, of which only the length counts
            let tokens = vec![String::new(); from_hf.vocab_size];
            keys.insert("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::String(tokens)));
        }
        let has_output = mapped.tensors.iter().any(|tensor| tensor.name == "output.weight");
        let from_gguf = ModelConfig::from_gguf(&keys, has_output, Path::new("test.gguf")).unwrap();
        // what GGUF has no key for: factors lie in tensors, the rest is as llama.cpp assumes it
        match &mut from_hf.rope.scaling {
            scaling @ RopeScaling::Factors(_) => *scaling = RopeScaling::None,
            RopeScaling::LongRope(long) => (long.short, long.long) = (Vec::new(), Vec::new()),
            _ => {}
        }
        from_hf.attn_scale = from_gguf.attn_scale;
        if mapped.arch == "llama" {
            from_hf.sliding_window = None;
            from_hf.attention.fill(Attention::Full);
        }
        if let Some(experts) = &mut from_hf.experts {
            experts.renormalize = true;
        }
        assert_eq!(from_hf, from_gguf, "{name}");
        let expected = expected_tensors(&from_hf).unwrap();
        for (tensor, shape) in &expected {
            let found = mapped.tensors.iter().find(|found| found.name == *tensor);
            let found = found.unwrap_or_else(|| panic!("{name}: {tensor} is not there"));
            if tensor != "token_embd.weight" {
                assert_eq!(found.shape, *shape, "{name}: {tensor}");
            }
        }
    }
}
