//! tokenizer.json holding a SentencePiece BPE (Llama 2, Mistral): the reference converter's way
//! where there is no tokenizer.model. Scores are lost in that format; all are -1000.

use serde_json::Value as Json;

use super::error::Error;
use super::files::Files;
use super::hf_vocab::HfVocab;
use super::sentencepiece::PieceKind;
use super::table::{ADDED_SCORE, Token, TokenTable};

/// Returns whether the tokenizer.json is a BPE with byte fallback and a chain of decoders.
pub fn is_llama_json(files: &Files) -> bool {
    files.tokenizer.as_ref().is_some_and(|tokenizer| {
        tokenizer.model.kind.as_deref() == Some("BPE")
            && tokenizer.model.byte_fallback == Some(true)
            && tokenizer.decoder.get("type").and_then(Json::as_str) == Some("Sequence")
    })
}

/// Returns the token table: the model's tokens, then the tokens added after them.
///
/// Errors if the model's ids have gaps.
pub fn llama_json_table(vocab: &HfVocab) -> Result<TokenTable, Error> {
    let mut tokens = Vec::with_capacity(vocab.texts.len());
    for id in 0..vocab.n_base as u32 {
        let Some(text) = vocab.texts.get(&id) else {
            let what = format!("no token has id {id}, of {} in the model", vocab.n_base);
            return Err(Error::Unsupported { path: vocab.path.clone(), what, arch: "llama".to_owned() });
        };
        let kind = match vocab.named.contains(text) {
            _ if is_byte(text) => PieceKind::Byte,
            true => PieceKind::Control,
            false => PieceKind::Normal,
        };
        tokens.push(Token { text: text.clone(), score: ADDED_SCORE, kind });
    }
    let mut added: Vec<_> = vocab.added.iter().filter(|(id, _)| **id as usize >= vocab.n_base).collect();
    added.sort_by_key(|(id, _)| **id);
    for (_, token) in added {
        let kind = match vocab.named.contains(&token.content) {
            true => PieceKind::Control,
            false => PieceKind::UserDefined,
        };
        tokens.push(Token { text: token.content.clone(), score: ADDED_SCORE, kind });
    }
    Ok(TokenTable { tokens })
}

/// Returns whether the token is a byte, spelled `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
