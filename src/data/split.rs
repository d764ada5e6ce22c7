//! Which rows are held out for validation.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::kernel::philox::{Philox, Purpose};

/// Returns which rows are held out: about `share` of them, at least one if `share` is above 0.
///
/// `keys` says what of a row decides: rows of equal keys stay together, and the choice depends on keys and seed
/// alone, so that it is the same whatever the order of the rows. A row added or removed moves few others.
pub fn held_out(keys: &[String], share: f64, seed: u64) -> Vec<bool> {
    let mut groups: BTreeMap<(u64, &str), Vec<usize>> = BTreeMap::new();
    let stream = Philox::new(seed, Purpose::HeldOut);
    for (row, key) in keys.iter().enumerate() {
        groups.entry((rank(&stream, key), key)).or_default().push(row);
    }
    let wanted = match share > 0.0 {
        true => ((keys.len() as f64 * share).round() as usize).max(1),
        false => 0,
    };
    let mut is_held = vec![false; keys.len()];
    let mut held = 0;
    for rows in groups.values() {
        if held >= wanted {
            break;
        }
        rows.iter().for_each(|row| is_held[*row] = true);
        held += rows.len();
    }
    is_held
}

/// Returns a key's place in the seed's order.
fn rank(stream: &Philox, key: &str) -> u64 {
    let digest = Sha256::digest(key);
    let index = digest.iter().take(8).fold(0, |index, byte| index << 8 | u64::from(*byte));
    let [low, high, ..] = stream.block(0, index);
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(n: usize) -> Vec<String> {
        (0..n).map(|row| format!("row {row}")).collect()
    }

    fn held(keys: &[String], share: f64, seed: u64) -> Vec<&String> {
        let is_held = held_out(keys, share, seed);
        keys.iter().zip(is_held).filter(|(_, is_held)| *is_held).map(|(key, _)| key).collect()
    }

    #[test]
    fn the_choice_is_the_same_in_any_order_and_another_for_another_seed() {
        let forward = keys(200);
        let mut backward = forward.clone();
        backward.reverse();
        let mut from_backward = held(&backward, 0.1, 5);
        from_backward.reverse();
        assert_eq!(held(&forward, 0.1, 5), from_backward);
        assert_eq!(held(&forward, 0.1, 5).len(), 20);
        assert_ne!(held(&forward, 0.1, 5), held(&forward, 0.1, 6));
        // one row more moves at most two
        let more = keys(201);
        let before = held(&forward, 0.1, 5);
        assert!(held(&more, 0.1, 5).iter().filter(|key| !before.contains(key)).count() <= 1);
    }

    #[test]
    fn rows_of_equal_keys_stay_together() {
        let keys: Vec<String> = (0..100).map(|row| format!("cluster {}", row % 10)).collect();
        let is_held = held_out(&keys, 0.25, 1);
        assert_eq!(is_held.iter().filter(|is_held| **is_held).count(), 30);
        assert!((0..100).all(|row| is_held[row] == is_held[row % 10]));
    }

    #[test]
    fn a_small_share_holds_out_one_and_none_holds_out_none() {
        assert_eq!(held(&keys(9), 0.01, 1).len(), 1);
        assert_eq!(held(&keys(9), 0.0, 1).len(), 0);
        assert!(held_out(&[], 0.5, 1).is_empty());
    }
}
