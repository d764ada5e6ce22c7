//! Byte-level BPE (tokenizer.json, or vocab.json with merges.txt) -> token table and merges.

use std::path::Path;

use super::VocabRequest;
use super::decoder::Decoder;
use super::error::Error;
use super::files::{Files, read_text};
use super::hf_vocab::HfVocab;
use super::sentencepiece::PieceKind;
use super::spm_vocab::check_size;
use super::table::{Token, TokenTable, looks_special, unescape_spaces};
use super::tokenizer_json::{Merge, Model};

/// Returns the table of a byte-level vocabulary, padded to the vocabulary size. Added tokens are
/// control tokens if marked as special or looking so, else user-defined.
///
/// Errors if an id is not below the vocabulary size: its embedding row does not exist.
pub fn byte_level_table(request: &VocabRequest, files: &Files, vocab: &HfVocab) -> Result<TokenTable, Error> {
    let vocab_size = request.vocab_size.unwrap_or_else(|| vocab.end());
    check_size(vocab_size, request)?;
    if let Some((&id, text)) = vocab.texts.iter().max_by_key(|(id, _)| **id)
        && id as usize >= vocab_size
    {
        let (path, token) = (vocab.path.clone(), text.clone());
        return Err(Error::IdOutOfRange { path, token, id: id.into(), vocab_size });
    }
    let decoder = match &files.tokenizer {
        Some(tokenizer) => Decoder::parse(&tokenizer.decoder),
        None => Decoder::ByteLevel,
    };
    let mut table = TokenTable::padding(vocab_size);
    for (&id, text) in &vocab.texts {
        let (text, kind) = match vocab.added.get(&id) {
            None => (text.clone(), PieceKind::Normal),
            Some(added) => {
                // a token matched in raw text stands for what it decodes to
                let text = if added.normalized { text.clone() } else { decoder.decode(text) };
                match added.special || looks_special(&text) {
                    true => (text, PieceKind::Control),
                    false => (unescape_spaces(&text), PieceKind::UserDefined),
                }
            }
        };
        table.tokens[id as usize] = Token { text, score: 0.0, kind };
    }
    Ok(table)
}

/// Returns the merges as GGUF spells them, `LEFT RIGHT`; a space inside a token becomes `Ġ`.
///
/// Errors if a merge is not two tokens, or if they or their union are not in the vocabulary.
pub fn merges(files: &Files, vocab: &HfVocab, notes: &mut Vec<String>) -> Result<Vec<String>, Error> {
    let in_json = files.tokenizer.as_ref().map(|tokenizer| &tokenizer.model);
    if let Some(model) = in_json.filter(|model| !model.merges.is_empty()) {
        let path = files.path("tokenizer.json");
        check_merges(&path, model, vocab)?;
        return Ok(model.merges.iter().map(gguf_merge).collect());
    }
    let path = files.path("merges.txt");
    let merges = match read_text(&path)? {
        Some(text) => parse_merges(&path, &text, notes),
        None => Vec::new(),
    };
    if merges.is_empty() {
        notes.push("no merges found: llama.cpp will refuse the file".to_owned());
    }
    let pairs = merges.iter().enumerate().map(|(index, merge)| (index, &merge.0, &merge.1));
    for (index, left, right) in pairs {
        check_merge(&path, index, left, right, "", vocab)?;
    }
    Ok(merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect())
}

/// Returns the pairs of a merges.txt: two words a line, a first line of `#version` skipped.
fn parse_merges(path: &Path, text: &str, notes: &mut Vec<String>) -> Vec<(String, String)> {
    let mut merges = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => {}
            _ if index == 0 && line.trim().starts_with('#') => {}
            [left, right] => merges.push((left.to_owned(), right.to_owned())),
            _ => notes.push(format!("{}: line {}: not two tokens; left out", path.display(), index + 1)),
        }
    }
    merges
}

fn gguf_merge(merge: &Merge) -> String {
    match merge {
        Merge::Joined(text) => text.clone(),
        Merge::Pair(left, right) => format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ")),
    }
}

fn check_merges(path: &Path, model: &Model, vocab: &HfVocab) -> Result<(), Error> {
    let prefix = model.continuing_subword_prefix.as_deref().unwrap_or_default();
    for (index, merge) in model.merges.iter().enumerate() {
        let (left, right) = match merge {
            Merge::Pair(left, right) => (left.as_str(), right.as_str()),
            Merge::Joined(text) => match text.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => (left, right),
                _ => {
                    return Err(Error::Shape {
                        path: path.to_owned(),
                        field: format!("model.merges[{index}]"),
                        expected: "two tokens and one space between them",
                        found: format!("the string {text:?}"),
                    });
                }
            },
        };
        check_merge(path, index, left, right, prefix, vocab)?;
    }
    Ok(())
}

fn check_merge(
    path: &Path,
    index: usize,
    left: &str,
    right: &str,
    prefix: &str,
    vocab: &HfVocab,
) -> Result<(), Error> {
    let fail = |unknown: String| {
        let (left, right) = (left.to_owned(), right.to_owned());
        Err(Error::UnknownMerge { path: path.to_owned(), index, left, right, unknown })
    };
    for part in [left, right] {
        if vocab.id(part).is_none() {
            return fail(part.to_owned());
        }
    }
    let union = format!("{left}{}", right.strip_prefix(prefix).unwrap_or(right));
    match vocab.id(&union) {
        Some(_) => Ok(()),
        None => fail(union),
    }
}
