//! Byte-level BPE: of all neighbours that have a merge, those of the lowest rank merge first
//! (Sennrich et al., arXiv:1508.07909; over bytes as GPT-2 does).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::cache::WordCache;

/// A word up to this many symbols is scanned for its best pair; a longer one keeps a queue.
const SCANNED: usize = 24;

/// Splits words into tokens by rank.
#[derive(Debug)]
pub struct Bpe {
    /// The token of every byte that has one.
    bytes: Box<[Option<u32>; 256]>,
    /// The tokens of single characters, where words are not bytes but characters.
    characters: Option<HashMap<char, u32>>,
    merges: HashMap<u64, Merge, BuildHasherDefault<PairHasher>>,
    /// Tokens that are taken whole where a word is one.
    whole: HashMap<Box<[u8]>, u32>,
    cache: WordCache,
}

#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: u32,
    result: u32,
}

/// Hashes one pair of symbols; both come from the vocabulary, so nobody can choose collisions by text.
#[derive(Clone, Copy, Debug, Default)]
pub struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, pair: u64) {
        let mixed = (self.0 ^ pair).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// A stretch of a word as a symbol; merged ones point past themselves.
#[derive(Clone, Copy, Debug)]
struct Link {
    symbol: u32,
    prev: usize,
    next: usize,
}

/// No neighbour.
const NONE: usize = usize::MAX;

/// Symbol of a link that was merged into its left neighbour.
const GONE: u32 = u32::MAX;

impl Bpe {
    /// Returns the model of these merges `(left, right, result)`, best first; `bytes` and `characters`
    /// are the tokens that a word starts as, `whole` those to be taken before any merge.
    pub fn new(
        bytes: Box<[Option<u32>; 256]>,
        characters: Option<HashMap<char, u32>>,
        merges: impl Iterator<Item = (u32, u32, u32)>,
        whole: HashMap<Box<[u8]>, u32>,
    ) -> Self {
        let mut table = HashMap::default();
        for (rank, (left, right, result)) in merges.enumerate() {
            table.entry(pair(left, right)).or_insert(Merge { rank: rank as u32, result });
        }
        Bpe { bytes, characters, merges: table, whole, cache: WordCache::default() }
    }

    /// Appends the ids of all words. Bytes without a token are left out, as in the reference.
    pub fn encode<'a>(&self, words: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u32>) {
        self.cache.encode(words, out, |word, out| self.encode_word(word, out));
    }

    fn encode_word(&self, word: &[u8], out: &mut Vec<u32>) {
        if let Some(&id) = self.whole.get(word) {
            out.push(id);
            return;
        }
        let start = out.len();
        self.start_symbols(word, out);
        match out.len() - start {
            ..=SCANNED => self.merge_by_scan(out, start),
            _ => {
                let merged = self.merge_by_queue(&out[start..]);
                out.truncate(start);
                out.extend(merged);
            }
        }
    }

    /// Appends the word's tokens before any merge.
    fn start_symbols(&self, word: &[u8], out: &mut Vec<u32>) {
        let of_bytes = |bytes: &[u8], out: &mut Vec<u32>| {
            out.extend(bytes.iter().filter_map(|&byte| self.bytes[usize::from(byte)]));
        };
        let Some(characters) = &self.characters else { return of_bytes(word, out) };
        for chunk in word.utf8_chunks() {
            for c in chunk.valid().chars() {
                match characters.get(&c) {
                    Some(&id) => out.push(id),
                    None => of_bytes(c.encode_utf8(&mut [0; 4]).as_bytes(), out),
                }
            }
            of_bytes(chunk.invalid(), out);
        }
    }

    fn merge(&self, left: u32, right: u32) -> Option<Merge> {
        self.merges.get(&pair(left, right)).copied()
    }

    /// Merges `symbols[start..]` in place.
    fn merge_by_scan(&self, symbols: &mut Vec<u32>, start: usize) {
        // merges[i] joins start + i with its right neighbour
        let mut merges: [Option<Merge>; SCANNED] = [None; SCANNED];
        let mut n_pairs = (symbols.len() - start).saturating_sub(1);
        for at in 0..n_pairs {
            merges[at] = self.merge(symbols[start + at], symbols[start + at + 1]);
        }
        loop {
            let best = (0..n_pairs).filter_map(|at| merges[at].map(|merge| (merge.rank, at))).min();
            let Some((_, at)) = best else { return };
            let Some(Merge { result, .. }) = merges[at] else { return };
            symbols[start + at] = result;
            symbols.remove(start + at + 1);
            merges.copy_within(at + 1..n_pairs, at);
            n_pairs -= 1;
            if at < n_pairs {
                merges[at] = self.merge(result, symbols[start + at + 1]);
            }
            if at > 0 {
                merges[at - 1] = self.merge(symbols[start + at - 1], result);
            }
        }
    }

    fn merge_by_queue(&self, symbols: &[u32]) -> Vec<u32> {
        let mut links: Vec<Link> = symbols
            .iter()
            .enumerate()
            .map(|(at, &symbol)| Link { symbol, prev: at.wrapping_sub(1), next: at + 1 })
            .collect();
        if let Some(last) = links.last_mut() {
            last.next = NONE;
        }
        let mut queue = BinaryHeap::with_capacity(links.len());
        let push = |queue: &mut BinaryHeap<_>, links: &[Link], left: usize| {
            let Link { symbol, next, .. } = links[left];
            if next != NONE
                && let Some(merge) = self.merge(symbol, links[next].symbol)
            {
                queue.push(Reverse((merge.rank, left, symbol, links[next].symbol, merge.result)));
            }
        };
        for left in 0..links.len() {
            push(&mut queue, &links, left);
        }
        while let Some(Reverse((_, at, left, right, result))) = queue.pop() {
            let next = links[at].next;
            if links[at].symbol != left || next == NONE || links[next].symbol != right {
                continue;
            }
            let after = links[next].next;
            links[next].symbol = GONE;
            links[at].symbol = result;
            links[at].next = after;
            if after != NONE {
                links[after].prev = at;
            }
            push(&mut queue, &links, at);
            if links[at].prev != NONE {
                push(&mut queue, &links, links[at].prev);
            }
        }
        links.into_iter().map(|link| link.symbol).filter(|&symbol| symbol != GONE).collect()
    }
}
