//! Words that a question and its choices share: without distractors that share as many as the right answer, looking for
//! the choice with the most of the question's words would do.

use std::collections::HashSet;

use super::draw::Draws;

/// Words of names that say little.
const COMMON: [&str; 12] = [
    "with", "from", "that", "this", "into", "without", "used", "using", "improper", "missing", "over",
    "other",
];

/// Returns the words' beginnings: `encrypted` and `encryption` have the same.
fn stems(text: &str) -> HashSet<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    let words = words.filter(|word| word.len() >= 3 && !COMMON.contains(word));
    words.map(|word| word.chars().take(5).collect()).collect()
}

/// Puts the candidate first that shares as many words with the text as the right answer does, or one more, as drawn;
/// where there is none, the one that comes nearest. The others keep their order.
pub fn put_like_first<T>(
    candidates: &mut [T],
    text: &str,
    right: &str,
    label: impl Fn(&T) -> String,
    draws: &mut Draws,
) {
    let words = stems(text);
    let shared = |label: &str| stems(label).intersection(&words).count();
    let wanted = shared(right) + draws.below(2);
    let nearest =
        (0..candidates.len()).min_by_key(|&index| shared(&label(&candidates[index])).abs_diff(wanted));
    if let Some(index) = nearest {
        candidates[..=index].rotate_right(1);
    }
}
