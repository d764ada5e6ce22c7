//! Checkpoints that are no models we read: each a typed error with names and numbers, and a hint.

use std::path::Path;

use lctl::error::Diagnostic;
use lctl::model::{Checkpoint, Error, map_checkpoint};
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
