//! `lctl gate`: two runs -> verdict -> text, JSON, Markdown, exit status; or sizes -> plan.

mod divergence;
mod job;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::device::{DeviceChoice, Shared, recorded, require_models};
use super::eval::paths::Named;
use super::{machine, render, term};
use crate::error::{Diagnostic, Failure};
use crate::eval::gate::{Plan, PlannedTask, Policy, Run, Verdict, text};
use crate::layout::{table, wrapped};
use crate::provenance::{Draft, Finished, GateSettings, Job, Licences, Output, OutputRole, Started, UNKNOWN};

pub use divergence::{Place, check_measured, over_prompts};
pub use job::{GateJob, How, Models, open_policy, open_run};

const AFTER_HELP: &str = "\
BASELINE and CANDIDATE are directories that `lctl eval --suite .. --out DIR` wrote, or their report.json with
samples.jsonl beside it. What is decided, and by which statistics, stands in docs/gate.md; docs/ci.md has pipelines.

Exit status:
  0  PASS: no worse than the margins allow
  2  error: bad input or usage
  3  FAIL: a regression
  4  INCONCLUSIVE: too few items to tell
  5  NOT COMPARABLE: other tasks, data, prompts or settings

Examples:
  lctl gate results/base results/new --markdown gate.md
  lctl gate results/base results/new --html diff.html --junit gate.xml
  lctl gate results/base results/new --policy gate.yaml --json
  lctl gate results/base results/new --baseline-model f16.gguf --candidate-model q4.gguf --text wiki.test.raw
  lctl gate --power results/base
  lctl gate --power --items 1000,800,800 --margin 0.03";

/// Most items of a planned task: each is held in memory.
const MOST_PLANNED: i64 = 1_000_000;

/// Decide whether a candidate is no worse than a baseline
///
/// It compares two runs of `lctl eval --suite`.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The run to compare with
    #[arg(value_name = "BASELINE", required_unless_present = "power")]
    baseline: Option<PathBuf>,

    /// The run that must not be worse
    #[arg(value_name = "CANDIDATE", required_unless_present = "power", conflicts_with = "power")]
    candidate: Option<PathBuf>,

    /// What is demanded, as YAML (recipes/gate.yaml has every key)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// The model of BASELINE: with --candidate-model and --text, say how far their predictions are apart
    #[arg(long, value_name = "MODEL", requires_all = ["candidate", "candidate_model", "text"])]
    baseline_model: Option<String>,

    /// The adapter of BASELINE, if it was measured with one
    #[arg(long, value_name = "PATH", requires = "baseline_model")]
    baseline_adapter: Option<PathBuf>,

    /// The model of CANDIDATE
    #[arg(long, value_name = "MODEL", requires = "baseline_model")]
    candidate_model: Option<String>,

    /// The adapter of CANDIDATE, if it was measured with one
    #[arg(long, value_name = "PATH", requires = "candidate_model")]
    candidate_adapter: Option<PathBuf>,

    /// The text over which both models predict; its first 64 chunks of 512 tokens count
    #[arg(long, value_name = "FILE", requires = "baseline_model")]
    text: Option<PathBuf>,

    /// Threads; the result does not depend on it [default: one per core]
    #[arg(long, value_name = "N", requires = "baseline_model", value_parser = crate::cli::machine::thread_count)]
    threads: Option<u16>,

    /// Instruction set: portable, avx2, avx512; the result does not depend on it [default: LCTL_ISA, or the best
    /// there is]
    #[arg(long, value_name = "NAME", requires = "baseline_model")]
    isa: Option<String>,

    /// Take a hub id from the cache only, never from the network
    #[arg(long, requires = "baseline_model")]
    offline: bool,

    /// Do not write FILE.manifest.json beside the Markdown (docs/provenance.md)
    #[arg(long)]
    no_manifest: bool,

    /// Print the verdict as JSON (docs/gate.md)
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    render: render::RenderArgs,

    /// Replace files that exist
    #[arg(short, long)]
    force: bool,

    /// Print nothing but errors, and JSON if asked for
    #[arg(short, long)]
    quiet: bool,

    /// Say what sizes can show: those of BASELINE's tasks, or of --items
    #[arg(long, conflicts_with_all = render::OPTIONS)]
    power: bool,

    /// Sizes of tasks to plan
    #[arg(long, value_name = "N,..", value_delimiter = ',', requires = "power", conflicts_with = "baseline",
          value_parser = clap::value_parser!(u32).range(1..=MOST_PLANNED))]
    items: Vec<u32>,

    /// Items per cluster of --items
    #[arg(long, value_name = "N", default_value_t = 1, requires = "items",
          value_parser = clap::value_parser!(u32).range(1..))]
    cluster_size: u32,

    /// Margin to plan for, instead of the policy's [default: 0.02]
    #[arg(long, value_name = "SHARE", conflicts_with = "candidate", value_parser = share)]
    margin: Option<f64>,

    /// Share of items that change between equal models, instead of the policy's [default: 0.05]
    #[arg(long, value_name = "SHARE", conflicts_with = "candidate", value_parser = share)]
    flips: Option<f64>,
}

