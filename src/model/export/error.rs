//! Why a result cannot be written.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::Diagnostic;
use crate::{model, tensor};

/// Why a result cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: cannot {what}")]
    Io {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: io::Error,
    },

    #[error(transparent)]
    Tensor(#[from] tensor::Error),

    #[error(transparent)]
    Model(#[from] model::Error),

    #[error(transparent)]
    Train(#[from] model::train::Error),

    #[error("{path}: {why}")]
    BadConfig { path: PathBuf, why: String },

    #[error("{path}: `{name}` fits no tensor of {base}")]
    NoSuchTensor { path: PathBuf, name: String, base: PathBuf },

    #[error("{path}: `{name}` has shape {found:?}, {base} needs {expected:?}")]
    Shape { path: PathBuf, name: String, base: PathBuf, found: Vec<usize>, expected: Vec<usize> },

    #[error("{path}: `{name}` is stored as {dtype}, into which nothing can be merged")]
    Dtype { path: PathBuf, name: String, dtype: String },

    #[error("{path}: `{name}` merged is not finite in {dtype}")]
    NotFinite { path: PathBuf, name: String, dtype: String },

    #[error("{path}: `{name}`: {value} at row {row}, column {column} (stored as {dtype})")]
    BaseNotFinite { path: PathBuf, name: String, dtype: String, value: f32, row: usize, column: usize },

    #[error("{path}: is a link out of the model's directory, to {target}, and is not copied")]
    LeadsOut { path: PathBuf, target: PathBuf },

    #[error("{path}: is no checkpoint's directory, and only one of safetensors becomes one")]
    NotACheckpoint { path: PathBuf },

    #[error("{path}: holds no .safetensors, and an adapter needs weights to be added to")]
    NoWeights { path: PathBuf },

    #[error("{path}: is no GGUF")]
    NotAGguf { path: PathBuf },

    #[error("{path}: a {class} has no output apart from its embedding, into which one could be merged")]
    AlwaysTied { path: PathBuf, class: &'static str },

    #[error(
        "{path}: embedding and output are one matrix, of which an adapter of `{name}` makes two: that is known only of `model.embed_tokens.weight` and `lm_head.weight`"
    )]
    TiedElsewhere { path: PathBuf, name: String },

    #[error("{path}: exists already")]
    Exists { path: PathBuf },

    #[error("{path}: is a directory of something else than a model: it holds no {lacks}")]
    NotReplaced { path: PathBuf, lacks: &'static str },

    #[error("{path}: replacing it would remove {input}, which is read")]
    HoldsInput { path: PathBuf, input: PathBuf },

    #[error("a GGUF adapter cannot hold `{name}`")]
    NotForGguf { name: String },
}

impl Error {
    /// Returns an error of the file system as one of `map_err`.
    pub fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::Interrupted => tensor::Error::Interrupted { path }.into(),
            _ => Error::Io { path, what, source },
        }
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Tensor(error) => return error.hint(),
            Error::Model(error) => return error.hint(),
            Error::Train(error) => return error.hint(),
            Error::NoSuchTensor { .. } | Error::Shape { .. } => {
                "the adapter was trained on another model; its adapter_config.json may say which".into()
            }
            Error::Dtype { .. } => "take the model in F32, F16 or BF16".into(),
            Error::NotFinite { .. } => {
                "F16, and the scales of blocks, end at 65504: take the model in BF16 or F32; if that is no help, the adapter's values are wrong"
                    .into()
            }
            Error::BaseNotFinite { .. } => "the base is damaged: download it again, or ask who made it".into(),
            Error::LeadsOut { .. } => {
                "put the file itself into the directory if the model needs it, or remove the link".into()
            }
            Error::NotACheckpoint { .. } => {
                "a GGUF can be merged into a GGUF, or take the model it was made of".into()
            }
            Error::NoWeights { .. } => {
                "only safetensors are read: convert .bin weights with transformers' save_pretrained, or name a GGUF by its file"
                    .into()
            }
            Error::AlwaysTied { .. } => "the adapter can be used beside the model (`--adapter`)".into(),
            Error::TiedElsewhere { .. } => {
                "use the adapter beside the model (`--adapter`), or merge it into a GGUF of the base (`lctl quantize BASE -t BF16 -o base.gguf`)"
                    .into()
            }
            Error::Exists { .. } => "--force replaces it".into(),
            Error::NotReplaced { .. } => "give the name of a directory that is not there yet".into(),
            Error::HoldsInput { .. } => "write to another place; the base can be removed once the result is there".into(),
            Error::NotForGguf { .. } => "take peft or a merged form".into(),
            Error::Io { path, .. } if path.ends_with("adapter_config.json") => {
                "an adapter is a directory in PEFT's form, as `lctl finetune` writes it: RUN/result/adapter"
                    .into()
            }
            Error::Io { .. } | Error::BadConfig { .. } | Error::NotAGguf { .. } => return None,
        })
    }

    fn exit_code(&self) -> u8 {
        match self {
            Error::Tensor(error) => error.exit_code(),
            Error::Model(error) => error.exit_code(),
            Error::Train(error) => error.exit_code(),
            _ => 2,
        }
    }
}
