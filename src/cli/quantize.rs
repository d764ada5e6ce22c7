//! `lctl quantize`: arguments -> request -> plan -> run -> summary.

mod job;
mod options;
mod progress;
mod report;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::machine;
use super::source::model_path;
use super::term;
use crate::error::Failure;
use crate::provenance::{self, Content, Draft, OutputRole, Started};
use crate::quantize::{Control, Outcome, Output};
use crate::tensor::{WrittenFile, cleanup_partial_files};

pub use job::{ImportanceFile, QuantizeJob};
use options::OptionError;
pub use progress::Progress;
use report::{Finished, Report};

/// Turn a checkpoint into a quantized GGUF file
#[derive(clap::Args)]
#[command(after_long_help = options::after_help())]
pub struct Args {
    /// A checkpoint's directory, a .safetensors or .gguf file (of a split model the first shard), or a hub
    /// id ORG/NAME[@REVISION]
    #[arg(value_name = "MODEL")]
    model: String,

    /// What to make of it, e.g. Q4_K_M, Q8_0, F16; int4 is Q4_K_M, int8 is Q8_0
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    recipe: String,

    /// The file to write; its digest is printed at the end
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,

    /// Replace the output if it exists
    #[arg(short, long)]
    force: bool,

    /// Weigh errors by an importance matrix (GGUF or legacy .dat, from `lctl imatrix` or llama-imatrix)
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,

    /// Give tensors whose name the pattern finds this format, whatever the type says; repeatable, the first
    /// match counts
    #[arg(long, value_name = "REGEX=FORMAT")]
    tensor_type: Vec<String>,

    /// Format of output.weight (of the token embedding, if that is also the output)
    #[arg(long, value_name = "FORMAT", conflicts_with = "leave_output_tensor")]
    output_tensor_type: Option<String>,

    /// Format of the token embedding
    #[arg(long, value_name = "FORMAT")]
    token_embedding_type: Option<String>,

    /// Give all tensors the type's base format instead of mixing
    #[arg(long)]
    pure: bool,

    /// Leave output.weight as it is stored
    #[arg(long)]
    leave_output_tensor: bool,

    /// Quantize tensors that are quantized already
    #[arg(long)]
    allow_requantize: bool,

    /// Set a metadata key; TYPE is int, float, bool or str; repeatable
    #[arg(long, value_name = "KEY=TYPE:VALUE")]
    override_kv: Vec<String>,

    /// Take a hub id from the cache only, never from the network
    #[arg(long)]
    offline: bool,

    /// Name the pre-tokenizer instead of deciding it from tokenizer.json
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,

    /// Write shards of at most this much tensor data, e.g. 2G or 500M (powers of 1000) or 2Gi
    #[arg(long, value_name = "SIZE")]
    split_max_size: Option<String>,

    /// Show what would be done, tensor by tensor, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Threads; the output does not depend on it [default: one per core]
    #[arg(long, value_name = "N", value_parser = crate::cli::machine::thread_count)]
    threads: Option<u16>,

    /// Instruction set: portable, avx2, avx512; the output does not depend on it [default: LCTL_ISA, or the
    /// best there is]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,

    /// Do not measure what quantizing changed
    #[arg(long)]
    no_stats: bool,

    /// Do not write FILE.manifest.json, which says what the output was made of (docs/provenance.md)
    #[arg(long)]
    no_manifest: bool,

    /// Print the result as JSON (docs/quantize.md)
    #[arg(long)]
    json: bool,

    /// Print nothing but errors, and JSON if asked for
    #[arg(short, long)]
    quiet: bool,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let started = Started::now();
    let clock = Instant::now();
    let settings = options::settings(&args)?;
    let isa = machine::isa(args.isa.as_deref())?;
    let n_threads = machine::threads(args.threads);
    let importance = args.imatrix.clone().map(|path| ImportanceFile { named: path.clone(), path });
    let model = model_path(&args.model, args.offline, args.quiet)?;
    let job = QuantizeJob { settings, given: args.model.clone(), model, importance };
    let prepared = job.prepare(args.dry_run)?;
    if !args.quiet {
        prepared.notices.iter().for_each(|notice| term::say(&format!("note: {}", term::printable(notice))));
    }
    let report = Report::new(&prepared);
    if args.dry_run {
        return report::print(&report, None, args.json, args.quiet);
    }
    let path = args.output.as_deref().ok_or(OptionError::NoOutput)?;
    let output = Output { force: args.force, with_stats: !args.no_stats, ..job.output(path, isa, n_threads) };
    prepared.check(&output)?;
    let draft = match args.no_manifest {
        true => None,
        false => {
            let (job, inputs) = (job.record(&prepared), job.inputs()?);
            Some(Draft::begin(path, args.force, job, inputs, started, n_threads)?)
        }
    };
    let interrupted = interrupt_flag();
    let progress = Progress::new(report.n_weights, args.quiet);
    let advance = |n_weights| progress.advance(n_weights);
    let control = Control { interrupted: &interrupted, progress: &advance };
    let mut notes = Vec::new();
    let outcome = prepared.execute_with(&output, &control, |files| -> Result<_, Failure> {
        let Some(draft) = draft else { return Ok(None) };
        let (manifest, said) = draft.write(provenance::Finished {
            outputs: outputs_of(files),
            samples: None,
            licences: job.licences(),
            threads: n_threads,
            isa: isa.name(),
        })?;
        notes = said;
        Ok(Some(manifest))
    });
    progress.finish();
    let outcome = outcome?;
    if args.no_manifest && args.force {
        provenance::remove_manifest(path)?;
    }
    for note in notes.iter().filter(|_| !args.quiet) {
        term::say(&format!("note: {}", term::printable(note)));
    }
    let finished = Finished { outcome, elapsed: clock.elapsed(), isa, n_threads };
    report::print(&report, Some(&finished), args.json, args.quiet)
}

/// Returns what a manifest says of the files written.
pub fn outputs(outcome: &Outcome) -> Vec<provenance::Output> {
    outputs_of(&outcome.files)
}

fn outputs_of(files: &[WrittenFile]) -> Vec<provenance::Output> {
    let output = |file: &WrittenFile| provenance::Output {
        role: OutputRole::Model,
        path: file.path.display().to_string(),
        content: Content::File,
        // the writer digests unless told not to, and nobody tells it
        sha256: file.sha256_hex().unwrap_or_default(),
    };
    files.iter().map(output).collect()
}

/// Returns a flag that Ctrl-C (or SIGTERM, SIGHUP) sets; partial files are gone as soon as it is set.
/// A second signal ends the process at once. It is one flag, however often it is asked for.
pub fn interrupt_flag() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let begin = || {
        let flag = Arc::new(AtomicBool::new(false));
        let handler = {
            let flag = Arc::clone(&flag);
            move || {
                let is_second = flag.swap(true, Ordering::SeqCst);
                cleanup_partial_files();
                if is_second {
                    std::process::exit(130);
                }
            }
        };
        // a handler can only be there already if a library user set one: theirs then decides
        let _ = ctrlc::set_handler(handler);
        flag
    };
    Arc::clone(FLAG.get_or_init(begin))
}
