//! Making a tokenizer: a byte-level BPE learned from texts, as tokenizer.json and tokenizer_config.json.
//!
//! Nothing is drawn and nothing depends on threads or on the order of texts: the same words, as often, give the same files.

mod bpe;

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use tokenizers::NormalizedString;

use super::error::Error;
use super::pre_table::KNOWN;
use super::pretokenizer::Known;
use super::tokenizer::PreTokenizer;
use bpe::Merges;

/// ChatML: every message between `<|im_start|>ROLE` and `<|im_end|>`.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
                          '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// What [`CHATML`] writes and only special tokens may be.
const CHATML_MARKERS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// Pre-tokenizers that a new tokenizer may have, and how they part numbers.
pub const PRE_TOKENIZERS: [(&str, &str); 4] = [
    ("qwen2", "digits stand alone"),
    ("llama-bpe", "numbers in threes"),
    ("gpt-4o", "numbers in threes, words at their capitals"),
    ("gpt-2", "numbers whole"),
];

/// What a tokenizer is to be like.
#[derive(Clone, Debug)]
pub struct TrainSpec {
    /// All tokens: special ones, 256 bytes, merges.
    pub vocab_size: usize,
    /// Ids 0, 1, ...
    pub special: Vec<String>,
    /// One of [`PRE_TOKENIZERS`].
    pub pre: String,
    /// How often a pair must stand in the texts to be merged.
    pub min_frequency: u64,
    /// Put in front of every text.
    pub bos: Option<String>,
    /// Ends a generation.
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub chat_template: Option<String>,
}

/// A specification that makes no tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("a vocabulary of {asked} tokens has no room for {special} special tokens and 256 bytes")]
    Small { asked: usize, special: usize },

    #[error("a vocabulary of {asked} tokens is above the limit of {limit}")]
    Large { asked: usize, limit: usize },

    #[error("pre-tokenizer `{name}` is none that a new tokenizer can have")]
    Pre { name: String },

    #[error("the special token `{token}` is named twice")]
    Twice { token: String },

    #[error("a special token must not be empty")]
    Empty,

    #[error("{role} token `{token}` is none of the special tokens: {special}")]
    Role { role: &'static str, token: String, special: String },

    #[error("the special token `{token}` is spelled as an ordinary token is")]
    Ordinary { token: String },

    #[error("the chat template chatml writes `{marker}`, which is none of the special tokens: {special}")]
    Marker { marker: &'static str, special: String },

    #[error("the text cannot be split into words: {message}")]
    Split { message: String },
}

impl crate::error::Diagnostic for TrainError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            TrainError::Small { special, .. } => format!("take at least {}", special + 256),
            TrainError::Large { .. } => "models in use have up to 262,144".into(),
            TrainError::Pre { .. } => {
                let names: Vec<String> =
                    PRE_TOKENIZERS.iter().map(|(name, about)| format!("{name} ({about})")).collect();
                format!("there are: {}", names.join(", "))
            }
            TrainError::Role { .. } => "name it with --special, too".into(),
            TrainError::Ordinary { .. } => {
                "choose one that no text has: bytes and what is merged of them keep their spelling".into()
            }
            TrainError::Marker { marker, .. } => {
                format!("add --special '{marker}', or choose --chat-template none or a file")
            }
            TrainError::Twice { .. } | TrainError::Empty | TrainError::Split { .. } => return None,
        })
    }
}

/// Most tokens of a vocabulary.
const MAX_VOCAB: usize = 1 << 20;

impl TrainSpec {
    /// Errors if there can be no such tokenizer.
    pub fn check(&self) -> Result<(), TrainError> {
        let (asked, special) = (self.vocab_size, self.special.len());
        if asked > MAX_VOCAB {
            return Err(TrainError::Large { asked, limit: MAX_VOCAB });
        }
        if asked < special + 256 {
            return Err(TrainError::Small { asked, special });
        }
        for (index, token) in self.special.iter().enumerate() {
            if token.is_empty() {
                return Err(TrainError::Empty);
            }
            if self.special[..index].contains(token) {
                return Err(TrainError::Twice { token: token.clone() });
            }
            let mut chars = token.chars();
            if let (Some(letter), None) = (chars.next(), chars.next())
                && super::decoder::byte_of(letter).is_some()
            {
                return Err(TrainError::Ordinary { token: token.clone() });
            }
        }
        for (role, token) in [("bos", &self.bos), ("eos", &self.eos), ("pad", &self.pad)] {
            if let Some(token) = token.as_ref().filter(|token| !self.special.contains(token)) {
                let special = self.special.join(", ");
                return Err(TrainError::Role { role, token: token.clone(), special });
            }
        }
        let is_missing = |marker: &&str| !self.special.iter().any(|token| token == marker);
        if self.chat_template.as_deref() == Some(CHATML)
            && let Some(marker) = CHATML_MARKERS.into_iter().find(is_missing)
        {
            return Err(TrainError::Marker { marker, special: self.special.join(", ") });
        }
        known(&self.pre).map(|_| ())
    }
}

