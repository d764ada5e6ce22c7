//! A tokenizer from a GGUF's `tokenizer.*` keys.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::error::nearest;
use crate::tensor::gguf::Gguf;
use crate::tensor::gguf::{Array, Metadata, Value};

use super::super::error::Error;
use super::super::pretokenizer::names;
use super::super::sentencepiece::PieceKind;
use super::super::table::{MAX_TOKENS, Token};
use super::bpe::Bpe;
use super::matcher::Matcher;
use super::pieces::{Joining, Pieces, alphabet_bytes, byte_token};
use super::roles::{NAMED_ROLES, Roles};
use super::split::{PreTokenizer, Rules};
use super::spm::Spm;
use super::vocabulary::Vocabulary;
use super::{Decoder, Engine, Model, Tokenizer};

/// The keys of one file, with errors that name it.
struct Keys<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
}

/// Returns the tokenizer of a GGUF file.
pub fn open(path: &Path) -> Result<Tokenizer, Error> {
    let gguf = Gguf::open(path).map_err(|source| Error::Gguf(Box::new(source)))?;
    from_metadata(path, gguf.metadata())
}

/// Returns the tokenizer that the keys describe; `path` is for messages.
pub fn from_metadata(path: &Path, metadata: &Metadata) -> Result<Tokenizer, Error> {
    let keys = Keys { path, metadata };
    let kind = keys.text("tokenizer.ggml.model")?.ok_or_else(|| keys.missing("tokenizer.ggml.model"))?;
    let mut vocabulary = Vocabulary::new(path, keys.tokens()?)?;
    let mut roles = keys.roles(kind, &vocabulary)?;
    let mut notes = Vec::new();
    let (model, decoder) = match kind {
        "llama" => spm(&keys, &vocabulary, &roles)?,
        "gpt2" | "gemma4" => byte_pairs(&keys, kind, &vocabulary, &mut roles, &mut notes)?,
        other => {
            let what = format!("a `{other}` tokenizer");
            return Err(Error::UnsupportedTokenizer { path: path.to_owned(), what });
        }
    };
    // gpt-oss: parts of a message, rendered though they are control tokens
    for name in ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"] {
        if let Some(id) = vocabulary.id(name) {
            vocabulary.set_kind(id, PieceKind::UserDefined);
        }
    }
    let strips_right = keys.strips_right(&vocabulary)?;
    let matcher = Matcher::new(&vocabulary, strips_right)
        .map_err(|error| keys.broken("tokenizer.ggml.tokens", error.to_string()))?;
    let mut ends = Vec::new();
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ends.extend(keys.id(key, &vocabulary)?);
    }
    roles.set_end_of_generation(&vocabulary, ends.into_iter());
    let templates = keys.templates()?;
    let digest = keys.digest();
    Ok(Tokenizer {
        path: path.to_owned(),
        vocabulary,
        engine: Engine::Own { matcher, model: Box::new(model) },
        decoder,
        roles,
        templates,
        digest,
        notes,
    })
}

fn spm(keys: &Keys, vocabulary: &Vocabulary, roles: &Roles) -> Result<(Model, Decoder), Error> {
    let space_prefix = keys.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let spm = Spm::new(vocabulary, roles.unknown, false);
    let pieces = Pieces::of(vocabulary, Joining::ByteRuns, usize::from(space_prefix), false);
    Ok((Model::Spm { spm, space_prefix }, Decoder::Pieces(pieces)))
}

fn byte_pairs(
    keys: &Keys,
    kind: &str,
    vocabulary: &Vocabulary,
    roles: &mut Roles,
    notes: &mut Vec<String>,
) -> Result<(Model, Decoder), Error> {
    let pre = match kind {
        "gemma4" => "gemma4",
        _ => keys.text("tokenizer.ggml.pre")?.unwrap_or("default"),
    };
    let split = PreTokenizer::named(pre)
        .map_err(|error| keys.broken("tokenizer.ggml.pre", error.to_string()))?
        .ok_or_else(|| keys.unknown_pre(pre))?;
    if keys.flag("tokenizer.ggml.add_bos_token")?.is_none() || pre == "gemma4" {
        roles.adds_bos = split.rules.adds_bos && roles.bos.is_some();
    }
    let bpe = keys.bpe(vocabulary, split.rules, notes)?;
    let (joining, raw) = match split.rules.raw_utf8 {
        true => (Joining::ByteRuns, false),
        false => (Joining::ByteLevel, true),
    };
    let pieces = Pieces::of(vocabulary, joining, 0, raw);
    Ok((Model::Bpe { bpe, split }, Decoder::Pieces(pieces)))
}

impl<'a> Keys<'a> {
    fn missing(&self, key: &str) -> Error {
        Error::MissingKey { path: self.path.to_owned(), key: key.to_owned() }
    }

