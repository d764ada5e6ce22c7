//! What can keep a model from being inspected.

use std::path::{Path, PathBuf};

use crate::error::Diagnostic;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tensor(#[from] crate::tensor::Error),

    #[error("{path}: cannot {action}")]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: std::io::Error,
    },

    #[error("{path}: {bytes} bytes; a configuration has at most {most}")]
    ConfigTooLarge { path: PathBuf, bytes: u64, most: u64 },

    #[error("{path}: not valid JSON")]
    BadConfig {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },

    #[error("{path}: --cross-check compares readers of GGUF, and this is no GGUF")]
    NotGguf { path: PathBuf },
}

impl Error {
    pub(super) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Error {
        Error::Io { path: path.to_owned(), action, source }
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Tensor(error) => error.hint(),
            Error::NotGguf { .. } => Some("safetensors headers are checked when they are opened".into()),
            _ => None,
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Error::Tensor(error) => error.exit_code(),
            _ => 2,
        }
    }
}
