//! Adapters against PEFT, goldens of tests/scripts/make_adapter_goldens.py; and those that don't fit.

use std::path::{Path, PathBuf};

use lctl::error::Diagnostic;
use lctl::kernel::ComputeMode;
use lctl::model::{Decoder, Error, LoadOptions};
use lctl::tensor::TensorSource;
use lctl::tensor::format::by_name;
use lctl::tensor::safetensors::SafeTensors;
use serde_json::{Value, json};

use super::{Golden, TOLERANCE, all_logits, difference, golden_dir, open, options, write_gguf};

fn adapter_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapter")
}

fn open_with(model: &Path, adapter: &Path) -> Result<Decoder, Error> {
    let adapter = Some(adapter.to_path_buf());
    Decoder::open(model, &LoadOptions { adapter, ..options(ComputeMode::F32, 1) })
}

/// Returns the base model's name and PEFT's logits.
fn golden(name: &str) -> (String, Vec<f32>) {
    let file = SafeTensors::open_file(&adapter_dir().join(format!("{name}.safetensors"))).unwrap();
    let bytes = file.bytes(file.find("logits").unwrap()).unwrap();
    let logits = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (file.metadata(0)["base"].clone(), logits)
}

#[test]
fn adapters_compute_what_peft_computes() {
    let tmp = tempfile::tempdir().unwrap();
    for name in ["llama", "llama-patterns", "qwen3-rslora", "phi3"] {
        let (base, expected) = golden(name);
        let tokens = Golden::read(&base).tokens;
        let dir = golden_dir().join(&base);
        let plain = all_logits(&open(&dir), &tokens);
        assert!(difference(&plain, &expected) > 0.05, "{name}: the adapter changes nothing");
        let gguf = tmp.path().join(format!("{base}.gguf"));
        write_gguf(&dir, by_name("F32").unwrap(), &gguf);
        let mut adapters = vec![adapter_dir().join(name)];
        adapters.extend(Some(adapter_dir().join(format!("{name}.gguf"))).filter(|path| path.is_file()));
        let adapted = all_logits(&open_with(&dir, &adapters[0]).unwrap(), &tokens);
        let found = difference(&adapted, &expected);
        println!("{name}: {found:.1e}, {} forms", adapters.len());
        assert!(found <= TOLERANCE, "{name}: {found}");
        for adapter in &adapters {
            for model in [&dir, &gguf] {
                let same = all_logits(&open_with(model, adapter).unwrap(), &tokens);
                assert!(same == adapted, "{} on {}", adapter.display(), model.display());
            }
        }
    }
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let on = |base: &str, adapter: &str| {
        let error = open_with(&golden_dir().join(base), &adapter_dir().join(adapter)).err();
        let error = error.unwrap_or_else(|| panic!("{adapter} on {base}"));
        assert!(error.hint().is_some(), "{error}");
        error
    };
    assert!(matches!(on("phi3", "llama"), Error::AdapterTarget { .. }));
    assert!(matches!(on("mixtral", "llama"), Error::AdapterTarget { .. }));
    assert!(matches!(on("phi3", "llama.gguf"), Error::AdapterArch { .. }));
    assert!(matches!(on("mistral-nemo", "llama.gguf"), Error::AdapterShape { .. }));
    let error = on("mistral-nemo", "llama").to_string();
    assert!(error.contains("has shape [16, 4], but") && error.ends_with("imply [32, 4]"), "{error}");
    // a model is no adapter
    assert!(matches!(on("llama", "../decoder/llama/model.safetensors"), Error::MissingKey { .. }));
}

#[test]
fn settings_that_are_not_applied_are_refused_by_name() {
    let from = adapter_dir().join("llama");
    let text = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let original: Value = serde_json::from_str(&text).unwrap();
    let changes = [
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("peft_type", json!("IA3")),
        ("r", json!(0)),
        ("r", json!("four")),
        ("lora_alpha", Value::Null),
        ("rank_pattern", json!({"(": 2})),
    ];
    for (key, value) in changes {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::copy(from.join("adapter_model.safetensors"), tmp.path().join("adapter_model.safetensors"))
            .unwrap();
        let mut config = original.clone();
        config[key] = value.clone();
        std::fs::write(tmp.path().join("adapter_config.json"), config.to_string()).unwrap();
        let error = open_with(&golden_dir().join("llama"), tmp.path()).err();
        let error = error.unwrap_or_else(|| panic!("{key} = {value}"));
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
    }
    // the rank in the config is not that of the tensors
    let tmp = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("adapter_model.safetensors"), tmp.path().join("adapter_model.safetensors"))
        .unwrap();
    let mut config = original;
    config["r"] = json!(5);
    std::fs::write(tmp.path().join("adapter_config.json"), config.to_string()).unwrap();
    let error = open_with(&golden_dir().join("llama"), tmp.path()).err().unwrap();
    assert!(matches!(error, Error::AdapterShape { .. }), "{error}");
}
