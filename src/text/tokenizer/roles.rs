//! The special tokens by their roles, and the tokens that end a generation.

use serde_json::{Map, Value as Json};

use super::super::sentencepiece::PieceKind;
use super::vocabulary::Vocabulary;

/// The roles a chat template may ask for, in the order transformers passes them.
pub const NAMED_ROLES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// Special tokens by role.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub pad: Option<u32>,
    pub adds_bos: bool,
    pub adds_eos: bool,
    /// Tokens that end a generation, ascending.
    pub end_of_generation: Vec<u32>,
    /// `bos_token` and so on, as a chat template sees them.
    pub named: Map<String, Json>,
}

/// Tokens that end a turn or a text wherever a vocabulary has them as control or user-defined tokens;
/// with llama.cpp, the last three stand for paddings and separators of code completion.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<reponame>",
    "<|file_sep|>",
];

impl Roles {
    /// Sets the tokens that end a generation: `listed` ones, the end-of-sequence token and the known names.
    pub fn set_end_of_generation(&mut self, vocabulary: &Vocabulary, listed: impl Iterator<Item = u32>) {
        let added = |id: &u32| {
            let kind = vocabulary.token(*id).map(|token| token.kind);
            matches!(kind, Some(PieceKind::Control | PieceKind::UserDefined))
        };
        let has = |name: &str| vocabulary.id(name).filter(added).is_some();
        // in these families one of the names is an ordinary token: `<|end|>` only ends a message in
        // gpt-oss and Solar, `</s>` is text in Gemma 4
        let calls = has("<|call|>") || has("<|calls|>");
        let not_an_end = |name: &str| match name {
            "<|end|>" => calls && (has("<|return|>") || has("<|flush|>")),
            "</s>" => has("<|tool_response>"),
            _ => false,
        };
        let named = ENDS.iter().filter(|name| !not_an_end(name)).filter_map(|name| vocabulary.id(name));
        let mut ends: Vec<u32> = named.filter(added).chain(self.eos).chain(listed).collect();
        ends.retain(|id| (*id as usize) < vocabulary.len());
        ends.sort_unstable();
        ends.dedup();
        self.end_of_generation = ends;
    }
}
