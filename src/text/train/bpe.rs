//! Learning merges: byte-pair encoding (Sennrich, Haddow and Birch, arXiv:1508.07909) over bytes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

type Pair = (u32, u32);

/// Tokens and merges in the order they were learned.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Merges {
    /// Bytes of every token; the index is the id less the number of special tokens.
    pub tokens: Vec<Vec<u8>>,
    /// Indices into `tokens`.
    pub pairs: Vec<Pair>,
}

/// Learns merges until there are `n_tokens` tokens or no pair stands in the words `least` times.
///
/// The most frequent pair is merged first; of pairs that are equally frequent the one whose left token was learned first, then the one
/// whose right token was. `alphabet` has the 256 bytes in the order of their ids. As the `tokenizers` library does, a count changes by
/// the neighbours of what is merged, so that pairs that overlap themselves (`aa` in `aaa`) are counted at every place.
pub fn learn(words: &BTreeMap<Vec<u8>, u64>, alphabet: &[u8; 256], n_tokens: usize, least: u64) -> Merges {
    let mut learner = Learner::new(words, alphabet);
    while learner.merges.tokens.len() < n_tokens {
        let Some(pair) = learner.next(least.max(1)) else { break };
        learner.merge(pair);
    }
    learner.merges
}

struct Learner {
    merges: Merges,
    ids: HashMap<Vec<u8>, u32>,
    /// Every word's tokens and how often it stands in the text.
    words: Vec<(Vec<u32>, i64)>,
    counts: HashMap<Pair, i64>,
    /// Words that have, or had, the pair.
    places: HashMap<Pair, Vec<usize>>,
    /// The most frequent pair first; counts may be out of date.
    queue: BinaryHeap<(i64, Reverse<Pair>)>,
}

impl Learner {
    fn new(words: &BTreeMap<Vec<u8>, u64>, alphabet: &[u8; 256]) -> Learner {
        let tokens: Vec<Vec<u8>> = alphabet.iter().map(|byte| vec![*byte]).collect();
        let ids: HashMap<Vec<u8>, u32> = tokens.iter().cloned().zip(0..).collect();
        let mut id_of_byte = [0u32; 256];
        alphabet.iter().zip(0..).for_each(|(byte, id)| id_of_byte[usize::from(*byte)] = id);
        let words = words.iter().map(|(word, count)| {
            let ids = word.iter().map(|byte| id_of_byte[usize::from(*byte)]).collect();
            (ids, i64::try_from(*count).unwrap_or(i64::MAX))
        });
        let mut learner = Learner {
            merges: Merges { tokens, pairs: Vec::new() },
            ids,
            words: words.collect(),
            counts: HashMap::new(),
            places: HashMap::new(),
            queue: BinaryHeap::new(),
        };
        for (index, (word, count)) in learner.words.iter().enumerate() {
            for pair in word.windows(2).map(|pair| (pair[0], pair[1])) {
                *learner.counts.entry(pair).or_default() += count;
                add_place(&mut learner.places, pair, index);
            }
        }
        learner.queue = learner.counts.iter().map(|(pair, count)| (*count, Reverse(*pair))).collect();
        learner
    }

    /// Returns the pair to be merged next, `None` if none is frequent enough.
    fn next(&mut self, least: u64) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            let now = self.counts.get(&pair).copied().unwrap_or(0);
            if now != count {
                self.queue.push((now, Reverse(pair)));
                continue;
            }
            if u64::try_from(count).unwrap_or(0) < least {
                return None;
            }
            // a pair that is in the queue twice was merged everywhere the first time
            if self.places.contains_key(&pair) {
                return Some(pair);
            }
        }
        None
    }

    fn merge(&mut self, pair: Pair) {
        let token =
            [self.merges.tokens[pair.0 as usize].clone(), self.merges.tokens[pair.1 as usize].clone()]
                .concat();
        let new_id = self.merges.tokens.len() as u32;
        // two ways may lead to the same token
        let id = *self.ids.entry(token.clone()).or_insert(new_id);
        if id == new_id {
            self.merges.tokens.push(token);
        }
        self.merges.pairs.push(pair);
        let mut grown = Vec::new();
        for index in self.places.remove(&pair).unwrap_or_default() {
            let (word, count) = &mut self.words[index];
            for (changed, is_more) in replace(word, pair, id) {
                *self.counts.entry(changed).or_default() += if is_more { *count } else { -*count };
                if is_more {
                    add_place(&mut self.places, changed, index);
                    grown.push(changed);
                }
            }
        }
        grown.sort_unstable();
        grown.dedup();
        let counts = &self.counts;
        self.queue.extend(grown.into_iter().map(|pair| (counts[&pair], Reverse(pair))));
    }
}

/// Words are gone through in ascending order, so a word that is there already is the last one.
fn add_place(places: &mut HashMap<Pair, Vec<usize>>, pair: Pair, index: usize) {
    let places = places.entry(pair).or_default();
    if places.last() != Some(&index) {
        places.push(index);
    }
}

