//! `lctl merge`: a model with an adapter added to its weights, as a checkpoint or quantized.

mod job;

use std::path::{Path, PathBuf};

use super::quantize::{Progress, QuantizeJob, interrupt_flag};
use super::source::model_path;
use super::{machine, term};
use crate::error::{Diagnostic, Failure};
use crate::kernel::Isa;
use crate::model::export::{self, Changes, Stored};
use crate::provenance::{self, Draft, QuantizeSettings, Started};
use crate::quantize::{self, Control};
use crate::tensor;

pub use job::MergeJob;

const AFTER_HELP: &str = "\
Examples:
  lctl merge ./Llama-3.2-1B runs/a/adapter -o llama-soc
  lctl merge ./Llama-3.2-1B runs/a/adapter --type Q4_K_M -o llama-soc-q4.gguf";

/// Add an adapter to a model's weights
///
/// Weights are decoded, the adapter's product is added in f32, and the sum is rounded once: to the type that a weight had, or to
/// that of --type. Tokenizer, chat template and settings are kept. With --type the whole model lies beside the output first, what
/// changes in F32: there must be room for both.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// A checkpoint's directory, a GGUF of any type (of a split one the first shard) or a hub id ORG/NAME[@REVISION]
    #[arg(value_name = "BASE")]
    base: String,

    /// A PEFT directory: LoRA, rsLoRA or DoRA
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,

    /// The directory to write; of a GGUF, or with --type, the GGUF file
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,

    /// Quantize what comes out, e.g. to Q4_K_M, Q8_0, F16, BF16
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    quantization: Option<String>,

    /// Replace the output if it exists: a file, or the directory of a model with its weights
    #[arg(short, long)]
    force: bool,

    /// Threads; the output does not depend on it [default: one per core]
    #[arg(long, value_name = "N", value_parser = crate::cli::machine::thread_count)]
    threads: Option<u16>,

    /// Instruction set: portable, avx2, avx512; the output does not depend on it [default: LCTL_ISA, or the
    /// best there is]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,

    /// Take a hub id from the cache only, never from the network
    #[arg(long)]
    offline: bool,

    /// Do not write OUTPUT.manifest.json, which says what the output was made of (docs/provenance.md)
    #[arg(long)]
    no_manifest: bool,

    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// A directory that would be called as a file is.
#[derive(Debug, thiserror::Error)]
#[error("{path}: a checkpoint is merged into a directory, and this is the name of a GGUF")]
struct NameOfGguf {
    path: PathBuf,
}

impl Diagnostic for NameOfGguf {
    fn hint(&self) -> Option<String> {
        Some("--type F16 (or another type) makes a GGUF; for a directory, give -o another name".into())
    }
}

/// How a model is quantized; results do not depend on it.
pub struct How<'a> {
    pub threads: Option<u16>,
    pub isa: Option<&'a str>,
    pub quiet: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let started = Started::now();
    if args.output.symlink_metadata().is_ok() && !args.force {
        return Err(export::Error::Exists { path: args.output.clone() }.into());
    }
    let base = model_path(&args.base, args.offline, args.quiet)?;
    let isa = machine::isa(args.isa.as_deref())?;
    let job = MergeJob::new(&args.base, base, &args.adapter, args.quantization.as_deref())?;
    check_output(args, &job)?;
    let changes = job.changes(isa)?;
    // from here on a signal takes away what is not whole
    interrupt_flag();
    let draft = match args.no_manifest {
        true => None,
        false => Some(begin_manifest(args, &job, started)?),
    };
    let how = How { threads: args.threads, isa: args.isa.as_deref(), quiet: args.quiet };
    job.write(&args.output, &changes, &how)?;
    if args.no_manifest && args.force {
        provenance::remove_manifest(&args.output)?;
    }
    if let Some(draft) = draft
        && let Err(failure) = finish_manifest(args, &job, draft, isa)
    {
        let interrupted = tensor::check_interrupted(&args.output);
        if interrupted.is_err() {
            remove(&args.output)?;
        }
        return Err(interrupted.err().map_or(failure, Into::into));
    }
    if !args.quiet {
        term::say(&format!("wrote {}", term::printable(&args.output.display().to_string())));
    }
    Ok(())
}

fn begin_manifest(args: &Args, job: &MergeJob, started: Started) -> Result<Draft, Failure> {
    if let Some(parent) = args.output.parent().filter(|_| !job.makes_file()) {
        // as for the directory itself
        std::fs::create_dir_all(parent).map_err(export::Error::io(&args.output, "write"))?;
    }
    let n_threads = machine::threads(args.threads);
    Ok(Draft::begin(&args.output, args.force, job.record(), job.inputs()?, started, n_threads)?)
}

