//! How often rows of each file are seen in an epoch, and in which order.

use std::ops::Range;

use super::pack::shuffle;
use crate::kernel::philox::{Philox, Purpose};

/// A file's examples and how often an epoch has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Among the examples of all files.
    pub range: Range<usize>,
    /// Above 0. At 2 an epoch has each example twice, at 0.5 it has half of them, every epoch another half.
    pub weight: f64,
}

impl Part {
    /// Returns how many examples an epoch takes from it, at least 1 if there are any.
    fn per_epoch(&self) -> usize {
        match self.range.len() {
            0 => 0,
            n => ((n as f64 * self.weight).round() as usize).max(1),
        }
    }
}

/// Files in their proportions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mixture {
    pub parts: Vec<Part>,
}

impl Mixture {
    /// Returns the number of examples of an epoch; it is every epoch's.
    pub fn epoch_len(&self) -> usize {
        self.parts.iter().map(Part::per_epoch).sum()
    }

    /// Returns an epoch's examples in its order: both depend on (seed, epoch) alone.
    pub fn epoch(&self, seed: u64, epoch: u32) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.epoch_len());
        for (number, part) in self.parts.iter().enumerate() {
            let n = part.range.len();
            if n == 0 {
                continue;
            }
            let wanted = part.per_epoch();
            for _ in 0..wanted / n {
                order.extend(part.range.clone());
            }
            order.extend(drawn(part.range.clone(), wanted % n, seed, epoch, number));
        }
        shuffle(&mut order, seed, epoch, 0);
        order
    }
}

/// Returns `wanted` different examples of a range, ascending.
fn drawn(range: Range<usize>, wanted: usize, seed: u64, epoch: u32, part: usize) -> Vec<usize> {
    let stream = Philox::new(seed, Purpose::Mixture);
    let mut all: Vec<usize> = range.collect();
    // the first steps of a shuffle choose without replacement
    for index in 0..wanted {
        let from = (part as u64) << 40 | index as u64;
        let other = index + stream.below(epoch, from, (all.len() - index) as u64) as usize;
        all.swap(index, other);
    }
    all.truncate(wanted);
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn mixture() -> Mixture {
        let part = |range, weight| Part { range, weight };
        Mixture {
            parts: vec![part(0..100, 1.0), part(100..110, 2.5), part(110..150, 0.25), part(150..150, 3.0)],
        }
    }

    #[test]
    fn weights_are_how_often_an_epoch_has_an_example() {
        let mixture = mixture();
        assert_eq!(mixture.epoch_len(), 100 + 25 + 10);
        let mut seen = HashSet::new();
        for epoch in 0..30 {
            let order = mixture.epoch(7, epoch);
            assert_eq!(order.len(), mixture.epoch_len());
            let times = |example: usize| order.iter().filter(|other| **other == example).count();
            assert!((0..100).all(|example| times(example) == 1));
            assert!((100..110).all(|example| (2..=3).contains(&times(example))));
            assert!((110..150).all(|example| times(example) <= 1));
            seen.extend(order);
        }
        // a quarter each of thirty epochs: all have been seen but with probability 40 x 0.75^30 = 0.7 %
        assert_eq!(seen.len(), 150);
    }

    #[test]
    fn an_epochs_order_depends_on_seed_and_epoch_alone() {
        let mixture = mixture();
        assert_eq!(mixture.epoch(7, 3), mixture.epoch(7, 3));
        assert_ne!(mixture.epoch(7, 3), mixture.epoch(7, 4));
        assert_ne!(mixture.epoch(7, 3), mixture.epoch(8, 3));
    }

    #[test]
    fn a_weight_never_leaves_a_file_out() {
        let mixture = Mixture { parts: vec![Part { range: 0..3, weight: 0.01 }] };
        assert_eq!(mixture.epoch(0, 0).len(), 1);
    }
}
