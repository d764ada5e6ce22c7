//! The vocabulary a Hugging Face tokenizer ends up with: the model's tokens, the tokens added by
//! tokenizer.json and tokenizer_config.json, and those named as special.

use std::collections::HashMap;
use std::path::PathBuf;

use indexmap::{IndexMap, IndexSet};
use serde_json::{Map, Value as Json};

use super::error::Error;
use super::files::{Files, read_json, shape_error};
use super::spm_vocab::added_tokens_decoder;
use super::table::MAX_TOKENS;
use super::tokenizer_json::{AddedToken, ModelVocab};

/// Special tokens that a tokenizer class has where tokenizer_config.json does not mention the role.
const CLASS_DEFAULTS: &[(&str, &[(&str, &str)])] = &[
    ("Qwen2Tokenizer", &[("unk", "<|endoftext|>"), ("eos", "<|endoftext|>"), ("pad", "<|endoftext|>")]),
    ("GPT2Tokenizer", &[("unk", "<|endoftext|>"), ("bos", "<|endoftext|>"), ("eos", "<|endoftext|>")]),
    ("LlamaTokenizer", &[("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>")]),
];

/// A token matched before the model sees the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Added {
    pub content: String,
    pub special: bool,
    /// Whether it is matched in normalized text.
    pub normalized: bool,
}

/// Tokens by id, and which of them are added.
#[derive(Debug)]
pub struct HfVocab {
    /// The file the model's vocabulary stands in, for messages.
    pub path: PathBuf,
    ids: HashMap<String, u32>,
    pub texts: HashMap<u32, String>,
    /// Tokens of the model itself.
    pub n_base: usize,
    /// The id of the next token that the model does not have.
    next_id: u32,
    pub added: IndexMap<u32, Added>,
    /// Tokens named as special (`bos_token`, …, `additional_special_tokens`).
    pub named: IndexSet<String>,
}

impl HfVocab {
    /// Returns the vocabulary of tokenizer.json, or of vocab.json, with everything added to it.
    pub fn load(files: &Files, notes: &mut Vec<String>) -> Result<Option<Self>, Error> {
        let Some(mut vocab) = Self::base(files)? else { return Ok(None) };
        if let Some(tokenizer) = &files.tokenizer {
            for token in &tokenizer.added_tokens {
                vocab.add_from_tokenizer_json(token, notes)?;
            }
        }
        let empty = Map::new();
        let config = files.config.as_ref().unwrap_or(&empty);
        for (id, token) in listed_tokens(files, config)? {
            vocab.add(token, Some((id, "tokenizer_config.json")), notes)?;
        }
        for content in named_tokens(files, config)? {
            let token = Added { content: content.clone(), special: true, normalized: false };
            vocab.add(token, None, notes)?;
            vocab.named.insert(content);
        }
        for (_, content) in class_defaults(config) {
            // a class's default that the vocabulary lacks has no row in the embedding either
            if vocab.ids.contains_key(content) {
                let token = Added { content: content.to_owned(), special: true, normalized: false };
                vocab.add(token, None, notes)?;
                vocab.named.insert(content.to_owned());
            }
        }
        Ok(Some(vocab))
    }

    fn base(files: &Files) -> Result<Option<Self>, Error> {
        let read;
        let (path, tokens) = match &files.tokenizer {
            Some(tokenizer) => match &tokenizer.model.vocab {
                ModelVocab::Ids(tokens) => (files.path("tokenizer.json"), tokens),
                ModelVocab::Scores => return Ok(None),
            },
            None => {
                let path = files.path("vocab.json");
                match read_json::<ModelVocab>(&path)? {
                    Some(ModelVocab::Ids(tokens)) => {
                        read = tokens;
                        (path, &read)
                    }
                    Some(ModelVocab::Scores) => {
                        let list = Json::Array(Vec::new());
                        return Err(shape_error(&path, "(the file)", "a map of tokens to ids", &list));
                    }
                    None => return Ok(None),
                }
            }
        };
        let mut vocab = HfVocab {
            path,
            ids: HashMap::with_capacity(tokens.len()),
            texts: HashMap::with_capacity(tokens.len()),
            n_base: tokens.len(),
            next_id: tokens.len() as u32,
            added: IndexMap::new(),
            named: IndexSet::new(),
        };
        for (text, id) in tokens {
            if *id as usize >= MAX_TOKENS {
                let token = text.clone();
                return Err(Error::IdOutOfRange {
                    path: vocab.path,
                    token,
                    id: (*id).into(),
                    vocab_size: MAX_TOKENS,
                });
            }
            if let Some(first) = vocab.texts.insert(*id, text.clone()) {
                return Err(vocab.duplicate(*id, first, text.clone()));
            }
            vocab.ids.insert(text.clone(), *id);
        }
        Ok(Some(vocab))
    }

    fn duplicate(&self, id: u32, first: String, second: String) -> Error {
        Error::DuplicateId { path: self.path.clone(), id, first, second }
    }

