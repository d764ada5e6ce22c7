//! What can be wrong with a file of tensors, or with writing one.

use std::path::PathBuf;

use super::gguf::HeaderError as GgufHeaderError;
use super::safetensors::HeaderError as SafeTensorsHeaderError;
use crate::error::Diagnostic;

/// What can be wrong with a file of tensors, or with writing one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: cannot {action}")]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: no such file or directory")]
    NotFound { path: PathBuf },
    #[error("{path}: {problem}")]
    Gguf { path: PathBuf, problem: GgufHeaderError },
    #[error("{path}: {problem}")]
    SafeTensors { path: PathBuf, problem: SafeTensorsHeaderError },
    #[error("{path}: a pickle checkpoint ({evidence}), refused: reading one runs the program inside it")]
    Pickle { path: PathBuf, evidence: &'static str },
    #[error("{path}: a legacy {format} file, from before GGUF")]
    LegacyGgml { path: PathBuf, format: &'static str },
    #[error("{path}: a Git LFS pointer, not the file itself")]
    LfsPointer { path: PathBuf },
    #[error("{path}: a web page, not the file itself")]
    WebPage { path: PathBuf },
    #[error("{path}: empty, 0 bytes long")]
    Empty { path: PathBuf },
    #[error("{path}: neither GGUF nor safetensors (it begins with {start})")]
    UnknownFormat { path: PathBuf, start: String },
    #[error("{path}: the directory holds no .safetensors or .gguf file")]
    NothingToOpen { path: PathBuf },
    #[error("{path}: the directory holds {count} GGUF models: {names}")]
    ManyGgufs { path: PathBuf, count: usize, names: String },
    #[error("{path}: not a regular file")]
    NotAFile { path: PathBuf },

    #[error("{index}: not a safetensors index: {why}")]
    BadIndex { index: PathBuf, why: String },
    #[error("{index}: `weight_map` sends `{tensor}` to `{file}`, which is not a plain file name")]
    IndexEscapes { index: PathBuf, tensor: String, file: String },
    #[error("{index}: shard `{shard}` is missing; it should hold {tensors} tensors, the first `{first}`")]
    IndexShardMissing { index: PathBuf, shard: String, tensors: usize, first: String },
    #[error("{index}: `{tensor}` should be in `{shard}`, but that shard does not hold it")]
    IndexTensorMissing { index: PathBuf, tensor: String, shard: String },
    #[error("{path}: shard {missing} of {count} is missing (expected `{file}`)")]
    ShardMissing { path: PathBuf, missing: usize, count: usize, file: String },
    #[error("`{tensor}` is in two shards: {first} and {second}")]
    DuplicateAcrossShards { tensor: String, first: PathBuf, second: PathBuf },

    #[error("{path}: shard {no} of {count}; a split model is opened by its first shard")]
    NotFirstShard { path: PathBuf, no: u64, count: u64, first: Option<String> },
    #[error("{path}: shard {no} of {count}, but its name does not end in `{suffix}`")]
    SplitName { path: PathBuf, no: u64, count: u64, suffix: String },
    #[error("{path}: `split.no` is {no}, but there are {count} shards")]
    SplitNo { path: PathBuf, no: u64, count: u64 },
    #[error("{path}: `{key}` is {found}, but {expected} was expected")]
    SplitKey { path: PathBuf, key: &'static str, found: u64, expected: u64 },
    #[error("{path}: `{key}` is absent or not an unsigned integer")]
    BadSplitKey { path: PathBuf, key: &'static str },
    #[error("{path}: `split.tensors.count` is {stated}, but the {shards} shards hold {actual} tensors")]
    SplitTensorCount { path: PathBuf, stated: u64, shards: usize, actual: usize },

    #[error("{path}: `{tensor}`: bytes {offset}..{end} asked for, but it has {n_bytes}")]
    OutOfRange { path: PathBuf, tensor: String, offset: u64, end: u64, n_bytes: u64 },
    #[error(
        "{path}: `{tensor}`: the file is now {len} bytes, but the tensor ends at byte {end}: it has shrunk since it was opened"
    )]
    Shrunk { path: PathBuf, tensor: String, len: u64, end: u64 },

    #[error("{path}: exists already")]
    OutputExists { path: PathBuf },
    #[error("{path}: is a directory")]
    OutputIsDirectory { path: PathBuf },
    #[error("{path}: exists and is not a regular file")]
    OutputIsSpecial { path: PathBuf },
    #[error("{path}: the directory `{dir}` does not exist")]
    NoOutputDirectory { path: PathBuf, dir: PathBuf },
    #[error("{path}: the directory `{dir}` cannot be written")]
    Unwritable {
        path: PathBuf,
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: the disk is too full: {needed} bytes needed, {available} available")]
    DiskFull { path: PathBuf, needed: u64, available: u64 },
    #[error("interrupted; {path} was not written")]
    Interrupted { path: PathBuf },
    #[error("{path}: cannot be written: {why}")]
    BadDeclaration { path: PathBuf, why: String },
    #[error("{path}: `{tensor}`: {extra} bytes too many (it has {n_bytes})")]
    TooManyBytes { path: PathBuf, tensor: String, n_bytes: u64, extra: u64 },
    #[error("{path}: {extra} bytes after the last tensor")]
    AfterLastTensor { path: PathBuf, extra: u64 },
    #[error("{path}: `{tensor}`: finished after {written} of {n_bytes} bytes")]
    Unfinished { path: PathBuf, tensor: String, written: u64, n_bytes: u64 },
}

impl Error {
    /// Returns an adapter for `map_err` that adds the path and what was being done.
    pub(crate) fn io(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, action, source }
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Gguf { problem, .. } => return problem.hint(),
            Error::SafeTensors { problem, .. } => return problem.hint(),
            Error::Pickle { .. } => {
                "in a sandbox without network, convert it to safetensors: python -c \"from transformers import \
                 AutoModelForCausalLM as M; M.from_pretrained('DIR').save_pretrained('OUT', safe_serialization=True)\""
            }
            Error::LegacyGgml { .. } => "convert the original checkpoint again; GGUF files begin with `GGUF`",
            Error::LfsPointer { .. } => {
                "the clone has pointers in place of large files: run `git lfs pull` in it, or `lctl pull ORG/NAME`"
            }
            Error::WebPage { .. } => {
                "the download gave a page to log in or an error: fetch the file itself, as `lctl pull ORG/NAME` does"
            }
            Error::Empty { .. } => "the download failed or the disk was full: fetch the file again",
            Error::UnknownFormat { .. } => {
                "give a .safetensors file, a .gguf file, or a checkpoint's directory"
            }
            Error::NothingToOpen { .. } => "give the directory that holds model.safetensors or its shards",
            Error::ManyGgufs { .. } => "name one of them instead of the directory",
            Error::IndexShardMissing { .. } | Error::ShardMissing { .. } => "download the missing file",
            Error::IndexEscapes { .. } => "shards lie beside their index; do not trust this checkpoint",
            Error::IndexTensorMissing { .. } => {
                "the index and the shards are from different versions: download them again"
            }
            Error::NotFirstShard { first: Some(first), .. } => return Some(format!("open `{first}`")),
            Error::SplitName { .. } => "shards keep the names they were written with",
            Error::Shrunk { .. } => "another program is writing the file; run again when it is done",
            Error::OutputExists { .. } => "give --force to replace it",
            Error::OutputIsDirectory { .. } => "give a file name, e.g. `-o model.gguf`",
            Error::NoOutputDirectory { .. } => "create it first",
            Error::DiskFull { .. } => "free some space, or write to another disk",
            Error::NotFound { .. } => "check the path; shards lie beside their index",
            Error::NotAFile { .. } => "give a plain file, not a pipe, a device or a folder",
            Error::BadIndex { .. } => "download model.safetensors.index.json again",
            Error::DuplicateAcrossShards { .. } => "shards of different versions? download them again",
            Error::NotFirstShard { .. } => "open the first shard",
            Error::SplitNo { .. }
            | Error::SplitKey { .. }
            | Error::BadSplitKey { .. }
            | Error::SplitTensorCount { .. } => {
                "the shards are not one model's, or are out of order: fetch them again"
            }
            Error::OutputIsSpecial { .. } => "give the name of a plain file",
            Error::Unwritable { .. } => "choose another directory, or change its permissions",
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::FileTooLarge => {
                "`ulimit -f` says how large a file may be here; so does the file system"
            }
            Error::Io { .. } => "the system refuses: check the path, its permissions and the disk",
            Error::Interrupted { .. }
            | Error::OutOfRange { .. }
            | Error::BadDeclaration { .. }
            | Error::TooManyBytes { .. }
            | Error::AfterLastTensor { .. }
            | Error::Unfinished { .. } => return None,
        };
        Some(hint.to_owned())
    }

    fn exit_code(&self) -> u8 {
        match self {
            Error::Interrupted { .. } => 130,
            _ => 2,
        }
    }
}
