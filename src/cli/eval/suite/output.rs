//! Where results go.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value as Json;

use super::Args;
use crate::cli::eval::paths::{self, Named};
use crate::cli::render::{self, write_whole};
use crate::cli::{gate, term};
use crate::error::{Diagnostic, Failure};
use crate::eval::gate::{Verdict, text};
use crate::eval::report::{self, RunFacts};
use crate::eval::run::{PlannedTask, RunOptions, TaskResult};
use crate::eval::suite::Suite;
use crate::provenance::{blocking_manifest, manifest_path};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: exists already")]
    Exists { path: PathBuf },

    #[error("{path}: cannot create the directory")]
    CreateDir {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Exists { path } => Some(render::hint_of_existing(path)),
            Error::CreateDir { .. } => None,
        }
    }
}

/// The files that a run writes.
pub struct Outputs {
    report: Option<PathBuf>,
    samples: Vec<PathBuf>,
    journal: Option<PathBuf>,
    force: bool,
}

impl Outputs {
    /// Returns the files the arguments name; makes the directory of --out.
    ///
    /// Errors if one of them exists and --force is not given, cannot be made, or is a file that the run reads.
    pub fn check(args: &Args, suites: &[Suite], options: &RunOptions) -> Result<Outputs, Failure> {
        if let Some(dir) = &args.out {
            std::fs::create_dir_all(dir).map_err(|source| Error::CreateDir { path: dir.clone(), source })?;
        }
        let in_dir = |name: &str| args.out.as_ref().map(|dir| dir.join(name));
        let outputs = Outputs {
            report: in_dir("report.json"),
            samples: in_dir("samples.jsonl").into_iter().chain(args.samples.clone()).collect(),
            journal: args.journal.clone().or_else(|| in_dir("journal.jsonl")),
            force: args.force,
        };
        let rendered = args.render.files().into_iter().map(|(_, path)| path);
        let mut written = outputs.report.iter().chain(&outputs.samples).cloned().chain(rendered);
        let existing = written.find(|path| !args.force && path.exists());
        let report = outputs.report.as_deref().filter(|_| !args.no_manifest);
        if let Some(path) = existing.or_else(|| blocking_manifest(report?, args.force)) {
            return Err(Error::Exists { path }.into());
        }
        paths::check(&outputs.written(args), &read(args, suites, options))?;
        Ok(outputs)
    }

    fn written(&self, args: &Args) -> Vec<Named> {
        let journal_option = if args.journal.is_some() { "--journal" } else { "--out" };
        let mut written: Vec<Named> = Vec::new();
        written.extend(self.report.clone().map(|path| ("--out", path)));
        written.extend(self.samples.iter().map(|path| {
            (if args.samples.as_ref() == Some(path) { "--samples" } else { "--out" }, path.clone())
        }));
        written.extend(self.journal.clone().map(|path| (journal_option, path)));
        written.extend(args.render.files());
        written.extend(self.manifest(args).map(|path| ("--out", path)));
        written
    }

    fn manifest(&self, args: &Args) -> Option<PathBuf> {
        // with --force that of an earlier report is replaced or removed
        self.report.as_deref().filter(|_| args.force || !args.no_manifest).map(manifest_path)
    }

    /// Returns where the report goes.
    pub fn report(&self) -> Option<&Path> {
        self.report.as_deref()
    }

    /// Returns where responses are recorded.
    pub fn journal(&self) -> Option<&Path> {
        self.journal.as_deref()
    }

    /// Writes report and samples, each whole or not at all.
    pub fn write(&self, report: &Json, tasks: &[PlannedTask], results: &[TaskResult]) -> Result<(), Failure> {
        if !self.samples.is_empty() {
            let text = report::samples(tasks, results);
            self.samples.iter().try_for_each(|path| write_whole(path, &text, self.force))?;
        }
        match &self.report {
            Some(path) => write_whole(path, &format!("{report:#}\n"), self.force),
            None => Ok(()),
        }
    }
}

/// Returns the files that a run over suites reads.
fn read(args: &Args, suites: &[Suite], options: &RunOptions) -> Vec<Named> {
    let mut read = vec![("the model", PathBuf::from(&args.model))];
    read.extend(args.adapter.iter().map(|path| ("--adapter", path.clone())));
    read.extend(args.baseline_model.iter().map(|path| ("--baseline-model", path.into())));
    read.extend(args.baseline_adapter.iter().map(|path| ("--baseline-adapter", path.clone())));
    let of_baseline = args.baseline.iter().flat_map(|path| render::of_a_run(path));
    read.extend(of_baseline.map(|(_, path)| ("--baseline", path)));
    read.extend(args.policy.iter().map(|path| ("--policy", path.clone())));
    read.extend(args.suite.iter().map(|path| ("--suite", path.clone())));
    let given = args.data.iter().filter_map(|given| given.split_once('='));
    read.extend(given.map(|(_, path)| ("--data", path.into())));
    for suite in suites {
        let named = suite.data.values().filter_map(|spec| spec.file(suite.directory()));
        read.extend(named.map(|path| ("data of a suite", path)));
    }
    read.extend(options.hub.values().map(|path| ("data of a suite", path.clone())));
    read
}

/// Returns the last part of a path.
pub fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Prints what a gate says, and returns its exit status.
pub fn show_verdict(args: &Args, verdict: &Verdict) -> Result<ExitCode, Failure> {
    if !args.json && !args.quiet && !args.is_replay {
        term::out("\n")?;
        term::out(&gate::printable_lines(&text(verdict, term::out_width())))?;
    }
    Ok(ExitCode::from(verdict.exit_code))
}

/// Says on stderr what the table does not.
pub fn say_summary(results: &[TaskResult], facts: &RunFacts) {
    let sum = |count: fn(&TaskResult) -> usize| results.iter().map(count).sum::<usize>();
    let n_errors = sum(|result| result.n_errors);
    if n_errors > 0 {
        let first = results
            .iter()
            .flat_map(|result| &result.samples)
            .find_map(|sample| sample.outcome.as_ref().err());
        let first = first.map_or(String::new(), |why| format!("; the first: {}", term::printable(why)));
        term::say(&format!(
            "warning: {n_errors} documents could not be asked about and count as wrong{first}"
        ));
    }
    let n_truncated = sum(|result| result.n_truncated);
    if n_truncated > 0 {
        term::say(&format!(
            "warning: {n_truncated} prompts were longer than the context and lost their beginning"
        ));
    }
    let resumed = if facts.resumed > 0 {
        format!(", {} of them from the journal", facts.resumed)
    } else {
        String::new()
    };
    let (computed, plain) = (facts.computed_tokens, facts.plain_tokens);
    let shared =
        if computed < plain { format!("; {plain} tokens without what prompts share") } else { String::new() };
    term::say(&format!("{} answers{resumed}{shared}", facts.requests));
}
