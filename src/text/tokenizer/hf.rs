//! A tokenizer from the files of a Hugging Face directory.

use std::path::Path;

use serde_json::{Map, Value as Json, json};
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::super::error::Error;
use super::super::files::{Files, read_bytes, read_json, shape_error};
use super::super::hf_vocab::{HfVocab, class_defaults, named_tokens};
use super::super::pre_table::KNOWN;
use super::super::sentencepiece::{ModelKind, PieceKind, SentencePiece};
use super::super::spm_vocab::{AddedRules, added_tokens_decoder, is_tiktoken, sentencepiece_table};
use super::super::table::{MAX_TOKENS, Token};
use super::super::template::ChatTemplate;
use super::super::{VocabRequest, bpe, pretokenizer};
use super::digest::Digest;
use super::library::Library;
use super::matcher::Matcher;
use super::pieces::{Joining, Pieces, Spelling};
use super::roles::{NAMED_ROLES, Roles};
use super::spm::Spm;
use super::vocabulary::Vocabulary;
use super::{Decoder, Engine, Model, Tokenizer};

/// The files beside the tokenizer's own.
struct Checkpoint {
    files: Files,
    /// config.json; empty if there is none.
    config: Map<String, Json>,
    generation: Map<String, Json>,
    notes: Vec<String>,
}

/// Returns the tokenizer of the directory.
pub fn open(dir: &Path) -> Result<Tokenizer, Error> {
    let files = Files::open(dir)?;
    let config = read_json(&dir.join("config.json"))?.unwrap_or_default();
    let generation = read_json(&dir.join("generation_config.json"))?.unwrap_or_default();
    let mut checkpoint = Checkpoint { files, config, generation, notes: Vec::new() };
    if let Some(bytes) = read_bytes(&dir.join("tokenizer.json"))? {
        return checkpoint.by_library(&dir.join("tokenizer.json"), &bytes);
    }
    let path = dir.join("tokenizer.model");
    if let Some(bytes) = read_bytes(&path)? {
        if is_tiktoken(&bytes) {
            let what = "a tiktoken vocabulary without its tokenizer.json".to_owned();
            return Err(Error::UnsupportedTokenizer { path, what });
        }
        return checkpoint.by_sentencepiece(&path, &bytes);
    }
    if dir.join("vocab.json").is_file() {
        let json = checkpoint.tokenizer_json()?;
        return checkpoint.by_library(&dir.join("vocab.json"), json.to_string().as_bytes());
    }
    let tekken = dir.join("tekken.json");
    match tekken.is_file() {
        true => {
            let what = "Mistral's own tokenizer format alone".to_owned();
            Err(Error::UnsupportedTokenizer { path: tekken, what })
        }
        false => Err(Error::NoTokenizer { path: dir.to_owned() }),
    }
}

impl Checkpoint {
    /// Returns the tokenizer that the library makes of a tokenizer.json; `path` is for messages.
    fn by_library(self, path: &Path, bytes: &[u8]) -> Result<Tokenizer, Error> {
        let fail = |message: String| Error::Library { path: path.to_owned(), message };
        if let Some(tokenizer) = &self.files.tokenizer {
            check_template(path, &tokenizer.post_processor)?;
        }
        let mut inner = Inner::from_bytes(bytes).map_err(|error| fail(error.to_string()))?;
        inner.with_truncation(None).map_err(|error| fail(error.to_string()))?;
        inner.with_padding(None);
        self.add_tokens(&mut inner).map_err(|error| match error {
            AddError::Files(error) => error,
            AddError::Library(message) => fail(message),
        })?;
        let vocabulary = library_vocabulary(path, &inner)?;
        let mut roles = self.roles(&vocabulary)?;
        let flags = ["add_bos_token", "add_eos_token"].map(|key| self.files.config_value(key));
        // transformers' GPT-2 class takes no such flags
        let obeys = self.class() != "GPT2Tokenizer";
        let by_flags = obeys && flags.iter().any(|flag| flag.is_some_and(Json::is_boolean));
        let flag = |at: usize| flags[at].and_then(Json::as_bool).unwrap_or(false);
        let mut digest = Digest::default();
        let serialized = inner.to_string(false).map_err(|error| fail(error.to_string()))?;
        digest.text(&serialized);
        let decoder = self.decoder(&inner, &serialized, &vocabulary);
        let library = Library::new(inner, by_flags);
        (roles.adds_bos, roles.adds_eos) = match by_flags {
            true => (flag(0) && roles.bos.is_some(), flag(1) && roles.eos.is_some()),
            false => added_around(&library, &roles).map_err(fail)?,
        };
        self.finish(vocabulary, Engine::Library(Box::new(library)), decoder, roles, digest)
    }

