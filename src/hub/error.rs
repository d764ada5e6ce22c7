//! What can go wrong between a hub id and a snapshot directory.

use std::path::PathBuf;

use super::RepoKind;
use crate::error::Diagnostic;

/// An error of `lctl pull`, or of a hub id given as a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{id}` is not a hub id: {reason}")]
    InvalidId { id: String, reason: String },

    #[error("`{pattern}` is not a glob pattern")]
    InvalidPattern {
        pattern: String,
        #[source]
        source: regex::Error,
    },

    #[error("offline, and {id} is not in the cache {cache_dir}: missing {missing}")]
    NotCached { id: String, cache_dir: PathBuf, missing: String },

    // as the command line's reader says it of the option
    #[error("the argument '--verify' cannot be used with '--offline'")]
    VerifyOffline,

    #[error("HF_ENDPOINT={endpoint} is not a web address")]
    Endpoint { endpoint: String },

    #[error("{id} is not in the cache, and this build of lctl cannot download")]
    NoNetwork { id: String },

    #[error("{}, and {id}: {file} is not in the cache {cache_dir}", no_network(.is_offline))]
    FileNotCached { id: String, file: String, cache_dir: PathBuf, is_offline: bool },

    #[error("{id}@{commit}: has no file {file}")]
    NoSuchFile { id: String, commit: String, file: String, examples: Vec<String> },

    #[error("{id}: {file}: SHA-256 is {found}, but the suite expects {expected}")]
    OtherContent { id: String, file: String, expected: String, found: String },

    #[error("{id}: the hub has no such repository, or hides it from this token")]
    RepositoryNotFound { id: String, has_token: bool },

    #[error("{id}: the hub has no revision `{revision}`")]
    RevisionNotFound { id: String, revision: String },

    #[error("{id}: the hub refuses access ({status}): {message}")]
    Refused { id: String, status: u16, message: String, gated: bool, has_token: bool, endpoint: String },

    #[error("{id}: the hub lists a file under the unsafe name {path}")]
    UnsafePath { id: String, path: String },

    #[error("{id}: the hub's answer makes no sense: {what}")]
    Malformed { id: String, what: String },

    #[error("{id}@{commit}: nothing to download: none of its {count} files is {wanted}")]
    NothingSelected { id: String, commit: String, count: usize, wanted: String, examples: Vec<String> },

    #[error("{file}: the content has digest {actual}, the hub said {expected}")]
    DigestMismatch { file: String, expected: String, actual: String },

    #[error("{file}: the hub sent {actual} bytes, it had announced {expected}")]
    SizeMismatch { file: String, expected: u64, actual: u64 },

    #[error("{what}: the transfer failed")]
    Transfer {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("{path}: cannot {action}")]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
}

fn no_network(is_offline: &bool) -> &'static str {
    match is_offline {
        true => "offline",
        false => "this build of lctl cannot download",
    }
}

/// Returns what a message calls the repository of an id.
fn what(id: &str) -> &'static str {
    match id.starts_with(RepoKind::Dataset.prefix()) {
        true => "the data set",
        false => "the model",
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::InvalidId { .. } => "an id is ORG/NAME or ORG/NAME@REVISION, e.g. Qwen/Qwen3-0.6B@main; of a data set datasets/ORG/NAME".into(),
            Error::InvalidPattern { .. } => "`*` matches any run of characters, `?` one, `[abc]` one of a set".into(),
            Error::NotCached { id, .. } => format!(
                "on a machine with network run `lctl pull {id}`, or unset HF_HUB_OFFLINE and leave out --offline"
            ),
            Error::VerifyOffline => {
                "HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE are as --offline: unset them, or leave out --verify".into()
            }
            Error::Endpoint { .. } => "an address is e.g. https://huggingface.co, which it is if it is not set".into(),
            Error::NoNetwork { .. } => {
                "build with `cargo build --release --features hub`, or copy the repository into the cache".into()
            }
            Error::FileNotCached { id, file, is_offline, .. } => {
                let unless = match is_offline {
                    true => "leave out --offline and HF_HUB_OFFLINE",
                    false => "build with `--features hub`",
                };
                format!(
                    "on a machine with network run `lctl pull {id} --include '{file}'` and copy the cache, or {unless}; \
                     or give a copy of the file with --data NAME=FILE"
                )
            }
            Error::NoSuchFile { examples, .. } if examples.is_empty() => return None,
            Error::NoSuchFile { examples, .. } => format!("it has e.g. {}", examples.join(", ")),
            Error::OtherContent { id, file, .. } => format!(
                "if the cache is damaged, `lctl pull {id} --include '{file}' --verify` fetches the file anew; else this is \
                 another version of the data: scores would not compare"
            ),
            Error::RepositoryNotFound { has_token: false, .. } => {
                "check the spelling; for a private repository set HF_TOKEN".into()
            }
            Error::RepositoryNotFound { .. } => "check the spelling, and that the token may read it".into(),
            Error::RevisionNotFound { .. } => "a revision is a branch, a tag or a 40-digit commit".into(),
            Error::Refused { gated: true, id, endpoint, .. } => format!(
                "{} is gated: accept its terms at {endpoint}/{} and set HF_TOKEN",
                what(id),
                id.split('@').next().unwrap_or(id)
            ),
            Error::Refused { has_token: false, id, .. } => {
                format!("set HF_TOKEN to a token that may read {}", what(id))
            }
            Error::Refused { id, .. } => {
                format!("the token is wrong, expired, or lacks read access to {}", what(id))
            }
            Error::UnsafePath { .. } | Error::Malformed { .. } => {
                "nothing was written for it; check HF_ENDPOINT, and do not trust this hub".into()
            }
            Error::NothingSelected { examples, .. } if examples.is_empty() => return None,
            Error::NothingSelected { examples, .. } => {
                format!("choose with --include; the repository has e.g. {}", examples.join(", "))
            }
            Error::DigestMismatch { .. } | Error::SizeMismatch { .. } => {
                "the damaged download was deleted; run the command again, and distrust the mirror if it repeats".into()
            }
            Error::Transfer { .. } => {
                "what has arrived is kept: run the same command again to resume; behind a proxy set HTTPS_PROXY".into()
            }
            Error::Io { .. } => return None,
        })
    }
}
