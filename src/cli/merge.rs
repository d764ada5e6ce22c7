//! `lctl merge`: a model with an adapter added to its weights, as a checkpoint or quantized.

use std::path::{Path, PathBuf};

use super::quantize::{Progress, QuantizeJob, interrupt_flag};
use super::source::model_path;
use super::{machine, term};
use crate::error::Failure;
use crate::kernel::Isa;
use crate::model::export::{self, Changes, Stored};
use crate::provenance::QuantizeSettings;
use crate::quantize::{Control, Recipe};

const AFTER_HELP: &str = "\
Examples:
  lctl merge ./Llama-3.2-1B runs/a/adapter -o llama-soc
  lctl merge ./Llama-3.2-1B runs/a/adapter --type Q4_K_M -o llama-soc-q4.gguf";

/// Add an adapter to a model's weights
///
/// Weights are decoded, the adapter's product is added in f32, and the sum is rounded once: to the type that a weight had, or to
/// that of --type. Tokenizer, chat template and settings are kept.
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

    /// Replace the output if it exists
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

    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// How a model is quantized; results do not depend on it.
pub struct How<'a> {
    pub threads: Option<u16>,
    pub isa: Option<&'a str>,
    pub quiet: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.output.symlink_metadata().is_ok() && !args.force {
        return Err(export::Error::Exists { path: args.output.clone() }.into());
    }
    let base = model_path(&args.base, args.offline)?;
    let isa = machine::isa(args.isa.as_deref())?;
    args.quantization.as_deref().map(Recipe::by_name).transpose()?;
    let changes = Changes::open(&args.adapter, isa)?;
    match &args.quantization {
        None => write_merged(&args.output, &base, &changes, Stored::Own, isa)?,
        Some(quantization) => {
            let parent = args.output.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            let work = tempfile::tempdir_in(parent).map_err(export::Error::io(parent, "write"))?;
            // general.name may come from a directory's name
            let name = base.canonicalize().ok().and_then(|base| Some(base.file_name()?.to_owned()));
            let merged = work.path().join(name.unwrap_or_else(|| "merged".into()));
            write_merged(&merged, &base, &changes, Stored::F32, isa)?;
            let how = How { threads: args.threads, isa: args.isa.as_deref(), quiet: args.quiet };
            quantize(&merged, quantization, &args.output, &how)?;
        }
    }
    if !args.quiet {
        term::say(&format!("wrote {}", term::printable(&args.output.display().to_string())));
    }
    Ok(())
}

/// Merges into a checkpoint's directory, or into a GGUF: what comes out is of the same kind.
///
/// `stored` is the type of what changes in a GGUF; in a checkpoint it has the one it had.
pub fn write_merged(
    path: &Path,
    base: &Path,
    changes: &Changes,
    stored: Stored,
    isa: Isa,
) -> Result<(), export::Error> {
    match is_gguf(base) {
        true => export::write_merged_gguf(path, base, changes, stored, isa),
        false => export::write_merged(path, base, changes, isa),
    }
}

/// Returns true if the model at a path is a GGUF: a file.
pub fn is_gguf(base: &Path) -> bool {
    base.is_file()
}

/// Quantizes a merged model; a file that is there is replaced.
///
/// What a GGUF has in blocks and no change touched may get another type.
pub fn quantize(model: &Path, quantization: &str, output: &Path, how: &How<'_>) -> Result<(), Failure> {
    let job = QuantizeJob {
        settings: QuantizeSettings {
            allow_requantize: is_gguf(model),
            ..QuantizeSettings::new(quantization)
        },
        given: model.display().to_string(),
        model: model.to_owned(),
        importance: None,
    };
    let prepared = job.prepare(false)?;
    let n_weights = prepared.rows().map(|row| row.n_weights).sum();
    let progress = Progress::new(n_weights, how.quiet);
    let advance = |n_weights| progress.advance(n_weights);
    let interrupted = interrupt_flag();
    let control = Control { interrupted: &interrupted, progress: &advance };
    let mut place = job.output(output, machine::isa(how.isa)?, machine::threads(how.threads));
    place.force = true;
    let outcome = prepared.execute(&place, &control);
    progress.finish();
    outcome?;
    Ok(())
}
