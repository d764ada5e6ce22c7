//! What can go wrong between a plan and its file.

use std::path::PathBuf;

use super::Recipe;
use super::importance::ImportanceError;
use crate::error::Diagnostic;
use crate::tensor::Dtype;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("unknown type `{name}`")]
    UnknownRecipe { name: String, nearest: Option<&'static str> },

    #[error("`{option}` has no effect with `--type {recipe}`, which stores plain floats")]
    NoEffect { option: &'static str, recipe: &'static str },

    #[error("{path}: `general.architecture` is missing or not a string")]
    NoArchitecture { path: PathBuf },

    #[error("metadata key `{key}` ({what}) is missing or is no unsigned integer")]
    MissingKey { key: String, what: &'static str },

    #[error("`{tensor}`: row length {row_len} is not a multiple of {block_len} (block of `{dtype}`)")]
    RowFitsNoBlock { tensor: String, row_len: usize, dtype: Dtype, block_len: usize },

    #[error("`{tensor}`: shape {shape:?} takes more bytes than 64 bits can count")]
    TooLarge { tensor: String, shape: Vec<usize> },

    #[error("`{tensor}`: block number {} in the name, but the model has {n_layers} layers", show(*found))]
    BadLayer { tensor: String, found: Option<usize>, n_layers: usize },

    #[error("--tensor-type: pattern `{pattern}` failed")]
    Regex {
        pattern: String,
        #[source]
        source: Box<fancy_regex::Error>,
    },

    #[error("{path}: `{tensor}`: {value} at row {row}, column {column} (stored as {dtype})")]
    NonFinite { path: PathBuf, tensor: String, dtype: Dtype, value: f32, row: usize, column: usize },

    #[error("{path}: `{tensor}`: {value:e} at row {row}, column {column} is too large for {dtype}")]
    Overflow { path: PathBuf, tensor: String, dtype: Dtype, value: f32, row: usize, column: usize },

    #[error("unknown format `{name}`")]
    UnknownFormat { name: String, nearest: Option<&'static str>, known: Vec<&'static str> },

    #[error("--override-kv {given}: {why}")]
    BadOverride { given: String, why: String },

    #[error("{path}: `--pre` has no effect on a GGUF file, which names its pre-tokenizer already")]
    PreOfGguf { path: PathBuf },

    #[error("{path}: `--pre` has no effect on a `{model}` tokenizer, which has no pre-tokenizer")]
    PreOfTokenizer { path: PathBuf, model: String },

    #[error("--override-kv: `{key}` is {found} in this model, not {given}")]
    OverrideType { key: String, found: &'static str, given: &'static str },

    #[error("--override-kv: `{key}` describes the output's own shards")]
    OverrideSplit { key: String },

    #[error("{output}: is the input itself ({input})")]
    OutputIsInput { output: PathBuf, input: PathBuf },

    #[error("{output}: exists already")]
    OutputExists { output: PathBuf },

    #[error(
        "{path}: `{tensor}` is {from} already, and would be quantized again to {to} ({n_tensors} tensors so)"
    )]
    Requantize { path: PathBuf, tensor: String, from: Dtype, to: Dtype, n_tensors: usize },

    #[error("{path}: `{tensor}` is stored as {dtype}, which cannot be decoded")]
    CannotDecode { path: PathBuf, tensor: String, dtype: Dtype },

    #[error("{recipe} needs an importance matrix: `{tensor}` as {dtype} without one is noise")]
    NeedsImportance { recipe: &'static str, tensor: String, dtype: Dtype },

    #[error("interrupted")]
    Interrupted,

    #[error(transparent)]
    Importance(Box<ImportanceError>),

    #[error(transparent)]
    Tensor(Box<crate::tensor::Error>),

    #[error(transparent)]
    Model(Box<crate::model::Error>),

    #[error(transparent)]
    Text(Box<crate::text::Error>),
}

impl From<ImportanceError> for Error {
    fn from(error: ImportanceError) -> Self {
        Error::Importance(Box::new(error))
    }
}

impl From<crate::tensor::Error> for Error {
    fn from(error: crate::tensor::Error) -> Self {
        Error::Tensor(Box::new(error))
    }
}

impl From<crate::model::Error> for Error {
    fn from(error: crate::model::Error) -> Self {
        Error::Model(Box::new(error))
    }
}

impl From<crate::text::Error> for Error {
    fn from(error: crate::text::Error) -> Self {
        Error::Text(Box::new(error))
    }
}

fn show(number: Option<usize>) -> String {
    number.map_or("missing".to_owned(), |n| n.to_string())
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::UnknownRecipe { nearest, .. } => {
                let known = Recipe::names().collect::<Vec<_>>().join(", ");
                Some(match nearest {
                    Some(name) => format!("did you mean `{name}`? known types: {known}"),
                    None => format!("known types: {known}"),
                })
            }
            Error::NoEffect { option, .. } => {
                Some(format!("leave out {option}, or choose a block type such as Q8_0"))
            }
            Error::MissingKey { key, .. } => Some(format!("give it with `--override-kv {key}=int:VALUE`")),
            Error::NoArchitecture { .. } => {
                Some("the file is no model (a vocabulary, an importance matrix?), or is damaged".into())
            }
            Error::RowFitsNoBlock { .. } => {
                Some("choose F16, or a type with smaller blocks such as Q8_0 (32)".into())
            }
            Error::TooLarge { .. } | Error::BadLayer { .. } => Some("the file is damaged or hostile".into()),
            Error::Regex { .. } => {
                Some("write `--tensor-type 'ffn_down=Q6_K'`; patterns are regular expressions".into())
            }
            Error::NonFinite { .. } => {
                Some("the checkpoint is damaged: download it again, or ask who made it".into())
            }
            Error::Overflow { .. } => Some(
                "weights so large are rarely right: look at the checkpoint; BF16 and F32 can hold them"
                    .into(),
            ),
            Error::UnknownFormat { nearest, known, .. } => {
                let known = known.join(", ");
                Some(match nearest {
                    Some(name) => format!("did you mean `{name}`? known formats: {known}"),
                    None => format!("known formats: {known}"),
                })
            }
            Error::BadOverride { .. } => {
                Some("write KEY=TYPE:VALUE, e.g. `--override-kv general.name=str:Mine`".into())
            }
            Error::PreOfGguf { .. } => {
                Some("to change the name, use `--override-kv tokenizer.ggml.pre=str:NAME`".into())
            }
            Error::PreOfTokenizer { .. } => Some("leave out --pre".into()),
            Error::OverrideType { .. } => {
                Some("a reader would refuse the key: give a value of its type".into())
            }
            Error::OverrideSplit { .. } => Some("use --split-max-size to split a model".into()),
            Error::OutputIsInput { .. } => Some("write to another file".into()),
            Error::OutputExists { .. } => Some("give --force to replace it".into()),
            Error::Requantize { .. } => Some(
                "start from the original weights if you can: errors add up; --allow-requantize goes ahead"
                    .into(),
            ),
            Error::CannotDecode { .. } => Some("start from the original weights".into()),
            Error::NeedsImportance { .. } => Some("give --imatrix FILE, or choose Q2_K".into()),
            Error::Interrupted => None,
            Error::Importance(error) => error.hint(),
            Error::Tensor(error) => error.hint(),
            Error::Model(error) => error.hint(),
            Error::Text(error) => error.hint(),
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Error::Interrupted => 130,
            Error::Tensor(error) => error.exit_code(),
            Error::Model(error) => error.exit_code(),
            Error::Text(error) => error.exit_code(),
            _ => 2,
        }
    }
}
