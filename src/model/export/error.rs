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

    #[error("{path}: is no checkpoint's directory, and only one of safetensors becomes one")]
    NotACheckpoint { path: PathBuf },

    #[error("{path}: is no GGUF")]
    NotAGguf { path: PathBuf },

    #[error("{path}: a {class} has no output apart from its embedding, into which one could be merged")]
    AlwaysTied { path: PathBuf, class: &'static str },

    #[error("{path}: exists already")]
    Exists { path: PathBuf },

    #[error("a GGUF adapter cannot hold `{name}`")]
    NotForGguf { name: String },
}

impl Error {
    /// Returns an error of the file system as one of `map_err`.
    pub fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, what, source }
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
            Error::NotACheckpoint { .. } => {
                "a GGUF can be merged into a GGUF, or take the model it was made of".into()
            }
            Error::AlwaysTied { .. } => "the adapter can be used beside the model (`--adapter`)".into(),
            Error::Exists { .. } => "--force replaces it".into(),
            Error::NotForGguf { .. } => "take peft or a merged form".into(),
            Error::Io { path, .. } if path.ends_with("adapter_config.json") => {
                "an adapter is a directory in PEFT's form, as `lctl finetune` writes it: RUN/result/adapter"
                    .into()
            }
            Error::Io { .. } | Error::BadConfig { .. } | Error::NotAGguf { .. } => return None,
        })
    }
}
