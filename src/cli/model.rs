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
use crate::provenance::{Digests, InputFiles, OnDevice, Role};
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
    /// The inputs of its products will be summed, which takes memory of a device.
    pub observed: bool,
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

/// Weights that are to be packed, where a device computes.
#[derive(Debug, thiserror::Error)]
#[error("--weights packed does nothing on {device}: weights are copied to its memory as they are stored")]
struct NotPacked {
    device: String,
}

impl Diagnostic for NotPacked {
    fn hint(&self) -> Option<String> {
        Some("leave --weights out, or use --device cpu".into())
    }
}

/// Returns why weights are not packed as they should be on a device, if that was said. Mapped they are in any case.
fn not_packed(weights: WeightsArg, device: &Device) -> Option<NotPacked> {
    matches!(weights, WeightsArg::Packed).then(|| NotPacked { device: device.facts().name.clone() })
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
            "a quantized GGUF of the model needs less, or where the command has it a smaller --batch-tokens; --device cpu uses the machine's memory"
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

    /// Returns whether a device has room for both models, of which neither is there yet, with batches and texts of that length; of the
    /// CPU, always.
    ///
    /// Errors if the device is lost.
    pub fn has_room_beside(
        &self,
        other: &LoadedModel,
        batch_tokens: Option<u32>,
        text_len: usize,
    ) -> Result<bool, Failure> {
        let Some(device) = &self.device else { return Ok(true) };
        #[cfg(gpu)]
        {
            let batch_tokens = device_batch(batch_tokens);
            // slabs of pages grow to twice of what is taken
            let n_cached = 2 * batch_tokens.max(text_len);
            let bytes = |model: &LoadedModel| device_bytes(&model.decoder, batch_tokens, n_cached);
            let (available, _) = device.memory()?;
            // a twentieth is for what is not counted: what cuBLAS works in, and gaps
            Ok(bytes(self) + bytes(other) <= available - available / 20)
        }
        #[cfg(not(gpu))]
        {
            let _ = (other, batch_tokens, text_len);
            match **device {}
        }
    }

    /// Returns what a second model is computed on, so that the two can be compared: the same, and nothing else.
    pub fn shared(&self) -> Shared {
        Shared { device: self.device.clone(), is_auto: false }
    }

    /// Returns the device that computes, in which precision and with which versions; nothing for the CPU.
    pub fn on_device(&self) -> Option<report::Device> {
        let device = self.device.as_ref()?;
        #[cfg(gpu)]
        {
            let OnDevice { name, driver, cublas, .. } = super::device::recorded(device);
            let precision = crate::model::device::Precision::of_decoder(&self.decoder).name();
            Some(report::Device { name, precision, driver, cublas })
        }
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

impl From<report::Device> for OnDevice {
    fn from(report::Device { name, precision, driver, cublas }: report::Device) -> OnDevice {
        OnDevice { name, precision: Some(precision.to_owned()), driver, cublas }
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
        if let Some(error) = not_packed(args.weights, device).filter(|_| !args.on.is_auto) {
            return Err(error.into());
        }
        let packing = std::mem::replace(&mut options.residence, Residence::Mapped);
        let decoder = Decoder::open(path, options)?;
        let Err(obstacle) = fits_device(&decoder, device, args) else {
            if let Some(unused) = not_packed(args.weights, device).filter(|_| !args.quiet) {
                term::say(&format!("note: {unused}"));
            }
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
fn fits_device(decoder: &Decoder, device: &Device, args: &ModelArgs<'_>) -> Result<(), Failure> {
    #[cfg(gpu)]
    {
        crate::model::device::check(decoder)?;
        let batch_tokens = device_batch(args.batch_tokens);
        let mut needed = device_bytes(decoder, batch_tokens, batch_tokens.min(decoder.context_length()));
        if args.observed {
            needed += crate::model::device::sums_bytes(&crate::model::observe::sites(decoder.config()));
        }
        let (available, _) = device.memory()?;
        if needed > available {
            return Err(TooLarge { needed, available }.into());
        }
        Ok(())
    }
    #[cfg(not(gpu))]
    {
        let _ = (decoder, args.batch_tokens, args.observed);
        match *device {}
    }
}

/// Returns how many tokens a device computes at once.
#[cfg(gpu)]
fn device_batch(batch_tokens: Option<u32>) -> usize {
    batch_tokens.map_or(crate::eval::DEVICE_BATCH_TOKENS, |n| n as usize)
}

/// Returns the bytes that a model takes on a device with batches of that many tokens and keys and values of `n_cached` positions.
#[cfg(gpu)]
fn device_bytes(decoder: &Decoder, batch_tokens: usize, n_cached: usize) -> u64 {
    crate::model::device::memory(decoder, batch_tokens, n_cached)
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

    fn open(
        (is_auto, memory_bytes): (bool, u64),
        compute: ComputeMode,
        weights: WeightsArg,
        observed: bool,
    ) -> Result<LoadedModel, Failure> {
        let model = crate::testing::root().join("tests/golden/convert/Qwen3-0.6B").display().to_string();
        let device = Device::host(Options { memory_bytes, ..Options::default() });
        LoadedModel::open(&ModelArgs {
            model: &model,
            offline: true,
            adapter: None,
            compute,
            context: None,
            threads: Some(1),
            isa: None,
            weights,
            on: &Shared { device: Some(Arc::new(device)), is_auto },
            batch_tokens: Some(64),
            observed,
            quiet: true,
            digests: false,
        })
    }

    #[test]
    fn packing_is_refused_where_a_device_was_named_and_left_to_the_cpu_else() {
        let open =
            |is_auto, memory_bytes, weights| open((is_auto, memory_bytes), ComputeMode::Auto, weights, false);
        let refused = open(false, 8 << 30, WeightsArg::Packed).err().unwrap();
        assert_eq!(refused.exit_code(), 2);
        assert_eq!(
            refused.to_string(),
            "error: --weights packed does nothing on the host's stand-in: weights are copied to its memory as they are stored\nhint: leave --weights out, or use --device cpu"
        );
        for weights in [WeightsArg::Auto, WeightsArg::Mapped] {
            assert!(open(false, 8 << 30, weights).unwrap().on_device().is_some());
        }
        // a device that nobody named computes all the same, and says so; one without room leaves them to the CPU, which packs them
        assert!(open(true, 8 << 30, WeightsArg::Packed).unwrap().on_device().is_some());
        assert!(open(true, 50_000, WeightsArg::Packed).unwrap().on_device().is_none());
    }

    #[test]
    fn what_a_device_that_was_not_named_cannot_take_is_left_to_the_cpu() {
        let on_device =
            open((true, 8 << 30), ComputeMode::Auto, WeightsArg::Auto, false).unwrap().on_device();
        assert!(on_device.is_some_and(|device| device.precision == "bf16"));
        for (memory_bytes, compute, why) in [
            (8 << 30, ComputeMode::Int8, "--compute int8: not on a GPU yet"),
            (50_000, ComputeMode::F32, "the model takes about"),
        ] {
            let on_cpu = open((true, memory_bytes), compute, WeightsArg::Auto, false).unwrap();
            assert!(on_cpu.on_device().is_none());
            assert!(matches!(on_cpu.computer().unwrap(), Computer::Cpu(_)));
            let refused = open((false, memory_bytes), compute, WeightsArg::Auto, false).err().unwrap();
            let said = refused.to_string();
            assert!(said.contains(why) && said.contains("hint: ") && refused.exit_code() == 2, "{said}");
        }
    }

    #[test]
    fn sums_of_inputs_count_among_the_memory_of_a_device() {
        use crate::model::{device, observe};
        let opened = open((false, 8 << 30), ComputeMode::F32, WeightsArg::Auto, true).unwrap();
        let needed = device::memory(&opened.decoder, 64, 64);
        let sums = device::sums_bytes(&observe::sites(opened.decoder.config()));
        assert!(sums > 1000, "{sums}");
        for (memory_bytes, observed, fits) in [
            (needed, false, true),
            (needed, true, false),
            (needed + sums - 1, true, false),
            (needed + sums, true, true),
        ] {
            let opened = open((false, memory_bytes), ComputeMode::F32, WeightsArg::Auto, observed);
            assert_eq!(opened.is_ok(), fits, "{memory_bytes} {observed}");
        }
    }
}
