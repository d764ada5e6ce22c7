//! tokenizer.model -> token table, with the tokens that the JSON files beside it add.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::VocabRequest;
use super::error::Error;
use super::files::{Files, read_json, shape_error};
use super::sentencepiece::{ModelKind, PieceKind, SentencePiece};
use super::table::{ADDED_SCORE, MAX_TOKENS, Token, TokenTable, looks_special, unescape_spaces};

/// How the reference converter treats added tokens, which differs by architecture.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AddedRules {
    /// Ids past the vocabulary are left out; looks make a control token; `▁` becomes a space.
    Common,
    /// Phi-3: tokens are taken as they are, those of tokenizer.json too.
    Phi3,
}

/// Returns the token table of a checkpoint with a tokenizer.model, padded to the vocabulary size.
pub fn sentencepiece_table(
    request: &VocabRequest,
    files: &Files,
    model: &SentencePiece,
    rules: AddedRules,
    notes: &mut Vec<String>,
) -> Result<TokenTable, Error> {
    let vocab_size = request.vocab_size.unwrap_or(model.pieces.len());
    let model_path = files.path("tokenizer.model");
    check_size(vocab_size, request)?;
    if model.kind != ModelKind::Bpe {
        notes.push(format!(
            "{}: a {:?} model; GGUF readers merge by score, as for BPE, so some texts may be split differently",
            model_path.display(),
            model.kind
        ));
    }
    let mut builder = Builder { table: TokenTable::padding(vocab_size), rules, notes };
    for (id, piece) in model.pieces.iter().enumerate() {
        let drop = rules == AddedRules::Common;
        let Some(slot) = builder.slot(&model_path, id as i64, &piece.text, drop)? else { break };
        // the converter knows no user-defined pieces: they are normal unless a JSON file says more
        let kind = match piece.kind {
            PieceKind::UserDefined => PieceKind::Normal,
            kind => kind,
        };
        builder.table.tokens[slot] = Token { text: piece.text.clone(), score: piece.score, kind };
    }
    builder.add_from_added_tokens(files)?;
    builder.add_from_tokenizer_config(files)?;
    if rules == AddedRules::Phi3 {
        builder.add_from_tokenizer_json(files)?;
    }
    Ok(builder.table)
}

/// Errors if config.json's vocabulary size is past all reason (a header of 2^40 tokens would
/// otherwise be made up of padding).
pub fn check_size(vocab_size: usize, request: &VocabRequest) -> Result<(), Error> {
    if vocab_size > MAX_TOKENS {
        let path = request.dir.join("config.json");
        return Err(Error::VocabSize { path, found: vocab_size as u64, limit: MAX_TOKENS });
    }
    Ok(())
}

struct Builder<'a> {
    table: TokenTable,
    rules: AddedRules,
    notes: &'a mut Vec<String>,
}

impl Builder<'_> {
    /// Returns where the token goes. An id past the vocabulary is an error or, with `drop`, `None`.
    fn slot(&mut self, path: &Path, id: i64, token: &str, drop: bool) -> Result<Option<usize>, Error> {
        let vocab_size = self.table.tokens.len();
        match usize::try_from(id) {
            Ok(slot) if slot < vocab_size => Ok(Some(slot)),
            Ok(_) if drop => {
                self.notes.push(format!(
                    "{}: token {token:?} left out: its id {id} is not below the vocabulary size {vocab_size}",
                    path.display()
                ));
                Ok(None)
            }
            _ => Err(Error::IdOutOfRange { path: path.to_owned(), token: token.to_owned(), id, vocab_size }),
        }
    }

    fn set(&mut self, slot: usize, text: String, kind: PieceKind) {
        self.table.tokens[slot] = Token { text, score: ADDED_SCORE, kind };
    }

    fn add_from_added_tokens(&mut self, files: &Files) -> Result<(), Error> {
        let path = files.path("added_tokens.json");
        let Some(added) = read_json::<IndexMap<String, Json>>(&path)? else { return Ok(()) };
        for (token, id) in &added {
            let Some(id) = id.as_i64() else { return Err(shape_error(&path, token, "a token id", id)) };
            if let Some(slot) = self.slot(&path, id, token, true)? {
                self.set(slot, token.clone(), PieceKind::UserDefined);
            }
        }
        Ok(())
    }

    fn add_from_tokenizer_config(&mut self, files: &Files) -> Result<(), Error> {
        let Some(config) = &files.config else { return Ok(()) };
        let path = files.path("tokenizer_config.json");
        for (id, token, special) in added_tokens_decoder(&path, config)? {
            let content = token.get("content").and_then(Json::as_str).unwrap_or_default();
            let drop = self.rules == AddedRules::Common;
            let Some(slot) = self.slot(&path, id, content, drop)? else { continue };
            match self.rules {
                AddedRules::Common if special || looks_special(content) => {
                    self.set(slot, content.to_owned(), PieceKind::Control);
                }
                AddedRules::Common => self.set(slot, unescape_spaces(content), PieceKind::UserDefined),
                AddedRules::Phi3 => self.set(slot, content.to_owned(), kind_by_mark(special)),
            }
        }
        Ok(())
    }

    fn add_from_tokenizer_json(&mut self, files: &Files) -> Result<(), Error> {
        let Some(tokenizer) = &files.tokenizer else { return Ok(()) };
        let path = files.path("tokenizer.json");
        for added in &tokenizer.added_tokens {
            if let Some(slot) = self.slot(&path, added.id.into(), &added.content, false)? {
                self.set(slot, added.content.clone(), kind_by_mark(added.special));
            }
        }
        Ok(())
    }
}

fn kind_by_mark(special: bool) -> PieceKind {
    if special { PieceKind::Control } else { PieceKind::UserDefined }
}

/// Returns id, entry (with a `content` string) and `special` flag of every token in
/// tokenizer_config.json's `added_tokens_decoder`, in file order.
pub fn added_tokens_decoder<'a>(
    path: &Path,
    config: &'a Map<String, Json>,
) -> Result<Vec<(i64, &'a Json, bool)>, Error> {
    let Some(decoder) = config.get("added_tokens_decoder") else { return Ok(Vec::new()) };
    let Some(decoder) = decoder.as_object() else {
        return Err(shape_error(path, "added_tokens_decoder", "an object", decoder));
    };
    let mut added = Vec::with_capacity(decoder.len());
    for (id, token) in decoder {
        let field = || format!("added_tokens_decoder.{id}");
        if token.get("content").and_then(Json::as_str).is_none() {
            return Err(shape_error(path, field(), "an object with the string `content`", token));
        }
        let Ok(id) = id.trim().parse() else {
            return Err(shape_error(path, field(), "a key that is a token id", token));
        };
        added.push((id, token, token.get("special").and_then(Json::as_bool).unwrap_or(false)));
    }
    Ok(added)
}

/// Returns whether the bytes are a tiktoken vocabulary (lines of `BASE64 RANK`), which Meta ships
/// under the name tokenizer.model too.
pub fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(token), Some(rank), None) = (words.next(), words.next(), words.next()) else { return false };
    let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    !token.is_empty() && !rank.is_empty() && token.iter().all(base64) && rank.iter().all(u8::is_ascii_digit)
}
