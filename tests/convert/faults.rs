//! Checkpoints that are no models we read: each a typed error with names and numbers, and a hint.

use std::path::Path;

use lctl::error::Diagnostic;
use lctl::model::{
    Checkpoint, Error, ModelConfig, expected_checkpoint_tensors, expected_tensors, map_checkpoint,
    targets_from_names,
};
use lctl::tensor::format::by_name;
use serde_json::{Value as Json, json};

use super::{golden_dir, read_json};

/// Maps a tiny checkpoint whose config.json `edit` has changed.
fn map_with(name: &str, edit: impl FnOnce(&mut Json)) -> Result<Vec<String>, Error> {
    let tmp = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden_dir().join(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, tmp.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = tmp.path().join("config.json");
    let mut config = read_json(&path);
    edit(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    map_dir(tmp.path())
}

fn map_dir(dir: &Path) -> Result<Vec<String>, Error> {
    let mapped = map_checkpoint(&Checkpoint::open(dir)?, by_name("F16").unwrap())?;
    Ok(mapped.tensors.into_iter().map(|tensor| tensor.name).collect())
}

/// Checks that the error's message and hint hold `parts`.
fn assert_says(error: &Error, parts: &[&str]) {
    let text = format!("{error} {}", error.hint().unwrap_or_default());
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

const LLAMA: &str = "Tiny-Llama-2-7b-chat-hf";

#[test]
fn unknown_architectures_are_answered_with_the_nearest() {
    let error = map_with(LLAMA, |config| config["architectures"] = json!(["LlamaForCasualLM"])).unwrap_err();
    assert!(matches!(error, Error::UnknownArchitecture { .. }));
    assert_says(&error, &["`LlamaForCasualLM`", "did you mean `LlamaForCausalLM`"]);
    let error = map_with(LLAMA, |config| config["architectures"] = json!(["Xyz"])).unwrap_err();
    assert_says(&error, &["`Xyz`", "known:", "Qwen3MoeForCausalLM", "Phi3ForCausalLM"]);
    let error = map_with(LLAMA, |config| config["architectures"] = json!([])).unwrap_err();
    assert!(matches!(error, Error::MissingKey { .. }));
}

#[test]
fn layers_beyond_or_short_of_the_config_are_named() {
    let error = map_with(LLAMA, |config| config["num_hidden_layers"] = json!(3)).unwrap_err();
    assert_says(&error, &["`model.layers.2.input_layernorm.weight` is missing"]);
    let error = map_with(LLAMA, |config| config["num_hidden_layers"] = json!(1)).unwrap_err();
    assert_says(&error, &["model.layers.1.", "names layer 1", "has 1"]);
}

#[test]
fn numbers_beyond_f32_do_not_become_infinite_keys() {
    for key in ["rms_norm_eps", "rope_theta"] {
        let error = map_with(LLAMA, |config| {
            config["rope_parameters"] = Json::Null;
            config[key] = json!(1e39);
        })
        .unwrap_err();
        assert!(matches!(error, Error::BadValue { .. }), "{error}");
        assert_says(&error, &[key, "1e+39", "a number that an f32 holds", "config.json"]);
    }
}

#[test]
fn shapes_against_the_config_show_both() {
    let error = map_with(LLAMA, |config| config["intermediate_size"] = json!(128)).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }));
    assert_says(&error, &["mlp", "64", "128"]);
    let error = map_with(LLAMA, |config| config["vocab_size"] = json!(353)).unwrap_err();
    assert_says(&error, &["[352, 32]", "[353, 32]"]);
    let error = map_with(LLAMA, |config| config["num_key_value_heads"] = json!(3)).unwrap_err();
    assert_says(&error, &["`num_key_value_heads` is 3", "divisor"]);
    let error = map_with(LLAMA, |config| config["hidden_size"] = json!("32")).unwrap_err();
    assert_says(&error, &["`hidden_size`", "\"32\"", "an integer"]);
}

#[test]
fn caps_that_the_gguf_cannot_say_are_an_error() {
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        let error = map_with("gemma-2-2b-it", |config| config[key] = json!(null)).unwrap_err();
        assert_says(&error, &[key, "is null", "above 0"]);
        let error = map_with("gemma-2-2b-it", |config| config[key] = json!(0.0)).unwrap_err();
        assert_says(&error, &[key, "is 0.0", "above 0"]);
    }
    let error = map_with("gemma3", |config| config["attn_logit_softcapping"] = json!(50.0)).unwrap_err();
    assert_says(&error, &["`attn_logit_softcapping` is 50.0", "no key"]);
    assert!(map_with("gemma3", |config| config["final_logit_softcapping"] = json!(30.0)).is_ok());
}