fn known(name: &str) -> Result<&'static Known, TrainError> {
    let is_there = PRE_TOKENIZERS.iter().any(|(known, _)| *known == name);
    let known = KNOWN.iter().find(|known| is_there && known.name == name);
    known.ok_or_else(|| TrainError::Pre { name: name.to_owned() })
}

/// How often every word stands in the texts.
pub struct Words {
    splitter: PreTokenizer,
    nfc: bool,
    counts: BTreeMap<Vec<u8>, u64>,
    n_bytes: u64,
}

impl Words {
    /// Errors on a name that is none of [`PRE_TOKENIZERS`].
    pub fn new(pre: &str) -> Result<Words, TrainError> {
        let nfc = known(pre)?.nfc;
        let split = |error: super::tokenizer::PatternError| TrainError::Split { message: error.to_string() };
        let splitter = PreTokenizer::named(pre).map_err(split)?;
        let splitter = splitter.ok_or_else(|| TrainError::Pre { name: pre.to_owned() })?;
        Ok(Words { splitter, nfc, counts: BTreeMap::new(), n_bytes: 0 })
    }

    /// Adds a text's words.
    pub fn add(&mut self, text: &str) -> Result<(), TrainError> {
        let normalized;
        let text = match self.nfc {
            false => text,
            true => {
                let mut inner = NormalizedString::from(text);
                inner.nfc();
                normalized = inner.get().to_owned();
                &normalized
            }
        };
        self.n_bytes += text.len() as u64;
        let words =
            self.splitter.words(text).map_err(|error| TrainError::Split { message: error.to_string() })?;
        for word in words {
            let word = text[word].as_bytes();
            match self.counts.get_mut(word) {
                Some(count) => *count += 1,
                None => {
                    self.counts.insert(word.to_vec(), 1);
                }
            }
        }
        Ok(())
    }

    /// Returns the number of different words.
    pub fn distinct(&self) -> usize {
        self.counts.len()
    }

    /// Returns the bytes of all texts.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Returns the tokenizer learned from the words. Errors on a specification that makes none, and if a special token
    /// is spelled as one that was learned: a vocabulary has every spelling once.
    pub fn train(&self, spec: &TrainSpec) -> Result<Trained, TrainError> {
        spec.check()?;
        let letters = letters();
        let alphabet = std::array::from_fn(|index| letters[index].1);
        let merges =
            bpe::learn(&self.counts, &alphabet, spec.vocab_size - spec.special.len(), spec.min_frequency);
        let mut letter_of = ['\0'; 256];
        letters.iter().for_each(|(letter, byte)| letter_of[usize::from(*byte)] = *letter);
        let trained = Trained { known: known(&spec.pre)?, spec: spec.clone(), merges, letter_of };
        let mut ordinary = trained.merges.tokens.iter().map(|token| trained.spelled(token));
        match ordinary.find(|token| spec.special.contains(token)) {
            Some(token) => Err(TrainError::Ordinary { token }),
            None => Ok(trained),
        }
    }
}

/// Returns the 256 bytes with the characters that GPT-2's alphabet shows them as, in the order of the characters.
fn letters() -> Vec<(char, u8)> {
    let letters =
        ('\u{21}'..='\u{143}').filter_map(|letter| Some((letter, super::decoder::byte_of(letter)?)));
    letters.collect()
}

/// A tokenizer that was made.
pub struct Trained {
    known: &'static Known,
    spec: TrainSpec,
    merges: Merges,
    letter_of: [char; 256],
}

