//! Tokens found in the text before it is split: special and user-defined ones.

use std::collections::HashSet;

use regex::{Regex, RegexBuilder};

use super::super::sentencepiece::PieceKind;
use super::vocabulary::Vocabulary;

/// Compiled size that a vocabulary's special tokens may have; the largest published set (about
/// 10,000 reserved tokens) takes a tenth of it.
const SIZE_LIMIT: usize = 1 << 28;

/// A stretch of text, or a token that was found in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

/// Finds tokens in text; where several start at one place the longest counts.
#[derive(Debug)]
pub struct Matcher {
    /// User-defined tokens, which count in any text.
    always: Option<Regex>,
    /// Those and the special ones.
    special: Option<Regex>,
    /// Tokens that take the white space after them.
    strips_right: HashSet<u32>,
}

impl Matcher {
    /// Returns the matcher of the vocabulary's control, unknown and user-defined tokens;
    /// `strips_right` are those that take the white space after them.
    ///
    /// Errors if there are more special tokens than any matcher can hold.
    pub fn new(vocabulary: &Vocabulary, strips_right: HashSet<u32>) -> Result<Self, regex::Error> {
        let of = |kinds: &[PieceKind]| {
            let tokens = vocabulary.tokens().iter().filter(|token| kinds.contains(&token.kind));
            longest_of(tokens.map(|token| token.text.as_str()).filter(|text| !text.is_empty()).collect())
        };
        Ok(Matcher {
            always: of(&[PieceKind::UserDefined])?,
            special: of(&[PieceKind::UserDefined, PieceKind::Control, PieceKind::Unknown])?,
            strips_right,
        })
    }

    /// Returns the text's fragments in order, none of them empty.
    pub fn fragments<'a>(
        &self,
        vocabulary: &Vocabulary,
        text: &'a str,
        parse_special: bool,
    ) -> Vec<Fragment<'a>> {
        let regex = if parse_special { &self.special } else { &self.always };
        let mut fragments = Vec::new();
        let mut start = 0;
        for found in regex.iter().flat_map(|regex| regex.find_iter(text)) {
            // every alternative is a token's text
            let Some(id) = vocabulary.id(found.as_str()) else { continue };
            if found.start() < start {
                continue;
            }
            if found.start() > start {
                fragments.push(Fragment::Text(&text[start..found.start()]));
            }
            fragments.push(Fragment::Token(id));
            start = found.end();
            if self.strips_right.contains(&id) {
                start = text.len() - text[start..].trim_ascii_start().len();
            }
        }
        if start < text.len() {
            fragments.push(Fragment::Text(&text[start..]));
        }
        fragments
    }
}

/// Returns what finds the leftmost, then longest of the texts; `None` if there are none.
fn longest_of(mut texts: Vec<&str>) -> Result<Option<Regex>, regex::Error> {
    if texts.is_empty() {
        return Ok(None);
    }
    // of several alternatives a regular expression takes the first
    texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    let escaped: Vec<String> = texts.into_iter().map(regex::escape).collect();
    RegexBuilder::new(&escaped.join("|")).size_limit(SIZE_LIMIT).build().map(Some)
}
