//! Pre-tokenizers by name: the splits that `tokenizer.ggml.pre` stands for.

use std::ops::Range;

use super::super::pre_table::{KNOWN, PUNCTUATION_RUNS};
use super::super::pretokenizer::{Known, canonical};
use super::aliases::{self, Own};

/// The end of most patterns: white space up to the last character before a word, which goes with the word.
const TRAILING_SPACE: &str = r"|\s+(?!\S)|\s+";

/// The characters that `Punctuation` of the tokenizers library splits off.
const PUNCTUATION: &str = r"[\p{P}!-/:-@\[-`{-~]+";

/// Splits text into words: regular expressions applied in turn, each isolating its matches.
#[derive(Debug)]
pub struct PreTokenizer {
    steps: Vec<Step>,
    pub rules: Rules,
}

/// What a pre-tokenizer's name says beside the splits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// A whole word that is a token is not merged.
    pub ignore_merges: bool,
    /// A beginning-of-sequence token is added unless the file says otherwise.
    pub adds_bos: bool,
    /// Text is brought to NFC first, as the models' own tokenizers do; llama.cpp does not.
    pub nfc: bool,
    /// Words stay UTF-8 with `▁` for spaces; bytes without a token are spelled `<0x0A>`.
    pub raw_utf8: bool,
}

#[derive(Debug)]
enum Step {
    Plain(regex::Regex),
    /// A pattern that ended in [`TRAILING_SPACE`], with `\s+` alone in its place.
    Trailing {
        regex: regex::Regex,
        newlines_apart: bool,
    },
    /// Patterns with other assertions.
    Fancy(fancy_regex::Regex),
}

/// A pre-tokenizer whose patterns do not compile; none of the known ones.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

impl PreTokenizer {
    /// Returns the pre-tokenizer of that name, `None` if the name is not known.
    pub fn named(name: &str) -> Result<Option<Self>, PatternError> {
        let alias = aliases::find(name);
        let base = alias.map_or(name, |alias| alias.base);
        let known = KNOWN.iter().find(|known| known.name == base);
        let own = aliases::OWN.iter().find(|own| own.name == base);
        let (patterns, mut rules) = match (known, own) {
            (Some(known), _) => (known.splits, Rules::of(known)),
            (None, Some(Own { splits, rules, .. })) => (*splits, *rules),
            (None, None) => return Ok(None),
        };
        if let Some(alias) = alias {
            rules.ignore_merges = alias.ignore_merges;
            rules.nfc = false;
        }
        rules.adds_bos |= aliases::ADDS_BOS.contains(&name);
        let steps = patterns.iter().map(|pattern| Step::new(pattern)).collect::<Result<_, _>>()?;
        Ok(Some(PreTokenizer { steps, rules }))
    }

    /// Returns the words of the text in order; together they are the text.
    ///
    /// Errors if a pattern's backtracking runs past its limit.
    pub fn words(&self, text: &str) -> Result<Vec<Range<usize>>, PatternError> {
        let mut words: Vec<_> = std::iter::once(0..text.len()).collect();
        let mut next = Vec::new();
        for step in &self.steps {
            next.clear();
            next.reserve(words.len());
            for word in &words {
                step.split(text, word.clone(), &mut next)?;
            }
            std::mem::swap(&mut words, &mut next);
        }
        words.retain(|word| !word.is_empty());
        Ok(words)
    }
}

impl Rules {
    fn of(known: &Known) -> Self {
        Rules { ignore_merges: known.ignore_merges, nfc: known.nfc, ..Rules::default() }
    }
}

impl Step {
    fn new(pattern: &str) -> Result<Self, PatternError> {
        let pattern = match pattern {
            PUNCTUATION_RUNS => PUNCTUATION.to_owned(),
            pattern => canonical(pattern),
        };
        let has_assertion = |pattern: &str| pattern.contains("(?=") || pattern.contains("(?!");
        let compile = |pattern: &str| regex::Regex::new(pattern).map_err(|e| PatternError(e.to_string()));
        if let Some(start) = pattern.strip_suffix(TRAILING_SPACE)
            && !has_assertion(start)
        {
            let newlines_apart = start.contains(r"\s*[\r\n]");
            return Ok(Step::Trailing { regex: compile(&format!(r"{start}|\s+"))?, newlines_apart });
        }
        match has_assertion(&pattern) {
            false => compile(&pattern).map(Step::Plain),
            true => {
                fancy_regex::Regex::new(&pattern).map(Step::Fancy).map_err(|e| PatternError(e.to_string()))
            }
        }
    }

    /// Appends the matches in `text[word]` and what stands between them.
    fn split(&self, text: &str, word: Range<usize>, out: &mut Vec<Range<usize>>) -> Result<(), PatternError> {
        let inner = &text[word.clone()];
        let mut done = 0;
        let mut isolate = |found: Range<usize>| {
            if found.start > done {
                out.push(word.start + done..word.start + found.start);
            }
            if !found.is_empty() {
                out.push(word.start + found.start..word.start + found.end);
            }
            done = found.end;
        };
        match self {
            Step::Plain(regex) => regex.find_iter(inner).for_each(|found| isolate(found.range())),
            Step::Trailing { regex, newlines_apart } => {
                let mut at = 0;
                while let Some(found) = regex.find_at(inner, at).filter(|found| !found.is_empty()) {
                    let mut found = found.range();
                    if let Some(end) = before_last_space(inner, &found, *newlines_apart) {
                        found.end = end;
                    }
                    at = found.end;
                    isolate(found);
                }
            }
            Step::Fancy(regex) => {
                for found in regex.find_iter(inner) {
                    isolate(found.map_err(|e| PatternError(e.to_string()))?.range());
                }
            }
        }
        if done < inner.len() {
            out.push(word.start + done..word.end);
        }
        Ok(())
    }
}

/// Returns where `\s+(?!\S)` would end, if `found` is white space matched by `\s+` with a word behind it
/// and more than one character: before its last one.
fn before_last_space(text: &str, found: &Range<usize>, newlines_apart: bool) -> Option<usize> {
    let space = &text[found.clone()];
    let last = space.chars().next_back().filter(|c| c.is_whitespace())?;
    if found.end == text.len() || newlines_apart && matches!(last, '\r' | '\n') {
        return None;
    }
    let end = found.end - last.len_utf8();
    (end > found.start && space.chars().all(char::is_whitespace)).then_some(end)
}