/// Replaces the pair by a token from left to right; returns neighbours that are gone (`false`) and new (`true`). Each token moves
/// once, however long the word is.
fn replace(word: &mut Vec<u32>, pair: Pair, id: u32) -> Vec<(Pair, bool)> {
    let mut changes = Vec::new();
    // word[..n_kept] is done, word[at..] as it was; n_kept <= at
    let (mut n_kept, mut at) = (0, 0);
    while at < word.len() {
        if word.get(at + 1).is_some_and(|next| (word[at], *next) == pair) {
            if n_kept > 0 {
                let before = word[n_kept - 1];
                changes.extend([((before, pair.0), false), ((before, id), true)]);
            }
            if let Some(next) = word.get(at + 2) {
                changes.extend([((pair.1, *next), false), ((id, *next), true)]);
            }
            word[n_kept] = id;
            at += 2;
        } else {
            word[n_kept] = word[at];
            at += 1;
        }
        n_kept += 1;
    }
    word.truncate(n_kept);
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alphabet() -> [u8; 256] {
        std::array::from_fn(|byte| byte as u8)
    }

    fn learned(words: &[(&str, u64)], n: usize, least: u64) -> Vec<String> {
        let words = words.iter().map(|(word, count)| (word.as_bytes().to_vec(), *count)).collect();
        let merges = learn(&words, &alphabet(), 256 + n, least);
        merges.tokens[256..].iter().map(|token| String::from_utf8(token.clone()).unwrap()).collect()
    }

    #[test]
    fn the_most_frequent_pair_comes_first_then_the_one_learned_first() {
        // `ab` and `cd` both five times, `bc` never
        assert_eq!(learned(&[("ab", 5), ("cd", 5), ("xy", 6)], 3, 1), ["xy", "ab", "cd"]);
        // `bc` is more frequent than `ab` until it is merged
        assert_eq!(learned(&[("abc", 3), ("bc", 2), ("ab", 1)], 3, 1), ["bc", "abc", "ab"]);
    }

    #[test]
    fn learning_ends_where_nothing_is_frequent_enough() {
        assert_eq!(learned(&[("ab", 5), ("cd", 1)], 10, 2), ["ab"]);
        assert_eq!(learned(&[], 10, 1), [""; 0]);
    }

    #[test]
    fn the_same_words_give_the_same_merges_as_counting_anew_each_time() {
        let text = "the thin thing that thaws there then thinks in the inn banana bananas cabana";
        let mut words = BTreeMap::new();
        text.split(' ').for_each(|word| *words.entry(word.as_bytes().to_vec()).or_insert(0) += 1);
        assert_eq!(learn(&words, &alphabet(), 290, 1), slow(&words, 290));
    }

    #[test]
    fn a_pair_is_replaced_as_by_taking_tokens_out_one_by_one() {
        // of three tokens, so that pairs overlap themselves and each other
        for number in 0..3u32.pow(9) {
            let before: Vec<u32> = (0..9).map(|place| number / 3u32.pow(place) % 3).collect();
            for pair in [(0, 0), (0, 1)] {
                let (mut word, mut expected) = (before.clone(), before.clone());
                let changes = replace(&mut word, pair, 7);
                assert_eq!(changes, replace_one_by_one(&mut expected, pair, 7), "{before:?}");
                assert_eq!(word, expected, "{before:?}");
            }
        }
    }

    fn replace_one_by_one(word: &mut Vec<u32>, pair: Pair, id: u32) -> Vec<(Pair, bool)> {
        let mut changes = Vec::new();
        let mut at = 0;
        while at + 1 < word.len() {
            if (word[at], word[at + 1]) == pair {
                if at > 0 {
                    changes.extend([((word[at - 1], pair.0), false), ((word[at - 1], id), true)]);
                }
                word[at] = id;
                word.remove(at + 1);
                if let Some(next) = word.get(at + 1) {
                    changes.extend([((pair.1, *next), false), ((id, *next), true)]);
                }
            }
            at += 1;
        }
        changes
    }

    #[test]
    fn a_word_of_megabytes_takes_no_longer_than_its_length() {
        // taking tokens out of its middle one by one, it would be minutes
        let words = BTreeMap::from([(vec![b'a'; 1 << 21], 1)]);
        let merges = learn(&words, &alphabet(), 300, 2);
        let lengths: Vec<usize> = merges.tokens[256..].iter().map(Vec::len).collect();
        // the last is there twice, one pair of which is not frequent enough
        assert_eq!(lengths, (1..=20).map(|power| 1 << power).collect::<Vec<_>>());
    }

    /// Counts all pairs anew for every merge.
    fn slow(words: &BTreeMap<Vec<u8>, u64>, n_tokens: usize) -> Merges {
        let mut merges = Merges { tokens: (0..=255).map(|byte| vec![byte]).collect(), pairs: Vec::new() };
        let mut words: Vec<(Vec<u32>, u64)> = words
            .iter()
            .map(|(word, count)| (word.iter().map(|byte| u32::from(*byte)).collect(), *count))
            .collect();
        while merges.tokens.len() < n_tokens {
            let mut counts: BTreeMap<Pair, u64> = BTreeMap::new();
            for (word, count) in &words {
                word.windows(2).for_each(|pair| *counts.entry((pair[0], pair[1])).or_default() += count);
            }
            let Some((pair, _)) = counts.into_iter().max_by_key(|(pair, count)| (*count, Reverse(*pair)))
            else {
                break;
            };
            let id = merges.tokens.len() as u32;
            let token =
                [merges.tokens[pair.0 as usize].clone(), merges.tokens[pair.1 as usize].clone()].concat();
            merges.tokens.push(token);
            merges.pairs.push(pair);
            words.iter_mut().for_each(|(word, _)| {
                replace(word, pair, id);
            });
        }
        merges
    }
}