#[test]
fn quantized_checkpoints_are_refused_by_method() {
    for method in ["gptq", "awq", "bitsandbytes"] {
        let section = json!({ "quant_method": method, "bits": 4 });
        let error = map_with(LLAMA, |config| config["quantization_config"] = section).unwrap_err();
        assert_says(&error, &[method, "already quantized", "original checkpoint"]);
    }
    let section = json!({ "bits": 4, "group_size": 64 });
    let error = map_with(LLAMA, |config| config["quantization"] = section).unwrap_err();
    assert_says(&error, &["MLX, 4 bits"]);
}

#[test]
fn tied_or_not_is_what_config_json_says() {
    let error = map_with("qwen2", |config| config["tie_word_embeddings"] = json!(false)).unwrap_err();
    assert_says(&error, &["`lm_head.weight` is missing", "tie_word_embeddings"]);
    // tied, and an output matrix nevertheless: it is kept, as the reference does
    let names = map_with(LLAMA, |config| config["tie_word_embeddings"] = json!(true)).unwrap();
    assert!(names.iter().any(|name| name == "output.weight"));
}

#[test]
fn experts_have_to_be_all_there() {
    let name = "Mixtral-8x7B-Instruct-v0.1";
    let error = map_with(name, |config| config["num_local_experts"] = json!(5)).unwrap_err();
    assert_says(&error, &["`model.layers.0.block_sparse_moe.experts.4.w1.weight` is missing"]);
    let error = map_with(name, |config| config["num_local_experts"] = json!(3)).unwrap_err();
    assert_says(&error, &["names expert 3", "has 3"]);
    let error = map_with(LLAMA, |config| {
        config["num_local_experts"] = json!(4);
        config["num_experts_per_tok"] = json!(2);
    })
    .unwrap_err();
    assert!(matches!(error, Error::UnexpectedTensors { .. } | Error::MissingTensor { .. }), "{error}");
}

#[test]
fn a_model_of_another_family_does_not_fit() {
    let error =
        map_with("Qwen3-0.6B", |config| config["architectures"] = json!(["LlamaForCausalLM"])).unwrap_err();
    assert!(matches!(error, Error::UnexpectedTensors { .. }), "{error}");
    assert_says(&error, &["k_norm"]);
}

#[test]
fn missing_or_broken_config_is_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    let error = map_dir(tmp.path()).unwrap_err();
    assert_says(&error, &["config.json", "cannot read"]);
    std::fs::write(tmp.path().join("config.json"), "{").unwrap();
    assert!(matches!(map_dir(tmp.path()).unwrap_err(), Error::Json { .. }));
}

#[test]
fn a_broken_model_card_is_left_out_with_a_notice() {
    let tmp = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden_dir().join(LLAMA)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, tmp.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(tmp.path().join("README.md"), "---\nlicense: [mit\n---\n").unwrap();
    let mapped = map_checkpoint(&Checkpoint::open(tmp.path()).unwrap(), by_name("F16").unwrap()).unwrap();
    assert!(mapped.notices.iter().any(|notice| notice.contains("README.md")), "{:?}", mapped.notices);
    assert!(!mapped.metadata.contains_key("general.license"));
}

/// Maps the names and shapes that a tiny checkpoint's config implies, after `edit`.
fn map_names(
    name: &str,
    edit: impl FnOnce(&mut Vec<(String, Vec<usize>)>),
) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let path = golden_dir().join(name).join("config.json");
    let config = read_json(&path);
    let mut tensors = expected_checkpoint_tensors(&ModelConfig::from_hf(&config, &path).unwrap()).unwrap();
    edit(&mut tensors);
    targets_from_names(&config, &path, &tensors)
}

fn rename(tensors: &mut [(String, Vec<usize>)], from: &str, to: &str) {
    let found = tensors.iter_mut().find(|(name, _)| name == from).unwrap();
    found.0 = to.to_owned();
}

#[test]
fn a_tied_matrix_may_have_the_outputs_name() {
    let (embedding, output) = ("model.embed_tokens.weight", "lm_head.weight");
    let shared = map_names("qwen2", |tensors| rename(tensors, embedding, output)).unwrap();
    let plain = map_names("qwen2", |_| ()).unwrap();
    assert_eq!(shared.iter().filter(|(name, _)| name == "token_embd.weight").count(), 1);
    assert_eq!(shared.len(), plain.len());
    // untied, it can't stand in
    let error = map_names(LLAMA, |tensors| tensors.retain(|(name, _)| name != embedding)).unwrap_err();
    assert_says(&error, &["`model.embed_tokens.weight` is missing", "not tied"]);
}

