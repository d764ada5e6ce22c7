//! What can go wrong between a request and its response.

use std::path::PathBuf;

use crate::error::Diagnostic;
use crate::read::ReadError;

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

    #[error("token {step} of the text: the model's logits have no largest one")]
    NoToken { step: usize },

    #[error("the model gives token {token} no probability: its logarithm is NaN")]
    NoProbability { token: u32 },

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

    #[error(transparent)]
    Read(#[from] ReadError),

    #[error("{path}: cannot {doing}")]
    Io {
        path: PathBuf,
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },

    #[error("the text has {found} tokens; 2 chunks of {chunk_len} need {needed}")]
    TextTooShort { found: usize, needed: usize, chunk_len: usize },

    #[error("the text has {found} tokens; a chunk of {chunk_len}{} needs {needed}", behind(*from_chunk))]
    NoWholeChunk { found: usize, needed: usize, chunk_len: usize, from_chunk: usize },

    #[error("a chunk of {found} tokens is too short: the least is {min}")]
    ChunkTooShort { found: usize, min: usize },

    #[error("chunks of {found} tokens exceed the model's context of {max}")]
    ChunkTooLong { found: usize, max: usize },

    #[error("the text has token {token}, the model's vocabulary {vocab_size}")]
    TextToken { token: u32, vocab_size: usize },

    #[error("the models differ in {what}: {found}, the base model {expected}")]
    ModelsDiffer { what: &'static str, found: String, expected: String },

    #[error("{path}: exists already")]
    LogitsExist { path: PathBuf },

    #[error("{path}: no file of saved logits")]
    NotLogits { path: PathBuf },

    #[error("{path}: saved logits of version {found}, this program reads version {known}")]
    LogitsVersion { path: PathBuf, found: u32, known: u32 },

    #[error("{path}: saved logits are of {found} bytes, their header says {expected}")]
    LogitsSize { path: PathBuf, found: u64, expected: u64 },

    #[error("{path}: the {part} in this file of saved logits are damaged")]
    LogitsDamaged { path: PathBuf, part: &'static str },

    #[error("chunk {chunk}: a logit is {value}")]
    NotFinite { chunk: usize, value: f32 },

    #[error(
        "chunk {chunk}: the squared inputs of `{}` add up to {} at column {}",
        found.tensor, found.value, found.column
    )]
    InputNotFinite { chunk: usize, found: crate::model::observe::NotFinite },

    #[error(transparent)]
    Model(Box<crate::model::Error>),

    #[error(transparent)]
    File(Box<crate::tensor::Error>),
}

fn behind(n_chunks: usize) -> String {
    if n_chunks > 0 { format!(" behind the first {n_chunks}") } else { String::new() }
}

impl From<crate::tensor::Error> for Error {
    fn from(error: crate::tensor::Error) -> Self {
        Error::File(Box::new(error))
    }
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
            Error::NoToken { .. } | Error::NoProbability { .. } | Error::InputNotFinite { .. } => {
                "the weights are damaged: some product is NaN or infinite"
            }
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
            Error::Read(source) => return source.hint(),
            Error::Io { .. } => return None,
            Error::NoWholeChunk { from_chunk: 1.., .. } => {
                "give a longer text, or a smaller --from-chunk or --context"
            }
            Error::TextTooShort { .. } | Error::NoWholeChunk { .. } => {
                "give a longer text or a smaller --context"
            }
            Error::ChunkTooShort { .. } => "give a greater --context",
            Error::ChunkTooLong { .. } => "give a smaller --context",
            Error::TextToken { .. } => "the tokenizer belongs to another model",
            Error::ModelsDiffer { .. } => "only models with the same vocabulary can be compared",
            Error::LogitsExist { .. } => "give --force to replace it",
            Error::NotLogits { .. } => "write one with --save-logits",
            Error::LogitsVersion { .. } => "write it anew with --save-logits",
            Error::LogitsSize { .. } => {
                "the run that wrote it was interrupted, or the file damaged: write it anew"
            }
            Error::LogitsDamaged { .. } => "write it anew with --save-logits",
            Error::NotFinite { .. } => "the model is damaged",
            Error::Model(error) => return error.hint(),
            Error::File(error) => return error.hint(),
        };
        Some(hint.to_owned())
    }

    fn exit_code(&self) -> u8 {
        match self {
            Error::Model(error) => error.exit_code(),
            Error::File(error) => error.exit_code(),
            _ => 2,
        }
    }
}
