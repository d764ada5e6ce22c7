//! Solved examples: which ones, and their texts.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::error::{self, Error};
use crate::eval::data::{DataSet, Document};
use crate::eval::prompt::Shot;
use crate::eval::suite::{ShotMode, TaskSpec};

/// The examples of one task, in the order they are taken.
pub struct ShotPool {
    pub set: Arc<DataSet>,
    /// Examples before each question.
    pub n: usize,
    order: Vec<usize>,
    /// Whether the documents asked about may be among the examples.
    is_shared: bool,
    rendered: HashMap<usize, Shot>,
}

impl ShotPool {
    pub fn new(set: Arc<DataSet>, n: usize, mode: ShotMode, seed: u64, asked: &DataSet) -> Self {
        let is_shared = set.path == asked.path;
        let mut order: Vec<usize> = (0..set.documents.len()).collect();
        if mode == ShotMode::Seeded {
            order.sort_by_cached_key(|index| place_of(seed, *index));
        }
        ShotPool { set, n, order, is_shared, rendered: HashMap::new() }
    }

    /// Returns the examples before a document: the first ones that are not the document itself.
    pub fn shots(&mut self, document: &Document, spec: &TaskSpec) -> Result<Vec<Shot>, Error> {
        let mut shots = Vec::new();
        for index in &self.order {
            if shots.len() == self.n {
                break;
            }
            let example = &self.set.documents[*index];
            if self.is_shared && example.fields == document.fields {
                continue;
            }
            let shot = match self.rendered.get(index) {
                Some(shot) => shot.clone(),
                None => {
                    let shot = shot(example, spec)?;
                    self.rendered.insert(*index, shot.clone());
                    shot
                }
            };
            shots.push(shot);
        }
        if shots.len() < self.n {
            return Err(Error::FewExamples {
                path: self.set.path.to_path_buf(),
                task: spec.id.clone(),
                line: document.place.line,
                wanted: self.n,
                found: shots.len(),
            });
        }
        Ok(shots)
    }
}

fn shot(example: &Document, spec: &TaskSpec) -> Result<Shot, Error> {
    let of = |source| error::of(example, spec, source);
    let question = spec.task.inquire(example).map_err(of)?.question;
    let answer = spec.task.solution(example).map_err(of)?;
    Ok(Shot { question, answer })
}

/// Returns where a seeded shuffle puts an example: they lie in the order of SHA-256 over a tag, the seed and
/// the index (u64, little-endian), so a longer file only adds some in between.
fn place_of(seed: u64, index: usize) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(b"lctl.few-shot.1");
    hasher.update(seed.to_le_bytes());
    hasher.update((index as u64).to_le_bytes());
    hasher.finalize().into()
}