#[test]
fn mixtral_in_the_stacks_of_transformers_5_is_the_same_model() {
    let name = "Mixtral-8x7B-Instruct-v0.1";
    let mut stacked = map_names(name, |tensors| {
        tensors.retain(|(name, _)| !name.contains(".experts."));
        for layer in 0..2 {
            let at = |what: &str| format!("model.layers.{layer}.mlp.{what}");
            rename(
                tensors,
                &format!("model.layers.{layer}.block_sparse_moe.gate.weight"),
                &at("gate.weight"),
            );
            tensors.push((at("experts.gate_up_proj"), vec![4, 2 * 64, 32]));
            tensors.push((at("experts.down_proj"), vec![4, 32, 64]));
        }
    })
    .unwrap();
    let mut plain = map_names(name, |_| ()).unwrap();
    stacked.sort();
    plain.sort();
    assert_eq!(stacked, plain);
}

#[test]
fn leftovers_are_skipped_and_strangers_named() {
    let plain = map_names(LLAMA, |_| ()).unwrap();
    let buffers =
        ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.q_proj.input_scale"];
    let with_buffers = map_names(LLAMA, |tensors| {
        tensors.extend(buffers.map(|name| (name.to_owned(), vec![4])));
    });
    assert_eq!(with_buffers.unwrap(), plain);
    for stranger in ["model.layers.0.self_attn.q_proj.lora_A.weight", "score.weight", "x.weight_scale"] {
        let error = map_names(LLAMA, |tensors| tensors.push((stranger.to_owned(), vec![4]))).unwrap_err();
        assert_says(&error, &["1 unexpected", stranger]);
    }
    let twice = "layers.0.self_attn.q_proj.weight";
    let error = map_names(LLAMA, |tensors| tensors.push((twice.to_owned(), vec![32, 32]))).unwrap_err();
    assert_says(&error, &["both are `blk.0.attn_q.weight`", twice]);
}

#[test]
fn every_implied_tensor_is_needed() {
    for name in ["gemma-2-2b-it", "phi4", "qwen3moe", "Mixtral-8x7B-Instruct-v0.1"] {
        let path = golden_dir().join(name).join("config.json");
        let config = ModelConfig::from_hf(&read_json(&path), &path).unwrap();
        let implied = expected_checkpoint_tensors(&config).unwrap();
        let mut all = map_names(name, |_| ()).unwrap();
        let mut expected = expected_tensors(&config).unwrap();
        all.sort();
        expected.sort();
        assert_eq!(all, expected, "{name}");
        for (i, (missing, _)) in implied.iter().enumerate() {
            let error = map_names(name, |tensors| _ = tensors.remove(i)).unwrap_err();
            assert_says(&error, &[missing, "is missing"]);
        }
    }
}

#[test]
fn fp8_weights_without_their_factors_are_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    let from = golden_dir().join("qwen3-fp8-block");
    std::fs::copy(from.join("config.json"), tmp.path().join("config.json")).unwrap();
    // renamed in place, the factors are taken for some activation's
    let mut bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let old = b"q_proj.weight_scale_inv";
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    bytes[at..at + old.len()].copy_from_slice(b"q_proj.weig.input_scale");
    std::fs::write(tmp.path().join("model.safetensors"), bytes).unwrap();
    let error = map_dir(tmp.path()).unwrap_err();
    assert_says(&error, &["q_proj.weight_scale_inv` is missing", "FP8"]);
}

#[test]
fn fp8_factors_that_fit_no_layout_are_an_error() {
    let section = json!({ "quant_method": "fp8", "weight_block_size": [100, 100] });
    let error = map_with("qwen3-fp8-block", |config| config["quantization_config"] = section).unwrap_err();
    assert!(matches!(error, Error::ScaleShape { .. }), "{error}");
    assert_says(&error, &["weight_scale_inv", "weight_block_size"]);
}

#[test]
fn rope_scaling_without_a_key_is_noticed() {
    let tmp = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden_dir().join(LLAMA)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, tmp.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = tmp.path().join("config.json");
    let mut config = read_json(&path);
    config["rope_parameters"] = json!({ "rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0 });
    std::fs::write(&path, config.to_string()).unwrap();
    let mapped = map_checkpoint(&Checkpoint::open(tmp.path()).unwrap(), by_name("F16").unwrap()).unwrap();
    assert!(mapped.notices.iter().any(|notice| notice.contains("`dynamic`")), "{:?}", mapped.notices);
}
