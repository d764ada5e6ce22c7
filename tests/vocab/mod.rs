//! Tokenizers into GGUF keys, against what the reference converter writes.

mod bad_input;
mod golden;
mod real;

use std::fs;
use std::path::Path;

use lctl::tensor::gguf::{Array, Metadata, Value};
use lctl::text::{Error, Vocab, VocabRequest, gguf_vocab};
use serde_json::Value as Json;

/// Returns the folder's tokenizer keys for a `config` with a `vocab_size`.
fn convert(dir: &Path, arch: &str, config: &Json) -> Result<Vocab, Error> {
    convert_with(dir, arch, config, None)
}

/// The same, with a pre-tokenizer forced.
fn convert_with(dir: &Path, arch: &str, config: &Json, pre: Option<&str>) -> Result<Vocab, Error> {
    gguf_vocab(&VocabRequest {
        dir,
        config,
        arch,
        vocab_size: config["vocab_size"].as_u64().map(|size| size as usize),
        embedding_rows: None,
        pre,
    })
}

/// Writes a file of a checkpoint under construction.
fn put(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Returns the value's type as the goldens name it, e.g. `uint32` or `[string]`.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::U32(_) => "uint32",
        Value::Bool(_) => "bool",
        Value::String(_) => "string",
        Value::Array(Array::String(_)) => "[string]",
        Value::Array(Array::F32(_)) => "[float32]",
        Value::Array(Array::I32(_)) => "[int32]",
        other => panic!("a type no tokenizer key has: {other:?}"),
    }
}

fn keys(metadata: &Metadata) -> Vec<&str> {
    metadata.keys().map(String::as_str).collect()
}
