//! Crafted GGUF files that our reader accepts and another reads differently, or cannot read.

use serde_json::Value as Json;

use super::{inspect, path_str, stderr, stdout, tiny_keys, tiny_tensors, write};

/// Writes a GGUF by hand: `(name, type id, length)` per tensor, one dimension each; `alignment` as the key says.
fn craft(alignment: Option<u32>, strings: &[(&str, &str)], tensors: &[(&str, u32, u64, u64)]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((strings.len() as u64 + u64::from(alignment.is_some())).to_le_bytes());
    if let Some(alignment) = alignment {
        text(&mut out, "general.alignment");
        out.extend(4u32.to_le_bytes());
        out.extend(alignment.to_le_bytes());
    }
    for (key, value) in strings {
        text(&mut out, key);
        out.extend(8u32.to_le_bytes());
        text(&mut out, value);
    }
    let alignment = u64::from(alignment.unwrap_or(32));
    let mut offset = 0u64;
    for (name, type_id, length, bytes) in tensors {
        text(&mut out, name);
        out.extend(1u32.to_le_bytes());
        out.extend(length.to_le_bytes());
        out.extend(type_id.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + bytes).next_multiple_of(alignment);
    }
    out.resize(out.len().next_multiple_of(alignment as usize) + offset as usize, 0);
    out
}

/// Runs the cross-check on `bytes`; returns exit status, stdout and stderr.
fn check(bytes: &[u8]) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("crafted.gguf");
    std::fs::write(&path, bytes).unwrap();
    let output = inspect(&[path_str(&path), "--cross-check"]);
    (output.status.code(), stdout(&output), stderr(&output).replace(path_str(dir.path()), "DIR"))
}

#[test]
fn an_honest_file_is_read_alike() {
    let (code, shown, talk) =
        check(&craft(None, &[("general.name", "x")], &[("a", 0, 4, 16), ("b", 0, 8, 32)]));
    assert_eq!((code, talk.as_str()), (Some(0), ""));
    assert!(
        shown.ends_with("(2 tensors, 1 keys)\n  gguf-rs 0.1.8: agrees\n  candle 0.11.1: agrees\n"),
        "{shown}"
    );
}

#[test]
fn every_value_type_is_read_alike() {
    use lctl::tensor::gguf::{Array, Value};
    let values = [
        Value::U8(255),
        Value::I8(-128),
        Value::U16(u16::MAX),
        Value::I16(i16::MIN),
        Value::I32(i32::MIN),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F32(f32::NAN),
        Value::F32(f32::NEG_INFINITY),
        Value::F32(-0.0),
        Value::F32(f32::MIN_POSITIVE / 4.0),
        Value::F32(16_777_216.0),
        Value::F64(0.1),
        Value::F64(f64::MAX),
        Value::Bool(false),
        Value::from("\u{fffd} ü 模"),
        Value::Array(Array::F32(vec![0.1, f32::INFINITY])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::I8(Vec::new())),
    ];
    let keys = values.into_iter().enumerate().map(|(i, value)| (format!("key.{i}"), value)).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("values.gguf");
    write(&path, &keys, &tiny_tensors(), None);
    let output = inspect(&[path_str(&path), "--cross-check"]);
    assert!(
        stdout(&output).ends_with("  gguf-rs 0.1.8: agrees\n  candle 0.11.1: agrees\n"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn an_alignment_one_reader_ignores_moves_the_data() {
    // gguf-rs takes 32 where the alignment is no multiple of 8.
    let bytes = craft(Some(4), &[("k", "odd")], &[("a", 0, 4, 16)]);
    let (code, shown, talk) = check(&bytes);
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("gguf-rs 0.1.8: DISAGREES\n    tensor \"a\": data at byte "), "{shown}");
    assert!(shown.contains("candle 0.11.1: agrees"), "{shown}");
    assert_eq!(
        talk,
        "error: DIR/crafted.gguf: readers of GGUF disagree about this file\n\
         hint: do not load it: what you inspect here may not be what runs elsewhere\n"
    );
}

#[test]
fn a_nul_at_the_end_makes_another_name() {
    // candle drops trailing NULs: the second `a` replaces the first.
    let (code, shown, _) = check(&craft(None, &[], &[("a", 0, 4, 16), ("a\0", 0, 8, 32)]));
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("tensor \"a\": shape [4], it reads [8]"), "{shown}");
    assert!(shown.contains("tensor \"a\\0\": it does not see it"), "{shown}");

    let (code, shown, _) = check(&craft(None, &[("tokenizer.chat_template", "good\0")], &[("a", 0, 4, 16)]));
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("key \"tokenizer.chat_template\": we read Text("), "{shown}");
}

#[test]
fn a_type_one_reader_lacks_is_not_a_disagreement() {
    // 39 is MXFP4: 32 weights in 17 bytes; candle does not know it.
    let (code, shown, _) = check(&craft(None, &[], &[("a", 39, 32, 17)]));
    assert_eq!(code, Some(0), "{shown}");
    assert!(
        shown.contains("gguf-rs 0.1.8: agrees\n  candle 0.11.1: could not read it: unknown dtype"),
        "{shown}"
    );
}

#[test]
fn a_reader_that_panics_is_contained() {
    // 40 is NVFP4: 64 weights in 36 bytes; gguf-rs panics on it, candle does not know it.
    let (code, shown, talk) = check(&craft(None, &[], &[("a", 40, 64, 36)]));
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("gguf-rs 0.1.8: could not read it: it panicked: "), "{shown}");
    assert_eq!(
        talk,
        "error: DIR/crafted.gguf: no other reader could read it, so nothing was compared\n\
         hint: leave out --cross-check to inspect it by our reader alone\n"
    );
}

#[test]
fn json_names_each_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    write(&path, &tiny_keys(), &tiny_tensors(), None);
    let output = inspect(&[path_str(&path), "--cross-check", "--json"]);
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    let readers = &report["cross_check"][0]["readers"];
    assert_eq!(readers[0][0], "gguf-rs 0.1.8");
    assert_eq!(readers[0][1]["verdict"], "agrees");
    assert_eq!(readers[1][1]["verdict"], "agrees");
}
