//! Broken tokenizer files: each a typed error that names the file and what is wrong.

use std::fs;
use std::path::Path;

use lctl::error::Diagnostic;
use lctl::tensor::gguf::{Array, Metadata, Value};
use lctl::text::{Error, Tokenizer};
use serde_json::{Value as Json, json};

use super::{put, small_checkpoint};

fn message(dir: &Path) -> String {
    let error = Tokenizer::open(dir).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    let message = error.to_string();
    let place = format!("{}/", dir.display());
    assert!(message.starts_with(dir.to_str().unwrap()), "{message}");
    message.replace(&place, "")
}

fn change(dir: &Path, file: &str, change: impl FnOnce(&mut Json)) {
    let mut json: Json = serde_json::from_slice(&fs::read(dir.join(file)).unwrap()).unwrap();
    change(&mut json);
    put(dir, file, json.to_string().as_bytes());
}

#[test]
fn directories_without_a_usable_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    assert!(message(dir.path()).contains("no tokenizer; looked for tokenizer.json, tokenizer.model"));
    put(dir.path(), "tekken.json", b"{}");
    assert_eq!(message(dir.path()), "tekken.json: Mistral's own tokenizer format alone is not supported");
    put(dir.path(), "tokenizer.model", b"IQ== 0\nIg== 1\n");
    assert_eq!(
        message(dir.path()),
        "tokenizer.model: a tiktoken vocabulary without its tokenizer.json is not supported"
    );
    put(dir.path(), "tokenizer.model", b"\x0a\x7f");
    assert_eq!(message(dir.path()), "tokenizer.model: byte 2: a field claims 127 bytes, 0 are left");
    assert!(matches!(Tokenizer::open(Path::new("nowhere.gguf")), Err(Error::Gguf(_))));
}

