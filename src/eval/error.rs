//! What can go wrong between a request and its response.

use std::path::PathBuf;

use crate::error::Diagnostic;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("request {index}: the {part} has no tokens")]
    Empty { index: usize, part: &'static str },

    #[error("request {index}: the {part} has {found} tokens, the model's context has room for {max}")]
    TooLong { index: usize, part: &'static str, found: usize, max: usize },

    #[error("request {index}: token {token} is outside the model's vocabulary of {vocab_size}")]
    TokenOutOfRange { index: usize, token: u32, vocab_size: usize },

    #[error("keys and values of the longest request take {needed} bytes, {budget} are allowed")]
    CacheTooSmall { needed: u64, budget: u64 },

    #[error("request {index} asks for generated text, and there is no tokenizer")]
    NoTokenizer { index: usize },

    #[error("{path}: exists already")]
    JournalExists { path: PathBuf },

    #[error("{path}: another process writes this journal")]
    JournalInUse { path: PathBuf },

    #[error("{path}: no journal of responses")]
    NoJournal { path: PathBuf },

    #[error("{path}: journal of another run: {what} is {found}, here {expected}")]
    JournalOfAnother { path: PathBuf, what: String, found: String, expected: String },

    #[error("{path}:{line}: not a response: {why}")]
    JournalLine { path: PathBuf, line: usize, why: String },

    #[error("{path}: request {digest} has a response of another kind")]
    JournalKind { path: PathBuf, digest: String },

    #[error("{path}: cannot {doing}")]
    Io {
        path: PathBuf,
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },

    #[error("the text has {found} tokens; {needed} are needed for 2 chunks of {context}")]
    TextTooShort { found: usize, needed: usize, context: usize },

    #[error("a chunk of {context} tokens is out of range 4..={max}")]
    ChunkLength { context: usize, max: usize },

    #[error("the models differ in {what}: {found}, the base model {expected}")]
    ModelsDiffer { what: &'static str, found: String, expected: String },

    #[error("{path}: no file of saved logits")]
    NotLogits { path: PathBuf },

    #[error("{path}: saved logits of version {found}, this program reads version {known}")]
    LogitsVersion { path: PathBuf, found: u32, known: u32 },

    #[error("{path}: saved logits are of {found} bytes, their header says {expected}")]
    LogitsSize { path: PathBuf, found: u64, expected: u64 },

    #[error("{path}: saved logits: {what} is {found}, here {expected}")]
    LogitsOfAnother { path: PathBuf, what: &'static str, found: String, expected: String },

    #[error("logits of token {position} are not finite")]
    NotFinite { position: usize },

    #[error(transparent)]
    Model(Box<crate::model::Error>),
}

impl From<crate::model::Error> for Error {
    fn from(error: crate::model::Error) -> Self {
        Error::Model(Box::new(error))
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Empty { .. } => "start an empty context with the vocabulary's BOS or EOS",
            Error::TooLong { .. } => "ask for less, or raise --context if the model was made for more",
            Error::TokenOutOfRange { .. } => "the tokenizer belongs to another model",
            Error::CacheTooSmall { .. } => "lower --context, or allow more memory",
            Error::NoTokenizer { .. } => return None,
            Error::JournalExists { .. } => {
                "give --resume to go on with it, --force to replace it, or another --journal"
            }
            Error::JournalInUse { .. } => "wait for the other run, or give another --journal",
            Error::NoJournal { .. } => "give the file that an earlier run wrote, or leave out --resume",
            Error::JournalOfAnother { .. } => {
                "run it with the same model and options, or start a new journal"
            }
            Error::JournalLine { .. } => "remove the line: its response is computed again",
            Error::JournalKind { .. } => "the journal is damaged: start a new one",
            Error::Io { .. } => return None,
            Error::TextTooShort { .. } => "give a longer text or a smaller --context",
            Error::ChunkLength { .. } => "give a --context in this range",
            Error::ModelsDiffer { .. } => "only models with the same vocabulary can be compared",
            Error::NotLogits { .. } => "write one with --save-logits",
            Error::LogitsVersion { .. } => "write it anew with --save-logits",
            Error::LogitsSize { .. } => {
                "the run that wrote it was interrupted, or the file damaged: write it anew"
            }
            Error::LogitsOfAnother { .. } => "use the text and --context it was written with",
            Error::NotFinite { .. } => "the model is damaged",
            Error::Model(error) => return error.hint(),
        };
        Some(hint.to_owned())
    }

    fn exit_code(&self) -> u8 {
        match self {
            Error::Model(error) => error.exit_code(),
            _ => 2,
        }
    }
}