fn finish_manifest(args: &Args, job: &MergeJob, draft: Draft, isa: Isa) -> Result<(), Failure> {
    let notes = draft.finish(provenance::Finished {
        outputs: job.outputs(&args.output)?,
        samples: None,
        licences: job.licences(),
        threads: machine::threads(args.threads),
        isa: isa.name(),
    })?;
    for note in notes.iter().filter(|_| !args.quiet) {
        term::say(&format!("note: {}", term::printable(note)));
    }
    Ok(())
}

/// Takes an output away.
fn remove(output: &Path) -> Result<(), export::Error> {
    let removed = match output.is_dir() {
        true => tensor::remove_dir_whole(output),
        false => std::fs::remove_file(output),
    };
    removed.map_err(export::Error::io(output, "remove"))
}

/// Errors on an output that is a directory where a file is wanted, or lies in none; on a directory that would be called as a GGUF
/// is; and on one there already that is no model's directory and no file, or holds what is read.
fn check_output(args: &Args, job: &MergeJob) -> Result<(), Failure> {
    let output = &args.output;
    let path = output.clone();
    if job.makes_file() {
        let dir = output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if output.is_dir() {
            return Err(tensor::Error::OutputIsDirectory { path }.into());
        }
        if !dir.is_dir() {
            return Err(tensor::Error::NoOutputDirectory { path, dir: dir.to_owned() }.into());
        }
    } else if output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return Err(NameOfGguf { path }.into());
    }
    // a link that leads nowhere holds nothing
    let Ok(metadata) = output.metadata() else { return Ok(()) };
    if !metadata.is_dir() && !metadata.is_file() {
        return Err(tensor::Error::OutputIsSpecial { path }.into());
    }
    let whole = output.canonicalize().map_err(export::Error::io(output, "read"))?;
    for input in [job.base.as_path(), job.adapter.as_path()] {
        // one that is missing is an error where it is opened
        if input.canonicalize().is_ok_and(|input| input.starts_with(&whole)) {
            return Err(export::Error::HoldsInput { path, input: input.to_owned() }.into());
        }
    }
    match metadata.is_dir() {
        true => Ok(check_replaced(output)?),
        false => Ok(()),
    }
}

/// Errors on a directory that holds something, and no model: config.json and weights.
fn check_replaced(dir: &Path) -> Result<(), export::Error> {
    let refused = |lacks| Err(export::Error::NotReplaced { path: dir.to_owned(), lacks });
    if dir.read_dir().map_err(export::Error::io(dir, "read"))?.next().is_none() {
        return Ok(());
    }
    if !dir.join("config.json").is_file() {
        return refused("config.json");
    }
    let has_index = dir.join("model.safetensors.index.json").is_file();
    match has_index || !export::tensor_files(dir)?.is_empty() {
        true => Ok(()),
        false => refused(".safetensors beside its config.json"),
    }
}

/// Merges into a checkpoint's directory, or into a GGUF: what comes out is of the same kind.
///
/// `stored` is the type of what changes.
pub fn write_merged(
    path: &Path,
    base: &Path,
    changes: &Changes,
    stored: Stored,
    isa: Isa,
) -> Result<(), export::Error> {
    match is_gguf(base) {
        true => export::write_merged_gguf(path, base, changes, stored, isa),
        false => export::write_merged(path, base, changes, stored, isa),
    }
}

/// Returns true if the model at a path is a GGUF: a file.
pub fn is_gguf(base: &Path) -> bool {
    base.is_file()
}

/// Returns the quantization of a model: what a GGUF has in blocks and no change touched may get another type.
fn quantization_of(model: &Path, quantization: &str) -> QuantizeJob {
    QuantizeJob {
        settings: QuantizeSettings {
            allow_requantize: is_gguf(model),
            ..QuantizeSettings::new(quantization)
        },
        given: model.display().to_string(),
        model: model.to_owned(),
        importance: None,
    }
}

/// Quantizes a merged model; a file that is there is replaced. What the user should know goes to stderr, unless `quiet`.
///
/// A value that the type cannot hold is an error of the output: the merged model goes.
pub fn quantize(model: &Path, quantization: &str, output: &Path, how: &How<'_>) -> Result<(), Failure> {
    let job = quantization_of(model, quantization);
    let prepared = job.prepare(false)?;
    if !how.quiet {
        prepared.notices.iter().for_each(|notice| term::say(&format!("note: {}", term::printable(notice))));
    }
    let n_weights = prepared.rows().map(|row| row.n_weights).sum();
    let progress = Progress::new(n_weights, how.quiet);
    let advance = |n_weights| progress.advance(n_weights);
    let interrupted = interrupt_flag();
    let control = Control { interrupted: &interrupted, progress: &advance };
    let mut place = job.output(output, machine::isa(how.isa)?, machine::threads(how.threads));
    place.force = true;
    let outcome = prepared.execute(&place, &control);
    progress.finish();
    outcome.map_err(|mut error| {
        if let quantize::Error::NonFinite { path, .. } | quantize::Error::Overflow { path, .. } = &mut error {
            *path = output.to_owned();
        }
        error
    })?;
    Ok(())
}