impl Trained {
    /// Returns the number of tokens, at most what was asked for.
    pub fn vocab_size(&self) -> usize {
        self.spec.special.len() + self.merges.tokens.len()
    }

    pub fn n_merges(&self) -> usize {
        self.merges.pairs.len()
    }

    /// Returns tokenizer.json.
    pub fn tokenizer_json(&self) -> Json {
        let special = &self.spec.special;
        let added: Vec<Json> = special
            .iter()
            .enumerate()
            .map(|(id, content)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": true})
            })
            .collect();
        let ordinary = self.merges.tokens.iter().map(|token| self.spelled(token));
        let vocab: Map<String, Json> =
            special.iter().cloned().chain(ordinary).enumerate().map(|(id, text)| (text, id.into())).collect();
        let merge = |&(left, right): &(u32, u32)| {
            json!([
                self.spelled(&self.merges.tokens[left as usize]),
                self.spelled(&self.merges.tokens[right as usize])
            ])
        };
        let merges: Vec<Json> = self.merges.pairs.iter().map(merge).collect();
        let split = |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        let steps: Vec<Json> = self.known.splits.iter().map(split).chain([bytes.clone()]).collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": if self.known.nfc { json!({"type": "NFC"}) } else { Json::Null },
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "post_processor": self.post_processor(),
            "decoder": bytes,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": self.known.ignore_merges, "vocab": vocab, "merges": merges,
            },
        })
    }

    /// Returns what puts the bos token in front.
    fn post_processor(&self) -> Json {
        let Some(bos) = &self.spec.bos else { return Json::Null };
        // `check` found it among the special tokens
        let id = self.spec.special.iter().position(|token| token == bos);
        let token = json!({"SpecialToken": {"id": bos, "type_id": 0}});
        let first = json!({"Sequence": {"id": "A", "type_id": 0}});
        let second = json!({"Sequence": {"id": "B", "type_id": 1}});
        let mut special = Map::new();
        special.insert(bos.clone(), json!({"id": bos, "ids": [id], "tokens": [bos]}));
        json!({
            "type": "TemplateProcessing",
            "single": [token, first],
            "pair": [token, first, json!({"SpecialToken": {"id": bos, "type_id": 1}}), second],
            "special_tokens": special,
        })
    }

    /// Returns tokenizer_config.json.
    pub fn config_json(&self) -> Json {
        let mut config = Map::new();
        config.insert("add_bos_token".into(), self.spec.bos.is_some().into());
        config.insert("add_eos_token".into(), false.into());
        let roles =
            [("bos_token", &self.spec.bos), ("eos_token", &self.spec.eos), ("pad_token", &self.spec.pad)];
        for (key, token) in roles {
            config.insert(key.into(), token.clone().map_or(Json::Null, Json::from));
        }
        config.insert("clean_up_tokenization_spaces".into(), self.known.cleans_spaces.into());
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        if let Some(template) = &self.spec.chat_template {
            config.insert("chat_template".into(), template.clone().into());
        }
        Json::Object(config)
    }

    fn spelled(&self, token: &[u8]) -> String {
        token.iter().map(|byte| self.letter_of[usize::from(*byte)]).collect()
    }
}

