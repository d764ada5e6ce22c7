//! `lctl imatrix`.

#[cfg(feature = "cuda-host")]
mod device;
mod errors;
mod golden;
mod run;

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use lctl::tensor::TensorSource as _;
use lctl::tensor::gguf::Gguf;

use crate::common::{names_in, run_lctl};

fn golden_dir() -> PathBuf {
    crate::common::root().join("tests/golden")
}

/// Returns a directory with a tiny checkpoint of tests/golden/convert (`model`) and text.txt.
fn workplace(checkpoint: &str) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let source = golden_dir().join("convert").join(checkpoint);
    let model = place.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for name in names_in(&source) {
        std::fs::copy(source.join(&name), model.join(name)).unwrap();
    }
    std::fs::copy(golden_dir().join("imatrix/text.txt"), place.path().join("text.txt")).unwrap();
    place
}

/// Runs `lctl ARGS`; returns what it printed.
///
/// # Panics
/// If it fails.
fn succeed(dir: &Path, args: &str) -> String {
    let (status, stdout, stderr) = run_lctl(dir, &args.split(' ').collect::<Vec<_>>());
    assert_eq!(status, 0, "{args}: {stderr}");
    stdout
}

fn bytes(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}

/// Returns the tensors of a GGUF in their order: name, shape, values. Statistics, which llama-imatrix adds, are left out.
fn tensors(path: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let file = Gguf::open(path).unwrap();
    let of = |tensor: &lctl::tensor::TensorInfo| {
        assert_eq!(tensor.dtype.name(), "F32");
        let mut bytes = vec![0; tensor.n_elements() * 4];
        file.read_at(tensor, 0, &mut bytes).unwrap();
        let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (tensor.name.clone(), tensor.shape.clone(), values)
    };
    file.tensors().iter().filter(|tensor| !tensor.name.ends_with(".stats")).map(of).collect()
}
