//! What can be wrong with what is to be trained.

use crate::error::Diagnostic;
use crate::tensor::Dtype;

/// A method or a batch that does not fit the model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] crate::model::Error),

    #[error(transparent)]
    Device(#[from] crate::cuda::CudaError),

    #[error("{what} cannot be trained on a GPU yet")]
    NotOnDevice { what: &'static str, instead: &'static str },

    #[error("a tensor operation failed")]
    Operation(#[from] candle_core::Error),

    #[error("`{setting}`: `{pattern}` fits no {what} of this model")]
    NoSuchModule { setting: &'static str, pattern: String, what: &'static str, known: Vec<String> },

    #[error("`{setting}`: `{pattern}` is no regular expression")]
    Pattern {
        setting: &'static str,
        pattern: String,
        #[source]
        source: Box<fancy_regex::Error>,
    },

    #[error("`{setting}` is {found}, expected {expected}")]
    Setting { setting: &'static str, found: String, expected: &'static str },

    #[error("the model is opened with an adapter, and another one is to be trained")]
    AdaptedBase,

    #[error("`target_modules`: the output layer `lm_head` gets no pair of low rank")]
    OutputTarget,

    #[error("integer products have no gradient")]
    IntegerProducts,

    #[error("`{name}` is {found} already: only dense weights are quantized")]
    InBlocks { name: String, found: Dtype },

    #[error("`{name}`: row length {cols} is not a multiple of {} (block of `{}`)", .format.block_len(), .format.name().to_lowercase())]
    PartialBlocks { name: String, cols: usize, format: Dtype },

    #[error("`{name}`: row {row}, column {col}: the weight is not finite, or not within the range of `{}`", .format.name().to_lowercase())]
    Unquantizable { name: String, row: usize, col: usize, format: Dtype },

    #[error("every weight is trained: none is frozen, to be quantized")]
    NothingFrozen,

    #[error("document {index} has {found} flags for {expected} tokens")]
    Flags { index: usize, found: usize, expected: usize },

    #[error("document {index} has {length} tokens, the model's context is {context}")]
    TooLong { index: usize, length: usize, context: usize },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Model(error) => error.hint(),
            Error::Device(error) => error.hint(),
            Error::NotOnDevice { instead, .. } => Some((*instead).to_owned()),
            // a name that is known fits, but for a text, which must fit whole names
            Error::NoSuchModule { pattern, known, .. } if known.contains(pattern) => {
                Some(format!("a text is a pattern for whole names: write `[{pattern}]`, or `.*\\.{pattern}`"))
            }
            Error::NoSuchModule { pattern, known, .. } => {
                let names = || known.iter().map(String::as_str);
                Some(match crate::error::nearest(pattern, names()) {
                    Some(nearest) => format!("did you mean `{nearest}`?"),
                    None => format!("known: {}", known.join(", ")),
                })
            }
            Error::AdaptedBase => Some(
                "open the model without `--adapter`, and read the adapter as initial parameters".to_owned(),
            ),
            Error::OutputTarget => Some("train it whole: `modules_to_save: [lm_head]`".to_owned()),
            Error::IntegerProducts => Some("use `--compute auto` or `--compute f32`".to_owned()),
            Error::InBlocks { .. } => {
                Some("leave `model.quantization` out: a GGUF keeps its types".to_owned())
            }
            Error::PartialBlocks { cols, .. } if cols.is_multiple_of(32) => {
                Some("take a format of blocks of 32, such as `q4_0`, `iq4_nl` or `q8_0`".to_owned())
            }
            Error::PartialBlocks { .. } => Some("leave `model.quantization` out".to_owned()),
            Error::Unquantizable { .. } => {
                Some("the model's file is damaged, or take another `model.quantization`".to_owned())
            }
            Error::NothingFrozen => Some("train an adapter, or leave `model.quantization` out".to_owned()),
            Error::TooLong { .. } => Some("truncate or split long documents".to_owned()),
            _ => None,
        }
    }
}
