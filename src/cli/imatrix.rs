//! `lctl imatrix`: arguments -> a model over a text, or files added up -> an importance matrix.

mod job;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use serde_json::json;

use super::device::{DeviceChoice, Shared, require_cpu};
use super::eval::paths::{self, Named};
use super::eval::{ComputeArg, Interrupt};
use super::model::WeightsArg;
use super::quantize::ImportanceFile;
use super::{machine, term};
use crate::error::{Diagnostic, Failure};
use crate::kernel::Isa;
use crate::layout;
use crate::provenance::{self, Draft, ImatrixSettings, Job, Started, blocking_manifest, manifest_path};
use crate::quantize::importance::Statistics;
use crate::tensor::WrittenFile;

pub use job::{How, ImatrixJob, Made, Source, output};

const AFTER_HELP: &str = "\
The text is cut into chunks of --context tokens, a rest is left out; each begins with the vocabulary's BOS, if it adds one.
What the matrix products of every block take is squared and summed per column, as llama-imatrix does. The file is for
`lctl quantize --imatrix FILE`.

Examples:
  lctl imatrix model-f16.gguf calibration.txt -o imatrix.gguf
  lctl imatrix ./Qwen3-8B calibration.txt -o imatrix.gguf --chunks 200 --process-output
  lctl imatrix ./Qwen3-8B more.txt -o both.gguf --in-file imatrix.gguf
  lctl imatrix -o sum.gguf --in-file a.gguf --in-file b.gguf
  lctl imatrix --in-file imatrix.gguf --statistics";

/// Measure what a model's weights are multiplied by, for quantize --imatrix
///
/// Runs a model over a text and writes an importance matrix: how much each input column of each matrix matters.
#[derive(clap::Args)]
#[command(about = "Weigh a model's columns by a text, for quantize", after_help = AFTER_HELP)]
pub struct Args {
    /// A checkpoint's directory, a .gguf file (of a split model the first shard), or a hub id
    /// ORG/NAME[@REVISION]
    #[arg(value_name = "MODEL", required_unless_present = "in_file", requires = "text")]
    model: Option<String>,

    /// The text to run it over: like what the model is for
    #[arg(value_name = "TEXT", requires = "model")]
    text: Option<PathBuf>,

    /// The file to write; its digest is printed at the end
    #[arg(short, long, value_name = "FILE", required_unless_present = "statistics")]
    output: Option<PathBuf>,

    /// Form of the file [default: gguf; dat for a FILE.dat]
    #[arg(long, value_name = "FORM", requires = "output")]
    format: Option<FormArg>,

    /// Add an earlier importance matrix of the same model, of either form; repeatable
    #[arg(long, value_name = "FILE")]
    in_file: Vec<PathBuf>,

    /// Tokens per chunk [default: 512; less for a model with less context]; those of an --in-file that does not say
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..))]
    context: Option<u32>,

    /// Run over at most N chunks of the text
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "model")]
    chunks: Option<u64>,

    /// Leave out the first N chunks of the text
    #[arg(long, value_name = "N", default_value_t = 0, requires = "model")]
    from_chunk: u64,

    /// Measure the output layer, too (of a model that shares its embedding, that)
    #[arg(long, requires = "model")]
    process_output: bool,

    /// Say of every tensor how its columns' weights are spread
    #[arg(long)]
    statistics: bool,

    /// Take the text of special tokens (`<s>`, `<|im_end|>`) for those
    #[arg(long, requires = "model")]
    parse_special: bool,

    /// Apply a LoRA adapter: a PEFT directory or a GGUF file
    #[arg(long, value_name = "PATH", requires = "model")]
    adapter: Option<PathBuf>,

    /// What the matrix products take: bf16 and int8 round, f32 does not; auto follows the weights' formats
    #[arg(long, value_name = "MODE", default_value = "auto", requires = "model")]
    compute: ComputeArg,

    /// Where weights stay: packed in memory is faster, mapped takes no memory of its own; auto packs what fits
    #[arg(long, value_name = "WHERE", default_value = "auto", requires = "model")]
    weights: WeightsArg,

    /// Replace the output if it exists
    #[arg(short, long, requires = "output")]
    force: bool,

    /// Threads; the result does not depend on it [default: one per core]
    #[arg(long, value_name = "N", value_parser = crate::cli::machine::thread_count)]
    threads: Option<u16>,

    /// Instruction set: portable, avx2, avx512; the result does not depend on it [default: LCTL_ISA, or the
    /// best there is]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,

    /// Take a hub id from the cache only, never from the network
    #[arg(long, requires = "model")]
    offline: bool,

    /// Do not write FILE.manifest.json, which says what the output was made of (docs/provenance.md)
    #[arg(long, requires = "output")]
    no_manifest: bool,

    /// Print the result as JSON (docs/quantize.md)
    #[arg(long)]
    json: bool,

    /// Print nothing but errors, and JSON if asked for
    #[arg(short, long)]
    quiet: bool,
}

