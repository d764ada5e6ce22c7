//! `lctl merge`: a model with an adapter added to its weights, as a checkpoint or quantized.

use std::path::{Path, PathBuf};

use super::quantize::{Progress, QuantizeJob, interrupt_flag};
use super::source::model_path;
use super::{machine, term};
use crate::error::{Diagnostic, Failure};
use crate::kernel::Isa;
use crate::model::export::{self, Changes, Stored};
use crate::provenance::QuantizeSettings;
use crate::quantize::{Control, Recipe};
use crate::tensor::{self, StagedDir};

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

    /// Replace the output if it exists: a file, or the directory of a model
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
    if args.output.symlink_metadata().is_ok() && !args.force {
        return Err(export::Error::Exists { path: args.output.clone() }.into());
    }
    let base = model_path(&args.base, args.offline, args.quiet)?;
    let isa = machine::isa(args.isa.as_deref())?;
    args.quantization.as_deref().map(Recipe::by_name).transpose()?;
    check_output(args, &base)?;
    let changes = Changes::open(&args.adapter, isa)?;
    // from here on a signal takes away what is not whole
    interrupt_flag();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(machine::threads(args.threads)).build();
    let pool =
        pool.map_err(std::io::Error::other).map_err(export::Error::io(&args.output, "start threads for"))?;
    pool.install(|| write(args, &base, &changes, isa))?;
    if !args.quiet {
        term::say(&format!("wrote {}", term::printable(&args.output.display().to_string())));
    }
    Ok(())
}

fn write(args: &Args, base: &Path, changes: &Changes, isa: Isa) -> Result<(), Failure> {
    match &args.quantization {
        None => write_merged(&args.output, base, changes, Stored::Own, isa)?,
        Some(quantization) => {
            let io = export::Error::io(&args.output, "write");
            let work = StagedDir::create_output(&args.output).map_err(io)?;
            // general.name may come from a directory's name
            let name =
                base.canonicalize().ok().and_then(|base| base.file_name()?.to_str().map(str::to_owned));
            let merged = work.file(name.as_deref().unwrap_or("merged"));
            // an interrupt is named by what the user asked for
            let interrupted = |error: export::Error| {
                tensor::check_interrupted(&args.output).err().map_or(error, Into::into)
            };
            write_merged(&merged, base, changes, Stored::F32, isa).map_err(interrupted)?;
            let how = How { threads: args.threads, isa: args.isa.as_deref(), quiet: args.quiet };
            quantize(&merged, quantization, &args.output, &how)?;
        }
    }
    Ok(())
}

/// Errors on an output that is a directory where a file is wanted, or lies in none; on a directory that would be called as a GGUF
/// is; and on one there already that is no model's directory, or holds what is read.
fn check_output(args: &Args, base: &Path) -> Result<(), Failure> {
    let output = &args.output;
    if is_gguf(base) || args.quantization.is_some() {
        let dir = output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (path, dir) = (output.clone(), dir.to_owned());
        if output.is_dir() {
            return Err(tensor::Error::OutputIsDirectory { path }.into());
        }
        if !dir.is_dir() {
            return Err(tensor::Error::NoOutputDirectory { path, dir }.into());
        }
    } else if output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return Err(NameOfGguf { path: output.clone() }.into());
    }
    let io = || export::Error::io(output, "read");
    if output.is_dir() && !output.join("config.json").is_file() {
        let is_empty = output.read_dir().map_err(io())?.next().is_none();
        if !is_empty {
            return Err(export::Error::NotReplaced { path: output.clone() }.into());
        }
    }
    // a link that leads nowhere holds nothing
    if !output.exists() {
        return Ok(());
    }
    let whole = output.canonicalize().map_err(io())?;
    for input in [base, args.adapter.as_path()] {
        // one that is missing is an error where it is opened
        if input.canonicalize().is_ok_and(|input| input.starts_with(&whole)) {
            return Err(export::Error::HoldsInput { path: output.clone(), input: input.to_owned() }.into());
        }
    }
    Ok(())
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

/// Quantizes a merged model; a file that is there is replaced. What the user should know goes to stderr, unless `quiet`.
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
    outcome?;
    Ok(())
}
