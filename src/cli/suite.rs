//! `lctl suite`.

mod show;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value as Json, json};

use super::eval::data_files;
use super::source::find_hub_files;
use super::term;
use crate::error::{Diagnostic, Failure, unread_hint};
use crate::eval::audit::{TaskAudit, audit};
use crate::eval::contamination::Runs;
use crate::eval::run::{DataSets, Purpose, RunOptions, check_names};
use crate::eval::suite::Suite;

const AFTER_HELP: &str = "\
Examples:
  lctl suite list
  lctl suite show evalsuites/log-triage.yaml
  lctl suite validate my-suite.yaml
  lctl suite overlap evalsuites/log-triage.yaml train.jsonl";

/// Look at suites of questions; needs no model
///
/// What they ask, what is wrong with them, what a training set gives away.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    List(ListArgs),
    Show(ShowArgs),
    Validate(ValidateArgs),
    Overlap(OverlapArgs),
}

/// List the suites of a directory
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lctl suite list\n  lctl suite list my-suites --json")]
struct ListArgs {
    #[arg(default_value = "evalsuites")]
    dir: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show a suite's tasks, the size and digest of their data, clusters, and places of right answers
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lctl suite show evalsuites/log-triage.yaml
  lctl suite show evalsuites/cybermetric.yaml --data cybermetric=CyberMetric-500-v1.json --json")]
struct ShowArgs {
    suite: PathBuf,

    #[command(flatten)]
    data: DataArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Say everything that is wrong with suites and their data
///
/// Wrong are keys and templates, rows that do not fit them, answers outside their choices, repeated questions,
/// near-duplicates in two clusters (Jaccard similarity of runs of 5 words from 0.6 on), examples that resemble questions, places of
/// right answers that are far from even, and critical tasks that are too small for their margin. Exits with 2 if anything is.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
#[command(after_help = "\
Examples:
  lctl suite validate evalsuites/log-triage.yaml evalsuites/phish-triage.yaml
  lctl suite validate my-suite.yaml --data rows=rows.jsonl --json")]
struct ValidateArgs {
    #[arg(required = true)]
    suites: Vec<PathBuf>,

    #[command(flatten)]
    data: DataArgs,

    /// Print JSON (docs/cli.md)
    #[arg(long)]
    json: bool,
}

/// Where the data is.
#[derive(clap::Args)]
struct DataArgs {
    /// File of one of the suites' data sets
    #[arg(long, value_name = "NAME=FILE")]
    data: Vec<String>,

    /// Open no connection: data on a hub has to be in the cache (also HF_HUB_OFFLINE=1)
    #[arg(long)]
    offline: bool,
}

/// Look for a suite's documents in training files
///
/// A document is found if 13 words in a row of one of its texts stand in the file, or a whole text of 8 to 12 words.
/// A .jsonl or .json file is compared text by text, anything else as one text. Exits with 1 if any document is found.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lctl suite overlap evalsuites/log-triage.yaml train.jsonl
  lctl suite overlap evalsuites/log-triage.yaml corpus/a.txt corpus/b.jsonl --json")]
struct OverlapArgs {
    suite: PathBuf,

    /// Training files
    #[arg(required = true)]
    files: Vec<PathBuf>,

    #[command(flatten)]
    data: DataArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{path}: cannot read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("{path}: no suites")]
    NoSuites { path: PathBuf },

    #[error("{n} problems in {n_suites} suites")]
    Problems { n: usize, n_suites: usize },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NoSuites { .. } => Some("suites are .yaml files; name the directory they are in".into()),
            Error::Read { path, source } => unread_hint(path, source),
            Error::Problems { .. } => None,
        }
    }
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        Command::List(args) => list(&args)?,
        Command::Show(args) => {
            let suite = Suite::open(&args.suite)?;
            let options = args.data.options(std::slice::from_ref(&suite), Purpose::Look)?;
            let audits = audit(&suite, &options)?;
            match args.json {
                true => term::out_json(&show::json(&suite, &audits))?,
                false => term::out(&show::text(&suite, &audits))?,
            }
        }
        Command::Validate(args) => validate(&args)?,
        Command::Overlap(args) => return overlap(&args),
    }
    Ok(ExitCode::SUCCESS)
}

impl DataArgs {
    /// Returns where the suites' data is; errors on names that no suite has.
    fn options(&self, suites: &[Suite], purpose: Purpose) -> Result<RunOptions, Failure> {
        let few_shot = (purpose == Purpose::Run).then_some(0);
        let mut options = RunOptions { data: data_files(&self.data)?, few_shot, ..RunOptions::default() };
        check_names(suites, &options)?;
        find_hub_files(suites, &mut options, purpose, self.offline, false)?;
        Ok(options)
    }
}

