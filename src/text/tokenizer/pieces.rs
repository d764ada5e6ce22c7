//! What every token stands for in decoded text, and how the tokens' bytes become characters.

use super::super::decoder::byte_of;
use super::super::sentencepiece::PieceKind;
use super::vocabulary::Vocabulary;

/// How neighbouring tokens make characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// Tokens are bytes in GPT-2's alphabet; what is not UTF-8 becomes U+FFFD.
    ByteLevel,
    /// Tokens are text with `▁` for spaces. A run of byte tokens (`<0x0A>`) is taken as a whole: if
    /// it is not UTF-8, each of its bytes becomes U+FFFD.
    ByteRuns,
}

/// A token's text.
#[derive(Clone, Copy, Debug)]
pub enum Spelling<'a> {
    /// As it is.
    Raw(&'a str),
    /// As vocabularies spell it.
    Token(&'a str),
}

/// The bytes of every token.
#[derive(Debug)]
pub struct Pieces {
    bytes: Vec<u8>,
    /// End of each token's bytes.
    ends: Vec<usize>,
    /// Whether a token is one byte of a run.
    is_byte: Vec<bool>,
    pub joining: Joining,
    /// Spaces removed from the start of the text.
    pub strip: usize,
}

impl Pieces {
    /// Returns the pieces of these tokens, in id order.
    pub fn new<'a>(texts: impl Iterator<Item = Spelling<'a>>, joining: Joining, strip: usize) -> Self {
        let mut pieces = Pieces { bytes: Vec::new(), ends: Vec::new(), is_byte: Vec::new(), joining, strip };
        for spelling in texts {
            let mut is_byte = false;
            match (joining, spelling) {
                (_, Spelling::Raw(text)) => pieces.bytes.extend(text.bytes()),
                (Joining::ByteLevel, Spelling::Token(text)) => match alphabet_bytes(text) {
                    Some(bytes) => pieces.bytes.extend(bytes),
                    None => pieces.bytes.extend(text.bytes()),
                },
                (Joining::ByteRuns, Spelling::Token(text)) => match byte_token(text) {
                    Some(byte) => {
                        pieces.bytes.push(byte);
                        is_byte = true;
                    }
                    None => pieces.bytes.extend(text.replace('▁', " ").bytes()),
                },
            }
            pieces.is_byte.push(is_byte);
            pieces.ends.push(pieces.bytes.len());
        }
        pieces
    }

    /// Returns the pieces of a vocabulary. With `raw_added`, control and user-defined tokens stand
    /// for their text as it is. Padding of the vocabulary (`[PAD7]`) stands for nothing.
    pub fn of(vocabulary: &Vocabulary, joining: Joining, strip: usize, raw_added: bool) -> Self {
        let texts = vocabulary.tokens().iter().enumerate().map(|(id, token)| match token.kind {
            PieceKind::Control | PieceKind::UserDefined if raw_added => Spelling::Raw(&token.text),
            PieceKind::Unused if token.text == format!("[PAD{id}]") => Spelling::Raw(""),
            _ => Spelling::Token(&token.text),
        });
        Self::new(texts, joining, strip)
    }

    /// Returns the token's bytes; none for an id out of range.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let at = id as usize;
        let start = at.checked_sub(1).map_or(0, |before| self.ends.get(before).copied().unwrap_or(0));
        self.ends.get(at).map_or(&[], |&end| &self.bytes[start..end])
    }

    fn is_byte(&self, id: u32) -> bool {
        self.is_byte.get(id as usize).copied().unwrap_or(false)
    }
}

/// Returns the bytes that the text spells in GPT-2's alphabet, `None` if a character is not in it.
pub fn alphabet_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_of).collect()
}

/// Returns the byte of a token `<0x0A>`.
pub fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

/// Tokens on their way to text: what is emitted never changes and never ends inside a character.
#[derive(Clone, Debug, Default)]
pub struct Joiner {
    /// Bytes that wait for the rest of their character, or of their run.
    waiting: Vec<u8>,
    /// Spaces still to be removed from the start.
    strip: usize,
}

impl Joiner {
    /// Returns a joiner at the start of a text.
    pub fn new(pieces: &Pieces) -> Self {
        Joiner { waiting: Vec::new(), strip: pieces.strip }
    }

    /// Keeps the spaces at the start: the text goes on from another.
    pub fn keep_space(&mut self) {
        self.strip = 0;
    }

    /// Appends what is certain after the token to `out`.
    pub fn push(&mut self, pieces: &Pieces, id: u32, out: &mut String) {
        let start = out.len();
        let bytes = pieces.bytes(id);
        match pieces.joining {
            Joining::ByteLevel => {
                self.waiting.extend_from_slice(bytes);
                self.flush_characters(out);
            }
            Joining::ByteRuns if pieces.is_byte(id) => self.waiting.extend_from_slice(bytes),
            Joining::ByteRuns => {
                self.flush_run(out);
                out.push_str(&String::from_utf8_lossy(bytes));
            }
        }
        self.strip_from(start, out);
    }

    /// Appends what was still waiting, bytes that make no character as U+FFFD.
    pub fn finish(&mut self, pieces: &Pieces, out: &mut String) {
        let start = out.len();
        match pieces.joining {
            Joining::ByteLevel => out.push_str(&String::from_utf8_lossy(&self.waiting)),
            Joining::ByteRuns => self.flush_run(out),
        }
        self.waiting.clear();
        self.strip_from(start, out);
    }

    fn flush_run(&mut self, out: &mut String) {
        match std::str::from_utf8(&self.waiting) {
            Ok(text) => out.push_str(text),
            Err(_) => out.extend(self.waiting.iter().map(|_| char::REPLACEMENT_CHARACTER)),
        }
        self.waiting.clear();
    }

    fn flush_characters(&mut self, out: &mut String) {
        let mut done = 0;
        for chunk in self.waiting.utf8_chunks() {
            out.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if done + invalid.len() == self.waiting.len() && is_incomplete(invalid) {
                break;
            }
            out.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.waiting.drain(..done);
    }

    fn strip_from(&mut self, start: usize, out: &mut String) {
        while self.strip > 0 && out.len() > start {
            if out[start..].starts_with(' ') {
                out.remove(start);
                self.strip -= 1;
            } else {
                self.strip = 0;
            }
        }
    }
}

/// Returns whether more bytes may complete the character that `bytes` begin.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
