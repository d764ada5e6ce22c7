//! Runs of words: the measure of how alike two texts are, and of what a text has in common with a training set.

use std::collections::HashSet;

use serde_json::Value as Json;

use super::Row;

/// Fields that say where a row is from, not what it asks.
const ABOUT: [&str; 3] = ["id", "cluster", "source"];

/// Returns a text's words: runs of letters and digits, in lower case.
pub fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// Returns 64-bit hashes (FNV-1a) of every run of `n` words.
pub fn shingles(words: &[String], n: usize) -> impl Iterator<Item = u64> {
    words.windows(n.max(1)).map(hash_of)
}

fn hash_of(words: &[String]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Returns the texts in a row, of lists and objects too, but for `id`, `cluster` and `source`.
pub fn texts_of(row: &Row) -> Vec<&str> {
    let mut texts = Vec::new();
    for (_, value) in row.iter().filter(|(name, _)| !ABOUT.contains(&name.as_str())) {
        collect(value, &mut texts);
    }
    texts
}

fn collect<'a>(value: &'a Json, texts: &mut Vec<&'a str>) {
    match value {
        Json::String(text) => texts.push(text),
        Json::Array(items) => items.iter().for_each(|item| collect(item, texts)),
        Json::Object(fields) => fields.values().for_each(|field| collect(field, texts)),
        _ => {}
    }
}

/// Pairs of texts that are alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alike {
    pub first: usize,
    pub second: usize,
    /// Shared runs of words over all runs of both (Jaccard).
    pub similarity: f64,
}

/// Returns the pairs (first < second) whose sets of runs of `n` words have a Jaccard similarity of at least `least`,
/// which must be above 0.
pub fn alike(texts: &[Vec<String>], n: usize, least: f64) -> Vec<Alike> {
    let sets: Vec<HashSet<u64>> = texts.iter().map(|words| shingles(words, n).collect()).collect();
    let mut holders: std::collections::HashMap<u64, Vec<usize>> = std::collections::HashMap::new();
    let mut pairs = Vec::new();
    let mut shared = vec![0_usize; texts.len()];
    for (second, set) in sets.iter().enumerate() {
        let mut met = Vec::new();
        for run in set {
            let earlier = holders.entry(*run).or_default();
            for first in earlier.iter().copied() {
                if shared[first] == 0 {
                    met.push(first);
                }
                shared[first] += 1;
            }
            earlier.push(second);
        }
        met.sort_unstable();
        for first in met {
            let union = sets[first].len() + set.len() - shared[first];
            let similarity = shared[first] as f64 / union as f64;
            if similarity >= least {
                pairs.push(Alike { first, second, similarity });
            }
            shared[first] = 0;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similarity_is_shared_runs_over_all_runs() {
        let texts = ["a b c d e f", "A, b c; d e x", "g h i j k l"].map(words);
        // runs of 5: {abcde, bcdef} and {abcde, bcdex}
        let pairs = alike(&texts, 5, 0.2);
        assert_eq!(pairs, [Alike { first: 0, second: 1, similarity: 1.0 / 3.0 }]);
        assert!(alike(&texts, 5, 0.34).is_empty());
        assert!(alike(&texts, 7, 0.1).is_empty());
        assert_eq!(alike(&[words("one two"), words("One two!")], 2, 1.0).len(), 1);
    }

    #[test]
    fn the_texts_of_a_row_are_what_it_asks() {
        let row = serde_json::json!({"id": "i", "cluster": "c", "source": "s", "q": "x", "list": ["y", 3], "o": {"k": "z"}});
        assert_eq!(texts_of(row.as_object().unwrap()), ["x", "y", "z"]);
    }
}
