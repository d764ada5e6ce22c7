//! The decoder as it is trained: against PEFT, and against itself.

#[cfg(feature = "cuda-host")]
mod cuda;
mod families;
mod peft;
mod quantized;
mod runs;

use std::path::{Path, PathBuf};

use lctl::kernel::ComputeMode;
use lctl::model::train::{Document, LowRankSpec, Method, StepKey, TargetModules, Trainable};
use lctl::model::{Decoder, LoadOptions};

pub const ALL: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

pub fn golden_dir() -> PathBuf {
    crate::common::root().join("tests/golden")
}

pub fn open(path: &Path, mode: ComputeMode, threads: usize) -> Decoder {
    let options = LoadOptions::new(mode, threads);
    Decoder::open(path, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn names(names: &[&str]) -> TargetModules {
    TargetModules::Names(names.iter().map(|&name| name.to_owned()).collect())
}

pub fn trainable(path: &Path, mode: ComputeMode, threads: usize, spec: &LowRankSpec) -> Trainable {
    Trainable::new(open(path, mode, threads), &Method::LowRank(spec.clone())).unwrap()
}

/// A step's documents, all of whose tokens are targets.
pub struct Batch {
    documents: Vec<Vec<u32>>,
    flags: Vec<bool>,
}

impl Batch {
    pub fn new(documents: Vec<Vec<u32>>) -> Batch {
        let longest = documents.iter().map(Vec::len).max().unwrap_or(0);
        Batch { documents, flags: vec![true; longest] }
    }

    pub fn documents(&self) -> Vec<Document<'_>> {
        self.documents
            .iter()
            .map(|tokens| Document { tokens, is_target: &self.flags[..tokens.len()] })
            .collect()
    }
}

pub fn key(step: usize, first_document: usize) -> StepKey {
    StepKey { seed: 7, step: step as u32, first_document: first_document as u32 }
}