    fn broken(&self, field: &str, problem: String) -> Error {
        Error::Pieces { path: self.path.to_owned(), problem: format!("`{field}`: {problem}") }
    }

    fn wrong(&self, key: &str, expected: &'static str, value: &Value) -> Error {
        let found = match value {
            Value::Array(array) => format!("an array of {} {}", array.len(), array.type_name()),
            value => format!("a value of type {}", value.type_name()),
        };
        Error::Shape { path: self.path.to_owned(), field: key.to_owned(), expected, found }
    }

    fn unknown_pre(&self, name: &str) -> Error {
        let nearest = nearest(name, names()).map(str::to_owned);
        Error::UnreadablePre { path: self.path.to_owned(), name: name.to_owned(), nearest }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(key, "a bool", other)),
        }
    }

    fn strings(&self, key: &str) -> Result<Option<&'a [String]>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(texts))) => Ok(Some(texts)),
            Some(other) => Err(self.wrong(key, "an array of strings", other)),
        }
    }

    /// Returns a token id; one out of range is as if the key was not there.
    fn id(&self, key: &str, vocabulary: &Vocabulary) -> Result<Option<u32>, Error> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let id = value.as_u64().ok_or_else(|| self.wrong(key, "a token id", value))?;
        Ok(u32::try_from(id).ok().filter(|id| (*id as usize) < vocabulary.len()))
    }

    fn tokens(&self) -> Result<Vec<Token>, Error> {
        let key = "tokenizer.ggml.tokens";
        let texts = self.strings(key)?.ok_or_else(|| self.missing(key))?;
        if texts.len() > MAX_TOKENS {
            let (found, limit) = (texts.len() as u64, MAX_TOKENS);
            return Err(Error::VocabSize { path: self.path.to_owned(), found, limit });
        }
        let scores = self.numbers("tokenizer.ggml.scores", texts.len())?;
        let kinds = self.numbers("tokenizer.ggml.token_type", texts.len())?;
        let token = |(id, text): (usize, &String)| Token {
            text: match text.is_empty() {
                true => format!("[EMPTY_{id}]"),
                false => text.clone(),
            },
            score: scores.as_ref().map_or(0.0, |scores| scores[id]),
            kind: kinds.as_ref().map_or(PieceKind::Normal, |kinds| {
                PieceKind::from_number(kinds[id] as u64).unwrap_or(PieceKind::Normal)
            }),
        };
        Ok(texts.iter().enumerate().map(token).collect())
    }

    /// Returns an array of numbers, one for each token.
    fn numbers(&self, key: &str, n_tokens: usize) -> Result<Option<Vec<f32>>, Error> {
        let numbers: Vec<f32> = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array(Array::F32(numbers))) => numbers.clone(),
            Some(Value::Array(Array::I32(numbers))) => numbers.iter().map(|&n| n as f32).collect(),
            Some(Value::Array(Array::U32(numbers))) => numbers.iter().map(|&n| n as f32).collect(),
            Some(other) => return Err(self.wrong(key, "an array of numbers", other)),
        };
        match numbers.len() {
            n if n == n_tokens => Ok(Some(numbers)),
            n => Err(self.broken(key, format!("{n} entries for {n_tokens} tokens"))),
        }
    }

    fn roles(&self, kind: &str, vocabulary: &Vocabulary) -> Result<Roles, Error> {
        let spm = kind == "llama";
        // llama.cpp's ids of SentencePiece vocabularies that do not say
        let default = |id: u32| Some(id).filter(|id| spm && (*id as usize) < vocabulary.len());
        let id = |role: &str, key: &str, fallback| -> Result<_, Error> {
            let id = self.id(&format!("tokenizer.ggml.{key}"), vocabulary)?.or(fallback);
            let text = id.and_then(|id| vocabulary.token(id)).map(|token| token.text.clone());
            Ok((id, text.map(|text| (format!("{role}_token"), text.into()))))
        };
        let mut roles = Roles::default();
        for role in NAMED_ROLES {
            let (key, fallback) = match role {
                "bos" => ("bos_token_id", default(1)),
                "eos" => ("eos_token_id", default(2)),
                "unk" => ("unknown_token_id", default(0)),
                "sep" => ("seperator_token_id", None), // spelled so by the format
                "pad" => ("padding_token_id", None),
                "cls" => ("cls_token_id", None),
                _ => ("mask_token_id", None),
            };
            let (id, named) = id(role, key, fallback)?;
            match role {
                "bos" => roles.bos = id,
                "eos" => roles.eos = id,
                "unk" => roles.unknown = id,
                "pad" => roles.pad = id,
                _ => {}
            }
            roles.named.extend(named);
        }
        let adds_bos = self.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(spm);
        let adds_eos = self.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        roles.adds_bos = adds_bos && roles.bos.is_some();
        roles.adds_eos = adds_eos && roles.eos.is_some();
        Ok(roles)
    }

    /// Returns the tokens that take the white space after them: in Phi-3 all special ones but these.
    fn strips_right(&self, vocabulary: &Vocabulary) -> Result<HashSet<u32>, Error> {
        let name = self.text("general.name")?.unwrap_or_default().to_lowercase();
        if !name.contains("phi-3") && !name.contains("phi3") {
            return Ok(HashSet::new());
        }
        let keeps = ["<unk>", "<s>", "<|endoftext|>"];
        let strips = vocabulary.tokens().iter().filter(|token| {
            matches!(token.kind, PieceKind::Control | PieceKind::UserDefined | PieceKind::Unknown)
                && !keeps.contains(&token.text.as_str())
        });
        Ok(strips.filter_map(|token| vocabulary.id(&token.text)).collect())
    }

    fn bpe(&self, vocabulary: &Vocabulary, rules: Rules, notes: &mut Vec<String>) -> Result<Bpe, Error> {
        let key = "tokenizer.ggml.merges";
        let lines = self.strings(key)?.ok_or_else(|| self.missing(key))?;
        let mut merges = Vec::with_capacity(lines.len());
        let mut first_unknown = None;
        for (index, line) in lines.iter().enumerate() {
            match self.merge(vocabulary, index, line) {
                Ok(merge) => merges.push(merge),
                // a merge of what no text can hold; the reference converter writes such ones for tokens
                // with a space inside
                Err(error @ Error::UnknownMerge { .. }) => first_unknown = first_unknown.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = first_unknown {
            if merges.len() < lines.len() / 2 {
                return Err(error);
            }
            let n_unknown = lines.len() - merges.len();
            notes.push(format!("{n_unknown} of {} merges left out; the first: {error}", lines.len()));
        }
        let mut bytes = Box::new([None; 256]);
        let mut characters = rules.raw_utf8.then(HashMap::new);
        let mut whole = HashMap::new();
        for (id, token) in vocabulary.tokens().iter().enumerate() {
            let (id, text) = (id as u32, token.text.as_str());
            if let Some(characters) = &mut characters {
                let mut chars = text.chars();
                match (byte_token(text), chars.next(), chars.next()) {
                    (Some(byte), ..) => bytes[usize::from(byte)] = Some(id),
                    (None, Some(c), None) => _ = characters.insert(c, id),
                    _ => {}
                }
                // runs of line feeds are tokens that no merge makes
                if text.bytes().all(|byte| byte == b'\n') {
                    whole.insert(text.as_bytes().into(), id);
                }
                continue;
            }
            let Some(spelled) = alphabet_bytes(text) else { continue };
            match spelled[..] {
                [byte] if token.kind != PieceKind::Control => bytes[usize::from(byte)] = Some(id),
                _ => {}
            }
            if rules.ignore_merges {
                whole.insert(spelled.into_boxed_slice(), id);
            }
        }
        Ok(Bpe::new(bytes, characters, merges.into_iter(), whole))
    }

    /// Returns the ids of a merge's parts and of their union.
    fn merge(&self, vocabulary: &Vocabulary, index: usize, line: &str) -> Result<(u32, u32, u32), Error> {
        // a token may start with a space, so the first character separates nothing
        let at = line.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let Some((left, right)) = at.map(|at| (&line[..at], &line[at + 1..])) else {
            return Err(Error::Shape {
                path: self.path.to_owned(),
                field: format!("tokenizer.ggml.merges[{index}]"),
                expected: "two tokens and one space between them",
                found: format!("the string {line:?}"),
            });
        };
        let union = format!("{left}{right}");
        let id = |text: &str| {
            vocabulary.id(text).ok_or_else(|| Error::UnknownMerge {
                path: self.path.to_owned(),
                index,
                left: left.to_owned(),
                right: right.to_owned(),
                unknown: text.to_owned(),
            })
        };
        Ok((id(left)?, id(right)?, id(&union)?))
    }

    /// Returns the chat templates by name, `default` first.
    fn templates(&self) -> Result<Vec<(String, String)>, Error> {
        let mut templates = Vec::new();
        if let Some(text) = self.text("tokenizer.chat_template")? {
            templates.push(("default".to_owned(), text.to_owned()));
        }
        for key in self.metadata.keys() {
            if let Some(name) = key.strip_prefix("tokenizer.chat_template.")
                && let Some(text) = self.text(key)?
            {
                templates.push((name.to_owned(), text.to_owned()));
            }
        }
        Ok(templates)
    }

    /// Returns the SHA-256 of all `tokenizer.ggml.*` keys in key order.
    fn digest(&self) -> String {
        let mut entries: Vec<(&String, &Value)> =
            self.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.ggml.")).collect();
        entries.sort_by_key(|(key, _)| *key);
        let mut digest = super::digest::Digest::default();
        for (key, value) in entries {
            digest.text(key);
            digest.value(value);
        }
        digest.finish()
    }
}
