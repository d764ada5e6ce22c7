//! `lctl report`: a run that `lctl eval` saved -> table, Markdown, JUnit XML, HTML page; no model.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::eval::paths::Named;
use super::gate::{open_policy, open_run, printable_lines};
use super::{render, term};
use crate::error::Failure;
use crate::eval::gate::{Run, Verdict, compare, text};
use crate::eval::report::{TableTask, table};
use crate::read::{ReadError, read_text};

const AFTER_HELP: &str = "\
RUN is a directory that `lctl eval --suite .. --out DIR` wrote, or its report.json with samples.jsonl beside it.
The files are those that `lctl eval` itself writes with the same options; docs/report.md describes them.

Examples:
  lctl report results/new --html report.html
  lctl report results/new --baseline results/base --html diff.html --junit gate.xml";

/// Show a saved evaluation: table, Markdown, JUnit, HTML
///
/// It shows what `lctl eval --suite .. --out DIR` saved, and needs no model.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The run to show
    #[arg(value_name = "RUN")]
    run: PathBuf,

    /// Show it beside this run, with what `lctl gate` says of the two; the exit status does not depend on it
    #[arg(long, value_name = "RUN")]
    baseline: Option<PathBuf>,

    /// What the gate demands, as YAML (recipes/gate.yaml has every key)
    #[arg(long, value_name = "FILE", requires = "baseline")]
    policy: Option<PathBuf>,

    #[command(flatten)]
    render: render::RenderArgs,

    /// Print the report as JSON; with --baseline `{report, verdict}` (docs/report.md)
    #[arg(long)]
    json: bool,

    /// Replace files that exist
    #[arg(short, long)]
    force: bool,

    /// Print nothing but errors, and JSON if asked for
    #[arg(short, long)]
    quiet: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let policy = open_policy(args.policy.as_deref())?;
    let runs: Vec<_> = [&args.run].into_iter().chain(&args.baseline).map(PathBuf::as_path).collect();
    let policy_file: Vec<Named> = args.policy.iter().map(|path| ("--policy", path.clone())).collect();
    args.render.check(args.force, &runs, &policy_file, None)?;
    let run = open_run(&args.run)?;
    let baseline = args.baseline.as_deref().map(open_run).transpose()?;
    let comparison: Option<(&Run, Verdict)> = match &baseline {
        Some(baseline) => Some((baseline, compare(baseline, &run, &policy)?)),
        None => None,
    };
    let comparison = comparison.as_ref().map(|(baseline, verdict)| (*baseline, verdict));
    if args.json {
        print_json(&args.run, comparison.map(|(_, verdict)| verdict))?;
    } else if !args.quiet {
        term::out(&printable_lines(&table(run.tasks.iter().map(TableTask::saved))))?;
        if let Some((_, verdict)) = comparison {
            term::out("\n")?;
            term::out(&printable_lines(&text(verdict, term::out_width())))?;
        }
    }
    args.render.write(args.force, &run, comparison)?.keep();
    Ok(())
}

/// Prints a report that was read already, and what a gate says of it.
fn print_json(path: &Path, verdict: Option<&Verdict>) -> Result<(), Failure> {
    let path = Run::report_path(path);
    let text = read_text(&path)?;
    // it was parsed a moment ago; if it has changed since, that is an error of reading
    let report: Json =
        serde_json::from_str(&text).map_err(|error| ReadError::Io { path, source: error.into() })?;
    term::out_json(&match verdict {
        Some(verdict) => json!({"report": report, "verdict": super::gate::json(verdict)}),
        None => report,
    })
}