#[derive(Debug, thiserror::Error)]
#[error("--power: nothing to plan")]
struct NothingToPlan;

impl Diagnostic for NothingToPlan {
    fn hint(&self) -> Option<String> {
        Some("name a run of `lctl eval`, or sizes: --items 1000,800".into())
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("not a number between 0 and 1".to_owned()),
    }
}

pub fn run(args: &Args, device: DeviceChoice) -> Result<ExitCode, Failure> {
    if args.text.is_none() {
        require_models(device)?;
    }
    match (&args.baseline, &args.candidate) {
        (Some(baseline), Some(candidate)) => compare(args, device, baseline, candidate),
        _ => plan(args, open_policy(args.policy.as_deref())?),
    }
}

fn compare(
    args: &Args,
    device: DeviceChoice,
    baseline: &Path,
    candidate: &Path,
) -> Result<ExitCode, Failure> {
    let started = Started::now();
    let place = |model: &Option<String>, adapter: &Option<PathBuf>| {
        model.clone().map(|model| Place { model, adapter: adapter.clone() })
    };
    let models = place(&args.baseline_model, &args.baseline_adapter)
        .zip(place(&args.candidate_model, &args.candidate_adapter))
        .zip(args.text.clone());
    let job = GateJob {
        baseline: baseline.to_owned(),
        candidate: candidate.to_owned(),
        policy: args.policy.clone(),
        models: models.map(|((baseline, candidate), text)| Models { baseline, candidate, text }),
    };
    let (threads, isa) = (machine::threads(args.threads), machine::isa(args.isa.as_deref())?);
    // the CPU unless it is named: a verdict should be the same everywhere
    let device = if device == DeviceChoice::Auto { DeviceChoice::Cpu } else { device };
    let on = Shared::choose(device, args.quiet)?;
    let how = How {
        offline: args.offline,
        threads: args.threads,
        isa: args.isa.as_deref(),
        quiet: args.quiet,
        on: &on,
    };
    let artefact = args.render.markdown.as_deref().filter(|_| !args.no_manifest);
    args.render.check(args.force, &[baseline, candidate], &read(args), artefact)?;
    let judged = job.judge(&how)?;
    let (verdict, comparison) = (&judged.verdict, Some((&judged.baseline, &judged.verdict)));
    if args.json {
        term::out_json(&json(verdict))?;
    } else if !args.quiet {
        term::out(&printable_lines(&text(verdict, term::out_width())))?;
    }
    let draft = match artefact {
        Some(path) => {
            let device = on.device.as_deref().map(recorded);
            let job = Job::Gate(GateSettings { device });
            Some(Draft::begin(path, args.force, job, judged.inputs, started, threads)?)
        }
        None => None,
    };
    let written = args.render.write(args.force, &judged.candidate, comparison)?;
    if let (Some(path), Some(draft), Some(text)) = (artefact, draft, &written.markdown) {
        let outputs = vec![Output::of_text(OutputRole::Verdict, path, text)];
        let licences = candidate_licences(verdict);
        let finished = Finished { outputs, samples: None, licences, threads, isa: isa.name() };
        say_notes(&draft.finish(finished)?, args.quiet);
    }
    written.keep();
    Ok(ExitCode::from(verdict.exit_code))
}

