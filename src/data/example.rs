//! Token ids and which of them are trained.

use super::Place;

/// A document to train on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub tokens: Vec<u32>,
    /// Whether the token is predicted from those before it; the first never is.
    pub is_target: Vec<bool>,
    pub source: Place,
}

impl Example {
    /// Returns an example whose targets are the tokens of the ranges `[start, end)`.
    pub fn new(tokens: Vec<u32>, targets: &[(usize, usize)], source: Place) -> Example {
        let mut is_target = vec![false; tokens.len()];
        for (start, end) in targets {
            is_target[*start..*end].fill(true);
        }
        if let Some(first) = is_target.first_mut() {
            *first = false;
        }
        Example { tokens, is_target, source }
    }

    /// Returns the number of tokens that are trained.
    pub fn targets(&self) -> usize {
        self.is_target.iter().filter(|is_target| **is_target).count()
    }

    /// Returns pieces of at most `most` tokens, each beginning with the last token of the one before, so that every
    /// target is a target of exactly one piece. `most` is at least 2.
    fn split(&self, most: usize) -> Vec<Example> {
        let mut pieces = Vec::new();
        let mut start = 0;
        loop {
            let end = self.tokens.len().min(start + most);
            let mut is_target = self.is_target[start..end].to_vec();
            is_target[0] = false;
            let tokens = self.tokens[start..end].to_vec();
            pieces.push(Example { tokens, is_target, source: self.source.clone() });
            if end == self.tokens.len() {
                return pieces;
            }
            start = end - 1;
        }
    }
}

/// A preferred and a rejected answer to the same prompt; the targets are the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub chosen: Example,
    pub rejected: Example,
}

/// What a row becomes: [`Example`] or [`Pair`].
pub trait Unit: Clone + Send + Sync {
    /// Returns the tokens that it takes in a batch.
    fn tokens(&self) -> usize;
    /// Returns the tokens of its longest sequence.
    fn longest(&self) -> usize;
    fn targets(&self) -> usize;
    /// Returns whether a sequence has nothing that is trained.
    fn lacks_target(&self) -> bool;
    fn source(&self) -> &Place;
    /// Returns what it is cut into, sequences of at most `most` tokens, those without a target left out; `None` if it
    /// cannot be cut.
    fn cut(&self, most: usize) -> Option<Vec<Self>>;
}

impl Unit for Example {
    fn tokens(&self) -> usize {
        self.tokens.len()
    }

    fn longest(&self) -> usize {
        self.tokens.len()
    }

    fn targets(&self) -> usize {
        Example::targets(self)
    }

    fn lacks_target(&self) -> bool {
        !self.is_target.contains(&true)
    }

    fn source(&self) -> &Place {
        &self.source
    }

    fn cut(&self, most: usize) -> Option<Vec<Example>> {
        let mut pieces = self.split(most);
        pieces.retain(|piece| !piece.lacks_target());
        Some(pieces)
    }
}

impl Unit for Pair {
    fn tokens(&self) -> usize {
        self.chosen.tokens.len() + self.rejected.tokens.len()
    }

    fn longest(&self) -> usize {
        self.chosen.tokens.len().max(self.rejected.tokens.len())
    }

    fn targets(&self) -> usize {
        self.chosen.targets() + self.rejected.targets()
    }

    fn lacks_target(&self) -> bool {
        self.chosen.lacks_target() || self.rejected.lacks_target()
    }

    fn source(&self) -> &Place {
        &self.chosen.source
    }

    fn cut(&self, _: usize) -> Option<Vec<Pair>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn place() -> Place {
        Place { path: Path::new("a.jsonl").into(), line: 1 }
    }

    #[test]
    fn every_target_survives_a_cut_once() {
        let whole = Example::new((0..11).collect(), &[(0, 2), (4, 11)], place());
        assert_eq!((whole.is_target[0], whole.targets()), (false, 8));
        for most in 2..13 {
            let pieces = whole.cut(most).unwrap();
            assert!(pieces.iter().all(|piece| piece.tokens.len() <= most && !piece.is_target[0]));
            let trained: Vec<u32> = pieces
                .iter()
                .flat_map(|piece| piece.tokens.iter().zip(&piece.is_target).filter(|(_, is)| **is))
                .map(|(token, _)| *token)
                .collect();
            assert_eq!(trained, [1, 4, 5, 6, 7, 8, 9, 10], "{most}");
        }
        // [2, 3] and [3, 4]: the first has nothing to train
        assert_eq!(whole.cut(2).unwrap()[1].tokens, [3, 4]);
    }
}
