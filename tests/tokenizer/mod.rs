//! Tokenizers: text to ids and back, against Python's tokenizers, SentencePiece and llama.cpp.

mod bad_input;
mod golden;
mod streaming;
mod training;
mod vectors;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lctl::text::{EncodeOptions, Tokenizer, VocabRequest, gguf_vocab};
use serde_json::Value as Json;
use tempfile::TempDir;

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const PARSED: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };
const AROUND: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

/// tests/golden/tokenizer.json.
static GOLDEN: LazyLock<Json> = LazyLock::new(|| read_golden("tokenizer.json"));

fn read_golden(name: &str) -> Json {
    let path = crate::common::root().join("tests/golden").join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn strings() -> Vec<&'static str> {
    GOLDEN["strings"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// Returns the golden's small tokenizers by name.
fn small() -> impl Iterator<Item = (&'static str, &'static Json)> {
    GOLDEN["small"].as_object().unwrap().iter().map(|(name, golden)| (name.as_str(), golden))
}

/// Writes the files of a small tokenizer of tests/golden/vocab.
fn small_checkpoint(name: &str) -> (TempDir, Json) {
    let golden = read_golden(&format!("vocab/{name}.json"));
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "config.json", golden["config"].to_string().as_bytes());
    for (file, content) in golden["files"].as_object().unwrap() {
        let content = content.as_str().unwrap();
        let is_base64 = golden["base64"].as_array().unwrap().iter().any(|name| name == file);
        match is_base64 {
            true => put(dir.path(), file, &from_base64(content)),
            false => put(dir.path(), file, content.as_bytes()),
        }
    }
    (dir, golden)
}

fn put(dir: &Path, name: &str, content: &[u8]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn from_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut n_bits, mut bytes) = (0u32, 0, Vec::new());
    for symbol in text.bytes().filter(|symbol| *symbol != b'=') {
        bits = bits << 6 | ALPHABET.iter().position(|known| *known == symbol).unwrap() as u32;
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
        }
    }
    bytes
}

/// Returns the tokenizer of the GGUF that quantizing the directory would write.
fn as_gguf(dir: &Path, arch: &str, pre: Option<&str>) -> Tokenizer {
    let config: Json = fs::read(dir.join("config.json"))
        .map_or(Json::Object(Default::default()), |bytes| serde_json::from_slice(&bytes).unwrap());
    let vocab_size = config["vocab_size"].as_u64().map(|size| size as usize);
    let request = VocabRequest { dir, config: &config, arch, vocab_size, embedding_rows: None, pre };
    let vocab = gguf_vocab(&request).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    Tokenizer::from_gguf(&PathBuf::from("made.gguf"), &vocab.metadata).unwrap()
}

fn ids(json: &Json) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[track_caller]
fn assert_ids(place: &str, text: &str, found: &[u32], expected: &[u32]) {
    assert_eq!(found, expected, "{place}: {text:?}");
}
