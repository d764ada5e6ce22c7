//! Special token ids, `add_*_token` flags and the chat template, found as the reference converter
//! finds them: in tokenizer.json and tokenizer_config.json first, then in config.json.

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use crate::tensor::gguf::{Array, Metadata, Value};

use super::error::Error;
use super::files::{Files, shape_error};
use super::template::ChatTemplate;

/// The roles looked for by default, in the order of the keys.
const DEFAULT_ROLES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// Role -> GGUF key of its id. Roles without a key (`cls`, and the fill-in-the-middle roles of
/// older converters) are looked up but never written.
const ID_KEYS: [(&str, &str); 8] = [
    ("bos", "tokenizer.ggml.bos_token_id"),
    ("eos", "tokenizer.ggml.eos_token_id"),
    ("unk", "tokenizer.ggml.unknown_token_id"),
    ("sep", "tokenizer.ggml.seperator_token_id"), // spelled so by the format
    ("pad", "tokenizer.ggml.padding_token_id"),
    ("mask", "tokenizer.ggml.mask_token_id"),
    ("eot", "tokenizer.ggml.eot_token_id"),
    ("eom", "tokenizer.ggml.eom_token_id"),
];

const ADD_KEYS: [(&str, &str); 3] = [
    ("bos", "tokenizer.ggml.add_bos_token"),
    ("eos", "tokenizer.ggml.add_eos_token"),
    ("sep", "tokenizer.ggml.add_sep_token"),
];

