//! Where results go.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::Args;
use crate::cli::term;
use crate::error::Diagnostic;
use crate::eval::report::{self, RunFacts};
use crate::eval::run::{PlannedTask, TaskResult};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: exists already")]
    Exists { path: PathBuf },

    #[error("{path}: cannot write")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Exists { .. } => Some("--force replaces it".into()),
            Error::Write { .. } => None,
        }
    }
}

/// The files that a run writes.
pub struct Outputs {
    report: Option<PathBuf>,
    samples: Vec<PathBuf>,
    journal: Option<PathBuf>,
}

impl Outputs {
    /// Returns the files the arguments name; makes the directory of --out.
    ///
    /// Errors if one of them exists and --force is not given: better now than after hours.
    pub fn check(args: &Args) -> Result<Outputs, Error> {
        if let Some(dir) = &args.out {
            std::fs::create_dir_all(dir).map_err(|source| Error::Write { path: dir.clone(), source })?;
        }
        let in_dir = |name: &str| args.out.as_ref().map(|dir| dir.join(name));
        let outputs = Outputs {
            report: in_dir("report.json"),
            samples: in_dir("samples.jsonl").into_iter().chain(args.samples.clone()).collect(),
            journal: args.journal.clone().or_else(|| in_dir("journal.jsonl")),
        };
        let mut written = outputs.report.iter().chain(&outputs.samples);
        match written.find(|path| !args.force && path.exists()) {
            Some(path) => Err(Error::Exists { path: path.clone() }),
            None => Ok(outputs),
        }
    }

    /// Returns where responses are recorded.
    pub fn journal(&self) -> Option<&Path> {
        self.journal.as_deref()
    }

    /// Writes report and samples, each whole or not at all.
    pub fn write(&self, report: &Json, tasks: &[PlannedTask], results: &[TaskResult]) -> Result<(), Error> {
        if !self.samples.is_empty() {
            let text = report::samples(tasks, results);
            self.samples.iter().try_for_each(|path| write_whole(path, &text))?;
        }
        match &self.report {
            Some(path) => write_whole(path, &format!("{report:#}\n")),
            None => Ok(()),
        }
    }
}

fn write_whole(path: &Path, text: &str) -> Result<(), Error> {
    let error = |source| Error::Write { path: path.to_owned(), source };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(error)?;
    file.write_all(text.as_bytes()).map_err(error)?;
    file.as_file().sync_all().map_err(error)?;
    // a temporary file is private; a report is as readable as any other new file
    #[cfg(unix)]
    set_usual_mode(file.as_file()).map_err(error)?;
    file.persist(path).map_err(|failed| error(failed.error))?;
    Ok(())
}

#[cfg(unix)]
fn set_usual_mode(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

/// Returns the last part of a path.
pub fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Says on stderr what the table does not.
pub fn say_summary(results: &[TaskResult], facts: &RunFacts) {
    let sum = |count: fn(&TaskResult) -> usize| results.iter().map(count).sum::<usize>();
    let n_errors = sum(|result| result.n_errors);
    if n_errors > 0 {
        let first = results.iter().flat_map(|result| &result.samples).find_map(|sample| sample.outcome.as_ref().err());
        let first = first.map_or(String::new(), |why| format!("; the first: {}", term::printable(why)));
        term::say(&format!("warning: {n_errors} documents could not be asked about and count as wrong{first}"));
    }
    let n_truncated = sum(|result| result.n_truncated);
    if n_truncated > 0 {
        term::say(&format!("warning: {n_truncated} prompts were longer than the context and lost their beginning"));
    }
    let saved = match facts.plain_tokens.saturating_sub(facts.computed_tokens) {
        0 => String::new(),
        _ => format!(" of {} (the rest shared)", facts.plain_tokens),
    };
    let resumed = if facts.resumed > 0 { format!(", {} from the journal", facts.resumed) } else { String::new() };
    term::say(&format!(
        "{} requests{resumed}, {} tokens{saved} in {:.1} s, {:.0} tokens/s",
        facts.requests, facts.computed_tokens, facts.engine_seconds, facts.tokens_per_second
    ));
}
