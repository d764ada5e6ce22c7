//! Real models of the test data: whole conversions, and tables against names and keys published elsewhere.

use std::collections::BTreeSet;
use std::path::Path;

use lctl::model::{
    Checkpoint, ModelConfig, expected_checkpoint_tensors, expected_tensors, map_checkpoint,
    targets_from_names,
};
use lctl::tensor::format::by_name;
use lctl::tensor::gguf::{Array, Gguf, Metadata, Value};
use lctl::tensor::{Dtype, TensorSource};
use serde_json::Value as Json;

use super::{bytes_of, check_tensors, read_json, test_data, tokenizer_keys};

#[test]
fn probe_llama_is_the_reference_conversion() {
    let Some(data) = test_data() else { return };
    let golden = read_json(&data.join("golden/quantize/convert-llama-bf16.json"));
    let checkpoint = Checkpoint::open(&data.join("models/probe-llama")).unwrap();
    let bf16 = by_name("BF16").unwrap();
    let mapped = map_checkpoint(&checkpoint, bf16).unwrap();
    check_tensors("probe-llama", &mapped, checkpoint.source.as_ref(), bf16, &golden);
    assert_same_file(&checkpoint, bf16, &data.join("golden/quantize/probe-llama-bf16.gguf"));
}

#[test]
fn trained_models_are_the_reference_conversion() {
    let Some(data) = test_data() else { return };
    for name in ["stories260K-hf", "llama2xs-hf"] {
        let dir = data.join("models").join(name);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        assert_same_file(&checkpoint, by_name("F32").unwrap(), &dir.join(format!("{name}-f32.gguf")));
    }
}

/// Checks every key (tokenizer included) and every tensor against a GGUF, in order.
fn assert_same_file(checkpoint: &Checkpoint, float: Dtype, gguf: &Path) {
    let gguf = Gguf::open(gguf).unwrap();
    let mut mapped = map_checkpoint(checkpoint, float).unwrap();
    let vocab = tokenizer_keys(checkpoint, &mapped);
    mapped.metadata.extend(vocab);
    let keys: Vec<_> = mapped.metadata.iter().collect();
    let expected: Vec<_> = gguf.metadata().iter().collect();
    assert_eq!(keys, expected);
    assert_eq!(mapped.tensors.len(), gguf.tensors().len());
    for (tensor, info) in mapped.tensors.iter().zip(gguf.tensors()) {
        assert_eq!((&tensor.name, &tensor.shape), (&info.name, &info.shape));
        let dtype = tensor.fixed_dtype.unwrap_or(float);
        assert_eq!(dtype, info.dtype, "{}", info.name);
        let bytes = bytes_of(tensor, checkpoint.source.as_ref(), dtype, 100);
        assert!(bytes == gguf.bytes(info).unwrap(), "{}", info.name);
    }
}

/// Names and shapes of the tensors that config.json implies, as a checkpoint has them and as a GGUF has them.
#[test]
fn published_indexes_hold_what_their_configs_imply() {
    let Some(data) = test_data() else { return };
    let mut checked = 0;
    for entry in std::fs::read_dir(data.join("configs/hf")).unwrap() {
        let dir = entry.unwrap().path();
        let path = dir.join("config.json");
        let json = read_json(&path);
        let config = ModelConfig::from_hf(&json, &path).unwrap();
        let index = read_json(&dir.join("model.safetensors.index.json"));
        let names: BTreeSet<String> = index["weight_map"]
            .as_object()
            .unwrap()
            .keys()
            .filter(|name| !name.starts_with("vision_tower.") && !name.starts_with("multi_modal_projector."))
            .map(|name| name.replace("language_model.", ""))
            .collect();
        let implied = expected_checkpoint_tensors(&config).unwrap();
        let implied_names: BTreeSet<String> = implied.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(implied_names, names, "{}", path.display());

        let mut targets = targets_from_names(&json, &path, &implied).unwrap();
        let mut expected = expected_tensors(&config).unwrap();
        targets.sort();
        expected.sort();
        assert_eq!(targets, expected, "{}", path.display());
        checked += 1;
    }
    assert!(checked >= 6);
}

#[test]
fn known_configs_are_read_and_others_named() {
    let Some(data) = test_data() else { return };
    let read = |name: &str| {
        let path = data.join("configs/real").join(format!("{name}_config.json"));
        ModelConfig::from_hf(&read_json(&path), &path)
    };
    let llama = read("meta-llama--Meta-Llama-3.1-70B").unwrap();
    assert_eq!((llama.n_layers, llama.n_heads, llama.n_kv_heads, llama.head_dim), (80, 64, 8, 128));
    let mixtral = read("mistralai--Mixtral-8x7B-v0.1").unwrap();
    assert_eq!(mixtral.experts.map(|experts| (experts.n, experts.n_used, experts.d_ff)), Some((8, 2, 14336)));
    let qwen = read("Qwen--Qwen3-30B-A3B").unwrap();
    assert_eq!(qwen.experts.map(|experts| (experts.n, experts.n_used, experts.d_ff)), Some((128, 8, 768)));
    assert_eq!((qwen.rope.theta, qwen.sliding_window), (1e6, None));
    for name in ["Qwen--Qwen3-0.6B", "Qwen--Qwen3-8B", "meta-llama--Meta-Llama-3.1-8B"] {
        read(name).unwrap();
    }
    for name in
        ["deepseek-ai--DeepSeek-V3", "openai--gpt-oss-20b", "google--gemma-4-26B-A4B", "Qwen--Qwen3.5-27B"]
    {
        let message = read(name).unwrap_err().to_string();
        assert!(message.contains("unknown architecture"), "{message}");
    }
}

/// Another converter's keys and names of real models: keys as JSON text, tensors as names.
#[test]
fn other_converters_agree_on_names_and_keys() {
    let Some(data) = test_data() else { return };
    let mut checked = 0;
    for entry in std::fs::read_dir(data.join("configs/ollama-convert-sha256")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ext| ext != "json") {
            continue;
        }
        let json = read_json(&path);
        let entries = json.as_object().unwrap();
        let names: BTreeSet<&str> =
            entries.keys().filter(|key| is_tensor_name(key)).map(String::as_str).collect();
        let mut keys: Metadata = entries
            .iter()
            .filter(|(key, _)| !is_tensor_name(key))
            .map(|(key, value)| (key.clone(), guess(key, value)))
            .collect();
        keys.insert("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::String(vec![String::new(); 32])));
        let config = ModelConfig::from_gguf(&keys, names.contains("output.weight"), &path).unwrap();
        let expected = expected_tensors(&config).unwrap();
        let expected: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        // rope factors are computed from the config, and so are not implied by it alone
        let names: BTreeSet<&str> =
            names.into_iter().filter(|name| !name.starts_with("rope_factors_")).collect();
        assert_eq!(expected, names, "{}", path.display());
        checked += 1;
    }
    assert_eq!(checked, 5);
}

fn is_tensor_name(key: &str) -> bool {
    key.ends_with(".weight") || key.ends_with(".bias")
}

fn guess(key: &str, value: &Json) -> Value {
    let text = value.as_str().unwrap();
    match (text.parse::<u32>(), text.parse::<f32>()) {
        (Ok(int), _) if !key.ends_with("freq_base") => Value::U32(int),
        (_, Ok(float)) => Value::F32(float),
        _ => Value::String(text.to_owned()),
    }
}
