//! What the decoder refuses.

use std::path::Path;

use lctl::error::Diagnostic;
use lctl::kernel::ComputeMode;
use lctl::model::{Decoder, Error, LoadOptions, ModelConfig, Segment, Wanted};
use lctl::tensor::format::by_name;
use serde_json::{Value, json};

use super::{BUDGET, Golden, golden_dir, open, options, write_gguf};

fn with(name: &str, changes: &[(&str, Value)]) -> Result<ModelConfig, Error> {
    let text = std::fs::read(golden_dir().join(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    ModelConfig::from_hf(&config, Path::new("config.json"))
}

#[test]
fn odd_numbers_in_a_config_are_refused_by_name() {
    let theta = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
    let cases: &[(&str, &str, Value)] = &[
        ("llama", "hidden_act", json!("relu")),
        ("llama", "hidden_act", json!(7)),
        ("llama", "hidden_act", json!("gelu")),
        ("gemma2", "hidden_activation", json!("gelu")),
        ("llama", "rms_norm_eps", json!(0)),
        ("llama", "rms_norm_eps", json!(-1e-6)),
        ("llama", "rope_parameters", theta(0.0)),
        ("llama", "rope_parameters", theta(-5.0)),
        (
            "llama-linear-biased",
            "rope_parameters",
            json!({"rope_type": "linear", "rope_theta": 1e4, "factor": 0}),
        ),
        ("qwen3-layer-types", "layer_types", json!(["full_attention"])),
        ("qwen3-layer-types", "layer_types", json!(["full_attention", "chunked_attention"])),
        ("gemma2", "query_pre_attn_scalar", json!(-4)),
        ("gemma2", "use_bidirectional_attention", json!(true)),
        ("mixtral", "num_experts_per_tok", json!(5)),
        ("qwen3moe", "mlp_only_layers", json!([0])),
        ("qwen3moe", "decoder_sparse_step", json!(2)),
    ];
    for (name, key, value) in cases {
        let error = with(name, &[(key, value.clone())]).expect_err(&format!("{name}: {key} = {value}"));
        assert!(matches!(error, Error::BadValue { .. }), "{error:?}");
        assert!(error.hint().is_some());
        let named = key.trim_end_matches("_parameters");
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn gemma_s_first_configs_mean_the_tanh_form_by_gelu() {
    let changed = with("gemma", &[("hidden_act", json!("gelu"))]).unwrap();
    assert_eq!(changed, with("gemma", &[]).unwrap());
    assert_eq!(with("llama", &[("hidden_act", json!("swish"))]).unwrap(), with("llama", &[]).unwrap());
}

#[test]
fn a_rope_scaling_nobody_computes_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = golden_dir().join("llama");
    std::fs::copy(dir.join("model.safetensors"), tmp.path().join("model.safetensors")).unwrap();
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["rope_parameters"] = json!({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0});
    std::fs::write(tmp.path().join("config.json"), config.to_string()).unwrap();
    let error = Decoder::open(tmp.path(), &options(ComputeMode::F32, 1)).err().unwrap();
    assert!(error.to_string().ends_with("rope scaling `dynamic` is not one the decoder knows"), "{error}");
    assert_eq!(error.hint().unwrap(), "known: default, linear, llama3, yarn, longrope");
}

#[test]
fn what_does_not_fit_leaves_the_cache_as_it_was() {
    let golden = Golden::read("llama");
    let dir = golden_dir().join("llama");
    let options = LoadOptions { context: Some(20), ..options(ComputeMode::F32, 1) };
    let model = Decoder::open(&dir, &options).unwrap();
    let mut cache = model.new_cache(BUDGET);
    let (first, second) = (cache.create(), cache.create());
    let segment = |sequence, tokens| Segment { sequence, tokens, wanted: Wanted::Last };
    let fits = segment(first, &golden.tokens[..4]);
    let error = model.forward(&mut cache, &[fits, segment(second, &golden.tokens[..21])]).unwrap_err();
    assert_eq!(error.to_string(), "a sequence of 21 tokens is longer than the context of 20");
    assert!(error.hint().is_some());
    let error = model.forward(&mut cache, &[fits, segment(second, &[3, 64])]).unwrap_err();
    assert_eq!(error.to_string(), "token 64 is outside the vocabulary of 64");
    assert_eq!((cache.len(first), cache.len(second), cache.bytes_used()), (0, 0, 0));
    model.forward(&mut cache, &[fits]).unwrap();

    let mut small = model.new_cache(cache.shape().page_bytes());
    let (first, second) = (small.create(), small.create());
    let both = [segment(first, &golden.tokens[..4]), segment(second, &golden.tokens[..4])];
    let error = model.forward(&mut small, &both).unwrap_err();
    assert!(matches!(error, Error::Cache(_)) && error.hint().is_some(), "{error}");
    assert_eq!(small.bytes_used(), 0);
}

#[test]
fn weights_without_a_config_are_refused() {
    let path = golden_dir().join("llama/model.safetensors");
    let error = Decoder::open(&path, &options(ComputeMode::F32, 1)).err().unwrap();
    assert!(matches!(error, Error::NoConfig { .. }), "{error}");
    assert!(open(&golden_dir().join("llama")).context_length() == 64);
    // a directory of a GGUF may hold a config.json too
    let tmp = tempfile::tempdir().unwrap();
    std::fs::copy(golden_dir().join("llama/config.json"), tmp.path().join("config.json")).unwrap();
    write_gguf(&golden_dir().join("llama"), by_name("F32").unwrap(), &tmp.path().join("llama.gguf"));
    assert!(open(tmp.path()).context_length() == 64);
}
