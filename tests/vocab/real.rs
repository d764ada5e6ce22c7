//! Tokenizers of real families, against the GGUFs that exist of them.

use std::path::PathBuf;

use lctl::tensor::gguf::{Array, Gguf, Metadata, Value};
use serde_json::json;

use super::convert;

/// Returns the test data folder, or says that the test is skipped.
pub fn test_data() -> Option<PathBuf> {
    let data = std::env::var_os("LCTL_TEST_DATA").map(PathBuf::from);
    if data.is_none() {
        println!("skipped: LCTL_TEST_DATA is not set");
    }
    data
}

fn tokenizer_keys(metadata: &Metadata) -> Vec<(&String, &Value)> {
    metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.")).collect()
}

fn strings<'a>(metadata: &'a Metadata, key: &str) -> &'a [String] {
    match &metadata[key] {
        Value::Array(Array::String(items)) => items,
        other => panic!("{key}: {other:?}"),
    }
}

fn kinds(metadata: &Metadata) -> &[i32] {
    match &metadata["tokenizer.ggml.token_type"] {
        Value::Array(Array::I32(items)) => items,
        other => panic!("{other:?}"),
    }
}

/// Compares long lists, and shows only the first difference.
fn assert_same<T: PartialEq + std::fmt::Debug>(found: &[T], expected: &[T]) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "at {index}");
    }
}

#[test]
fn converted_checkpoints_have_the_keys_of_their_ggufs() {
    let Some(data) = test_data() else { return };
    for (folder, gguf) in [
        ("models/stories260K-hf", "models/stories260K-hf/stories260K-hf-f32.gguf"),
        ("models/llama2xs-hf", "models/llama2xs-hf/llama2xs-hf-f32.gguf"),
        ("models/probe-llama", "golden/quantize/probe-llama-bf16.gguf"),
    ] {
        let dir = data.join(folder);
        let config = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        let vocab = convert(&dir, "llama", &config).unwrap();
        let expected = Gguf::open(&data.join(gguf)).unwrap();
        assert_eq!(tokenizer_keys(&vocab.metadata), tokenizer_keys(expected.metadata()), "{folder}");
        assert_eq!(vocab.notes, Vec::<String>::new(), "{folder}");
    }
}

#[test]
fn llama_2_s_tokenizer_json_has_the_tokens_of_its_sentencepiece_model() {
    let Some(data) = test_data() else { return };
    let vocab = convert(&data.join("vocab/hf/llama2"), "llama", &json!({"vocab_size": 32000})).unwrap();
    let expected = Gguf::open(&data.join("vocab/ggml-vocab-llama-spm.gguf")).unwrap();
    let key = "tokenizer.ggml.tokens";
    // this copy of tokenizer.json has lost the no-break spaces of four tokens
    let spaces =
        |tokens: &[String]| tokens.iter().map(|token| token.replace('\u{a0}', " ")).collect::<Vec<_>>();
    assert_same(&spaces(strings(&vocab.metadata, key)), &spaces(strings(expected.metadata(), key)));
    // tokenizer.json does not tell the unknown token from a control token
    assert_eq!(kinds(&vocab.metadata)[0], 3);
    assert_eq!(kinds(expected.metadata())[0], 2);
    assert_same(&kinds(&vocab.metadata)[1..], &kinds(expected.metadata())[1..]);
}

/// Makes a tokenizer.json of a GGUF's vocabulary and the family's published pre-tokenizer, and converts it.
#[test]
fn large_vocabularies_come_back_as_they_were() {
    let Some(data) = test_data() else { return };
    let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let split = |regex: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
        ]})
    };
    for (family, arch, pre_tokenizer, ignore_merges) in [
        ("llama-bpe", "llama", split(llama3), true),
        ("qwen2", "qwen2", split(&llama3.replace("{1,3}", "")), false),
        ("gpt-2", "llama", json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}), false),
    ] {
        let gguf = Gguf::open(&data.join(format!("vocab/ggml-vocab-{family}.gguf"))).unwrap();
        let (tokens, merges) = (
            strings(gguf.metadata(), "tokenizer.ggml.tokens"),
            strings(gguf.metadata(), "tokenizer.ggml.merges"),
        );
        let (mut vocab, mut added) = (serde_json::Map::new(), Vec::new());
        for (id, (token, kind)) in tokens.iter().zip(kinds(gguf.metadata())).enumerate() {
            match kind {
                1 => drop(vocab.insert(token.clone(), json!(id))),
                3 | 4 => added
                    .push(json!({"id": id, "content": token, "special": *kind == 3, "normalized": false})),
                _ => assert_eq!(*token, format!("[PAD{id}]"), "{family}"),
            }
        }
        let tokenizer = json!({
            "added_tokens": added, "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": ignore_merges},
        });
        let dir = tempfile::tempdir().unwrap();
        super::put(dir.path(), "tokenizer.json", tokenizer.to_string());
        let converted = convert(dir.path(), arch, &json!({"vocab_size": tokens.len()})).unwrap();
        assert_eq!(converted.metadata["tokenizer.ggml.pre"], family.into());
        assert_same(strings(&converted.metadata, "tokenizer.ggml.tokens"), tokens);
        assert_same(strings(&converted.metadata, "tokenizer.ggml.merges"), merges);
        assert_same(kinds(&converted.metadata), kinds(gguf.metadata()));
    }
}

#[test]
fn qwen_3_extends_the_tokens_and_merges_of_qwen_2() {
    let Some(data) = test_data() else { return };
    let vocab = convert(&data.join("vocab/hf/qwen3"), "qwen3", &json!({"vocab_size": 151936})).unwrap();
    let qwen2 = Gguf::open(&data.join("vocab/ggml-vocab-qwen2.gguf")).unwrap();
    let key = "tokenizer.ggml.tokens";
    assert_same(&strings(&vocab.metadata, key)[..151646], &strings(qwen2.metadata(), key)[..151646]);
    let key = "tokenizer.ggml.merges";
    assert_same(strings(&vocab.metadata, key), strings(qwen2.metadata(), key));
    assert_eq!(vocab.metadata["tokenizer.ggml.pre"], "qwen2".into());
}
