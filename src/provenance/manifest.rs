//! The manifest's form, written and read back; docs/provenance.md documents it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::digest::{NamedDigest, sha256_of_named};
use super::hex;
use super::job::{EvalMode, EvalSettings, Job};
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

    fn check(&self) -> Result<(), String> {
        for (what, digest) in self.digests() {
            let is_digest =
                digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if !is_digest {
                return Err(format!("{what}: `{digest}` is no SHA-256 in lower-case hexadecimal"));
            }
        }
        for input in &self.inputs {
            let role = input.role.name();
            if input.files.is_empty() {
                return Err(format!("the input `{role}` ({}) has no files", input.path));
            }
            if input.sha256 != sha256_of_named(&input.files) {
                return Err(format!(
                    "`sha256` of the input `{role}` ({}) is not that of its files",
                    input.path
                ));
            }
        }
        for (role, least, most) in self.expected_inputs() {
            let found = self.inputs_of(*role).count();
            if found < *least || found > *most {
                let (command, name) = (self.job.command(), role.name());
                return Err(format!(
                    "`{command}` with {found} inputs `{name}`, which takes {least} to {most}"
                ));
            }
        }
        let known = |input: &&Input| self.expected_inputs().iter().all(|(role, ..)| *role != input.role);
        if let Some(stranger) = self.inputs.iter().find(known) {
            return Err(format!("`{}` has no input `{}`", self.job.command(), stranger.role.name()));
        }
        self.check_outputs()
    }

    fn check_outputs(&self) -> Result<(), String> {
        let expected: &[OutputRole] = match &self.job {
            Job::Quantize(_) => &[OutputRole::Model],
            Job::Eval(EvalSettings { mode: EvalMode::Suite, .. }) => {
                &[OutputRole::Report, OutputRole::Samples, OutputRole::Verdict]
            }
            Job::Eval(_) => &[OutputRole::Report, OutputRole::Logits],
            Job::Gate(_) => &[OutputRole::Verdict],
            Job::Finetune(_) => &[OutputRole::Adapter, OutputRole::Model],
        };
        if self.outputs.is_empty() || self.outputs.iter().any(|output| !expected.contains(&output.role)) {
            return Err(format!("these are not the outputs of `{}`", self.job.command()));
        }
        for output in &self.outputs {
            let path = Path::new(&output.path);
            if path.file_name().is_none() || output.path.contains('\0') {
                return Err(format!("the output `{}` names no file", output.path));
            }
        }
        Ok(())
    }

    /// Returns how many inputs of each role a command takes, least and most.
    fn expected_inputs(&self) -> &'static [(Role, usize, usize)] {
        use Role as R;
        const ANY: usize = usize::MAX;
        match &self.job {
            Job::Quantize(_) => &[(R::Model, 1, 1), (R::ModelFiles, 0, 1), (R::Importance, 0, 1)],
            Job::Eval(settings) => match settings.mode {
                EvalMode::Suite => &[
                    (R::Model, 1, 1),
                    (R::ModelFiles, 0, 1),
                    (R::Adapter, 0, 1),
                    (R::Suite, 1, ANY),
                    (R::Data, 0, ANY),
                    (R::SuiteData, 0, ANY),
                    (R::Baseline, 0, 1),
                    (R::Policy, 0, 1),
                    (R::Base, 0, 1),
                    (R::BaseFiles, 0, 1),
                    (R::BaseAdapter, 0, 1),
                ],
                EvalMode::Perplexity => {
                    &[(R::Model, 1, 1), (R::ModelFiles, 0, 1), (R::Adapter, 0, 1), (R::Text, 1, 1)]
                }
                EvalMode::KlBase => &[
                    (R::Model, 1, 1),
                    (R::ModelFiles, 0, 1),
                    (R::Adapter, 0, 1),
                    (R::Text, 1, 1),
                    (R::Base, 1, 1),
                    (R::BaseFiles, 0, 1),
                ],
                EvalMode::BaseLogits => {
                    &[(R::Model, 1, 1), (R::ModelFiles, 0, 1), (R::Adapter, 0, 1), (R::BaseLogits, 1, 1)]
                }
            },
            Job::Gate(_) => &[
                (R::Baseline, 1, 1),
                (R::Candidate, 1, 1),
                (R::Policy, 0, 1),
                (R::Model, 0, 1),
                (R::ModelFiles, 0, 1),
                (R::Adapter, 0, 1),
                (R::Base, 0, 1),
                (R::BaseFiles, 0, 1),
                (R::BaseAdapter, 0, 1),
                (R::Text, 0, 1),
            ],
            Job::Finetune(_) => &[
                (R::Model, 1, 1),
                (R::ModelFiles, 0, 1),
                (R::Recipe, 1, 1),
                (R::Data, 1, ANY),
                (R::Template, 0, 1),
                (R::Text, 0, 1),
                (R::Suite, 0, ANY),
            ],
        }
    }

    fn digests(&self) -> impl Iterator<Item = (String, &str)> {
        let program = self.lctl.sha256.iter().map(|digest| ("lctl".to_owned(), digest.as_str()));
        let inputs = self.inputs.iter().flat_map(|input| {
            let own = [Some(&input.sha256), input.manifest.as_ref()].into_iter().flatten();
            let files = input.files.iter().map(|file| &file.sha256);
            own.chain(files).map(|digest| (format!("input {}", input.path), digest.as_str()))
        });
        let outputs =
            self.outputs.iter().map(|output| (format!("output {}", output.path), output.sha256.as_str()));
        let root = self.samples.iter().map(|samples| ("samples".to_owned(), samples.merkle_root.as_str()));
        program.chain(inputs).chain(outputs).chain(root)
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
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(c: char) -> String {
        c.to_string().repeat(64)
    }

    pub fn example() -> Json {
        json!({
            "lctl_manifest": 1,
            "lctl": {"version": "0.1.0", "commit": null, "sha256": digest('0')},
            "job": {"command": "quantize", "settings": {
                "type": "Q8_0", "tensor_types": [{"pattern": "attn", "format": "F16"}], "output_tensor_type": null,
                "token_embedding_type": null, "pure": false, "leave_output_tensor": false, "allow_requantize": false,
                "override_kv": [], "pre": null, "split_max_bytes": null, "directory": null,
            }},
            "inputs": [{"role": "model", "name": null, "path": "m.gguf", "sha256": digest('1'), "manifest": null,
                        "files": [{"name": "m.gguf", "sha256": digest('1')}]}],
            "outputs": [{"role": "model", "path": "o.gguf", "content": "file", "sha256": digest('2')}],
            "samples": null,
            "licences": {"base": "mit", "adapter": null, "data": []},
            "run": {"seconds": 1.5},
        })
    }

    fn parse(json: &Json) -> Result<Manifest, String> {
        Manifest::parse(Path::new("m.json"), json.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let manifest = parse(&example()).unwrap();
        assert_eq!(Manifest::parse(Path::new("m"), manifest.text().as_bytes()).unwrap(), manifest);
        assert_eq!(serde_json::from_str::<Json>(&manifest.text()).unwrap(), example());
    }

    #[test]
    fn the_digest_leaves_the_run_out_and_nothing_else() {
        let manifest = parse(&example()).unwrap();
        let changed = |pointer: &str, value: Json| {
            let mut json = example();
            *json.pointer_mut(pointer).unwrap() = value;
            parse(&json).unwrap().digest()
        };
        assert_eq!(changed("/run", json!({"seconds": 2})), manifest.digest());
        assert_ne!(changed("/licences/base", json!("apache-2.0")), manifest.digest());
        assert_ne!(changed("/outputs/0/sha256", json!(digest('3'))), manifest.digest());
        let mut without = example();
        without.as_object_mut().unwrap().shift_remove("run");
        assert_eq!(manifest.digest(), hex(&Sha256::digest(format!("{without:#}\n"))));
    }

    #[test]
    fn every_prefix_is_an_error() {
        let text = parse(&example()).unwrap().text();
        for len in 0..text.len() - 2 {
            let error = Manifest::parse(Path::new("m.json"), &text.as_bytes()[..len]).unwrap_err();
            assert!(matches!(error, ManifestError::Syntax { .. }), "{len}: {error}");
        }
    }

    #[test]
    fn what_does_not_belong_is_named() {
        for (pointer, value, expected) in [
            ("/lctl_manifest", json!(2), "m.json: a manifest of version 2; this program reads version 1"),
            (
                "/lctl_manifest",
                json!("1"),
                "m.json: a manifest of version \"1\"; this program reads version 1",
            ),
            ("/job/command", json!("format_disk"), "unknown variant `format_disk`"),
            ("/job/settings/pure", json!("yes"), "invalid type: string \"yes\", expected a boolean"),
            ("/job/settings", json!({"type": "Q8_0"}), "missing field `tensor_types`"),
            ("/inputs/0/role", json!("suite"), "`quantize` with 0 inputs `model`, which takes 1 to 1"),
            (
                "/inputs/0/sha256",
                json!(digest('9')),
                "`sha256` of the input `model` (m.gguf) is not that of its files",
            ),
            ("/inputs/0/files", json!([]), "the input `model` (m.gguf) has no files"),
            ("/inputs/0/files/0/sha256", json!("../../x"), "input m.gguf: `../../x` is no SHA-256"),
            ("/outputs", json!([]), "these are not the outputs of `quantize`"),
            ("/outputs/0/role", json!("report"), "these are not the outputs of `quantize`"),
            ("/outputs/0/path", json!(".."), "the output `..` names no file"),
            ("/outputs/0/path", json!("a\0b"), "names no file"),
            ("/outputs/0/sha256", json!(digest('A')), "is no SHA-256 in lower-case hexadecimal"),
            ("/licences", json!({"base": "mit"}), "missing field"),
        ] {
            let mut json = example();
            *json.pointer_mut(pointer).unwrap() = value;
            let error = parse(&json).unwrap_err();
            assert!(error.contains(expected), "{pointer}: {error}");
        }
        let mut json = example();
        json["job"]["settings"]["shell"] = "rm -r".into();
        assert!(parse(&json).unwrap_err().contains("unknown field `shell`"));
        let mut json = example();
        let input = json["inputs"][0].clone();
        json["inputs"].as_array_mut().unwrap().push(input);
        assert!(parse(&json).unwrap_err().contains("`quantize` with 2 inputs `model`"));
        assert_eq!(
            parse(&json!({"lctl_report": 2})).unwrap_err(),
            "m.json: no `lctl_manifest`: this is no manifest"
        );
        assert_eq!(parse(&json!([1])).unwrap_err(), "m.json: no `lctl_manifest`: this is no manifest");
    }
}
