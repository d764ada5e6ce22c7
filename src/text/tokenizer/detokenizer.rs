//! Decoding one token after another.

use super::library::clean_up;
use super::pieces::Joiner;
use super::{Decoder, Engine, Tokenizer};

/// Text of tokens as they come. What [`Detokenizer::push`] and [`Detokenizer::finish`] return,
/// concatenated, is what [`Tokenizer::decode`] returns for the same ids. No returned text ends inside
/// a character; of a SentencePiece vocabulary a run of byte tokens is held until it ends.
#[derive(Clone, Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    joiner: Joiner,
    /// All ids so far and the bytes returned, where the library decodes.
    ids: Vec<u32>,
    returned: usize,
}

impl<'a> Detokenizer<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        let joiner = match &tokenizer.decoder {
            Decoder::Pieces(pieces) => Joiner::new(pieces),
            Decoder::Library { .. } => Joiner::default(),
        };
        Detokenizer { tokenizer, skip_special: true, joiner, ids: Vec::new(), returned: 0 }
    }

    /// Returns the decoder with special tokens shown.
    pub fn keep_special(mut self) -> Self {
        self.skip_special = false;
        self
    }

    /// Returns the decoder with the space at the start kept, to go on from a text before.
    pub fn continuing(mut self) -> Self {
        self.joiner.keep_space();
        self
    }

    /// Returns the text that is certain once the token has come. Ids out of range have no text.
    pub fn push(&mut self, id: u32) -> String {
        let mut out = String::new();
        if self.skip_special && self.tokenizer.is_special(id) {
            return out;
        }
        match &self.tokenizer.decoder {
            Decoder::Pieces(pieces) => self.joiner.push(pieces, id, &mut out),
            Decoder::Library { cleans } => {
                self.ids.push(id);
                // what clean-up may still change is not certain: all of it, to be safe
                if !cleans {
                    self.take_library(true, &mut out);
                }
            }
        }
        out
    }

    /// Returns the rest of the text; bytes that make no character become U+FFFD.
    pub fn finish(mut self) -> String {
        let mut out = String::new();
        self.finish_into(&mut out);
        out
    }

    /// Returns the whole text of the ids.
    pub(super) fn decode(mut self, ids: &[u32]) -> String {
        let mut out = String::new();
        match &self.tokenizer.decoder {
            Decoder::Pieces(pieces) => {
                for &id in ids {
                    if !(self.skip_special && self.tokenizer.is_special(id)) {
                        self.joiner.push(pieces, id, &mut out);
                    }
                }
            }
            Decoder::Library { .. } => {
                let shown = |id: &&u32| !(self.skip_special && self.tokenizer.is_special(**id));
                self.ids = ids.iter().filter(shown).copied().collect();
            }
        }
        self.finish_into(&mut out);
        out
    }

    fn finish_into(&mut self, out: &mut String) {
        match &self.tokenizer.decoder {
            Decoder::Pieces(pieces) => self.joiner.finish(pieces, out),
            Decoder::Library { .. } => self.take_library(false, out),
        }
    }

    /// Appends what the library's text of all ids has beyond what was returned; with `may_change`, only
    /// up to the last complete character.
    fn take_library(&mut self, may_change: bool, out: &mut String) {
        let Engine::Library(library) = &self.tokenizer.engine else { return };
        let mut text = library.decode(&self.ids, false);
        if let Decoder::Library { cleans: true } = self.tokenizer.decoder {
            text = clean_up(&text);
        }
        let mut end = text.len();
        if may_change {
            end = text.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
        }
        if let Some(new) = text.get(self.returned..end) {
            out.push_str(new);
            self.returned = end;
        }
    }
}
