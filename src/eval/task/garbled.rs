//! Answers that are no answer to anything: nothing, noise, one thing over and over. Told by rules that read no language.

use std::collections::HashSet;

/// Fewest words of which so few can be different that they are a loop.
const FEWEST_WORDS: usize = 12;
/// Fewest characters of which so few can be letters and digits that they are noise.
const FEWEST_CHARACTERS: usize = 16;

/// Returns true if a text
///
/// - has no letter and no digit, or
/// - has U+FFFD (bytes that are no UTF-8) or control characters other than line feeds, returns and tabs, or
/// - has 12 words or more, less than a third of them different (case does not count), or
/// - has 16 characters or more besides white space, less than a quarter of them letters or digits.
///
/// Words that mean nothing together are not seen.
pub fn is_garbled(text: &str) -> bool {
    let is_broken = |c: char| c == '\u{fffd}' || c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    let n_characters = text.chars().filter(|c| !c.is_whitespace()).count();
    let n_alphanumeric = text.chars().filter(|c| c.is_alphanumeric()).count();
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    let n_different = words.iter().collect::<HashSet<_>>().len();
    n_alphanumeric == 0
        || text.chars().any(is_broken)
        || words.len() >= FEWEST_WORDS && 3 * n_different < words.len()
        || n_characters >= FEWEST_CHARACTERS && 4 * n_alphanumeric < n_characters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_noise() {
        for text in [
            "22",
            "p.dubois",
            "The host is srv-hr1, address 192.0.2.7.",
            "{\"a\": \"b\"}",
            "Überweisung",
            "日本語の答え",
            "::1 and ::2 and fe80::1",
            "It is the sender who asks for the meeting, and the sender is the one named in the first line.",
        ] {
            assert!(!is_garbled(text), "{text}");
        }
        let loops = ["the the The the the the the the the the the the", "a b c a b c a b c a b c a b c"];
        for text in ["", " \n", "?!", "\u{fffd}x", "a\u{0}b", "}}}} ]]]] ;;;; x ((((", loops[0], loops[1]] {
            assert!(is_garbled(text), "{text:?}");
        }
    }
}
