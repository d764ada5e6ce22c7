//! Opens the model that a command runs.

use std::path::{Path, PathBuf};

use super::source::model_path;
use super::{machine, term};
use crate::error::{Diagnostic, Failure};
use crate::kernel::ComputeMode;
use crate::model::{Decoder, LoadOptions, Residence};
use crate::provenance;
use crate::tensor;
use crate::text::Tokenizer;

/// Where weights stay while a command runs.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum WeightsArg {
    Auto,
    Packed,
    Mapped,
}

impl From<WeightsArg> for Residence {
    fn from(arg: WeightsArg) -> Self {
        match arg {
            WeightsArg::Auto => Residence::Auto,
            WeightsArg::Packed => Residence::Packed,
            WeightsArg::Mapped => Residence::Mapped,
        }
    }
}

/// What a command's arguments say of the model to run.
pub struct ModelArgs<'a> {
    /// A path or a hub id.
    pub model: &'a str,
    pub offline: bool,
    pub adapter: Option<&'a Path>,
    pub compute: ComputeMode,
    /// Most positions of a sequence; the model's own context if `None`.
    pub context: Option<u32>,
    pub threads: Option<u16>,
    pub isa: Option<&'a str>,
    pub weights: WeightsArg,
    /// Keep notes about the tokenizer back.
    pub quiet: bool,
}

/// Weights alone, where their config.json and tokenizer are needed as well.
#[derive(Debug, thiserror::Error)]
#[error("{path}: holds weights alone: no sizes, no tokenizer")]
struct WeightsAlone {
    path: PathBuf,
}

impl Diagnostic for WeightsAlone {
    fn hint(&self) -> Option<String> {
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(format!("give the directory, with config.json and the tokenizer in it: {}", dir.display()))
    }
}

/// A model and its tokenizer.
pub struct LoadedModel {
    pub path: PathBuf,
    pub adapter: Option<PathBuf>,
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
}

impl LoadedModel {
    /// Opens the model and checks that its tokenizer fits it; what the user should know goes to stderr.
    pub fn open(args: &ModelArgs<'_>) -> Result<Self, Failure> {
        let path = model_path(args.model, args.offline)?;
        if path.is_file() && path.extension().is_some_and(|extension| extension == "safetensors") {
            return Err(WeightsAlone { path }.into());
        }
        let options = LoadOptions {
            mode: args.compute,
            isa: machine::isa(args.isa)?,
            threads: machine::threads(args.threads),
            adapter: args.adapter.map(Path::to_owned),
            context: args.context.map(|n| n as usize),
            residence: args.weights.into(),
        };
        let tokenizer = Tokenizer::open(&path)?;
        let decoder = Decoder::open(&path, &options)?;
        let padding = tokenizer.check_vocab(decoder.config().vocab_size, &path)?;
        if !args.quiet {
            let stretched = stretched(args.context, decoder.config().context_length);
            for note in tokenizer.notes().iter().chain(&padding).chain(&stretched) {
                term::say(&format!("note: {}", term::printable(note)));
            }
        }
        Ok(LoadedModel { path, adapter: options.adapter, decoder, tokenizer })
    }

    /// Returns the SHA-256 of the model's files: config.json (of a directory), then the weights.
    pub fn digest(&self) -> Result<String, Failure> {
        digest_of(&self.path)
    }

    /// Returns the SHA-256 of the adapter's files, if there is one.
    pub fn adapter_digest(&self) -> Result<Option<String>, Failure> {
        self.adapter
            .as_deref()
            .map(|path| match path.is_dir() {
                true => Ok(provenance::sha256_of_files(&[
                    path.join("adapter_config.json"),
                    path.join("adapter_model.safetensors"),
                ])?),
                false => Ok(provenance::sha256_of_file(path)?),
            })
            .transpose()
    }
}

/// Returns what to say if sequences may get longer than those the model learned from.
fn stretched(context: Option<u32>, trained: usize) -> Option<String> {
    context.filter(|context| *context as usize > trained).map(|context| {
        format!("--context {context} is more than the {trained} tokens the model was made for: expect worse text beyond")
    })
}

fn digest_of(path: &Path) -> Result<String, Failure> {
    let source = tensor::open(path)?.into_source();
    let mut files = Vec::from_iter(path.is_dir().then(|| path.join("config.json")));
    files.extend_from_slice(source.files());
    Ok(provenance::sha256_of_files(&files)?)
}
