//! `lctl finetune`: recipe -> model, data, plan -> run -> result, report, manifest.
//!
//! Of several processes (torchrun, srun) the first alone writes and speaks; the others say errors.

mod gate;
mod interrupt;
mod plan;
mod prepare;
mod progress;
mod results;

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::device::DeviceChoice;
use super::recipe::SetArgs;
use super::{term, version};
use crate::error::{Diagnostic, Failure};
use crate::finetune::parallel::{self, Launch, Patience, Reducer, SingleProcess, Terms};
use crate::finetune::recipe::OnForgetting;
use crate::finetune::report;
use crate::finetune::run::{self, Ended, Forgetting, Identity, Job, Outcome, RunLock};
use crate::provenance::{self, Started};

use interrupt::Interrupt;
use prepare::Prepared;
use progress::Progress;

const AFTER_HELP: &str = "\
Recipes are described in docs/recipes.md, runs and what they leave behind in docs/finetune.md.

Exit status:
  0    trained; with `eval.gate` the result passed
  2    bad input, a loss that is not finite, more forgotten than allowed, a disk that is full
  3, 4, 5  `eval.gate`: a regression, undecided, not comparable; nothing was promoted
  130  interrupted; --resume goes on

Examples:
  lctl finetune recipes/soc-triage.yaml --plan
  lctl finetune recipes/soc-triage.yaml --set model.path=models/llama-3.2-1b --out runs/a
  lctl finetune recipes/soc-triage.yaml --out runs/a --resume
  srun -N 2 -n 8 lctl finetune recipes/soc-triage.yaml --out runs/a";

/// Fine-tune a model by a recipe
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,

    #[command(flatten)]
    set: SetArgs,

    /// Directory of everything that the run writes, instead of the recipe's `output`
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Go on from the last checkpoint in the directory
    #[arg(long, conflicts_with = "plan")]
    resume: bool,

    /// Say what the run would take, by one step that is not kept: steps, tokens, memory, time
    #[arg(long)]
    plan: bool,

    /// What the products take, instead of the recipe's `model.compute`: auto, f32, bf16
    #[arg(long, value_name = "MODE")]
    compute: Option<String>,

    /// Threads; results do not depend on it [default: one per core]
    #[arg(long, value_name = "N", value_parser = crate::cli::machine::thread_count)]
    threads: Option<u16>,

    /// Instruction set: portable, avx2, avx512; results do not depend on it [default: LCTL_ISA, or the best
    /// there is]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,

    /// Take a hub id from the cache only, never from the network
    #[arg(long)]
    offline: bool,

    /// Do not write result.manifest.json, which says what the result was made of (docs/provenance.md)
    #[arg(long)]
    no_manifest: bool,

    /// Print what the run came to as JSON
    #[arg(long)]
    json: bool,

    /// Print nothing but errors, and JSON if asked for
    #[arg(short, long)]
    quiet: bool,

    /// Whether the directory goes when the run ends: nobody can go on in it.
    #[arg(skip)]
    is_temporary: bool,

    /// Whether --verbose was given.
    #[arg(skip)]
    verbose: bool,
}

impl Args {
    /// Notes --verbose, and how this process signs what it says.
    pub fn begin(&mut self, verbose: bool) {
        self.verbose = verbose;
        // variables that are wrong are an error of the command
        if let Some(rank) = Launch::from_environment().ok().map(|launch| launch.world.rank).filter(|r| *r > 0)
        {
            term::speak_as(rank);
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: names no `output`", .recipe.display())]
    NoOutput { recipe: PathBuf },

    #[error("interrupted before the first step")]
    NotBegun,

    #[error("interrupted after {} of {} steps", .steps, .total)]
    Interrupted { steps: u64, total: u64, checkpoint: PathBuf },

    #[error("interrupted after {} of {} steps; nothing is left behind", .steps, .total)]
    TemporaryInterrupted { steps: u64, total: u64 },

    #[error(
        "the loss on the general text rose by {rise:.4} nats per token, from {before:.4} to {after:.4}; allowed is {most}"
    )]
    Forgot { rise: f64, before: f64, after: f64, most: f64 },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NoOutput { .. } => "name a directory with --out".into(),
            Error::Interrupted { checkpoint, .. } => {
                format!("nothing is lost: the same command with --resume goes on from {}", checkpoint.display())
            }
            Error::NotBegun | Error::TemporaryInterrupted { .. } => return None,
            Error::Forgot { .. } => {
                "nothing was exported; a lower `train.lr`, fewer epochs or general rows in the data help, or `action: warn`"
                    .into()
            }
        })
    }

    fn exit_code(&self) -> u8 {
        match self {
            Error::NotBegun | Error::Interrupted { .. } | Error::TemporaryInterrupted { .. } => 130,
            Error::NoOutput { .. } | Error::Forgot { .. } => 2,
        }
    }
}

