//! What --perplexity and --kl-base have in common: a text file cut into chunks, a report.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Args;
use super::paths::{self, Named};
use crate::cli::device::Shared;
use crate::cli::model::{LoadedModel, ModelArgs};
use crate::cli::term;
use crate::error::{Diagnostic, Failure};
use crate::eval::{Chunks, EngineOptions, LanguageModel};
use crate::provenance::{InputFiles, Role, blocking_manifest, manifest_path};
use crate::read::{ReadError, read_bytes};
use crate::tensor::AtomicFile;
use crate::text::EncodeOptions;

/// Tokens per chunk unless --context says otherwise, as in llama-perplexity; less for a model with less context.
const CHUNK_LEN: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(transparent)]
    File(#[from] ReadError),

    #[error("{path}: not UTF-8 at byte {at}")]
    NotUtf8 { path: PathBuf, at: usize },

    #[error("{path}: exists already")]
    ReportExists { path: PathBuf },

    #[error("{path}: cannot create the directory")]
    CreateDir {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Diagnostic for TextError {
    fn hint(&self) -> Option<String> {
        match self {
            TextError::NotUtf8 { .. } => Some("convert the file to UTF-8".into()),
            TextError::ReportExists { .. } => Some("give --force to replace it".into()),
            TextError::File(source) => source.hint(),
            TextError::CreateDir { .. } => None,
        }
    }
}

/// A text file.
pub struct TextFile {
    path: PathBuf,
    sha256: String,
    text: String,
}

impl TextFile {
    /// Reads a file, less one line feed at its end, as llama-perplexity does.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let path = path.to_owned();
        let bytes = read_bytes(&path).map_err(TextError::File)?;
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut text = String::from_utf8(bytes).map_err(|error| TextError::NotUtf8 {
            path: path.clone(),
            at: error.utf8_error().valid_up_to(),
        })?;
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(TextFile { path, sha256, text })
    }

    /// Returns the text's tokens in chunks. A token for its end, which some tokenizers add, is left out.
    pub fn chunks(&self, model: &LoadedModel, args: &Args) -> Result<Chunks, Failure> {
        let chunk_len = args.context.map_or(CHUNK_LEN.min(model.decoder.context_length()), |n| n as usize);
        self.cut(model, chunk_len, args.limit.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }

    /// Returns at most `limit` chunks of a length.
    pub fn cut(
        &self,
        model: &LoadedModel,
        chunk_len: usize,
        limit: Option<usize>,
    ) -> Result<Chunks, Failure> {
        let (tokens, bos) = self.tokens(model, false)?;
        Ok(Chunks::new(tokens, chunk_len, bos, limit)?)
    }

    /// Returns the text's tokens, and the BOS if they begin with one. A token for the text's end, which some tokenizers add,
    /// is left out; the text of special tokens is such a token if `parse_special`.
    pub fn tokens(
        &self,
        model: &LoadedModel,
        parse_special: bool,
    ) -> Result<(Vec<u32>, Option<u32>), Failure> {
        let tokenizer = &model.tokenizer;
        let mut tokens = tokenizer.encode(&self.text, EncodeOptions { add_special: true, parse_special })?;
        if tokenizer.adds_eos() && tokens.last().copied() == tokenizer.eos() {
            tokens.pop();
        }
        Ok((tokens, tokenizer.bos().filter(|_| tokenizer.adds_bos())))
    }

    /// Returns the last part of its path.
    pub fn name(&self) -> String {
        name_of(&self.path)
    }

    /// Returns it as an input of a manifest.
    pub fn input(&self) -> InputFiles {
        InputFiles::of_file(Role::Text, None, &self.path).with_sha256(&self.sha256)
    }

    pub fn json(&self) -> Value {
        json!({"name": name_of(&self.path), "sha256": self.sha256})
    }
}

/// Opens a model with the command's options.
pub fn open_model(args: &Args, model: &str, on: &Shared) -> Result<LoadedModel, Failure> {
    LoadedModel::open(&ModelArgs {
        model,
        offline: args.offline,
        adapter: args.adapter.as_deref(),
        compute: args.compute.into(),
        context: args.context,
        threads: args.threads,
        isa: args.isa.as_deref(),
        weights: args.weights,
        on,
        batch_tokens: args.batch_tokens,
        quiet: args.quiet,
        observed: false,
        digests: args.json || !args.suite.is_empty() || args.out.is_some() || args.save_logits.is_some(),
    })
}

/// Returns the engine's bounds with the command's options.
pub fn engine_options(args: &Args, model: &impl LanguageModel) -> EngineOptions {
    let mut options = EngineOptions::new(model);
    if let Some(batch_tokens) = args.batch_tokens {
        options.batch_tokens = batch_tokens as usize;
    }
    options.prefix_cache = !args.no_prefix_cache;
    options
}

/// Returns what a report says of a model and its arithmetic.
pub fn model_json(args: &Args, model: &LoadedModel) -> Result<Value, Failure> {
    let compute = args.compute.to_possible_value().map(|value| value.get_name().to_owned());
    let adapter = model.adapter.as_deref().zip(model.adapter_digest()?);
    let mut json = json!({
        "name": name_of(&model.path),
        "sha256": model.digest()?,
        "adapter": adapter.map(|(path, sha256)| json!({"name": name_of(path), "sha256": sha256})),
        "tokenizer_sha256": model.tokenizer.digest(),
        "compute": compute,
    });
    if let Some(device) = model.on_device() {
        json["device"] = json!(device);
    }
    Ok(json)
}

/// Returns the last part of a path: the rest says nothing of what was measured.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Prints a report, as JSON or, unless `--quiet`, as `text`, and writes report.json into --out; returns it if it was made.
pub fn deliver(
    args: &Args,
    report: impl FnOnce() -> Result<Value, Failure>,
    text: &str,
) -> Result<Option<Value>, Failure> {
    let report = if args.json || args.out.is_some() { Some(report()?) } else { None };
    if let (Some(dir), Some(report)) = (&args.out, &report) {
        let path = report_path(dir);
        let mut file = AtomicFile::create(&path, None, false)?;
        file.set_replace(args.force);
        file.write_all(format!("{report:#}\n").as_bytes())?;
        file.commit()?;
    }
    match report.as_ref().filter(|_| args.json) {
        Some(report) => term::out_json(report)?,
        None if args.is_replay || args.quiet => {}
        None => term::out(text)?,
    }
    Ok(report)
}

/// Makes the directory of --out. Errors if the report of an earlier run is in the way, or a file to write is one
/// to read or cannot be made, before anything is computed.
pub fn check_out(args: &Args) -> Result<(), Failure> {
    if let Some(dir) = &args.out {
        std::fs::create_dir_all(dir).map_err(|source| TextError::CreateDir { path: dir.clone(), source })?;
        let path = report_path(dir);
        if path.exists() && !args.force {
            return Err(TextError::ReportExists { path }.into());
        }
    }
    let artefact = artefact(args).filter(|_| !args.no_manifest);
    if let Some(path) = artefact.as_deref().and_then(|path| blocking_manifest(path, args.force)) {
        return Err(TextError::ReportExists { path }.into());
    }
    // with --force those of what is replaced are removed, or written anew
    let with_manifest: Vec<PathBuf> = match args.force {
        true => outputs(args).collect(),
        false => artefact.into_iter().collect(),
    };
    let mut written: Vec<Named> = Vec::new();
    written.extend(args.save_logits.clone().map(|path| ("--save-logits", path)));
    written.extend(args.out.as_deref().map(|dir| ("--out", report_path(dir))));
    written.extend(with_manifest.iter().map(|path| ("the manifest", manifest_path(path))));
    let mut read: Vec<Named> = vec![("the model", PathBuf::from(&args.model))];
    read.extend(args.kl_base.as_ref().map(|path| ("--kl-base", PathBuf::from(path))));
    read.extend(args.adapter.clone().map(|path| ("--adapter", path)));
    read.extend(args.perplexity.clone().map(|path| ("--perplexity", path)));
    read.extend(args.text.clone().map(|path| ("--text", path)));
    read.extend(args.base_logits.clone().map(|path| ("--base-logits", path)));
    paths::check(&written, &read)
}

/// Returns the file that a manifest lies beside: the report, or else the logits.
pub fn artefact(args: &Args) -> Option<PathBuf> {
    outputs(args).next()
}

/// Returns the files that are written: report, then logits.
pub fn outputs(args: &Args) -> impl Iterator<Item = PathBuf> {
    args.out.as_deref().map(report_path).into_iter().chain(args.save_logits.clone())
}

pub fn report_path(dir: &Path) -> PathBuf {
    dir.join("report.json")
}