/// [`Form`] as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormArg {
    Gguf,
    Dat,
}

/// An output that is there already.
#[derive(Debug, thiserror::Error)]
#[error("{path}: exists already")]
struct OutputExists {
    path: PathBuf,
}

impl Diagnostic for OutputExists {
    fn hint(&self) -> Option<String> {
        Some("give --force to replace it".into())
    }
}

pub fn run(args: &Args, device: DeviceChoice) -> Result<(), Failure> {
    let (started, clock) = (Started::now(), Instant::now());
    let isa = machine::isa(args.isa.as_deref())?;
    let n_threads = machine::threads(args.threads);
    let output = args.output.as_deref();
    output.map_or(Ok(()), |output| check_output(args, output))?;
    Interrupt::install();
    let on = match args.model {
        Some(_) => Shared::choose(device, args.quiet)?,
        // nothing is computed but sums of files
        None => require_cpu("imatrix --in-file", device).map(|()| Shared::default())?,
    };
    let job = job_of(args);
    let made = job.make(&How {
        on: &on,
        threads: args.threads,
        isa: args.isa.as_deref(),
        weights: args.weights,
        offline: args.offline,
        quiet: args.quiet,
        digests: output.is_some() && !args.no_manifest,
    })?;
    // before anything is written: what was read may be gone by now
    let read = match output.filter(|_| !args.no_manifest) {
        Some(_) => Some((made.inputs()?, made.licences()?)),
        None => None,
    };
    let file = match output {
        Some(path) => Some(made.sums.write(path, job.form()?, args.force)?),
        None => None,
    };
    if let Some(path) = output.filter(|_| args.no_manifest && args.force) {
        provenance::remove_manifest(path)?;
    }
    if let (Some(file), Some(path), Some((inputs, licences))) = (&file, output, read) {
        let device = made.on_device().map(Into::into);
        let settings = Job::Imatrix(ImatrixSettings { device, ..job.settings.clone() });
        let draft = Draft::begin(path, args.force, settings, inputs, started, n_threads)?;
        let finished = provenance::Finished {
            outputs: vec![job::output(file)],
            samples: None,
            licences,
            threads: n_threads,
            isa: isa.name(),
        };
        note(args, draft.finish(finished)?);
    }
    note(args, made.notes());
    let run = Run { seconds: clock.elapsed().as_secs_f64(), isa, n_threads };
    report(args, &job, &made, file.as_ref(), run)
}

fn note(args: &Args, notes: Vec<String>) {
    for note in notes.iter().filter(|_| !args.quiet) {
        term::say(&format!("note: {}", term::printable(note)));
    }
}

/// Errors if what would be written is there, is read, or cannot be made, before anything is computed.
fn check_output(args: &Args, output: &Path) -> Result<(), Failure> {
    let blocking = match args.no_manifest {
        true => None,
        false => blocking_manifest(output, args.force),
    };
    let existing = Some(output.to_owned()).filter(|path| !args.force && path.symlink_metadata().is_ok());
    if let Some(path) = existing.or(blocking) {
        return Err(OutputExists { path }.into());
    }
    let mut written: Vec<Named> = vec![("--output", output.to_owned())];
    if args.force || !args.no_manifest {
        written.push(("the manifest", manifest_path(output)));
    }
    let mut read: Vec<Named> = Vec::new();
    read.extend(args.model.as_ref().map(|path| ("the model", PathBuf::from(path))));
    read.extend(args.adapter.clone().map(|path| ("--adapter", path)));
    read.extend(args.text.clone().map(|path| ("the text", path)));
    read.extend(args.in_file.iter().map(|path| ("--in-file", path.clone())));
    paths::check(&written, &read)
}

