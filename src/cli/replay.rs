//! `lctl replay`: manifest -> inputs checked -> the command again -> do the bits agree?

mod compare;
mod inputs;
mod rerun;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::device::{self, DeviceChoice};
use super::{machine, term};
use crate::error::{Diagnostic, Failure};
use crate::kernel::Isa;
use crate::provenance::{Job, Manifest, OnDevice, Program, program_sha256};

use compare::Comparison;
use inputs::Places;

const AFTER_HELP: &str = "\
Relative paths of a manifest are looked up from the current directory. Nothing is downloaded, and nothing is written
but into a temporary directory, which goes at the end.

Exit status:
  0  the bits agree
  2  error: no manifest, or an input is not what it was
  3  the bits differ

Examples:
  lctl replay model-q4.gguf.manifest.json
  lctl replay model-q4.gguf.manifest.json --model /models/Qwen3-8B
  lctl replay results/report.json.manifest.json --input rows.jsonl=/data/rows.jsonl
  lctl replay results/report.json.manifest.json --check";

/// Make an artefact again, and say whether the bits agree
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// A FILE.manifest.json that lctl wrote beside FILE
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,

    /// Where the model is now
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// Where another input is now: what the manifest calls OLD is read from NEW; repeatable
    #[arg(long, value_name = "OLD=NEW")]
    input: Vec<String>,

    /// Check inputs and outputs against their digests, and run nothing
    #[arg(long, conflicts_with_all = ["work", "threads", "isa"])]
    check: bool,

    /// Directory to work in; it must have room for the artefact [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,

    /// Threads; the result does not depend on it [default: one per core]
    #[arg(long, value_name = "N", value_parser = crate::cli::machine::thread_count)]
    threads: Option<u16>,

    /// Instruction set: portable, avx2, avx512; the result does not depend on it [default: LCTL_ISA, or the best
    /// there is]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,

    /// Print the result as JSON (docs/provenance.md)
    #[arg(long)]
    json: bool,

    /// Print nothing but errors, and JSON if asked for
    #[arg(short, long)]
    quiet: bool,
}

/// Why a manifest cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("--input {given}: not OLD=NEW")]
    NotAPair { given: String },

    #[error("--input {old}: the manifest has no input of that path")]
    NoSuchInput { old: String, known: Vec<String> },

    #[error("--input {old}: is data of a suite, and found through it")]
    OfASuite { old: String },

    #[error("files of the manifest's inputs that changed: {}{}", .0.len(), lines(.0))]
    Changed(Vec<inputs::Change>),

    #[error("{path}: the input `{role}` is not there")]
    Missing { path: PathBuf, role: &'static str },

    #[error("the manifest names no `{role}` among its inputs")]
    Unnamed { role: &'static str },

    #[error("{path}: no suite of the manifest is called `{suite}`, or it names no data set `{set}`")]
    NoSuchData { path: String, suite: String, set: String },

    #[error("the manifest's `directory` is `{name}`, which is no directory's name")]
    BadDirectory { name: String },

    #[error("{}: named in the manifest's recipe, and no input `{role}` of it", .path.display())]
    NotAnInput { path: PathBuf, role: &'static str },

    #[error("{count} processes trained together, and a replay is one")]
    Processes { count: usize },

    #[error("the run was made on {made_on}, whose bits no CPU has")]
    OnDevice { made_on: String },

    #[error("the run was made on {made_on}, and {device} is {found}")]
    OtherDevice { made_on: String, device: DeviceChoice, found: String },

    #[error("the run was made on the CPU, whose bits {device} has not")]
    OnCpu { device: DeviceChoice },

    #[error("{dir}: cannot make a temporary directory")]
    Work {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("{path}: cannot read what the replay wrote")]
    Unread {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn lines(changes: &[inputs::Change]) -> String {
    changes.iter().map(|change| format!("\n  {change}")).collect()
}

impl Diagnostic for ReplayError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            ReplayError::NotAPair { .. } => {
                "write the manifest's path and the new one: `--input a.jsonl=/data/a.jsonl`".into()
            }
            ReplayError::NoSuchInput { known, .. } => format!("its inputs are: {}", known.join(", ")),
            ReplayError::OfASuite { .. } => {
                "say where the suite is now, with its data beside it; what is on a hub is taken from the cache, which `lctl pull` fills"
                    .into()
            }
            ReplayError::Changed(_) => {
                "bring back the bytes that the manifest speaks of, or make the artefact anew".into()
            }
            ReplayError::Missing { role: "model", .. } => {
                "say where it is now: --model PATH; or run lctl in the directory of the first run".into()
            }
            ReplayError::Missing { path, .. } => {
                format!(
                    "say where it is now: --input {}=PATH; or run lctl in the directory of the first run",
                    path.display()
                )
            }
            ReplayError::OnDevice { .. } => "name such a one with --device cuda:N: the same GPU model and program give the same bits".into(),
            ReplayError::OtherDevice { .. } => "only the same model of GPU has the same bits".into(),
            ReplayError::OnCpu { .. } => "leave --device out".into(),
            ReplayError::NoSuchData { .. }
            | ReplayError::Unnamed { .. }
            | ReplayError::BadDirectory { .. }
            | ReplayError::NotAnInput { .. } => "was the manifest edited?".into(),
            ReplayError::Work { .. } => "name a directory that can be written with --work DIR".into(),
            ReplayError::Processes { .. } => {
                "run `lctl finetune` again with as many, by the manifest's recipe; --check compares what is there".into()
            }
            ReplayError::Unread { .. } => return None,
        })
    }
}

