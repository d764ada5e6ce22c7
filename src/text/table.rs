//! The token table a GGUF holds: text, type and score by id.

use crate::tensor::gguf::{Array, Metadata, Value};

use super::sentencepiece::PieceKind;

/// Ids are positions in memory and i32 in the format; the largest published vocabulary is below 2^19.
pub const MAX_TOKENS: usize = 1 << 24;

/// Score of a token that stands in no SentencePiece model.
pub const ADDED_SCORE: f32 = -1000.0;

/// Score of an id that no token has.
pub const PAD_SCORE: f32 = -10000.0;

#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub text: String,
    pub score: f32,
    pub kind: PieceKind,
}

/// Tokens by id, every id filled.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenTable {
    pub tokens: Vec<Token>,
}

impl TokenTable {
    /// Returns `len` padding tokens `[PAD0]`, `[PAD1]`, …, all unused.
    pub fn padding(len: usize) -> Self {
        let pad = |id| Token { text: format!("[PAD{id}]"), score: PAD_SCORE, kind: PieceKind::Unused };
        TokenTable { tokens: (0..len).map(pad).collect() }
    }

    /// Appends padding tokens up to `len` tokens in all.
    pub fn pad_to(&mut self, len: usize) {
        let mut padding = Self::padding(len);
        self.tokens.extend(padding.tokens.drain(self.tokens.len().min(len)..));
    }

    /// Writes `tokenizer.ggml.tokens`, `.scores` (if the model has scores) and `.token_type`.
    pub fn write(self, metadata: &mut Metadata, with_scores: bool) {
        let kinds = self.tokens.iter().map(|token| token.kind as i32).collect();
        let scores = self.tokens.iter().map(|token| token.score).collect();
        let texts = self.tokens.into_iter().map(|token| token.text).collect();
        let mut put = |key: &str, array| metadata.insert(key.to_owned(), Value::Array(array));
        put("tokenizer.ggml.tokens", Array::String(texts));
        if with_scores {
            put("tokenizer.ggml.scores", Array::F32(scores));
        }
        put("tokenizer.ggml.token_type", Array::I32(kinds));
    }
}

/// Returns whether an added token is a control token by its looks; some checkpoints (command-r,
/// deepseek-coder, gemma) do not mark theirs as special.
pub fn looks_special(token: &str) -> bool {
    let between = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

/// Returns the text of a user-defined token with SentencePiece's `▁` as the space it stands for:
/// llama.cpp looks for such tokens in text that is not normalized.
pub fn unescape_spaces(token: &str) -> String {
    token.replace('▁', " ")
}
