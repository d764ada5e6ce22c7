//! The manifest's form, written and read back; docs/provenance.md documents it.

mod check;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::digest::NamedDigest;
use super::hex;
use super::job::Job;
use crate::error::Diagnostic;

/// The version of the layout.
pub const VERSION: u32 = 1;

/// A manifest is a few kilobytes; what is larger is not read.
const MOST_BYTES: u64 = 16 << 20;

/// Where an artefact comes from.
///
/// Fields are written in this order; a key that is not here is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub lctl_manifest: u32,
    pub lctl: Program,
    pub job: Job,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    pub samples: Option<Samples>,
    pub licences: Licences,
    /// What the result does not depend on ([`super::RunFacts`]); nothing reads it back.
    pub run: Json,
}

/// The program that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    pub version: String,
    /// Of the source, if the build knew it (`LCTL_COMMIT`, or src/build.rs by git).
    pub commit: Option<String>,
    /// Of the executable; absent where the system does not say which it is.
    pub sha256: Option<String>,
}

impl Program {
    /// Returns what this program is but for its digest.
    pub fn current() -> Program {
        let commit = option_env!("LCTL_COMMIT").filter(|commit| !commit.is_empty());
        Program {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: commit.map(str::to_owned),
            sha256: None,
        }
    }
}

/// What an input is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// config.json (of a directory), then the weights.
    Model,
    /// Tokenizer, chat template, generation settings and shard index of a model's directory.
    ModelFiles,
    Adapter,
    /// Importance matrix.
    Importance,
    Suite,
    /// A data set given by name.
    Data,
    /// A data set that a suite names.
    SuiteData,
    Text,
    /// The model compared with.
    Base,
    BaseFiles,
    BaseAdapter,
    /// Saved logits of the model compared with.
    BaseLogits,
    /// Report and samples compared with.
    Baseline,
    Candidate,
    Policy,
    /// Of a fine-tuning run.
    Recipe,
    /// A chat template in a file of its own.
    Template,
}

impl Role {
    /// Returns the name in manifests and messages.
    pub fn name(self) -> &'static str {
        match self {
            Role::Model => "model",
            Role::ModelFiles => "model_files",
            Role::Adapter => "adapter",
            Role::Importance => "importance",
            Role::Suite => "suite",
            Role::Data => "data",
            Role::SuiteData => "suite_data",
            Role::Text => "text",
            Role::Base => "base",
            Role::BaseFiles => "base_files",
            Role::BaseAdapter => "base_adapter",
            Role::BaseLogits => "base_logits",
            Role::Baseline => "baseline",
            Role::Candidate => "candidate",
            Role::Policy => "policy",
            Role::Recipe => "recipe",
            Role::Template => "template",
        }
    }
}

/// Something that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub role: Role,
    /// Of a data set.
    pub name: Option<String>,
    /// As it was given.
    pub path: String,
    /// Of its files ([`super::sha256_of_files`]).
    pub sha256: String,
    /// Digest of the manifest that lies beside it and speaks of it.
    pub manifest: Option<String>,
    /// By their names within a directory, or beside the path.
    pub files: Vec<NamedDigest>,
}

/// What an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputRole {
    Model,
    Report,
    Samples,
    Logits,
    Verdict,
    Adapter,
    /// An importance matrix.
    Importance,
}

/// What a digest of an output is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// The file's bytes.
    File,
    /// Its JSON without the key `run`, indented by two spaces, a line feed behind.
    JsonWithoutRun,
}

/// Something that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    pub role: OutputRole,
    /// As it was given.
    pub path: String,
    pub content: Content,
    pub sha256: String,
}

/// All samples in one figure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Samples {
    pub lines: usize,
    /// RFC 6962's tree over the lines of samples.jsonl.
    pub merkle_root: String,
}

/// Under which licences the inputs stand, `unknown` where nothing says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licences {
    pub base: String,
    pub adapter: Option<String>,
    pub data: Vec<DataLicence>,
}

/// Of one data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataLicence {
    pub name: String,
    pub licence: String,
}

