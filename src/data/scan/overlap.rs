//! Runs of 13 words that two sets of texts share (Brown et al., arXiv:2005.14165, appendix C); of texts that are
//! shorter, the whole text.

use std::collections::{BTreeSet, HashMap};

use crate::data::shingles::{shingles, words};

/// Words of a run that is looked for.
pub const RUN: usize = 13;
/// Texts of fewer words say nothing: they occur by chance.
pub const LEAST: usize = 8;

/// Runs of words of a set of documents, to be looked for elsewhere.
#[derive(Default)]
pub struct SharedRuns {
    /// Documents that have a run, by the run's number of words and its hash.
    holders: HashMap<(usize, u64), Vec<usize>>,
    lengths: BTreeSet<usize>,
}

impl SharedRuns {
    /// Adds a document's texts; returns whether any is long enough to have a run.
    pub fn add<'a>(&mut self, document: usize, texts: impl IntoIterator<Item = &'a str>) -> bool {
        let mut is_told = false;
        for text in texts {
            let words = words(text);
            let n = words.len().min(RUN);
            if n < LEAST {
                continue;
            }
            is_told = true;
            self.lengths.insert(n);
            for run in shingles(&words, n) {
                let holders = self.holders.entry((n, run)).or_default();
                if holders.last() != Some(&document) {
                    holders.push(document);
                }
            }
        }
        is_told
    }

    /// Returns the documents that have a run in common with a text, ascending.
    pub fn holders_of(&self, text: &str) -> BTreeSet<usize> {
        let words = words(text);
        let runs = self.lengths.iter().flat_map(|n| shingles(&words, *n).map(|run| (*n, run)));
        runs.filter_map(|key| self.holders.get(&key)).flatten().copied().collect()
    }
}