    /// Returns the tokenizer's class by tokenizer_config.json, without a `Fast` at its end.
    fn class(&self) -> &str {
        let class = self.files.config_value("tokenizer_class").and_then(Json::as_str).unwrap_or_default();
        class.strip_suffix("Fast").unwrap_or(class)
    }

    /// Returns config.json's vocabulary size, or `n_pieces` if that is more; without one, what a model of
    /// `n_pieces` and the tokens added to it need.
    fn vocab_size(&self, n_pieces: usize) -> Result<usize, Error> {
        let size =
            self.config.get("vocab_size").or_else(|| self.config.get("text_config")?.get("vocab_size"));
        if let Some(size) = size.and_then(Json::as_u64) {
            return Ok(usize::try_from(size).unwrap_or(usize::MAX).max(n_pieces));
        }
        let empty = Map::new();
        let config = self.files.config.as_ref().unwrap_or(&empty);
        let listed = added_tokens_decoder(&self.files.path("tokenizer_config.json"), config)?;
        let added: Map<String, Json> = read_json(&self.files.path("added_tokens.json"))?.unwrap_or_default();
        let ids = listed.iter().map(|(id, ..)| *id).chain(added.values().filter_map(Json::as_i64));
        let end = ids.filter_map(|id| usize::try_from(id).ok()).map(|id| id.saturating_add(1)).max();
        Ok(end.unwrap_or(0).max(n_pieces))
    }

    /// Returns the tokenizer of a tokenizer.model.
    fn by_sentencepiece(mut self, path: &Path, bytes: &[u8]) -> Result<Tokenizer, Error> {
        let model = SentencePiece::parse(path, bytes)?;
        if model.kind != ModelKind::Bpe {
            let what = format!("a SentencePiece model of kind {:?}", model.kind);
            return Err(Error::UnsupportedTokenizer { path: path.to_owned(), what });
        }
        if model.normalizes {
            self.notes.push(format!(
                "{}: asks for text to be normalized (characters replaced, or spaces next to others removed); \
                 GGUF readers do not, and neither is it done here",
                path.display()
            ));
        }
        let config = Json::Object(self.config.clone());
        let dir = self.files.dir.clone();
        let request = VocabRequest {
            dir: &dir,
            config: &config,
            arch: "",
            vocab_size: Some(self.vocab_size(model.pieces.len())?),
            embedding_rows: None,
            pre: None,
        };
        let rules = match self.config.get("model_type").and_then(Json::as_str) {
            Some("phi3") => AddedRules::Phi3,
            _ => AddedRules::Common,
        };
        let table = sentencepiece_table(&request, &self.files, &model, rules, &mut self.notes)?;
        let mut tokens = table.tokens;
        for (token, piece) in tokens.iter_mut().zip(&model.pieces) {
            if piece.kind == PieceKind::UserDefined && token.kind == PieceKind::Normal {
                token.kind = PieceKind::UserDefined;
            }
        }
        let mut digest = Digest::default();
        for token in &tokens {
            digest.text(&token.text);
            digest.number(token.score.to_bits().into());
            digest.number(token.kind as u64);
        }
        digest.number(model.add_dummy_prefix.into());
        let vocabulary = Vocabulary::new(path, tokens)?;
        let mut roles = self.roles(&vocabulary)?;
        let flag =
            |key: &str, default| self.files.config_value(key).and_then(Json::as_bool).unwrap_or(default);
        roles.adds_bos = flag("add_bos_token", true) && roles.bos.is_some();
        roles.adds_eos = flag("add_eos_token", false) && roles.eos.is_some();
        let space_prefix = flag("add_prefix_space", model.add_dummy_prefix);
        let spm = Spm::new(&vocabulary, roles.unknown, true);
        let pieces = Pieces::of(&vocabulary, Joining::ByteRuns, usize::from(space_prefix), false);
        let matcher = Matcher::new(&vocabulary, Default::default())
            .map_err(|error| Error::Pieces { path: path.to_owned(), problem: error.to_string() })?;
        let engine = Engine::Own { matcher, model: Box::new(Model::Spm { spm, space_prefix }) };
        self.finish(vocabulary, engine, Decoder::Pieces(pieces), roles, digest)
    }