fn job_of(args: &Args) -> ImatrixJob {
    let is_dat = |path: &Path| path.extension().is_some_and(|extension| extension == "dat");
    let by_name = if args.output.as_deref().is_some_and(is_dat) { FormArg::Dat } else { FormArg::Gguf };
    let form = args.format.unwrap_or(by_name);
    let source = args.model.clone().zip(args.text.clone());
    ImatrixJob {
        settings: ImatrixSettings {
            format: match form {
                FormArg::Gguf => "gguf".to_owned(),
                FormArg::Dat => "dat".to_owned(),
            },
            context: args.context,
            chunks: args.chunks,
            from_chunk: args.from_chunk,
            process_output: args.process_output,
            parse_special: args.parse_special,
            compute: args.compute.name().to_owned(),
            // known once the model is opened
            device: None,
        },
        source: source.map(|(model, text)| Source {
            model,
            adapter: args.adapter.clone(),
            dataset: text.display().to_string(),
            text,
        }),
        in_files: args
            .in_file
            .iter()
            .map(|path| ImportanceFile { path: path.clone(), named: path.clone() })
            .collect(),
    }
}

/// How it was computed.
struct Run {
    seconds: f64,
    isa: Isa,
    n_threads: usize,
}

fn report(
    args: &Args,
    job: &ImatrixJob,
    made: &Made,
    file: Option<&WrittenFile>,
    run: Run,
) -> Result<(), Failure> {
    let (n_tensors, n_chunks, chunk_len) = (made.sums.len(), made.sums.n_chunks(), made.sums.chunk_len());
    let statistics = args.statistics.then(|| made.sums.statistics());
    let path = |file: &WrittenFile| file.path.display().to_string();
    if args.json {
        let file =
            file.map(|file| json!({"path": path(file), "bytes": file.bytes, "sha256": file.sha256_hex()}));
        let mut json = json!({
            "schema": "lctl.imatrix/1",
            "file": file,
            "form": job.settings.format,
            "tensors": n_tensors,
            "chunks": n_chunks,
            "chunk_len": chunk_len,
            "datasets": made.sums.datasets(),
            "tokens_computed": made.n_tokens,
            "elapsed_seconds": run.seconds,
            "threads": run.n_threads,
            "isa": run.isa.name(),
            "statistics": statistics,
            "notes": made.notes(),
        });
        if let Some(device) = made.on_device() {
            json["device"] = json!(device);
        }
        return term::out_json(&json);
    }
    if args.quiet {
        return Ok(());
    }
    let mut text = statistics.map_or_else(String::new, |statistics| table(&statistics) + "\n");
    let seconds = run.seconds;
    text += &format!("{n_tensors} tensors, {n_chunks} chunks of {chunk_len} tokens");
    text += &file.map_or_else(String::new, |file| format!(", {}, {seconds:.1} s", term::bytes(file.bytes)));
    text += "\n";
    if let Some(file) = file {
        let sha256 = file.sha256_hex().unwrap_or_default();
        text += &format!("sha256 {sha256}  {}\n", term::printable(&path(file)));
    }
    term::out(&text)
}

/// Returns the figures of all tensors, a line each.
fn table(statistics: &[Statistics]) -> String {
    let head = ["tensor", "columns", "sum", "min", "mean", "max", "deviation", "evenness", "cosine"];
    let mut lines = vec![head.map(str::to_owned)];
    for of in statistics {
        let number = |value: f64| format!("{value:.4}");
        lines.push([
            term::printable(&of.tensor),
            of.columns.to_string(),
            number(of.sum),
            number(of.min),
            number(of.mean),
            number(of.max),
            number(of.deviation),
            number(of.evenness),
            of.cosine.map_or_else(|| "-".to_owned(), number),
        ]);
    }
    layout::table(&lines, |column| column == 0, None)
}
