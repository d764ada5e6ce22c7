//! The fuzzers' seeds stay valid: a seed that no longer parses starts no search.

use lctl::tensor::{gguf, safetensors};

/// Returns name and content of a fuzz target's seeds.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = crate::common::root().join("tests/fuzz/seeds").join(target);
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn seeds_are_valid_files() {
    let ggufs = seeds("gguf_reader");
    assert!(ggufs.len() >= 6);
    for (name, file) in ggufs {
        assert!(gguf::parse_header(&file).is_ok(), "{name}: {:?}", gguf::parse_header(&file));
    }
    let safe = seeds("safetensors_reader");
    assert!(safe.len() >= 3);
    for (name, file) in safe {
        assert!(safetensors::parse_header(&file).is_ok(), "{name}: {:?}", safetensors::parse_header(&file));
    }
}
