//! The tensor layer on files: what is written reads back, and every bad file is a typed error.

mod directories;
mod fuzz_seeds;
mod gguf_files;
mod random;
mod splits;

use std::path::{Path, PathBuf};

use lctl::error::Diagnostic;
use lctl::tensor::{Dtype, Error, Opened, TensorDecl, TensorSource, format};

/// Returns the data folder, or says that the test is skipped.
fn test_data() -> Option<PathBuf> {
    let data = std::env::var_os("LCTL_TEST_DATA").map(PathBuf::from);
    if data.is_none() {
        println!("skipped: LCTL_TEST_DATA is not set");
    }
    data
}

fn f32() -> Dtype {
    format::by_name("F32").unwrap()
}

fn decl(name: &str, shape: &[usize]) -> TensorDecl {
    TensorDecl { name: name.to_owned(), dtype: f32(), shape: shape.to_vec() }
}

/// Returns the error of opening `path`, with its hint.
fn open_error(path: &Path) -> (Error, Option<String>) {
    match lctl::tensor::open(path) {
        Ok(_) => panic!("{} opened", path.display()),
        Err(error) => {
            let hint = error.hint();
            (error, hint)
        }
    }
}

fn open(path: &Path) -> Opened {
    lctl::tensor::open(path).unwrap_or_else(|error| panic!("{error}"))
}

/// Returns a tensor's bytes, read both ways.
fn data(source: &dyn TensorSource, name: &str) -> Vec<u8> {
    let info = source.find(name).unwrap();
    let mut out = vec![0; info.n_bytes as usize];
    source.read_at(info, 0, &mut out).unwrap();
    assert_eq!(source.bytes(info).unwrap(), out);
    out
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
