//! Opens the model that a command runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::device::{Shared, on_cpu};
use super::source::model_path;
use super::{machine, term};
use crate::cuda::Device;
use crate::error::{Diagnostic, Failure};
use crate::eval::{Computer, report};
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
    pub on: &'a Shared,
    /// Tokens computed at once, if they were said: memory of a device depends on it.
    pub batch_tokens: Option<u32>,
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

/// An adapter where a model is wanted.
#[derive(Debug, thiserror::Error)]
#[error("{path}: holds an adapter, and no model")]
struct AdapterAlone {
    path: PathBuf,
}

impl Diagnostic for AdapterAlone {
    fn hint(&self) -> Option<String> {
        Some(format!(
            "give the model that it was trained on, and --adapter {}; `lctl merge` makes one model of both",
            self.path.display()
        ))
    }
}

/// A model that a device has no room for.
#[cfg(gpu)]
#[derive(Debug, thiserror::Error)]
#[error(
    "the model takes about {} of memory of the device, {} are free",
    term::bytes(*.needed), term::bytes(*.available)
)]
struct TooLarge {
    needed: u64,
    available: u64,
}

#[cfg(gpu)]
impl Diagnostic for TooLarge {
    fn hint(&self) -> Option<String> {
        Some(
            "a quantized GGUF of the model, or a smaller --batch-tokens, needs less; --device cpu uses the machine's memory"
                .into(),
        )
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
    /// What computes; the CPU if there is none.
    device: Option<Arc<Device>>,
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
        if path.join("adapter_config.json").is_file() && !path.join("config.json").exists() {
            return Err(AdapterAlone { path }.into());
        }
        let mut options = LoadOptions {
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
        let (decoder, device) = open_on(&path, &mut options, args)?;
        let padding = tokenizer.check_vocab(decoder.config().vocab_size, &path)?;
        if !args.quiet {
            let stretched = stretched(args.context, decoder.config().context_length);
            for note in tokenizer.notes().iter().chain(&padding).chain(&stretched) {
                term::say(&format!("note: {}", term::printable(note)));
            }
        }
        let (given, adapter, inputs) = (args.model.to_owned(), options.adapter, OnceLock::new());
        let digests = Mutex::new(digests);
        Ok(LoadedModel { given, path, adapter, decoder, tokenizer, device, digests, inputs })
    }

    /// Returns the model where it is computed; of a device, its weights are copied now.
    ///
    /// Errors if the device has no room, or is lost.
    pub fn computer(&self) -> Result<Computer<'_>, Failure> {
        let Some(device) = &self.device else { return Ok(Computer::Cpu(&self.decoder)) };
        #[cfg(gpu)]
        return Ok(Computer::Device(crate::model::device::DeviceDecoder::new(&self.decoder, device)?));
        #[cfg(not(gpu))]
        match **device {}
    }

    /// Returns what a second model is computed on, so that the two can be compared: the same, and nothing else.
    pub fn shared(&self) -> Shared {
        Shared { device: self.device.clone(), is_auto: false }
    }

    /// Returns the device that computes, and in which precision; nothing for the CPU.
    pub fn on_device(&self) -> Option<report::Device> {
        let device = self.device.as_ref()?;
        #[cfg(gpu)]
        return Some(report::Device {
            name: device.facts().name.clone(),
            precision: crate::model::device::Precision::of_decoder(&self.decoder).name(),
        });
        #[cfg(not(gpu))]
        match **device {}
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

/// Opens the weights, and returns the device that computes with them: they stay mapped for it.
///
/// Errors as [`Decoder::open`], and if the device that was named cannot take the model; a device that was not named leaves it to the CPU.
fn open_on(
    path: &Path,
    options: &mut LoadOptions,
    args: &ModelArgs<'_>,
) -> Result<(Decoder, Option<Arc<Device>>), Failure> {
    if let Some(device) = &args.on.device {
        let packing = std::mem::replace(&mut options.residence, Residence::Mapped);
        let decoder = Decoder::open(path, options)?;
        let Err(obstacle) = fits_device(&decoder, device, args.batch_tokens) else {
            return Ok((decoder, Some(device.clone())));
        };
        if !args.on.is_auto {
            return Err(obstacle);
        }
        if !args.quiet {
            let why = obstacle.to_string();
            let first = why.lines().next().unwrap_or_default();
            term::say(&format!("note: {}", on_cpu(&first.trim_start_matches("error: "))));
        }
        options.residence = packing;
    }
    Ok((Decoder::open(path, options)?, None))
}

/// Errors if a device cannot compute with a model, or has no room for it.
fn fits_device(decoder: &Decoder, device: &Device, batch_tokens: Option<u32>) -> Result<(), Failure> {
    #[cfg(gpu)]
    {
        use crate::model::device as on_device;
        on_device::check(decoder)?;
        let batch_tokens = batch_tokens.map_or(crate::eval::DEVICE_BATCH_TOKENS, |n| n as usize);
        let needed = on_device::memory(decoder, batch_tokens, batch_tokens.min(decoder.context_length()));
        let (available, _) = device.memory()?;
        if needed > available {
            return Err(TooLarge { needed, available }.into());
        }
        Ok(())
    }
    #[cfg(not(gpu))]
    {
        let _ = (decoder, batch_tokens);
        match *device {}
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

#[cfg(all(test, feature = "cuda-host"))]
mod tests {
    use super::*;
    use crate::cuda::host::Options;

    #[test]
    fn what_a_device_that_was_not_named_cannot_take_is_left_to_the_cpu() {
        let model = format!("{}/tests/golden/convert/Qwen3-0.6B", env!("CARGO_MANIFEST_DIR"));
        let open = |is_auto, memory_bytes, compute| {
            let device = Device::host(Options { memory_bytes, ..Options::default() });
            LoadedModel::open(&ModelArgs {
                model: &model,
                offline: true,
                adapter: None,
                compute,
                context: None,
                threads: Some(1),
                isa: None,
                weights: WeightsArg::Auto,
                on: &Shared { device: Some(Arc::new(device)), is_auto },
                batch_tokens: Some(64),
                quiet: true,
                digests: false,
            })
        };
        let on_device = open(true, 8 << 30, ComputeMode::Auto).unwrap().on_device();
        assert!(on_device.is_some_and(|device| device.precision == "bf16"));
        for (memory_bytes, compute, why) in [
            (8 << 30, ComputeMode::Int8, "--compute int8: not on a GPU yet"),
            (50_000, ComputeMode::F32, "the model takes about"),
        ] {
            let on_cpu = open(true, memory_bytes, compute).unwrap();
            assert!(on_cpu.on_device().is_none());
            assert!(matches!(on_cpu.computer().unwrap(), Computer::Cpu(_)));
            let refused = open(false, memory_bytes, compute).err().unwrap();
            let said = refused.to_string();
            assert!(said.contains(why) && said.contains("hint: ") && refused.exit_code() == 2, "{said}");
        }
    }
}
