//! What can be wrong with a checkpoint's tokenizer.

use std::path::PathBuf;

use crate::error::Diagnostic;

/// A tokenizer that cannot be read, used or become GGUF keys; variants name the file and the values at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: cannot {action}")]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{dir}: no tokenizer for a `{arch}` model; looked for {looked_for}")]
    Missing { dir: PathBuf, arch: String, looked_for: String },
    #[error("{path}: line {line}, column {column}: {message}")]
    Json { path: PathBuf, line: usize, column: usize, message: String },
    #[error("{path}: `{field}`: expected {expected}, found {found}")]
    Shape { path: PathBuf, field: String, expected: &'static str, found: String },
    #[error("{path}: byte {offset}: {problem}")]
    Protobuf { path: PathBuf, offset: usize, problem: ProtobufProblem },
    #[error("{path}: {problem}")]
    Pieces { path: PathBuf, problem: String },
    #[error("{path}: not UTF-8 from byte {offset} on")]
    Utf8 { path: PathBuf, offset: usize },
    #[error("{path}: token {token:?} has id {id}, but the vocabulary size is {vocab_size}")]
    IdOutOfRange { path: PathBuf, token: String, id: i64, vocab_size: usize },
    #[error("{path}: id {id} belongs to two tokens, {first:?} and {second:?}")]
    DuplicateId { path: PathBuf, id: u32, first: String, second: String },
    #[error("{path}: merge {index} ({left:?} + {right:?}) names {unknown:?}, which is not in the vocabulary")]
    UnknownMerge { path: PathBuf, index: usize, left: String, right: String, unknown: String },
    #[error("{path}: vocabulary size {found} is above the limit of {limit}")]
    VocabSize { path: PathBuf, found: u64, limit: usize },
    #[error("{path}: {what}; not converted for a `{arch}` model")]
    Unsupported { path: PathBuf, what: String, arch: String },
    #[error("unknown pre-tokenizer `{name}`")]
    UnknownPre { name: String, nearest: Option<String> },
    #[error(
        "{path}: tokenizer class {class:?} does not tell the pre-tokenizer, and there is no tokenizer.json"
    )]
    UnknownClass { path: PathBuf, class: String },
    #[error(
        "{path}: the pre-tokenizer is none of those known\n  this file:  {found}\n  nearest, `{nearest}`: {known}"
    )]
    UnrecognizedPre { path: PathBuf, found: String, nearest: &'static str, known: String },
    #[error(transparent)]
    Gguf(Box<crate::tensor::Error>),
    #[error("{path}: no `{key}`: the file holds no tokenizer")]
    MissingKey { path: PathBuf, key: String },
    #[error("{path}: {what} is not supported")]
    UnsupportedTokenizer { path: PathBuf, what: String },
    #[error("{path}: `tokenizer.ggml.pre`: unknown pre-tokenizer `{name}`")]
    UnreadablePre { path: PathBuf, name: String, nearest: Option<String> },
    #[error("{path}: {message}")]
    Library { path: PathBuf, message: String },
    #[error("{path}: the text cannot be encoded: {message}")]
    Encode { path: PathBuf, message: String },
    #[error("{path}: the tokenizer has {n_tokens} tokens, but the embedding of {model} has {rows} rows")]
    OtherVocabulary { path: PathBuf, n_tokens: usize, model: PathBuf, rows: usize },
    #[error("{path}: no tokenizer; looked for tokenizer.json, tokenizer.model, vocab.json with merges.txt")]
    NoTokenizer { path: PathBuf },
}

/// Why a SentencePiece model does not parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufProblem {
    #[error("the file ends inside a field")]
    Truncated,
    #[error("a field claims {claimed} bytes, {left} are left")]
    Length { claimed: u64, left: usize },
    #[error("a number runs over 64 bits")]
    Varint,
    #[error("field {field} has wire type {wire}, expected {expected}")]
    WireType { field: u32, wire: u8, expected: u8 },
    #[error("unknown wire type {0}")]
    UnknownWireType(u8),
    #[error("field number 0")]
    FieldZero,
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Io { .. } => return None,
            Error::Missing { .. } => {
                "copy the tokenizer files of the original checkpoint next to its config.json".to_owned()
            }
            Error::Json { .. } | Error::Shape { .. } | Error::Utf8 { .. } => {
                "download the file again, or compare it with the original checkpoint's".to_owned()
            }
            Error::Protobuf { .. } | Error::Pieces { .. } => {
                "the file should be a SentencePiece model; if it was cloned without Git LFS, run `git lfs pull`"
                    .to_owned()
            }
            Error::IdOutOfRange { .. } | Error::VocabSize { .. } => {
                "config.json's `vocab_size` must cover every token id of the tokenizer".to_owned()
            }
            Error::DuplicateId { .. } | Error::UnknownMerge { .. } => {
                "the tokenizer's vocabulary contradicts itself; take the files of the original checkpoint"
                    .to_owned()
            }
            Error::Unsupported { .. } => {
                "a SentencePiece tokenizer.model or a byte-level BPE tokenizer.json of the original checkpoint is needed"
                    .to_owned()
            }
            Error::UnknownPre { nearest: Some(name), .. } => format!("did you mean `--pre {name}`?"),
            Error::UnknownPre { nearest: None, .. } => {
                format!("known names: {}", super::pre_tokenizer_names().collect::<Vec<_>>().join(", "))
            }
            Error::UnknownClass { .. } => "force a name with `--pre`, e.g. `--pre qwen2`".to_owned(),
            Error::Gguf(source) => return source.hint(),
            Error::MissingKey { .. } => {
                "take a GGUF file of the whole model; files of adapters and projectors have no tokenizer".to_owned()
            }
            Error::UnsupportedTokenizer { .. } => {
                "SentencePiece and byte-level BPE tokenizers are supported, in GGUF files `llama`, `gpt2` and `gemma4`"
                    .to_owned()
            }
            Error::UnreadablePre { nearest: Some(name), .. } => {
                format!("the nearest known name is `{name}`; a newer lctl may know this one")
            }
            Error::UnreadablePre { nearest: None, .. } => {
                format!("known names: {}", super::pre_tokenizer_names().collect::<Vec<_>>().join(", "))
            }
            Error::Library { .. } => {
                "download the file again, or compare it with the original checkpoint's".to_owned()
            }
            Error::Encode { .. } => "the vocabulary has no token for some of the text, and none for the unknown".to_owned(),
            Error::OtherVocabulary { .. } => "take the tokenizer files of the original checkpoint".to_owned(),
            Error::NoTokenizer { .. } => {
                "copy the tokenizer files of the original checkpoint next to its config.json".to_owned()
            }
            Error::UnrecognizedPre { nearest, .. } => format!(
                "if the difference does not matter for this model, force a name, e.g. `--pre {nearest}`"
            ),
        };
        Some(hint)
    }
}