/// How a replay runs; the result does not depend on it.
pub struct How<'a> {
    work: Option<&'a Path>,
    isa: Isa,
    n_threads: usize,
    isa_given: Option<&'a str>,
    threads_given: Option<u16>,
    quiet: bool,
    /// What computes: of the kind that computed the first result.
    device: DeviceChoice,
}

/// Returns what to compute on so that the bits can be those of a run made on `made_on`, or on the CPU if that is nothing.
///
/// Errors if `asked` leads to anything else.
fn same_device(made_on: Option<&OnDevice>, asked: DeviceChoice) -> Result<DeviceChoice, Failure> {
    let is_left_to_us = matches!(asked, DeviceChoice::Auto | DeviceChoice::Cpu);
    let Some(made_on) = made_on else {
        return if is_left_to_us {
            Ok(DeviceChoice::Cpu)
        } else {
            Err(ReplayError::OnCpu { device: asked }.into())
        };
    };
    let made_on = made_on.name.clone();
    let Some(device) = device::choose(asked, 0)?.device else {
        return Err(ReplayError::OnDevice { made_on }.into());
    };
    let facts = device.facts();
    let device = if asked == DeviceChoice::Auto { DeviceChoice::Cuda(facts.index) } else { asked };
    if facts.name != made_on {
        return Err(ReplayError::OtherDevice { made_on, device, found: facts.name.clone() }.into());
    }
    Ok(device)
}

pub fn run(args: &Args, device: DeviceChoice) -> Result<ExitCode, Failure> {
    if args.check {
        device::require_cpu("replay --check", device)?;
    }
    let manifest = Manifest::open(&args.manifest)?;
    let places = Places::find(&manifest, args.model.as_deref(), &args.input, args.quiet)?;
    let how = How {
        work: args.work.as_deref(),
        isa: machine::isa(args.isa.as_deref())?,
        n_threads: machine::threads(args.threads),
        isa_given: args.isa.as_deref(),
        threads_given: args.threads,
        quiet: args.quiet,
        device: if args.check { DeviceChoice::Cpu } else { same_device(manifest.job.device(), device)? },
    };
    say(args, &format!("{} inputs to check", manifest.inputs.len()));
    places.check(&manifest)?;
    note_program(args, &manifest);
    let comparison = match args.check {
        true => compare::on_disk(&manifest, &args.manifest)?,
        false => {
            say(args, &format!("inputs are what they were; {} again", manifest.job.command()));
            match &manifest.job {
                Job::Quantize(settings) => rerun::quantize(&manifest, settings, &places, &how)?,
                Job::Imatrix(settings) => rerun::imatrix(&manifest, settings, &places, &how)?,
                Job::Eval(settings) => rerun::eval(&manifest, settings, &places, &how, &args.manifest)?,
                Job::Gate(_) => rerun::gate(&manifest, &places, &how)?,
                Job::Merge(settings) => rerun::merge(&manifest, settings, &places, &how)?,
                Job::Finetune(settings) => train::finetune(&manifest, settings, &places, &how)?,
            }
        }
    };
    if !comparison.agrees() {
        note_build(args, &manifest);
    }
    report(args, &manifest, &comparison)?;
    Ok(ExitCode::from(if comparison.agrees() { 0 } else { 3 }))
}

fn say(args: &Args, text: &str) {
    if !args.quiet {
        term::say(text);
    }
}

/// Other programs may well give the same bits; if they do not, this is the first thing to know.
fn note_program(args: &Args, manifest: &Manifest) {
    let (then, now) = (&manifest.lctl, Program::current());
    let shown = |program: &Program| {
        let commit = program.commit.as_deref().map_or(String::new(), |commit| format!(" ({commit})"));
        format!("{}{commit}", program.version)
    };
    if then.version != now.version || then.commit != now.commit {
        say(args, &format!("note: made by lctl {}, this is {}", term::printable(&shown(then)), shown(&now)));
    }
}

/// One version may have been built in more than one way.
fn note_build(args: &Args, manifest: &Manifest) {
    if let (Some(then), Some(now)) = (&manifest.lctl.sha256, program_sha256()) {
        let same = if *then == now { "the same" } else { "another" };
        say(args, &format!("note: {same} executable made the first result (SHA-256 {then})"));
    }
}

fn report(args: &Args, manifest: &Manifest, comparison: &Comparison) -> Result<(), Failure> {
    if args.json {
        return term::out_json(&comparison.json(manifest, args.check));
    }
    match args.quiet {
        true => Ok(()),
        false => term::out(&comparison.text()),
    }
}