impl DataArgs {
    /// Returns what is found about one suite; of `files`, by name, those count that it asks for.
    fn audit(&self, suite: &Suite, files: &HashMap<String, PathBuf>) -> Result<Vec<TaskAudit>, Failure> {
        let is_its = |name: &str| {
            let mut rest = suite.data.keys().filter_map(|set| name.strip_prefix(set.as_str()));
            rest.any(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let data = files.iter().filter(|(name, _)| is_its(name));
        let data = data.map(|(name, file)| (name.clone(), file.clone())).collect();
        let mut options = RunOptions { data, ..RunOptions::default() };
        find_hub_files(std::slice::from_ref(suite), &mut options, Purpose::Look, self.offline, false)?;
        Ok(audit(suite, &options)?)
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let mut paths = Vec::new();
    suites_under(&args.dir, &mut paths)?;
    paths.sort();
    if paths.is_empty() {
        return Err(Error::NoSuites { path: args.dir.clone() }.into());
    }
    let suites = paths.iter().map(|path| Suite::open(path)).collect::<Result<Vec<_>, _>>()?;
    if args.json {
        let rows: Vec<Json> = suites.iter().map(show::row).collect();
        return term::out_json(&json!(rows));
    }
    term::out(&show::list(&suites))
}

/// Adds the suite files of a directory and those below it.
pub(super) fn suites_under(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), Error> {
    let read = |source| Error::Read { path: dir.to_owned(), source };
    for entry in std::fs::read_dir(dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        let path = entry.path();
        // links are not followed: they may lead in a circle
        if entry.file_type().map_err(read)?.is_dir() {
            suites_under(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            found.push(path);
        }
    }
    Ok(())
}

fn validate(args: &ValidateArgs) -> Result<(), Failure> {
    let n_suites = args.suites.len();
    let files = data_files(&args.data.data)?;
    let mut suites = Vec::new();
    let mut failures = Vec::new();
    for path in &args.suites {
        let suite = Suite::open(path).map(|suite| suites.push(suite));
        failures.push(suite.err().map(Failure::from));
    }
    if suites.len() == n_suites {
        check_names(&suites, &RunOptions { data: files.clone(), ..RunOptions::default() })?;
    }
    let mut suites = suites.into_iter();
    let (mut n, mut rows) = (0, Vec::new());
    for (path, failure) in args.suites.iter().zip(failures) {
        // there is a suite for each that did not fail
        let suite = if failure.is_none() { suites.next() } else { None };
        let audited = match (suite, failure) {
            (Some(suite), _) => {
                args.data.audit(&suite, &files).map(|audits| (show::problems(&suite, &audits), audits))
            }
            (None, Some(failure)) => Err(failure),
            (None, None) => continue,
        };
        let (problems, audits) = match audited {
            Ok(found) => found,
            Err(failure) if n_suites == 1 && !args.json => return Err(failure),
            Err(failure) => (problems_of(&failure), Vec::new()),
        };
        n += problems.len();
        let (tasks, documents) = (audits.len(), documents_of(&audits));
        if args.json {
            let file = path.display().to_string();
            rows.push(json!({"suite": file, "tasks": tasks, "documents": documents, "problems": problems}));
            continue;
        }
        for problem in &problems {
            term::say(&term::printable(problem));
        }
        if problems.is_empty() {
            term::out(&format!(
                "{}: {tasks} tasks, {documents} documents, nothing wrong\n",
                term::printable(&path.display().to_string())
            ))?;
            term::out(&show::hub_files(&audits))?;
        }
    }
    if args.json {
        term::out_json(&json!(rows))?;
    }
    if n > 0 {
        return Err(Error::Problems { n, n_suites }.into());
    }
    Ok(())
}

/// Returns what is wrong with a suite that cannot be looked at, a text per problem, each with its causes and hint.
fn problems_of(failure: &Failure) -> Vec<String> {
    let text = failure.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let mut problems: Vec<String> = Vec::new();
    for line in text.lines() {
        let is_more = line.starts_with("  caused by: ") || line.starts_with("hint: ");
        match problems.last_mut().filter(|_| is_more) {
            Some(last) => last.extend(["\n", line]),
            None => problems.push(line.to_owned()),
        }
    }
    problems
}

/// Data sets that tasks ask about, each once; examples don't count.
pub(super) fn asked(suite: &Suite) -> Vec<&str> {
    let mut names: Vec<&str> = suite.tasks.iter().map(|task| task.data.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn overlap(args: &OverlapArgs) -> Result<ExitCode, Failure> {
    let suite = Suite::open(&args.suite)?;
    let options = args.data.options(std::slice::from_ref(&suite), Purpose::Run)?;
    let mut sets = DataSets::default();
    let mut rows = Vec::new();
    for name in asked(&suite) {
        let set = sets.get(&suite, name, &options)?;
        let runs = Runs::new(&set);
        if !runs.untold.is_empty() {
            let (n, of) = (runs.untold.len(), set.documents.len());
            term::say(&format!("note: {n} of {of} documents of `{name}` are too short to tell"));
        }
        for file in &args.files {
            for found in runs.overlaps(file)? {
                let document = &set.documents[found.document];
                rows.push(json!({
                    "data": name,
                    "document": found.document,
                    "line": document.place.line,
                    "id": document.fields.get("id"),
                    "file": file.display().to_string(),
                    "file_line": found.line,
                }));
            }
        }
    }
    let code = if rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) };
    match args.json {
        true => term::out_json(&json!(rows))?,
        false => term::out(&show::overlaps(&rows))?,
    }
    Ok(code)
}

/// Returns the number of documents over all tasks.
fn documents_of(audits: &[TaskAudit]) -> usize {
    audits.iter().map(|audit| audit.documents).sum()
}