#[test]
fn broken_tokenizer_json() {
    let (dir, _) = small_checkpoint("bpe_llama3");
    let path = dir.path().join("tokenizer.json");
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    let found = message(dir.path());
    assert!(found.starts_with("tokenizer.json: line ") && found.contains("EOF while parsing"), "{found}");
    fs::write(&path, br#"{"added_tokens": []}"#).unwrap();
    assert_eq!(message(dir.path()), "tokenizer.json: line 1, column 20: missing field `model`");
    fs::write(&path, &good).unwrap();
    change(dir.path(), "tokenizer.json", |json| json["model"]["merges"][3] = json!("zzz y"));
    let found = message(dir.path());
    assert!(found.starts_with("tokenizer.json: ") && found.contains("zzz"), "{found}");
    fs::write(&path, &good).unwrap();
    change(dir.path(), "tokenizer.json", |json| json["pre_tokenizer"] = json!({"type": "Unheard"}));
    assert!(message(dir.path()).starts_with("tokenizer.json: "));
    fs::write(&path, &good).unwrap();
    change(dir.path(), "tokenizer.json", |json| json["model"]["vocab"]["far"] = json!(u32::MAX));
    assert!(message(dir.path()).contains("above the limit"));
    fs::write(&path, &good).unwrap();
    change(dir.path(), "config.json", |json| json["eos_token_id"] = json!("two"));
    assert_eq!(
        message(dir.path()),
        "config.json: `eos_token_id`: expected a token id or a list of them, found the string \"two\""
    );
}

#[test]
fn no_change_of_a_byte_makes_loading_panic() {
    for name in ["bpe_llama3", "json_llama2", "spm_gemma"] {
        let (dir, _) = small_checkpoint(name);
        let file =
            ["tokenizer.json", "tokenizer.model"].into_iter().find(|file| dir.path().join(file).is_file());
        let path = dir.path().join(file.unwrap());
        let good = fs::read(&path).unwrap();
        for round in 0..200 {
            let mut bytes = good.clone();
            bytes[round * 7919 % good.len()] ^= 1 << (round % 8);
            fs::write(&path, &bytes).unwrap();
            if let Ok(tokenizer) = Tokenizer::open(dir.path()) {
                let ids = tokenizer.encode("the boats, 12\n", super::AROUND).unwrap_or_default();
                tokenizer.decode(&ids, false);
            }
        }
    }
}

fn texts(texts: &[&str]) -> Value {
    Value::Array(Array::String(texts.iter().map(|text| (*text).to_owned()).collect()))
}

/// The keys of a vocabulary of four tokens and one merge.
fn keys() -> Metadata {
    let entries: [(&str, Value); 4] = [
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", "gpt-2".into()),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "<|end|>"])),
        ("tokenizer.ggml.merges", texts(&["a b"])),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn from_keys(changed: &[(&str, Value)]) -> Result<Tokenizer, Error> {
    let mut metadata = keys();
    for (key, value) in changed {
        metadata.insert(format!("tokenizer.ggml.{key}"), value.clone());
    }
    Tokenizer::from_gguf(Path::new("x.gguf"), &metadata)
}

#[test]
fn broken_gguf_vocabularies() {
    let tokenizer = from_keys(&[]).unwrap();
    assert_eq!(tokenizer.encode("abba", super::PLAIN).unwrap(), [2, 1, 0]);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (None, None, 4));
    let message = |changed: &[(&str, Value)]| {
        let error = from_keys(changed).unwrap_err();
        assert!(error.hint().is_some());
        error.to_string()
    };
    let empty = Tokenizer::from_gguf(Path::new("x.gguf"), &Metadata::new()).unwrap_err();
    assert_eq!(empty.to_string(), "x.gguf: no `tokenizer.ggml.model`: the file holds no tokenizer");
    assert_eq!(message(&[("model", "bert".into())]), "x.gguf: a `bert` tokenizer is not supported");
    assert_eq!(
        message(&[("model", Value::U32(1))]),
        "x.gguf: `tokenizer.ggml.model`: expected a string, found a value of type u32"
    );
    assert_eq!(
        message(&[("merges", texts(&["a c", "c a"]))]),
        "x.gguf: merge 0 (\"a\" + \"c\") names \"c\", which is not in the vocabulary"
    );
    // a few are left out, as llama.cpp does
    let tokenizer = from_keys(&[("merges", texts(&["a b", "a c"]))]).unwrap();
    assert_eq!(tokenizer.encode("ab", super::PLAIN).unwrap(), [2]);
    assert!(tokenizer.notes()[0].starts_with("1 of 2 merges left out"), "{:?}", tokenizer.notes());
    assert_eq!(
        message(&[("merges", texts(&["ab"]))]),
        "x.gguf: `tokenizer.ggml.merges[0]`: expected two tokens and one space between them, found the string \"ab\""
    );
    assert_eq!(
        message(&[("tokens", texts(&["a", "b", "ab", "a"]))]),
        "x.gguf: tokens 0 and 3 are both \"a\""
    );
    assert_eq!(
        message(&[("scores", Value::Array(Array::F32(vec![0.0; 3])))]),
        "x.gguf: `tokenizer.ggml.scores`: 3 entries for 4 tokens"
    );
    assert_eq!(
        message(&[("token_type", Value::Bool(true))]),
        "x.gguf: `tokenizer.ggml.token_type`: expected an array of numbers, found a value of type bool"
    );
}

#[test]
fn an_unknown_pre_tokenizer_is_named_with_the_nearest() {
    let error = from_keys(&[("pre", "qwen-2".into())]).unwrap_err();
    assert_eq!(error.to_string(), "x.gguf: `tokenizer.ggml.pre`: unknown pre-tokenizer `qwen-2`");
    assert!(error.hint().unwrap().contains("`qwen2`"));
    // every name that a conversion may write is understood, but for those of encoders
    let encoders = ["mmbert", "whitespace"];
    for name in lctl::text::pre_tokenizer_names() {
        let result = from_keys(&[("pre", name.into())]);
        assert_eq!(result.is_err(), encoders.contains(&name), "{name}: {result:?}");
    }
}

#[test]
fn special_ids_out_of_range_are_as_if_absent() {
    let tokenizer = from_keys(&[("bos_token_id", Value::U32(4)), ("eos_token_id", Value::U32(3))]).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (None, Some(3)));
    assert_eq!(tokenizer.end_of_generation(), [3]);
}

#[test]
fn embedding_rows_are_compared_with_the_tokens() {
    let tokenizer = from_keys(&[]).unwrap();
    let model = Path::new("model.safetensors");
    assert_eq!(tokenizer.check_vocab(4, model).unwrap(), None);
    let note = tokenizer.check_vocab(8, model).unwrap().unwrap();
    assert_eq!(note, "x.gguf: 4 tokens for an embedding of 8 rows; the last 4 have no token");
    for rows in [3, 10] {
        let error = tokenizer.check_vocab(rows, model).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "x.gguf: the tokenizer has 4 tokens, but the embedding of model.safetensors has {rows} rows"
            )
        );
    }
}
