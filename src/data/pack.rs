//! Which documents share a micro-batch.
//!
//! A micro-batch is a ragged list of documents, so packing pads nothing and joins nothing: attention never crosses
//! from one document into another, and a document's gradients are those that it has alone.

use serde::Serialize;

use crate::kernel::philox::{Philox, Purpose};

/// How micro-batches are filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// A fixed number of documents, whatever their lengths.
    Off,
    /// Packs of at most `capacity` tokens, filled in the epoch's order; a document that does not fit opens the next.
    Sequential,
    /// Packs of at most `capacity` tokens by first-fit decreasing: each document, the longest first, goes into the first
    /// pack with room. At most 11/9 of the fewest possible packs and a constant (Johnson 1973).
    #[default]
    FirstFit,
}

/// The shape of a run's batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    pub packing: Packing,
    /// Most tokens of a pack; no document is longer.
    pub capacity: usize,
    /// Documents of a micro-batch, or packs.
    pub micro_batch_size: usize,
}

impl Batching {
    /// Returns an epoch's micro-batches, each a list of documents. `order` are the epoch's documents, `length` gives a
    /// document's tokens. Packs are put in an order drawn from (seed, epoch), as first-fit sorts them by length.
    pub fn micro_batches(
        &self,
        order: &[usize],
        length: impl Fn(usize) -> usize,
        seed: u64,
        epoch: u32,
    ) -> Vec<Vec<usize>> {
        let size = self.micro_batch_size.max(1);
        let mut packs = match self.packing {
            Packing::Off => return order.chunks(size).map(<[usize]>::to_vec).collect(),
            Packing::Sequential => sequential(order, &length, self.capacity),
            Packing::FirstFit => first_fit_decreasing(order, &length, self.capacity),
        };
        if self.packing == Packing::FirstFit {
            shuffle(&mut packs, seed, epoch, PACKS);
        }
        packs.chunks(size).map(<[Vec<usize>]>::concat).collect()
    }
}

/// Numbers for packs come from another part of the stream than those for documents.
const PACKS: u64 = 1 << 40;

/// Shuffles by draws of (seed, epoch), from index `from` on (Fisher and Yates).
pub(super) fn shuffle<T>(items: &mut [T], seed: u64, epoch: u32, from: u64) {
    let stream = Philox::new(seed, Purpose::Shuffle);
    for last in (1..items.len()).rev() {
        let other = stream.below(epoch, from + last as u64, last as u64 + 1) as usize;
        items.swap(last, other);
    }
}

fn sequential(order: &[usize], length: &impl Fn(usize) -> usize, capacity: usize) -> Vec<Vec<usize>> {
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for document in order.iter().copied() {
        let tokens = length(document);
        match packs.last_mut() {
            Some(pack) if tokens <= room => pack.push(document),
            _ => {
                packs.push(vec![document]);
                room = capacity.max(tokens);
            }
        }
        room -= tokens;
    }
    packs
}

fn first_fit_decreasing(
    order: &[usize],
    length: &impl Fn(usize) -> usize,
    capacity: usize,
) -> Vec<Vec<usize>> {
    let mut sorted: Vec<usize> = order.to_vec();
    // stable: documents of one length stay in the epoch's order
    sorted.sort_by_key(|document| std::cmp::Reverse(length(*document)));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut rooms = Rooms::new(sorted.len());
    for document in sorted {
        let tokens = length(document);
        let pack = rooms.first_with(tokens);
        if pack == packs.len() {
            packs.push(Vec::new());
            rooms.set(pack, capacity.max(tokens));
        }
        packs[pack].push(document);
        rooms.set(pack, rooms.of(pack) - tokens);
    }
    packs
}

/// Room of packs as a tree of maxima: the first pack with enough room is found in log n steps.
struct Rooms {
    /// The root is 1, children of i are 2 i and 2 i + 1; packs not opened yet have unlimited room.
    tree: Vec<usize>,
    leaves: usize,
}

