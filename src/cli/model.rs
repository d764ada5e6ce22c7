//! Opens the model that a command runs.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::source::model_path;
use super::{machine, term};
use crate::error::{Diagnostic, Failure};
use crate::kernel::ComputeMode;
use crate::model::{Decoder, LoadOptions, Residence};
use crate::provenance::{Digests, InputFiles, Role};
use crate::tensor;
use crate::text::Tokenizer;

/// Where weights stay while a command runs.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum WeightsArg {
    #[default]
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
    /// The digests of its files will be asked for.
    pub digests: bool,
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
    /// As the user wrote it.
    given: String,
    pub path: PathBuf,
    pub adapter: Option<PathBuf>,
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
    /// The same files, while they are read.
    digests: Mutex<Option<Digests>>,
    inputs: OnceLock<Vec<InputFiles>>,
}

impl LoadedModel {
    /// Opens the model and checks that its tokenizer fits it; what the user should know goes to stderr.
    pub fn open(args: &ModelArgs<'_>) -> Result<Self, Failure> {
        let path = model_path(args.model, args.offline, args.quiet)?;
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
        let digests = match args.digests {
            true => Some(begin_digests(args, &path, options.threads)?),
            false => None,
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
        let (given, adapter, inputs) = (args.model.to_owned(), options.adapter, OnceLock::new());
        let digests = Mutex::new(digests);
        Ok(LoadedModel { given, path, adapter, decoder, tokenizer, digests, inputs })
    }

    /// Returns the files of model and adapter with their digests, which are computed once.
    pub fn inputs(&self) -> Result<&[InputFiles], Failure> {
        if let Some(inputs) = self.inputs.get() {
            return Ok(inputs);
        }
        let mut inputs = files_of(&self.given, &self.path, self.adapter.as_deref())?;
        let digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(digests) = digests {
            let digests = digests.finish()?;
            for file in inputs.iter_mut().flat_map(|input| &mut input.files) {
                file.sha256 = digests.get(&file.path).cloned();
            }
        }
        let inputs = inputs.into_iter().map(InputFiles::with_digests).collect::<Result<Vec<_>, _>>()?;
        Ok(self.inputs.get_or_init(|| inputs))
    }

    /// Returns the SHA-256 of the model's files: config.json (of a directory), then the weights.
    pub fn digest(&self) -> Result<String, Failure> {
        Ok(self.digest_of(Role::Model)?.unwrap_or_default())
    }

    /// Returns the SHA-256 of the adapter's files, if there is one.
    pub fn adapter_digest(&self) -> Result<Option<String>, Failure> {
        self.digest_of(Role::Adapter)
    }

    fn digest_of(&self, role: Role) -> Result<Option<String>, Failure> {
        Ok(self.inputs()?.iter().find(|input| input.role == role).map(InputFiles::sha256))
    }
}

fn files_of(given: &str, path: &Path, adapter: Option<&Path>) -> Result<Vec<InputFiles>, tensor::Error> {
    let mut inputs = InputFiles::of_model(given, path, [Role::Model, Role::ModelFiles])?;
    inputs.extend(adapter.map(InputFiles::of_adapter));
    Ok(inputs)
}

/// Digests the files while the model is loaded, which reads them too: they come from the disk once.
fn begin_digests(args: &ModelArgs, path: &Path, n_threads: usize) -> Result<Digests, tensor::Error> {
    let inputs = files_of(args.model, path, args.adapter)?;
    let files = inputs.into_iter().flat_map(|input| input.files).map(|file| file.path);
    Ok(Digests::begin(files.collect(), n_threads))
}

/// Returns what to say if sequences may get longer than those the model learned from.
fn stretched(context: Option<u32>, trained: usize) -> Option<String> {
    context.filter(|context| *context as usize > trained).map(|context| {
        format!("--context {context} is more than the {trained} tokens the model was made for: expect worse text beyond")
    })
}