    fn finish(
        mut self,
        vocabulary: Vocabulary,
        engine: Engine,
        decoder: Decoder,
        mut roles: Roles,
        mut digest: Digest,
    ) -> Result<Tokenizer, Error> {
        let mut ends = Vec::new();
        for (file, fields) in [("generation_config.json", &self.generation), ("config.json", &self.config)] {
            ends.extend(listed_ids(&self.files.path(file), fields, "eos_token_id")?);
        }
        roles.set_end_of_generation(&vocabulary, ends.into_iter());
        for number in [roles.adds_bos.into(), roles.adds_eos.into()] {
            digest.number(number);
        }
        for id in [roles.bos, roles.eos] {
            digest.number(id.map_or(u64::MAX, u64::from));
        }
        let empty = Map::new();
        let config = self.files.config.as_ref().unwrap_or(&empty);
        let templates = match ChatTemplate::load(&self.files, config, &mut self.notes)? {
            None => Vec::new(),
            Some(ChatTemplate::One(text)) => vec![("default".to_owned(), text)],
            Some(ChatTemplate::Named(named)) => named,
        };
        Ok(Tokenizer {
            path: self.files.dir,
            vocabulary,
            engine,
            decoder,
            roles,
            templates,
            digest: digest.finish(),
            notes: self.notes,
        })
    }

    /// Returns the special tokens that tokenizer_config.json, special_tokens_map.json or the tokenizer's
    /// class name; without a tokenizer.json, also those whose ids config.json has.
    fn roles(&self, vocabulary: &Vocabulary) -> Result<Roles, Error> {
        let map: Map<String, Json> =
            read_json(&self.files.path("special_tokens_map.json"))?.unwrap_or_default();
        let empty = Map::new();
        let config = self.files.config.as_ref().unwrap_or(&empty);
        let defaults = class_defaults(config);
        let mut roles = Roles::default();
        for role in NAMED_ROLES {
            let key = format!("{role}_token");
            let content =
                |entry: &Json| entry.as_str().or_else(|| entry.get("content")?.as_str()).map(str::to_owned);
            let named = config.get(&key).or_else(|| map.get(&key)).and_then(content);
            let named = named.or_else(|| {
                defaults.iter().find(|(name, _)| *name == role).map(|(_, token)| (*token).to_owned())
            });
            let mut id = named.as_ref().and_then(|text| vocabulary.id(text));
            if named.is_none() && !config.contains_key(&key) && self.files.tokenizer.is_none() {
                let path = self.files.path("config.json");
                id = listed_ids(&path, &self.config, &format!("{role}_token_id"))?.first().copied();
                id = id.filter(|id| vocabulary.token(*id).is_some());
            }
            match role {
                "bos" => roles.bos = id,
                "eos" => roles.eos = id,
                "unk" => roles.unknown = id,
                "pad" => roles.pad = id,
                _ => {}
            }
            let text = named.or_else(|| Some(vocabulary.token(id?)?.text.clone()));
            roles.named.extend(text.map(|text| (key, text.into())));
        }
        if roles.unknown.is_none() {
            let unknown = vocabulary.tokens().iter().find(|token| token.kind == PieceKind::Unknown);
            roles.unknown = unknown.and_then(|token| vocabulary.id(&token.text));
        }
        Ok(roles)
    }