impl Rooms {
    /// Returns room for `n` packs.
    fn new(n: usize) -> Rooms {
        let leaves = n.max(1).next_power_of_two();
        Rooms { tree: vec![usize::MAX; 2 * leaves], leaves }
    }

    fn of(&self, pack: usize) -> usize {
        self.tree[self.leaves + pack]
    }

    fn set(&mut self, pack: usize, room: usize) {
        let mut node = self.leaves + pack;
        self.tree[node] = room;
        while node > 1 {
            node /= 2;
            self.tree[node] = self.tree[2 * node].max(self.tree[2 * node + 1]);
        }
    }

    fn first_with(&self, tokens: usize) -> usize {
        let mut node = 1;
        while node < self.leaves {
            node *= 2;
            node += usize::from(self.tree[node] < tokens);
        }
        node - self.leaves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [usize; 9] = [5, 9, 2, 7, 7, 1, 3, 4, 6];

    fn batches(packing: Packing, micro_batch_size: usize) -> Vec<Vec<usize>> {
        let batching = Batching { packing, capacity: 10, micro_batch_size };
        batching.micro_batches(&[0, 1, 2, 3, 4, 5, 6, 7, 8], |document| LENGTHS[document], 3, 0)
    }

    #[test]
    fn sequential_packs_keep_the_order() {
        assert_eq!(
            batches(Packing::Sequential, 1),
            [vec![0], vec![1], vec![2, 3], vec![4, 5], vec![6, 7], vec![8]]
        );
        assert_eq!(batches(Packing::Sequential, 4), [vec![0, 1, 2, 3, 4, 5], vec![6, 7, 8]]);
        assert_eq!(batches(Packing::Off, 4), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8]]);
    }

    #[test]
    fn first_fit_decreasing_fills_packs_whose_order_the_epoch_draws() {
        let mut packs = batches(Packing::FirstFit, 1);
        let drawn = packs.clone();
        packs.sort();
        // 9+1, 7+3, 7+2, 6+4, 5
        assert_eq!(packs, [vec![0], vec![1, 5], vec![3, 6], vec![4, 2], vec![8, 7]]);
        let batching = Batching { packing: Packing::FirstFit, capacity: 10, micro_batch_size: 1 };
        let order: Vec<usize> = (0..9).collect();
        let orders: std::collections::HashSet<Vec<Vec<usize>>> = (0..20)
            .map(|epoch| batching.micro_batches(&order, |document| LENGTHS[document], 3, epoch))
            .collect();
        assert!(orders.len() > 10 && orders.contains(&drawn), "{}", orders.len());
    }

    #[test]
    fn every_document_is_in_one_pack_and_no_pack_is_too_full() {
        let length = |document: usize| 1 + document * 7919 % 512;
        let order: Vec<usize> = (0..3000).collect();
        let total: usize = order.iter().map(|document| length(*document)).sum();
        for packing in [Packing::Sequential, Packing::FirstFit] {
            let batching = Batching { packing, capacity: 512, micro_batch_size: 1 };
            let packs = batching.micro_batches(&order, length, 1, 0);
            let mut all = packs.concat();
            all.sort_unstable();
            assert_eq!(all, order);
            let tokens = |pack: &Vec<usize>| pack.iter().map(|document| length(*document)).sum::<usize>();
            assert!(packs.iter().all(|pack| tokens(pack) <= 512));
            if packing == Packing::FirstFit {
                let fewest = total.div_ceil(512);
                assert!(packs.len() * 50 <= fewest * 51, "{} packs where {fewest} may do", packs.len());
            }
        }
    }

    /// A document longer than a pack cannot come from a loaded set; it must not be lost, nor overflow.
    #[test]
    fn a_document_that_fits_nowhere_is_alone() {
        for packing in [Packing::Sequential, Packing::FirstFit] {
            let batching = Batching { packing, capacity: 4, micro_batch_size: 1 };
            let mut packs = batching.micro_batches(&[0, 1, 2], |document| [3, 9, 1][document], 0, 0);
            packs.sort();
            assert!(packs.contains(&vec![1]), "{packing:?} {packs:?}");
        }
    }
}
