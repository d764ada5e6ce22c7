//! Rows that come twice, or nearly.

use std::collections::HashMap;

use super::Finding;
use crate::data::Place;
use crate::data::format::Record;
use crate::data::shingles::{shingles, words};

/// Words of the runs that near-duplicates are told by.
const RUN: usize = 5;
/// Jaccard similarity of the sets of runs from which on rows are near-duplicates.
const ALIKE: f64 = 0.8;
/// Bands of the signature, and hashes of a band: two rows of similarity s meet in a bucket with probability
/// 1 - (1 - s^4)^16, which is 0.9998 at 0.8 (Leskovec, Rajaraman, Ullman, "Mining of massive datasets", section 3.4).
const BANDS: usize = 16;
const HASHES: usize = 4;

/// Returns the rows that say what an earlier one says.
pub fn exact(rows: &[&(Place, Record)]) -> Vec<Finding> {
    let mut known: HashMap<Vec<&str>, &Place> = HashMap::new();
    let mut found = Vec::new();
    for (place, record) in rows {
        match known.get(&record.texts()) {
            Some(first) => {
                found.push(Finding { place: place.clone(), what: format!("says what {first} says") })
            }
            None => drop(known.insert(record.texts(), place)),
        }
    }
    found
}

/// Returns the rows whose runs of 5 words are those of an earlier one, from a Jaccard similarity of 0.8 on; rows that are
/// equal are not told. Rows are compared with the first and the last one that share a bucket of their MinHash
/// signatures (Broder 1997), so that a thousand rows of one template take a thousand comparisons.
pub fn near(rows: &[&(Place, Record)]) -> Vec<Finding> {
    let sets: Vec<Vec<u64>> = rows.iter().map(|(_, record)| runs_of(record)).collect();
    let mut buckets: HashMap<(usize, [u64; HASHES]), (usize, usize)> = HashMap::new();
    let mut found = Vec::new();
    for (row, set) in sets.iter().enumerate().filter(|(_, set)| !set.is_empty()) {
        let signature = signature(set);
        let mut others: Vec<usize> = Vec::new();
        for (band, hashes) in signature.as_chunks::<HASHES>().0.iter().enumerate() {
            let bucket = buckets.entry((band, *hashes)).or_insert((row, row));
            others.extend([bucket.0, bucket.1]);
            bucket.1 = row;
        }
        others.sort_unstable();
        others.dedup();
        let alike = |other: &usize| {
            let similarity = jaccard(set, &sets[*other]);
            (*other != row && similarity >= ALIKE && rows[row].1.texts() != rows[*other].1.texts())
                .then_some((*other, similarity))
        };
        if let Some((other, similarity)) = others.iter().find_map(alike) {
            let what = format!("is {similarity:.2} like {}", rows[other].0);
            found.push(Finding { place: rows[row].0.clone(), what });
        }
    }
    found
}

/// Returns the runs of words in a record's texts, ascending, each once.
fn runs_of(record: &Record) -> Vec<u64> {
    let words: Vec<String> = record.texts().into_iter().flat_map(words).collect();
    let mut runs: Vec<u64> = shingles(&words, RUN).collect();
    runs.sort_unstable();
    runs.dedup();
    runs
}

/// Returns for each of 64 orders of all runs the first one in the set.
fn signature(set: &[u64]) -> [u64; BANDS * HASHES] {
    std::array::from_fn(|order| set.iter().map(|run| mixed(*run, order as u64)).min().unwrap_or(u64::MAX))
}

/// Returns a run's place in an order: the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mixed(run: u64, order: u64) -> u64 {
    let mut z = run.wrapping_add((order + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns shared members over all members of two ascending sets.
fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0_usize);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, shared) = (i + 1, j + 1, shared + 1),
        }
    }
    shared as f64 / (a.len() + b.len() - shared) as f64
}