    /// Returns the token's id.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    fn add_from_tokenizer_json(&mut self, token: &AddedToken, notes: &mut Vec<String>) -> Result<(), Error> {
        if let Some(holder) = self.texts.get(&token.id)
            && *holder != token.content
            && !self.ids.contains_key(&token.content)
        {
            return Err(self.duplicate(token.id, holder.clone(), token.content.clone()));
        }
        let added =
            Added { content: token.content.clone(), special: token.special, normalized: token.normalized() };
        self.add(added, Some((token.id.into(), "tokenizer.json")), notes)
    }

    /// Adds a token as the `tokenizers` library does: under the id the model has for it, else under
    /// the next free one, whatever id the file (`claimed`) gives. A token added before stays as it is.
    fn add(
        &mut self,
        token: Added,
        claimed: Option<(i64, &str)>,
        notes: &mut Vec<String>,
    ) -> Result<(), Error> {
        let known = self.id(&token.content);
        if token.content.is_empty() || known.is_some_and(|id| self.added.contains_key(&id)) {
            return Ok(());
        }
        let id = known.unwrap_or(self.next_id);
        if let Some((claimed, file)) = claimed
            && claimed != i64::from(id)
        {
            notes.push(format!("{file} gives {:?} the id {claimed}; the tokenizer uses {id}", token.content));
        }
        if let Some(first) = self.texts.get(&id).filter(|text| **text != token.content) {
            return Err(self.duplicate(id, first.clone(), token.content));
        }
        self.ids.insert(token.content.clone(), id);
        self.texts.insert(id, token.content.clone());
        self.added.insert(id, token);
        self.next_id = self.next_id.max(id + 1);
        Ok(())
    }

    /// Returns one more than the largest id.
    pub fn end(&self) -> usize {
        self.texts.keys().max().map_or(0, |&id| id as usize + 1)
    }
}

/// Returns the tokens of tokenizer_config.json's `added_tokens_decoder` by id or, where there is no
/// such entry, those of added_tokens.json.
fn listed_tokens(files: &Files, config: &Map<String, Json>) -> Result<Vec<(i64, Added)>, Error> {
    let path = files.path("tokenizer_config.json");
    let mut listed = Vec::new();
    if config.contains_key("added_tokens_decoder") {
        for (id, token, special) in added_tokens_decoder(&path, config)? {
            let content = token.get("content").and_then(Json::as_str).unwrap_or_default().to_owned();
            let normalized = token.get("normalized").and_then(Json::as_bool).unwrap_or(!special);
            listed.push((id, Added { content, special, normalized }));
        }
    } else if files.tokenizer.is_none() {
        let path = files.path("added_tokens.json");
        let named = named_tokens(files, config)?;
        for (content, id) in read_json::<IndexMap<String, Json>>(&path)?.unwrap_or_default() {
            let Some(id) = id.as_i64() else { return Err(shape_error(&path, content, "a token id", &id)) };
            let special = named.contains(&content);
            listed.push((id, Added { content, special, normalized: !special }));
        }
    }
    listed.sort_by_key(|(id, _)| *id);
    Ok(listed)
}

/// Returns the tokens that tokenizer_config.json names (`*_token`, lists of special tokens), and
/// those of special_tokens_map.json where the former lists no added tokens.
pub fn named_tokens(files: &Files, config: &Map<String, Json>) -> Result<IndexSet<String>, Error> {
    let map;
    let mut sources = vec![config];
    if !config.contains_key("added_tokens_decoder") {
        map = read_json::<Map<String, Json>>(&files.path("special_tokens_map.json"))?.unwrap_or_default();
        sources.push(&map);
    }
    let mut named = IndexSet::new();
    for source in sources {
        for (key, value) in source {
            let single = key.ends_with("_token") && !key.starts_with("add_");
            if single || key == "additional_special_tokens" || key == "extra_special_tokens" {
                named.extend(contents(value));
            }
        }
    }
    Ok(named)
}

/// Returns the texts of a token, or of a list of tokens, written as strings or as objects.
fn contents(value: &Json) -> Vec<String> {
    match value {
        Json::String(text) => vec![text.clone()],
        Json::Object(token) => {
            token.get("content").and_then(Json::as_str).map(str::to_owned).into_iter().collect()
        }
        Json::Array(items) => items.iter().flat_map(contents).collect(),
        _ => Vec::new(),
    }
}

/// Returns role and text of the tokens that the tokenizer's class has where the file names none.
pub fn class_defaults(config: &Map<String, Json>) -> Vec<(&'static str, &'static str)> {
    let class = config.get("tokenizer_class").and_then(Json::as_str).unwrap_or_default();
    let class = class.strip_suffix("Fast").unwrap_or(class);
    let defaults =
        CLASS_DEFAULTS.iter().find(|(name, _)| *name == class).map_or(&[][..], |(_, tokens)| tokens);
    let unmentioned = |role: &str| !config.contains_key(&format!("{role}_token"));
    defaults.iter().filter(|(role, _)| unmentioned(role)).copied().collect()
}
