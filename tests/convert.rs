//! Checkpoints against what the reference converter makes of them: keys, order, tensor bytes.

use std::path::{Path, PathBuf};

use lctl::kernel::Isa;
use lctl::model::{Checkpoint, Mapped, TargetTensor, map_checkpoint};
use lctl::tensor::format::by_name;
use lctl::tensor::{Dtype, TensorSource};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

/// Returns the folder of real test data, or says that the test is skipped.
fn test_data() -> Option<PathBuf> {
    let dir = std::env::var_os("LCTL_TEST_DATA").map(PathBuf::from);
    if dir.is_none() {
        println!("skipped: LCTL_TEST_DATA is not set");
    }
    dir
}

fn read_json(path: &Path) -> Json {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the tensor's bytes in `dtype`, read in slabs of `slab` rows.
fn bytes_of(tensor: &TargetTensor, source: &dyn TensorSource, dtype: Dtype, slab: usize) -> Vec<u8> {
    let row_len = *tensor.shape.last().expect("no tensor is a scalar");
    let n_rows: usize = tensor.shape.iter().rev().skip(1).product();
    let mut out = Vec::new();
    let mut scratch = Vec::new();
    for start in (0..n_rows).step_by(slab) {
        let rows = start..(start + slab).min(n_rows);
        let mut values = vec![f32::NAN; rows.len() * row_len];
        tensor.rows.read(source, Isa::detect(), rows.clone(), &mut scratch, &mut values).unwrap();
        let mut bytes = vec![0; values.len() / dtype.block_len() * dtype.block_bytes()];
        dtype.encode(Isa::detect(), &values, row_len, None, &mut bytes);
        if dtype == tensor.source_dtype {
            // a copy of the stored bytes must be what reading and writing gives
            let mut stored = vec![0; bytes.len()];
            if tensor.rows.read_stored(source, rows, &mut stored).unwrap() {
                assert!(stored == bytes, "{}: stored bytes differ", tensor.name);
            }
        }
        out.extend(bytes);
    }
    out
}

fn hex_sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks order, type, shape (innermost first, as the golden has it) and SHA-256 of every tensor.
fn check_tensors(name: &str, mapped: &Mapped, source: &dyn TensorSource, float: Dtype, golden: &Json) {
    let order: Vec<&str> = mapped.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let expected: Vec<&str> =
        golden["order"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(order, expected, "{name}: order of tensors");
    for (i, tensor) in mapped.tensors.iter().enumerate() {
        let dtype = tensor.fixed_dtype.unwrap_or(float);
        let shape: Vec<usize> = tensor.shape.iter().rev().copied().collect();
        // odd slabs cut heads and experts apart
        let sha = hex_sha256(&bytes_of(tensor, source, dtype, [1, 3, 7, 1000][i % 4]));
        let found = serde_json::json!([dtype.name(), shape, sha]);
        assert_eq!(found, golden["tensors"][&tensor.name], "{name}: {}", tensor.name);
    }
}

#[test]
fn probe_llama_is_the_reference_conversion() {
    let Some(data) = test_data() else { return };
    let golden = read_json(&data.join("golden/quantize/convert-llama-bf16.json"));
    let checkpoint = Checkpoint::open(&data.join("models/probe-llama")).unwrap();
    let bf16 = by_name("BF16").unwrap();
    let mapped = map_checkpoint(&checkpoint, bf16).unwrap();
    check_tensors("probe-llama", &mapped, checkpoint.source.as_ref(), bf16, &golden);
}