/// Why a file is no manifest that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{path}: cannot read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("{path}: is no regular file")]
    NotAFile { path: PathBuf },

    #[error("{path}: {bytes} bytes; a manifest has at most {MOST_BYTES}")]
    TooLarge { path: PathBuf, bytes: u64 },

    #[error("{path}:{line}:{column}: {what}")]
    Syntax { path: PathBuf, line: usize, column: usize, what: String },

    #[error("{path}: no `lctl_manifest`: this is no manifest")]
    NotAManifest { path: PathBuf },

    #[error("{path}: a manifest of version {found}; this program reads version {VERSION}")]
    OtherVersion { path: PathBuf, found: Json },

    #[error("{path}: {what}")]
    Bad { path: PathBuf, what: String },
}

impl Diagnostic for ManifestError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            ManifestError::OtherVersion { .. } => {
                "replay it with the version of lctl that wrote it (`lctl.version`)".into()
            }
            ManifestError::Syntax { .. } => "was the file cut short, or edited?".into(),
            _ => "give a FILE.manifest.json that lctl wrote beside FILE".into(),
        })
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// Errors if it is of another version, lacks a key or has one too many, a digest is none, or the inputs and
    /// outputs are not those of its command.
    pub fn open(path: &Path) -> Result<Manifest, ManifestError> {
        let read = |source| ManifestError::Read { path: path.to_owned(), source };
        let meta = std::fs::metadata(path).map_err(read)?;
        if !meta.is_file() {
            return Err(ManifestError::NotAFile { path: path.to_owned() });
        }
        if meta.len() > MOST_BYTES {
            return Err(ManifestError::TooLarge { path: path.to_owned(), bytes: meta.len() });
        }
        Manifest::parse(path, &std::fs::read(path).map_err(read)?)
    }

    /// As [`Manifest::open`], of bytes; the path is for messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let syntax = |error: serde_json::Error| {
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default().to_owned();
            ManifestError::Syntax {
                path: path.to_owned(),
                line: error.line().max(1),
                column: error.column(),
                what,
            }
        };
        let json: Json = serde_json::from_slice(bytes).map_err(syntax)?;
        match json.get("lctl_manifest") {
            None => return Err(ManifestError::NotAManifest { path: path.to_owned() }),
            Some(found) if found.as_u64() != Some(VERSION.into()) => {
                return Err(ManifestError::OtherVersion { path: path.to_owned(), found: found.clone() });
            }
            Some(_) => {}
        }
        // from the bytes, so that errors have lines
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(syntax)?;
        manifest.check().map_err(|what| ManifestError::Bad { path: path.to_owned(), what })?;
        Ok(manifest)
    }

    /// Returns the file's text.
    pub fn text(&self) -> String {
        // Strings, numbers and lists of them under keys that are strings: this cannot fail.
        let json = serde_json::to_string_pretty(self).unwrap_or_default();
        json + "\n"
    }

    /// Returns the SHA-256 of the text without `run`: the same for every run that made the same of the same.
    pub fn digest(&self) -> String {
        let json = serde_json::to_value(self).unwrap_or_default();
        without_run_sha256(json)
    }

    /// Returns the inputs of a role.
    pub fn inputs_of(&self, role: Role) -> impl Iterator<Item = &Input> {
        self.inputs.iter().filter(move |input| input.role == role)
    }

    /// Returns the outputs of a role.
    pub fn outputs_of(&self, role: OutputRole) -> impl Iterator<Item = &Output> {
        self.outputs.iter().filter(move |output| output.role == role)
    }
}

/// Returns the SHA-256 of a JSON object without its key `run`, indented by two spaces, a line feed behind.
pub(super) fn without_run_sha256(mut json: Json) -> String {
    if let Some(object) = json.as_object_mut() {
        object.shift_remove("run");
    }
    hex(&Sha256::digest(format!("{json:#}\n")))
}

impl Output {
    /// Returns the output of a role whose file has these bytes.
    pub fn of_text(role: OutputRole, path: &Path, text: &str) -> Output {
        let sha256 = hex(&Sha256::digest(text));
        Output { role, path: path.display().to_string(), content: Content::File, sha256 }
    }

    /// Returns a report as an output.
    pub fn of_report(path: &Path, report: &Json) -> Output {
        Output {
            role: OutputRole::Report,
            path: path.display().to_string(),
            content: Content::JsonWithoutRun,
            sha256: without_run_sha256(report.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