/// Errors if the files in a directory are not read as what they were made to be.
pub fn check_written(dir: &std::path::Path, spec: &TrainSpec) -> Result<(), Error> {
    let files = super::files::Files::open(dir)?;
    let found = super::pretokenizer::detect(&files, "llama")?;
    match found == spec.pre {
        true => super::Tokenizer::open(dir).map(|_| ()),
        false => Err(Error::UnreadablePre {
            path: dir.join("tokenizer.json"),
            name: found.to_owned(),
            nearest: Some(spec.pre.clone()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(pre: &str) -> TrainSpec {
        TrainSpec {
            vocab_size: 300,
            special: vec!["<|im_end|>".into(), "<|im_start|>".into()],
            pre: pre.into(),
            min_frequency: 2,
            bos: Some("<|im_start|>".into()),
            eos: Some("<|im_end|>".into()),
            pad: None,
            chat_template: Some(CHATML.into()),
        }
    }

    const TEXT: &str = "Failed password for root from 192.0.2.44 port 50022 ssh2\nFailed password for admin, again: naïve \u{1f600}\n";

    fn write(pre: &str, dir: &std::path::Path) -> Trained {
        let mut words = Words::new(pre).unwrap();
        (0..3).for_each(|_| words.add(TEXT).unwrap());
        let trained = words.train(&spec(pre)).unwrap();
        for (name, json) in
            [("tokenizer.json", trained.tokenizer_json()), ("tokenizer_config.json", trained.config_json())]
        {
            std::fs::write(dir.join(name), json.to_string()).unwrap();
        }
        trained
    }

    #[test]
    fn what_is_written_is_read_as_that_and_gives_texts_back() {
        for (pre, _) in PRE_TOKENIZERS {
            let dir = tempfile::tempdir().unwrap();
            let trained = write(pre, dir.path());
            assert_eq!(trained.vocab_size(), 300, "{pre}");
            check_written(dir.path(), &spec(pre)).unwrap_or_else(|error| panic!("{pre}: {error}"));
            let tokenizer = super::super::Tokenizer::open(dir.path()).unwrap();
            assert_eq!((tokenizer.eos(), tokenizer.bos()), (Some(0), Some(1)), "{pre}");
            let options = super::super::EncodeOptions { add_special: true, ..Default::default() };
            let ids = tokenizer.encode(TEXT, options).unwrap();
            assert_eq!(ids[0], 1, "{pre}");
            assert!(ids.len() < TEXT.len() * 2 / 3, "{pre}: {}", ids.len());
            assert_eq!(tokenizer.decode(&ids[1..], false), TEXT, "{pre}");
        }
    }

    #[test]
    fn the_order_of_texts_does_not_matter() {
        let train = |texts: [&str; 3]| {
            let mut words = Words::new("qwen2").unwrap();
            texts.into_iter().for_each(|text| words.add(text).unwrap());
            words.train(&spec("qwen2")).unwrap().tokenizer_json().to_string()
        };
        assert_eq!(train(["a b ab", TEXT, "ab ab"]), train([TEXT, "ab ab", "a b ab"]));
    }

    #[test]
    fn impossible_tokenizers_are_refused() {
        let refused = |change: fn(&mut TrainSpec)| {
            let mut spec = spec("qwen2");
            change(&mut spec);
            spec.check().unwrap_err().to_string()
        };
        let small = "a vocabulary of 257 tokens has no room for 2 special tokens and 256 bytes";
        assert_eq!(refused(|spec| spec.vocab_size = 257), small);
        assert_eq!(
            refused(|spec| spec.pre = "falcon".into()),
            "pre-tokenizer `falcon` is none that a new tokenizer can have"
        );
        assert_eq!(
            refused(|spec| spec.special.push("<|im_end|>".into())),
            "the special token `<|im_end|>` is named twice"
        );
        let role = "pad token `<pad>` is none of the special tokens: <|im_end|>, <|im_start|>";
        assert_eq!(refused(|spec| spec.pad = Some("<pad>".into())), role);
        assert_eq!(refused(|spec| spec.special.push(String::new())), "a special token must not be empty");
        assert_eq!(
            refused(|spec| spec.vocab_size = 1 << 30),
            "a vocabulary of 1073741824 tokens is above the limit of 1048576"
        );
        let ordinary = "the special token `!` is spelled as an ordinary token is";
        assert_eq!(refused(|spec| spec.special.push("!".into())), ordinary);
        let marker = "the chat template chatml writes `<|im_start|>`, which is none of the special tokens: <s>, <|im_end|>";
        let unmarked = |spec: &mut TrainSpec| {
            spec.special = vec!["<s>".into(), "<|im_end|>".into()];
            spec.bos = None;
        };
        assert_eq!(refused(unmarked), marker);
    }

    #[test]
    fn a_special_token_that_a_merge_spells_is_refused() {
        let mut words = Words::new("qwen2").unwrap();
        (0..3).for_each(|_| words.add(TEXT).unwrap());
        let trained = |special: &str| {
            let mut spec = spec("qwen2");
            spec.special.push(special.into());
            words.train(&spec).map(|trained| trained.vocab_size()).map_err(|error| error.to_string())
        };
        // no pair stands in the texts more often than those of ` password`, and 41 merges are learned
        let token = "\u{120}password";
        let refused = format!("the special token `{token}` is spelled as an ordinary token is");
        assert_eq!(trained(token), Err(refused));
        assert_eq!(trained("<pad>"), Ok(300));
    }
}
