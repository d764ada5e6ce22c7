//! tokenizer.json as the `tokenizers` library writes it: the vocabulary typed, for speed, and the
//! small configurable parts as JSON.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

#[derive(Debug, Deserialize)]
pub struct TokenizerJson {
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
    #[serde(default)]
    pub normalizer: Json,
    #[serde(default)]
    pub pre_tokenizer: Json,
    #[serde(default)]
    pub post_processor: Json,
    #[serde(default)]
    pub decoder: Json,
    pub model: Model,
}

#[derive(Clone, Debug, Deserialize)]
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub special: bool,
    #[serde(default)]
    normalized: Option<bool>,
}

impl AddedToken {
    /// Returns whether the token is looked for in normalized text; unsaid, special tokens are not.
    pub fn normalized(&self) -> bool {
        self.normalized.unwrap_or(!self.special)
    }
}

#[derive(Debug, Deserialize)]
pub struct Model {
    /// Absent in files of 2020, which are all BPE or WordPiece.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    #[serde(default)]
    pub vocab: ModelVocab,
    #[serde(default)]
    pub merges: Vec<Merge>,
    #[serde(default)]
    pub byte_fallback: Option<bool>,
    #[serde(default)]
    pub ignore_merges: Option<bool>,
    #[serde(default)]
    pub continuing_subword_prefix: Option<String>,
}

/// Tokens and ids in file order. Unigram's list of tokens and scores is not kept.
#[derive(Debug)]
pub enum ModelVocab {
    Ids(Vec<(String, u32)>),
    Scores,
}

impl Default for ModelVocab {
    fn default() -> Self {
        ModelVocab::Ids(Vec::new())
    }
}

impl<'de> Deserialize<'de> for ModelVocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct VocabVisitor;
        impl<'de> Visitor<'de> for VocabVisitor {
            type Value = ModelVocab;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of tokens to ids, or a list of tokens and scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ModelVocab, A::Error> {
                let mut tokens = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    tokens.push(entry);
                }
                Ok(ModelVocab::Ids(tokens))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ModelVocab, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(ModelVocab::Scores)
            }
        }
        deserializer.deserialize_any(VocabVisitor)
    }
}

/// A merge in either spelling: `"a b"`, or `["a", "b"]` (since transformers 4.45; parts may
/// hold spaces).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merge {
    Joined(String),
    Pair(String, String),
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge: two tokens in a string or in an array")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Merge, E> {
                Ok(Merge::Joined(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let short = |n| A::Error::invalid_length(n, &self);
                let left = seq.next_element()?.ok_or_else(|| short(0))?;
                let right = seq.next_element()?.ok_or_else(|| short(1))?;
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(Merge::Pair(left, right)),
                    Some(_) => Err(short(3)),
                }
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}