/// Returns what a comparison reads besides the runs.
fn read(args: &Args) -> Vec<Named> {
    let paths = [
        ("--policy", &args.policy),
        ("--text", &args.text),
        ("--baseline-adapter", &args.baseline_adapter),
        ("--candidate-adapter", &args.candidate_adapter),
    ];
    let models = [("--baseline-model", &args.baseline_model), ("--candidate-model", &args.candidate_model)];
    let paths = paths.into_iter().filter_map(|(option, path)| Some((option, path.clone()?)));
    paths
        .chain(models.into_iter().filter_map(|(option, path)| Some((option, path.as_ref()?.into()))))
        .collect()
}

fn candidate_licences(verdict: &Verdict) -> Licences {
    let unknown = || Licences { base: UNKNOWN.to_owned(), adapter: None, data: Vec::new() };
    verdict.candidate.licences.clone().unwrap_or_else(unknown)
}

/// Says what a manifest's writer found.
pub fn say_notes(notes: &[String], quiet: bool) {
    for note in notes.iter().filter(|_| !quiet) {
        term::say(&format!("note: {}", term::printable(note)));
    }
}

/// Returns the verdict for programs.
pub fn json(verdict: &Verdict) -> serde_json::Value {
    // no key of a verdict is anything but text
    serde_json::to_value(verdict).unwrap_or_default()
}

/// Escapes what could drive the terminal, line by line.
pub fn printable_lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", term::printable(line))).collect()
}

fn plan(args: &Args, mut policy: Policy) -> Result<ExitCode, Failure> {
    policy.margin = args.margin.unwrap_or(policy.margin);
    policy.flips = args.flips.unwrap_or(policy.flips);
    let sizes: Vec<usize> = args.items.iter().map(|items| *items as usize).collect();
    let plan = match &args.baseline {
        Some(baseline) => Plan::of_run(&Run::open(baseline)?, &policy),
        None if sizes.is_empty() => return Err(NothingToPlan.into()),
        None => Plan::of_sizes(&sizes, args.cluster_size as usize, &policy),
    };
    if args.json {
        term::out_json(&serde_json::to_value(&plan).unwrap_or_default())?;
    } else if !args.quiet {
        term::out(&printable_lines(&plan_text(&plan, &policy, term::out_width())))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn plan_text(plan: &Plan, policy: &Policy, width: Option<usize>) -> String {
    let points = |share: f64| format!("{:.2}", 100.0 * share);
    let header = ["task", "items", "clusters", "margin", "detectable", "power", "items needed"];
    let mut rows = vec![header.map(str::to_owned)];
    let row = |task: &PlannedTask| {
        [
            task.task.clone(),
            task.items.to_string(),
            task.clusters.to_string(),
            points(task.margin),
            points(task.detectable),
            format!("{:.0} %", 100.0 * task.power),
            format!("{:.0}", task.required),
        ]
    };
    rows.extend(plan.tasks.iter().chain(&plan.pool).map(row));
    let mut out = table(&rows, |column| column == 0, width);
    let about = format!(
        "\nMargins and detectable losses in points, at {:.0} % power, one-sided alpha {}, {} % of items changing,\n\
         correlation {} within clusters. An equal model passes about {:.0} % of the time: pool and critical tasks must\n\
         all be within their margins.\n",
        100.0 * policy.power,
        policy.alpha,
        points(policy.flips),
        policy.correlation,
        100.0 * plan.equal_model_passes,
    );
    for line in about.lines() {
        out.push_str(&wrapped(line, width));
        out.push('\n');
    }
    out
}
