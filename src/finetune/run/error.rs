//! Why a run ends early.

use std::io;
use std::path::{Path, PathBuf};

use crate::cuda::CudaError;
use crate::error::Diagnostic;
use crate::finetune::parallel;
use crate::model::train;

/// Why a run ends early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Train(#[from] train::Error),

    #[error("step {step} could not be computed")]
    Device { step: u64, checkpoint: Option<PathBuf>, source: CudaError },

    #[error("{path}: cannot {what}")]
    Io {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: io::Error,
    },

    #[error("{path}: a run is there already")]
    Exists { path: PathBuf },

    #[error("{path}: another run is writing into it")]
    InUse { path: PathBuf },

    #[error("{path}: there is no complete checkpoint to go on from")]
    NothingToResume { path: PathBuf },

    #[error("{path}: is no checkpoint that can be read: {why}")]
    Damaged { path: PathBuf, why: String },

    #[error("{path}: the newest checkpoint cannot be read, nor any before it: {why}")]
    AllDamaged { path: PathBuf, why: String },

    #[error("{path}:{line}: is no event of a run: {why}")]
    BadEvent { path: PathBuf, line: usize, why: String },

    #[error("{path}: is no log of one run: {why}")]
    BadLog { path: PathBuf, why: String },

    #[error("{path}: is the best checkpoint so far, and cannot be read: {why}")]
    BestDamaged { path: PathBuf, why: String },

    #[error("{path}: the checkpoint is of version {found}, and this program goes on from version {expected}")]
    OtherVersion { path: PathBuf, found: u64, expected: u32 },

    #[error("{path}: the checkpoint is of another run\n{}", .differences.join("\n"))]
    OtherRun { path: PathBuf, differences: Vec<String> },

    #[error("{path}: has {found} bytes, and had {expected} when the checkpoint was written")]
    LogLost { path: PathBuf, found: u64, expected: u64 },

    #[error("step {step}: {what}; {batch}:\n{}", .rows.join("\n"))]
    NotFinite { step: u64, what: String, batch: String, rows: Vec<String>, checkpoint: Option<PathBuf> },

    #[error("validation after step {step}: the loss is {loss}; its batch {batch}:\n{}", .rows.join("\n"))]
    ValidationNotFinite { step: u64, loss: f64, batch: usize, rows: Vec<String>, checkpoint: Option<PathBuf> },

    #[error("{count} {what}, more than the {most} that a run can have")]
    TooMany { what: &'static str, count: u64, most: u64 },

    #[error("{error}")]
    Parallel { error: parallel::Error, checkpoint: Option<PathBuf> },

    #[error(
        "{size} processes, and a step has at most {micro_batches} micro-batches: some would have nothing to do"
    )]
    TooManyProcesses { size: usize, micro_batches: usize },

    #[error("rank 0 sent no state of a run: {why}")]
    BadState { why: String },

    #[error("{path}: {tokens} tokens, fewer than the 2 that a loss needs")]
    ShortText { path: PathBuf, tokens: usize },
}

impl From<parallel::Error> for Error {
    fn from(error: parallel::Error) -> Error {
        match error {
            parallel::Error::Device(error) => Error::Train(error.into()),
            error => Error::Parallel { error, checkpoint: None },
        }
    }
}

impl Error {
    /// Returns an error of the file system as one of `map_err`.
    pub fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, what, source }
    }

    /// Returns damage as that of the best checkpoint, which the result would be made of.
    pub fn of_best(error: Error) -> Error {
        match error {
            Error::Damaged { path, why } => Error::BestDamaged { path, why },
            other => other,
        }
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Train(error) => return error.hint(),
            Error::Device { checkpoint, source, .. } => {
                let kept = match checkpoint {
                    Some(path) => format!("{} is kept, and --resume goes on from it", path.display()),
                    None => "there was no checkpoint yet".to_owned(),
                };
                source.hint().map_or(kept.clone(), |hint| format!("{kept}; {hint}"))
            }
            Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "make room: --resume goes on from the last complete checkpoint, or, where there is none yet, begins anew".into()
            }
            Error::Exists { .. } => "--resume goes on with it; --out names another directory".into(),
            Error::InUse { .. } => "wait for the other run, or end it; --out names another directory".into(),
            Error::NothingToResume { .. } => "run it without --resume".into(),
            Error::Damaged { .. } => "remove it: --resume takes the one before".into(),
            Error::AllDamaged { .. } => "bring its files back, or begin another run with --out".into(),
            Error::BadEvent { .. } | Error::BadLog { .. } => {
                "the log is not as the run wrote it: bring it back as it was, or begin another run with --out".into()
            }
            Error::BestDamaged { .. } => {
                "with `checkpoint.keep_best` it is the result: bring its files back, or begin another run with --out".into()
            }
            Error::OtherVersion { .. } => {
                "end the run with the lctl that began it, or begin another with --out".into()
            }
            Error::OtherRun { .. } => {
                "give the recipe, data, model, tokenizer, template and number of processes it began with, or another --out"
                    .into()
            }
            Error::LogLost { .. } => {
                "without its log the run cannot be gone on with exactly; --out begins another".into()
            }
            Error::NotFinite { checkpoint, .. } | Error::ValidationNotFinite { checkpoint, .. } => {
                let kept = match checkpoint {
                    Some(path) => format!("{} is kept", path.display()),
                    None => "there was no checkpoint yet: the model itself may hold a NaN".to_owned(),
                };
                format!("{kept}; a lower `train.lr`, a longer warm-up or `train.max_grad_norm` may help")
            }
            Error::Parallel { error, checkpoint: Some(path) } => {
                let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                format!("{} is kept{hint}", path.display())
            }
            Error::Parallel { error, checkpoint: None } => return error.hint(),
            Error::TooManyProcesses { .. } => {
                "start fewer, or set `train.grad_accum` to a multiple of their number".into()
            }
            Error::BadState { .. } => "all processes must be of one build of lctl".into(),
            Error::TooMany { .. } => return None,
            Error::ShortText { .. } => {
                "`eval.forgetting.text` should be some thousand words of general text".into()
            }
            Error::Io { .. } => return None,
        })
    }

    fn exit_code(&self) -> u8 {
        match self {
            Error::Parallel { error, .. } => error.exit_code(),
            _ => 2,
        }
    }
}
