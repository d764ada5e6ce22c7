//! tests/golden/vocab: small tokenizers, and tokenizers of the test data by digest.

use std::fs;
use std::path::{Path, PathBuf};

use lctl::tensor::gguf::{Array, Metadata, Value};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::{convert, convert_with, keys, put, type_name};

fn golden_dir() -> PathBuf {
    crate::common::root().join("tests/golden/vocab")
}

fn read_golden(path: &Path) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Compares keys, order, types and values with a golden's `[key, type, value]` rows.
fn assert_keys(name: &str, metadata: &Metadata, golden: &Json) {
    let rows = golden.as_array().unwrap();
    let expected: Vec<&str> = rows.iter().map(|row| row[0].as_str().unwrap()).collect();
    assert_eq!(keys(metadata), expected, "{name}: keys and their order");
    for (row, (key, value)) in rows.iter().zip(metadata) {
        assert_eq!(type_name(value), row[1].as_str().unwrap(), "{name}: type of {key}");
        assert_value(&format!("{name}: {key}"), value, &row[2]);
    }
}

fn assert_value(place: &str, value: &Value, golden: &Json) {
    match value {
        Value::U32(id) => assert_eq!(Some(u64::from(*id)), golden.as_u64(), "{place}"),
        Value::Bool(flag) => assert_eq!(Some(*flag), golden.as_bool(), "{place}"),
        Value::String(text) => assert_eq!(Some(text.as_str()), golden.as_str(), "{place}"),
        Value::Array(Array::String(items)) => {
            assert_items(place, items, golden, |item| item.as_str().unwrap().to_owned())
        }
        Value::Array(Array::I32(items)) => {
            assert_items(place, items, golden, |item| item.as_i64().unwrap() as i32)
        }
        Value::Array(Array::F32(items)) => {
            // Python prints the f32 scores as f64: the same value, so the same f32 again
            assert_items(place, items, golden, |item| item.as_f64().unwrap() as f32);
        }
        other => panic!("{place}: {other:?}"),
    }
}

fn assert_items<T: PartialEq + std::fmt::Debug + ToString>(
    place: &str,
    items: &[T],
    golden: &Json,
    parse: impl Fn(&Json) -> T,
) {
    if let Some(expected) = golden.as_array() {
        assert_eq!(items.len(), expected.len(), "{place}");
        for (index, (item, expected)) in items.iter().zip(expected).enumerate() {
            assert_eq!(*item, parse(expected), "{place}[{index}]");
        }
        return;
    }
    assert_eq!(Some(items.len() as u64), golden["len"].as_u64(), "{place}: length");
    let mut sha = Sha256::new();
    for item in items {
        let text = item.to_string();
        sha.update((text.len() as u64).to_le_bytes());
        sha.update(text.as_bytes());
    }
    let digest: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(Some(digest.as_str()), golden["sha256"].as_str(), "{place}: digest");
}

#[test]
fn small_tokenizers_give_the_converter_s_keys() {
    let mut n_cases = 0;
    let mut paths: Vec<_> = fs::read_dir(golden_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| !path.ends_with("real.json")) {
        let golden = read_golden(path);
        let name = path.file_stem().unwrap().to_string_lossy();
        let dir = tempfile::tempdir().unwrap();
        write_files(dir.path(), &golden);
        let vocab = convert_with(
            dir.path(),
            golden["arch"].as_str().unwrap(),
            &golden["config"],
            golden["force"].as_str(),
        )
        .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_keys(&name, &vocab.metadata, &golden["keys"]);
        n_cases += 1;
    }
    assert_eq!(n_cases, 22);
}

#[test]
fn real_tokenizers_give_the_converter_s_keys() {
    let Some(data) = super::real::test_data() else { return };
    let golden = read_golden(&golden_dir().join("real.json"));
    for case in golden.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let dir = data.join(case["folder"].as_str().unwrap());
        let vocab = convert(&dir, case["arch"].as_str().unwrap(), &case["config"])
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_keys(name, &vocab.metadata, &case["keys"]);
    }
}

/// Writes a golden's tokenizer files.
pub fn write_files(dir: &Path, golden: &Json) {
    let binary = golden["base64"].as_array().unwrap();
    for (file, content) in golden["files"].as_object().unwrap() {
        let content = content.as_str().unwrap();
        match binary.iter().any(|name| name.as_str() == Some(file)) {
            true => put(dir, file, from_base64(content)),
            false => put(dir, file, content),
        }
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        other => panic!("not base64: {other}"),
    };
    let digits: Vec<u8> = text.bytes().filter(|&c| c != b'=').map(digit).collect();
    let mut bytes = Vec::new();
    for group in digits.chunks(4) {
        let bits =
            group.iter().fold(0u32, |bits, &digit| bits << 6 | u32::from(digit)) << (6 * (4 - group.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    bytes
}