    /// Adds the tokens that the files beside tokenizer.json list and it lacks, as transformers does.
    fn add_tokens(&self, inner: &mut Inner) -> Result<(), AddError> {
        let empty = Map::new();
        let config = self.files.config.as_ref().unwrap_or(&empty);
        let mut tokens = Vec::new();
        let path = self.files.path("tokenizer_config.json");
        let mut listed = added_tokens_decoder(&path, config)?;
        listed.sort_by_key(|(id, ..)| *id);
        for (_, token, special) in &listed {
            let flag = |key: &str| token.get(key).and_then(Json::as_bool);
            let content = token.get("content").and_then(Json::as_str).unwrap_or_default();
            let added = AddedToken::from(content, *special)
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false))
                .single_word(flag("single_word").unwrap_or(false));
            tokens.push(added.normalized(flag("normalized").unwrap_or(!special)));
        }
        let named = named_tokens(&self.files, config)?;
        if listed.is_empty() && self.files.tokenizer.is_none() {
            let path = self.files.path("added_tokens.json");
            let added: Map<String, Json> = read_json(&path)?.unwrap_or_default();
            let mut added: Vec<_> = added.iter().map(|(text, id)| (id.as_i64(), text)).collect();
            added.sort();
            tokens
                .extend(added.iter().map(|(_, text)| AddedToken::from(text.as_str(), named.contains(*text))));
        }
        tokens.extend(named.iter().map(|text| AddedToken::from(text.as_str(), true)));
        for (_, text) in class_defaults(config) {
            if inner.token_to_id(text).is_some() {
                tokens.push(AddedToken::from(text, true));
            }
        }
        for token in tokens {
            let known = inner.get_added_vocabulary().get_vocab().contains_key(&token.content);
            if !known && !token.content.is_empty() {
                inner.add_tokens([token]).map_err(|error| AddError::Library(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Returns how the library's decoder can be run token by token; `serialized` is its tokenizer.json.
    fn decoder(&self, inner: &Inner, serialized: &str, vocabulary: &Vocabulary) -> Decoder {
        #[derive(serde::Deserialize)]
        struct Parts {
            decoder: Option<Json>,
        }
        let parts = serde_json::from_str(serialized).unwrap_or(Parts { decoder: None });
        let texts: Vec<Option<String>> = (0..vocabulary.len() as u32)
            .map(|id| {
                let added = inner.get_added_vocabulary().simple_id_to_token(id);
                added.or_else(|| inner.id_to_token(id))
            })
            .collect();
        let spelled = || texts.iter().map(|text| Spelling::Token(text.as_deref().unwrap_or_default()));
        match parts.decoder.as_ref().and_then(known_decoder) {
            Some((joining, strip)) => Decoder::Pieces(Pieces::new(spelled(), joining, strip)),
            None => {
                let asked =
                    self.files.config_value("clean_up_tokenization_spaces") == Some(&Json::Bool(true));
                // for BPE transformers ignores the wish
                let is_bpe = matches!(inner.get_model(), tokenizers::ModelWrapper::BPE(_));
                Decoder::Library { cleans: asked && !is_bpe }
            }
        }
    }

    /// Returns the tokenizer.json that vocab.json and merges.txt stand for.
    fn tokenizer_json(&mut self) -> Result<Json, Error> {
        let Some(vocab) = HfVocab::load(&self.files, &mut self.notes)? else {
            return Err(Error::NoTokenizer { path: self.files.dir.clone() });
        };
        let arch = self.config.get("model_type").and_then(Json::as_str).unwrap_or_default().to_owned();
        let name = pretokenizer::detect(&self.files, &arch)?;
        // names found by class are names of the table
        let known = KNOWN.iter().find(|known| known.name == name).unwrap_or(&KNOWN[0]);
        let merges = bpe::merges(&self.files, &vocab, &mut self.notes)?;
        let ids: Map<String, Json> = vocab
            .texts
            .iter()
            .filter(|(id, _)| (**id as usize) < vocab.n_base)
            .map(|(id, text)| (text.clone(), (*id).into()))
            .collect();
        let split = |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let mut steps: Vec<Json> = known.splits.iter().map(split).collect();
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false
        });
        steps.push(bytes.clone());
        Ok(json!({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": if known.nfc { json!({"type": "NFC"}) } else { Json::Null },
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "post_processor": null,
            "decoder": bytes,
            "model": {"type": "BPE", "vocab": ids, "merges": merges},
        }))
    }
}

/// Errors if a template names a special token that it does not define: the library would panic.
fn check_template(path: &Path, processor: &Json) -> Result<(), Error> {
    for inner in processor.get("processors").and_then(Json::as_array).into_iter().flatten() {
        check_template(path, inner)?;
    }
    let parts = ["single", "pair"].into_iter().filter_map(|key| processor.get(key)?.as_array());
    for id in parts.flatten().filter_map(|part| part.get("SpecialToken")?.get("id")?.as_str()) {
        if processor.get("special_tokens").and_then(|tokens| tokens.get(id)).is_none() {
            let message = format!("`post_processor.special_tokens` has no {id:?}, which its template names");
            return Err(Error::Library { path: path.to_owned(), message });
        }
    }
    Ok(())
}

enum AddError {
    Files(Error),
    Library(String),
}

impl From<Error> for AddError {
    fn from(error: Error) -> Self {
        AddError::Files(error)
    }
}

/// Returns joining and stripped spaces of a decoder of the usual forms: byte-level, or SentencePiece's
/// with byte fallback.
fn known_decoder(decoder: &Json) -> Option<(Joining, usize)> {
    if decoder.get("type")? == "ByteLevel" {
        return Some((Joining::ByteLevel, 0));
    }
    let steps = decoder.get("decoders")?.as_array()?;
    let is = |at: usize, kind: &str| steps.get(at).is_some_and(|step| step["type"] == kind);
    let spaces = is(0, "Replace") && steps[0]["pattern"]["String"] == "▁" && steps[0]["content"] == " ";
    if !(spaces && is(1, "ByteFallback") && is(2, "Fuse")) {
        return None;
    }
    match steps.get(3) {
        None => Some((Joining::ByteRuns, 0)),
        Some(strip) if is(3, "Strip") && steps.len() == 4 => {
            let start = strip["start"].as_u64()?;
            (strip["content"] == " " && strip["stop"] == 0).then_some((Joining::ByteRuns, start as usize))
        }
        Some(_) => None,
    }
}

/// Returns all tokens of the library's tokenizer; added ones are control tokens or user-defined.
fn library_vocabulary(path: &Path, inner: &Inner) -> Result<Vocabulary, Error> {
    let added = inner.get_added_tokens_decoder();
    let texts = inner.get_vocab(true);
    let n_tokens = texts.values().max().map_or(0, |&id| id as usize + 1);
    if n_tokens > MAX_TOKENS {
        return Err(Error::VocabSize { path: path.to_owned(), found: n_tokens as u64, limit: MAX_TOKENS });
    }
    let none = || Token { text: String::new(), score: 0.0, kind: PieceKind::Unused };
    let mut tokens: Vec<Token> = (0..n_tokens).map(|_| none()).collect();
    for (text, id) in texts {
        let kind = match added.get(&id) {
            Some(token) if token.special => PieceKind::Control,
            Some(_) => PieceKind::UserDefined,
            None => PieceKind::Normal,
        };
        tokens[id as usize] = Token { text, score: 0.0, kind };
    }
    Vocabulary::new(path, tokens)
}

/// Returns whether the library's post-processor puts the bos token before and the eos token after a text.
fn added_around(library: &Library, roles: &Roles) -> Result<(bool, bool), String> {
    let options = super::EncodeOptions { add_special: true, parse_special: true };
    let ids = library.encode("", options, roles)?;
    let (first, last) = (ids.first().copied(), ids.last().copied());
    let has_eos = roles.eos.is_some() && last == roles.eos && (ids.len() > 1 || roles.eos != roles.bos);
    Ok((roles.bos.is_some() && first == roles.bos, has_eos))
}

/// Returns the ids of a field that holds one, a list, or null.
fn listed_ids(path: &Path, fields: &Map<String, Json>, key: &str) -> Result<Vec<u32>, Error> {
    let id = |value: &Json| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| shape_error(path, key, "a token id or a list of them", value))
    };
    match fields.get(key) {
        None | Some(Json::Null) => Ok(Vec::new()),
        // some checkpoints say -1 for none
        Some(Json::Number(number)) if number.as_i64().is_some_and(|id| id < 0) => Ok(Vec::new()),
        Some(Json::Array(ids)) => ids.iter().map(id).collect(),
        Some(one) => Ok(vec![id(one)?]),
    }
}