/// Lets freed activations stay with the process: the next step wants the same again, and pages given back and taken anew
/// cost it time. Other C libraries than GNU's decide for themselves.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: settings of the allocator, which it may be given at any time; an answer of no changes nothing.
    unsafe {
        /// Larger ones are mapped on their own: the most that the library takes here.
        const MAPPED_FROM: i32 = 32 << 20;
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

pub fn run(mut args: Args, device: DeviceChoice) -> Result<ExitCode, Failure> {
    keep_freed_memory();
    let started = Started::now();
    let launch = Launch::from_environment()?;
    let is_first = launch.world.is_first();
    if args.plan && !is_first {
        // the first says it for all
        return Ok(ExitCode::SUCCESS);
    }
    args.quiet |= !is_first;
    let interrupt = Interrupt::install();
    let prepared = Prepared::new(&args, device, launch.number_on_machine())?;
    if args.plan {
        return plan::run(&args, &prepared, launch.world.size).map(|()| ExitCode::SUCCESS);
    }
    match train(&args, &prepared, &launch, started, &interrupt)? {
        (outcome, Some(exported)) => {
            print(&args, &outcome, &exported)?;
            Ok(exported.code)
        }
        (_, None) => Ok(ExitCode::SUCCESS),
    }
}

/// A run that is made once more.
pub struct Again {
    pub recipe: PathBuf,
    pub out: PathBuf,
    pub threads: Option<u16>,
    pub isa: Option<String>,
    pub quiet: bool,
    pub device: DeviceChoice,
}

/// Makes a run once more, without network, manifest or words on stdout; returns what a manifest says of its outputs.
pub fn again(again: Again) -> Result<Vec<provenance::Output>, Failure> {
    let Again { recipe, out, threads, isa, quiet, device } = again;
    let args = Args {
        recipe,
        set: SetArgs { set: Vec::new() },
        out: Some(out),
        resume: false,
        plan: false,
        compute: None,
        threads,
        isa,
        offline: true,
        no_manifest: true,
        json: false,
        quiet,
        is_temporary: true,
        verbose: false,
    };
    let interrupt = Interrupt::install();
    let prepared = Prepared::new(&args, device, 0)?;
    let (_, exported) = train(&args, &prepared, &Launch::alone(), Started::now(), &interrupt)?;
    results::outputs(&exported.map(|exported| exported.paths).unwrap_or_default())
}

/// Trains and writes the result, which a process that is not the first has none of.
fn train(
    args: &Args,
    prepared: &Prepared,
    launch: &Launch,
    started: Started,
    interrupt: &Interrupt,
) -> Result<(Outcome, Option<results::Exported>), Failure> {
    let dir = args.out.clone().or_else(|| prepared.recipe.output.clone());
    let dir = dir.ok_or_else(|| Error::NoOutput { recipe: args.recipe.clone() })?;
    plan::check_fits(prepared)?;
    let reducer = meet(args, prepared, launch, interrupt)?;
    interrupt.set_training(true);
    if interrupt.is_asked() {
        reducer.fail("it was interrupted before the first step");
        return Err(Error::NotBegun.into());
    }
    // the first alone writes, and nothing for processes that do not belong together
    let lock = match launch.world.is_first() {
        true => run::check_processes(&prepared.recipe, launch.world)
            .and_then(|()| RunLock::take(&dir, args.resume))
            .map(Some),
        false => Ok(None),
    };
    let _lock = lock.inspect_err(|error| reducer.fail(&error.to_string()))?;
    let job = Job {
        recipe: &prepared.recipe,
        model: &prepared.model,
        device: prepared.device.as_ref(),
        corpus: &prepared.corpus,
        general: prepared.general.as_deref(),
        dir: &dir,
        model_sha256: &prepared.model_sha256,
        resume: args.resume,
        interrupted: interrupt.flag(),
        reducer: reducer.as_ref(),
    };
    let mut progress = Progress::new(args.quiet);
    let outcome = run::run(&job, &mut progress);
    progress.finish();
    let outcome = outcome?;
    drop(reducer);
    if args.verbose && launch.world.size > 1 {
        let digest = run::parameters_sha256(&outcome.params);
        term::say(&format!("parameters of step {}: SHA-256 {digest}", outcome.chosen_step));
    }
    if !launch.world.is_first() {
        return match outcome.ended {
            Ended::Interrupted => Err(interrupted(args, &outcome).into()),
            Ended::Finished | Ended::Early => Ok((outcome, None)),
        };
    }
    write_report(prepared, &outcome, &dir)?;
    interrupt.set_training(false);
    if outcome.ended == Ended::Interrupted || interrupt.is_asked() {
        return Err(interrupted(args, &outcome).into());
    }
    check_forgetting(prepared, &outcome, args.quiet)?;
    match results::export(args, prepared, &outcome, &dir, started) {
        // what was being written says no more than that it was not
        Err(_) if interrupt.is_asked() => Err(interrupted(args, &outcome).into()),
        Err(failure) => Err(failure),
        Ok(exported) => Ok((outcome, Some(exported))),
    }
}

/// Waits for the other processes, if there are any.
///
/// Errors if they were not all started for this run.
fn meet(
    args: &Args,
    prepared: &Prepared,
    launch: &Launch,
    interrupt: &Interrupt,
) -> Result<Box<dyn Reducer>, Failure> {
    let size = launch.world.size;
    if size == 1 {
        return Ok(Box::new(SingleProcess));
    }
    let Prepared { recipe, corpus, general, model_sha256, .. } = prepared;
    let identity = Identity::new(recipe, model_sha256.clone(), corpus, general.as_deref(), size);
    let build = format!("{} {}", env!("CARGO_PKG_VERSION"), version::commit());
    // bits are those of a model of GPU, and a manifest names one
    let device = prepared.device.as_ref().map_or("the CPU".to_owned(), |device| device.facts().name.clone());
    let first = vec![("lctl".to_owned(), build), ("device".to_owned(), device)];
    let agreed = [first, identity.agreed()].concat();
    if !args.quiet {
        term::say(&format!("{size} processes: meeting the others at {}:{}", launch.host, launch.port));
    }
    let patience = Patience::default();
    let terms = Terms { agreed: &agreed, patience, interrupted: interrupt.flag() };
    let reducer = parallel::connect(launch, &terms).map_err(|error| match error {
        parallel::Error::Interrupted => Failure::from(Error::NotBegun),
        error => error.into(),
    })?;
    #[cfg(gpu)]
    if let Some(device) = &prepared.device {
        let (reducer, note) = parallel::OnDevices::over(reducer, device, patience)?;
        if let Some(note) = note.filter(|_| launch.world.is_first() && !args.quiet) {
            term::say(&note);
        }
        return Ok(reducer);
    }
    Ok(reducer)
}

fn interrupted(args: &Args, outcome: &Outcome) -> Error {
    let Outcome { steps, total_steps: total, checkpoint, .. } = outcome;
    match args.is_temporary {
        true => Error::TemporaryInterrupted { steps: *steps, total: *total },
        false => Error::Interrupted { steps: *steps, total: *total, checkpoint: checkpoint.clone() },
    }
}

/// Writes the report of the run so far.
fn write_report(prepared: &Prepared, outcome: &Outcome, dir: &std::path::Path) -> Result<(), Failure> {
    let events = run::read_events(dir)?;
    let facts = report::Facts {
        title: prepared.recipe.model.path.clone(),
        recipe: prepared.recipe.to_yaml(),
        outcome,
        files: prepared.corpus.files(),
        events: &events,
    };
    let mut file = crate::tensor::AtomicFile::create(&dir.join("report.html"), None, false)?;
    file.write_all(report::html(&facts).as_bytes())?;
    file.commit()?;
    Ok(())
}

fn check_forgetting(prepared: &Prepared, outcome: &Outcome, quiet: bool) -> Result<(), Failure> {
    let (Some(guard), Some(Forgetting { before, after })) =
        (&prepared.recipe.eval.forgetting, outcome.forgetting)
    else {
        return Ok(());
    };
    let rise = after - before;
    let most = guard.max_increase;
    // NaN is no rise that is small enough
    if rise <= most {
        return Ok(());
    }
    let error = Error::Forgot { rise, before, after, most };
    match guard.action {
        OnForgetting::Fail => Err(error.into()),
        OnForgetting::Warn => {
            if !quiet {
                term::say(&format!("warning: {error}"));
            }
            Ok(())
        }
    }
}

fn print(args: &Args, outcome: &Outcome, exported: &results::Exported) -> Result<(), Failure> {
    let ended = match outcome.ended {
        Ended::Finished => "finished",
        Ended::Early => "early",
        Ended::Interrupted => "interrupted",
    };
    let paths: Vec<String> = exported.paths.iter().map(|path| path.display().to_string()).collect();
    if args.json {
        return term::out_json(&json!({
            "ended": ended,
            "steps": outcome.steps,
            "total_steps": outcome.total_steps,
            "result_step": outcome.chosen_step,
            "validation_loss": outcome.best.map(|best| best.loss.0),
            "validation_step": outcome.best.map(|best| best.step),
            "forgetting": outcome.forgetting.map(|f| json!({"before": f.before, "after": f.after})),
            "gate": exported.verdict,
            "outputs": paths,
        }));
    }
    if args.quiet {
        return Ok(());
    }
    let mut text = format!("{ended} after {} of {} steps", outcome.steps, outcome.total_steps);
    if outcome.chosen_step != outcome.steps {
        text += &format!("; the result is of step {}", outcome.chosen_step);
    }
    if let Some(Forgetting { before, after }) = outcome.forgetting {
        text += &format!("; loss on the general text {before:.4} -> {after:.4}");
    }
    text.push('\n');
    if let Some(verdict) = &exported.verdict {
        text += &format!("gate: {verdict}\n");
    }
    paths.iter().for_each(|path| text += &format!("{}\n", term::printable(path)));
    term::out(&text)
}