fn key_of(table: &[(&str, &'static str)], role: &str) -> Option<&'static str> {
    table.iter().find(|(name, _)| *name == role).map(|(_, key)| *key)
}

/// What a checkpoint says of its special tokens.
#[derive(Debug, Default)]
pub struct SpecialTokens {
    roles: Vec<&'static str>,
    /// Ids must stay below this.
    n_vocab: Option<usize>,
    ids: IndexMap<&'static str, u32>,
    add: IndexMap<&'static str, bool>,
    pub merges: Vec<String>,
    pub chat_template: Option<ChatTemplate>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
    pub notes: Vec<String>,
}

impl SpecialTokens {
    /// Returns the special tokens of the default roles; ids from `n_vocab` on are noted and left out.
    pub fn load(files: &Files, config: &Json, n_vocab: Option<usize>) -> Result<Self, Error> {
        Self::load_roles(files, config, n_vocab, &DEFAULT_ROLES)
    }

    /// Returns the special tokens of `roles`.
    pub fn load_roles(
        files: &Files,
        config: &Json,
        n_vocab: Option<usize>,
        roles: &[&'static str],
    ) -> Result<Self, Error> {
        let mut special = SpecialTokens { roles: roles.to_vec(), n_vocab, ..Self::default() };
        let mut tokenizer_config = files.config.clone().unwrap_or_default();
        if let Some(tokenizer) = &files.tokenizer {
            special.read_normalizer(&tokenizer.normalizer);
            let mut roles = NamedTokens::new(&mut tokenizer_config);
            special.read_post_processor(&mut roles, &tokenizer.post_processor);
        }
        if !tokenizer_config.is_empty() {
            special.chat_template = ChatTemplate::load(files, &tokenizer_config, &mut special.notes)?;
            special.read_tokenizer_config(files, &tokenizer_config)?;
        }
        special.read_config(files, config)?;
        Ok(special)
    }

    /// Sets the role's id unless the checkpoint has set it.
    pub fn set_default(&mut self, role: &'static str, id: u32) {
        self.set_id(role, id);
    }

    fn set_id(&mut self, role: &'static str, id: u32) {
        match self.n_vocab {
            Some(n_vocab) if id as usize >= n_vocab => self.notes.push(format!(
                "the {role} token's id {id} is not below the vocabulary size {n_vocab}; left out"
            )),
            _ => {
                self.ids.entry(role).or_insert(id);
            }
        }
    }

    /// Writes merges, ids, flags, chat template and normalizer flags, in the converter's order.
    pub fn write(&self, metadata: &mut Metadata) {
        if !self.merges.is_empty() {
            let merges = Array::String(self.merges.clone());
            metadata.insert("tokenizer.ggml.merges".to_owned(), Value::Array(merges));
        }
        for (role, id) in &self.ids {
            if let Some(key) = key_of(&ID_KEYS, role) {
                metadata.insert(key.to_owned(), Value::U32(*id));
            }
        }
        for (role, add) in &self.add {
            if let Some(key) = key_of(&ADD_KEYS, role) {
                metadata.insert(key.to_owned(), Value::Bool(*add));
            }
        }
        if let Some(template) = &self.chat_template {
            template.write(metadata);
        }
        let flags = [("lowercase", self.lowercase), ("strip_accents", self.strip_accents)];
        for (name, flag) in flags {
            if let Some(flag) = flag {
                metadata.insert(format!("tokenizer.ggml.normalizer.{name}"), Value::Bool(flag));
            }
        }
    }

    fn read_normalizer(&mut self, normalizer: &Json) {
        match normalizer.get("type").and_then(Json::as_str) {
            Some("Lowercase") => self.lowercase = Some(true),
            Some("StripAccents") => self.strip_accents = Some(true),
            Some("BertNormalizer") => {
                if let Some(flag) = normalizer.get("lowercase") {
                    self.lowercase = flag.as_bool();
                }
                if let Some(flag) = normalizer.get("strip_accents") {
                    self.strip_accents = flag.as_bool();
                }
            }
            Some("Sequence") => {
                for inner in normalizer.get("normalizers").and_then(Json::as_array).into_iter().flatten() {
                    self.read_normalizer(inner);
                }
            }
            _ => {}
        }
    }

    fn read_post_processor(&mut self, tokens: &mut NamedTokens, processor: &Json) {
        let single = std::slice::from_ref(processor);
        let processors = processor.get("processors").and_then(Json::as_array);
        for processor in processors.map_or(single, Vec::as_slice) {
            match processor.get("type").and_then(Json::as_str) {
                Some("ByteLevel") => {
                    self.add.entry("bos").or_insert(false);
                    self.add.entry("eos").or_insert(false);
                }
                Some("RobertaProcessing") => {
                    self.add.extend([("bos", true), ("eos", true), ("sep", true)]);
                    tokens.fill_from_roberta(processor);
                }
                Some("TemplateProcessing") => self.read_template(tokens, processor),
                _ => {}
            }
        }
    }

    /// Reads from a TemplateProcessing which special tokens stand around one text, and between two.
    /// Like the converter it understands `[bos] A [eos]` and `[bos] A [sep] [eos] B [eos]`.
    fn read_template(&mut self, tokens: &mut NamedTokens, processor: &Json) {
        let items = |name| processor.get(name).and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let (single, pair) = (items("single"), items("pair"));
        let (mut first, mut last) = (None, None);
        if single.len() > 1 {
            first = special_id(&single[0]);
            if let Some(id) = first {
                tokens.see_first(id);
                self.add.insert("bos", is(&tokens.bos, id) || is(&tokens.cls, id));
            }
            last = special_id(&single[single.len() - 1]);
            if let Some(id) = last {
                self.see_last(tokens, id);
                self.add.insert("eos", is(&tokens.eos, id));
            }
        }
        if let Some(add_sep) = separator(tokens, pair, first, last) {
            self.add.insert("sep", add_sep);
            if add_sep && !truthy(&tokens.sep) {
                tokens.set("sep_token", tokens.eos.clone());
            }
        }
    }

    /// Takes `id`, which ends every text, as the end-of-sequence token; another token of that role
    /// becomes `eot`, or `eom` where `eot` is taken.
    fn see_last(&mut self, tokens: &mut NamedTokens, id: &str) {
        if !tokens.has_config() {
            tokens.eos = id.into();
            return;
        }
        if is(&tokens.eos, id) {
            return;
        }
        match ["eot", "eom"].into_iter().find(|role| !self.roles.contains(role)) {
            Some(role) => {
                self.roles.push(role);
                tokens.set(&format!("{role}_token"), tokens.eos.clone());
            }
            None => self.notes.push(format!(
                "the end-of-sequence token of tokenizer_config.json gives way to {id:?} of tokenizer.json"
            )),
        }
        tokens.eos = id.into();
        tokens.set("eos_token", id.into());
    }

    fn read_tokenizer_config(&mut self, files: &Files, config: &Map<String, Json>) -> Result<(), Error> {
        let added = files.tokenizer.as_ref().map_or(&[][..], |tokenizer| &tokenizer.added_tokens);
        for role in self.roles.clone() {
            if let Some(Json::Bool(flag)) = config.get(&format!("add_{role}_token")) {
                let known = *self.add.entry(role).or_insert(*flag);
                if known != *flag {
                    self.notes.push(format!(
                        "add_{role}_token is {flag} in tokenizer_config.json but {known} by the post-processor \
                         of tokenizer.json, which is followed"
                    ));
                }
            }
            let entry = config.get(&format!("{role}_token"));
            let content = entry.and_then(|entry| entry.as_str().or_else(|| entry.get("content")?.as_str()));
            if let Some(token) =
                content.and_then(|content| added.iter().find(|token| token.content == content))
            {
                self.set_id(role, token.id);
            }
        }
        Ok(())
    }

    fn read_config(&mut self, files: &Files, config: &Json) -> Result<(), Error> {
        for role in self.roles.clone() {
            let field = format!("{role}_token_id");
            let present = |id: &&Json| !id.is_null();
            let id = config.get(&field).filter(present);
            let id = id.or_else(|| config.get("text_config")?.get(&field));
            let Some(id @ Json::Number(number)) = id else { continue };
            match number.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => self.set_id(role, id),
                None if number.is_f64() => {}
                None => return Err(shape_error(&files.path("config.json"), field, "a token id", id)),
            }
        }
        Ok(())
    }
}

/// The entries `*_token` of tokenizer_config.json that a post-processor is compared with, as the
/// strings or objects they are there. Without the file nothing is remembered in it.
struct NamedTokens<'a> {
    config: &'a mut Map<String, Json>,
    bos: Json,
    eos: Json,
    cls: Json,
    sep: Json,
}

impl<'a> NamedTokens<'a> {
    fn new(config: &'a mut Map<String, Json>) -> Self {
        let get = |key| config.get(key).cloned().unwrap_or(Json::Null);
        let (bos, eos) = (get("bos_token"), get("eos_token"));
        let (cls, sep) = (get("cls_token"), get("sep_token"));
        let mut tokens = NamedTokens { config, bos, eos, cls, sep };
        if !truthy(&tokens.bos) && truthy(&tokens.cls) {
            tokens.bos = tokens.cls.clone();
            tokens.set("bos_token", tokens.cls.clone());
        }
        if !truthy(&tokens.eos) && truthy(&tokens.sep) {
            tokens.eos = tokens.sep.clone();
            tokens.set("eos_token", tokens.sep.clone());
        }
        tokens
    }

    fn has_config(&self) -> bool {
        !self.config.is_empty()
    }

    fn set(&mut self, key: &str, token: Json) {
        if self.has_config() {
            self.config.insert(key.to_owned(), token);
        }
    }

    fn fill_from_roberta(&mut self, processor: &Json) {
        let named = |key: &str| processor.get(key).and_then(|pair| pair.get(0)).cloned();
        if !truthy(&self.cls) && self.has_config() {
            self.cls = named("cls").unwrap_or_else(|| self.bos.clone());
            self.set("cls_token", self.cls.clone());
        }
        if !truthy(&self.sep) && self.has_config() {
            self.sep = named("sep").unwrap_or_else(|| self.eos.clone());
            self.set("sep_token", self.sep.clone());
        }
    }

    /// Takes `id`, which starts every text, as the beginning-of-sequence token if none is named.
    fn see_first(&mut self, id: &str) {
        if !self.has_config() {
            self.bos = id.into();
            return;
        }
        if is(&self.bos, id) || is(&self.cls, id) {
            return;
        }
        if !truthy(&self.bos) {
            self.bos = id.into();
            self.set("bos_token", id.into());
        }
        if !truthy(&self.cls) {
            self.cls = id.into();
            self.set("cls_token", id.into());
        }
    }
}

/// Returns whether a separator stands between two texts, `None` if `pair` is not of the known form.
fn separator(tokens: &NamedTokens, pair: &[Json], first: Option<&str>, last: Option<&str>) -> Option<bool> {
    let known = |id: &str| is(&tokens.sep, id) || is(&tokens.eos, id);
    let start = usize::from(first.is_some() && special_id(pair.first()?) == first);
    let end = pair.len() - usize::from(last.is_some() && special_id(pair.last()?) == last);
    let [a, middle @ .., b] = pair.get(start..end)? else { return None };
    if sequence_id(a) != Some("A") || sequence_id(b) != Some("B") || middle.is_empty() {
        return None;
    }
    let opens = special_id(&middle[0]).is_some_and(known) && last.is_none();
    let closes = middle.len() == 2 && special_id(&middle[1]).is_some_and(known);
    Some(opens || closes)
}

fn special_id(item: &Json) -> Option<&str> {
    item.get("SpecialToken")?.get("id")?.as_str().filter(|id| !id.is_empty())
}

fn sequence_id(item: &Json) -> Option<&str> {
    item.get("Sequence")?.get("id")?.as_str()
}

fn is(token: &Json, id: &str) -> bool {
    token.as_str() == Some(id)
}

fn truthy(token: &Json) -> bool {
    match token {
        Json::Null | Json::Bool(false) => false,
        Json::String(text) => !text.is_empty(),
        Json::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}
