//! What a run learns from: documents, or pairs of answers.

use crate::data::{Example, Loaded, Mixture, Pair, Place, Unit};
use crate::model::train::Document;

/// What a run learns from.
pub enum Corpus {
    Examples(Loaded<Example>),
    Pairs(Loaded<Pair>),
}

/// Units to train or to validate on.
#[derive(Clone, Copy)]
pub enum Units<'a> {
    Examples(&'a [Example]),
    Pairs(&'a [Pair]),
}

impl Corpus {
    /// Returns how often an epoch has what, and in which order.
    pub fn mixture(&self) -> &Mixture {
        match self {
            Corpus::Examples(loaded) => &loaded.mixture,
            Corpus::Pairs(loaded) => &loaded.mixture,
        }
    }

    /// Returns what is trained on.
    pub fn train(&self) -> Units<'_> {
        match self {
            Corpus::Examples(loaded) => Units::Examples(&loaded.train),
            Corpus::Pairs(loaded) => Units::Pairs(&loaded.train),
        }
    }

    /// Returns what is validated on; empty if nothing is.
    pub fn validation(&self) -> Units<'_> {
        match self {
            Corpus::Examples(loaded) => Units::Examples(&loaded.validation),
            Corpus::Pairs(loaded) => Units::Pairs(&loaded.validation),
        }
    }

    /// Returns the counts of each file.
    pub fn files(&self) -> &[crate::data::FileCounts] {
        match self {
            Corpus::Examples(loaded) => &loaded.files,
            Corpus::Pairs(loaded) => &loaded.files,
        }
    }
}

impl<'a> Units<'a> {
    pub fn len(self) -> usize {
        match self {
            Units::Examples(all) => all.len(),
            Units::Pairs(all) => all.len(),
        }
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Returns the tokens that a unit takes in a batch.
    pub fn tokens(self, index: usize) -> usize {
        match self {
            Units::Examples(all) => all[index].tokens.len(),
            Units::Pairs(all) => all[index].tokens(),
        }
    }

    /// Returns the tokens of a unit that are trained.
    pub fn targets(self, index: usize) -> usize {
        match self {
            Units::Examples(all) => all[index].targets(),
            Units::Pairs(all) => all[index].targets(),
        }
    }

    pub fn place(self, index: usize) -> &'a Place {
        match self {
            Units::Examples(all) => &all[index].source,
            Units::Pairs(all) => all[index].source(),
        }
    }

    /// Returns the documents of units; of a pair the chosen answer, then the rejected one.
    pub fn documents(self, units: &[usize]) -> Vec<Document<'a>> {
        let document =
            |example: &'a Example| Document { tokens: &example.tokens, is_target: &example.is_target };
        match self {
            Units::Examples(all) => units.iter().map(|unit| document(&all[*unit])).collect(),
            Units::Pairs(all) => {
                let pairs = units.iter().map(|unit| &all[*unit]);
                pairs.flat_map(|pair| [document(&pair.chosen), document(&pair.rejected)]).collect()
            }
        }
    }

    /// Returns the number of documents of a unit.
    pub fn documents_per_unit(self) -> usize {
        match self {
            Units::Examples(_) => 1,
            Units::Pairs(_) => 2,
        }
    }
}
