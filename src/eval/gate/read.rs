//! What `lctl eval --suite --out DIR` wrote, read back and checked line by line.

mod figures;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value as Json};
use sha2::{Digest as _, Sha256};

use crate::error::Diagnostic;
use crate::eval::data::hex;
use crate::eval::report;
use crate::eval::score::Valid;
use crate::eval::stats::Interval;
use crate::eval::suite::GateKeys;
use crate::provenance::Licences;
use crate::read::{ReadError, read_text};
use crate::yaml::{Step, locate};

/// Report and samples of a run over suites.
#[derive(Debug)]
pub struct Run {
    /// Where the report is from, for messages.
    pub path: PathBuf,
    pub lctl: String,
    pub model: ModelFacts,
    pub settings: SettingsFacts,
    /// What results do not depend on, as the report has it: threads, times.
    pub facts: Map<String, Json>,
    pub suites: Vec<SuiteFacts>,
    /// In the report's order; there is at least one, and each has samples.
    pub tasks: Vec<TaskRun>,
    /// Of what was measured and on what, if its manifest says; whoever opens a run looks for it.
    pub licences: Option<Licences>,
}

#[derive(Debug, Deserialize)]
struct ReportFile {
    lctl: String,
    model: ModelFacts,
    settings: SettingsFacts,
    suites: Vec<SuiteFile>,
    #[serde(default)]
    run: Map<String, Json>,
}

/// What the report says about the model.
#[derive(Clone, Debug, Deserialize)]
pub struct ModelFacts {
    pub name: String,
    pub sha256: String,
    pub adapter: Option<AdapterFacts>,
    pub tokenizer_sha256: String,
    pub chat_template: Option<ChatTemplateFacts>,
}

/// What chats were rendered with.
#[derive(Clone, Debug, Deserialize)]
pub struct ChatTemplateFacts {
    pub sha256: String,
    /// The day it saw.
    pub date: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct AdapterFacts {
    pub name: String,
    pub sha256: String,
}

/// What the report says about the run, as far as comparisons depend on it.
#[derive(Clone, Debug, Deserialize)]
pub struct SettingsFacts {
    pub compute: String,
    pub context: u64,
    pub seed: u64,
    pub limit: Option<u64>,
    pub few_shot: Option<u64>,
    pub chat_template: String,
    /// What computed, if it was not the CPU.
    #[serde(default)]
    pub device: Option<DeviceFacts>,
}

/// A GPU as the report names it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DeviceFacts {
    pub name: String,
    pub precision: String,
    /// Of a report that says it.
    #[serde(default)]
    pub driver: Option<String>,
    #[serde(default)]
    pub cublas: Option<String>,
}

#[derive(Debug, Deserialize)]
struct SuiteFile {
    #[serde(flatten)]
    facts: SuiteFacts,
    tasks: Vec<TaskFacts>,
}

/// What the report says about a suite.
#[derive(Clone, Debug, Deserialize)]
pub struct SuiteFacts {
    pub name: String,
    pub description: String,
    pub sha256: String,
}

/// What the report says about a task.
#[derive(Debug, Deserialize)]
pub struct TaskFacts {
    pub id: String,
    #[serde(rename = "type")]
    pub task_type: String,
    pub description: String,
    pub data: DataFacts,
    pub few_shot: Option<ShotFacts>,
    /// Whether prompts went through the chat template.
    pub chat: bool,
    pub documents: usize,
    pub errors: usize,
    pub truncated: usize,
    pub gate: GateKeys,
    pub task_sha256: String,
    pub prompts_sha256: String,
    pub samples_sha256: String,
    pub metrics: Vec<MetricFacts>,
    /// The first document's prompt.
    pub first_prompt: Option<String>,
    pub confusion: Option<Confusion>,
}

/// Examples before each question.
#[derive(Debug, Deserialize)]
pub struct ShotFacts {
    pub n: usize,
}

/// Documents by label and answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Confusion {
    pub labels: Vec<String>,
    /// Rows: the label; columns: the answer.
    pub matrix: Vec<Vec<u64>>,
    /// Answers that name no label, per label.
    pub no_label: Vec<u64>,
}

#[derive(Debug, Deserialize)]
pub struct DataFacts {
    pub file: Option<String>,
    pub sha256: String,
}

impl Confusion {
    fn is_square(&self) -> bool {
        let n = self.labels.len();
        self.matrix.len() == n && self.no_label.len() == n && self.matrix.iter().all(|row| row.len() == n)
    }
}

/// A figure of a task.
#[derive(Debug, Deserialize)]
pub struct MetricFacts {
    pub name: String,
    value: Option<f64>,
    pub stderr: Option<f64>,
    pub clustered_stderr: Option<f64>,
    /// Two-sided 95 % interval.
    pub ci95: Option<Interval>,
    /// Documents.
    pub n: usize,
    pub valid: Option<Valid>,
    pub higher_is_better: bool,
}

impl MetricFacts {
    /// Returns the figure; a report with one that is no number is not read.
    pub fn value(&self) -> f64 {
        self.value.unwrap_or(f64::NAN)
    }
}

/// A task and its samples, by document.
#[derive(Debug)]
pub struct TaskRun {
    pub suite: String,
    pub facts: TaskFacts,
    /// Ascending by document.
    pub samples: Vec<SampleRun>,
}

impl TaskRun {
    /// Returns how people call it: suite/task.
    pub fn name(&self) -> String {
        format!("{}/{}", self.suite, self.facts.id)
    }
}

/// What a document came to.
#[derive(Debug)]
pub struct SampleRun {
    pub document: usize,
    /// In the data file.
    pub line: usize,
    pub item: Option<String>,
    pub cluster: Option<String>,
    /// Whether the prompt lost its beginning, for lack of room.
    pub is_truncated: bool,
    pub question: Option<String>,
    /// Why the model could not be asked.
    pub error: Option<String>,
    /// `None` if the model could not be asked.
    pub target: Option<Json>,
    pub prediction: Json,
    /// Keys of the task's type: what it answered, log-probabilities.
    pub details: Map<String, Json>,
    pub scores: IndexMap<String, f64>,
}

#[derive(Deserialize)]
struct SampleLine {
    suite: String,
    task: String,
    document: usize,
    line: usize,
    item: Option<String>,
    cluster: Option<String>,
    #[serde(default)]
    truncated: bool,
    question: Option<String>,
    error: Option<String>,
    #[serde(default)]
    target: Json,
    #[serde(default)]
    prediction: Json,
    #[serde(flatten)]
    details: Map<String, Json>,
    scores: IndexMap<String, Option<f64>>,
}

/// Why a run cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] ReadError),

    #[error("{path}:{line}: {what}")]
    Bad { path: PathBuf, line: usize, what: String, hint: Option<String> },
}

impl Error {
    pub(super) fn bad(path: &Path, line: usize, what: impl Into<String>) -> Error {
        Error::Bad { path: path.to_owned(), line, what: what.into(), hint: None }
    }

    fn with_hint(self, text: &str) -> Error {
        match self {
            Error::Bad { path, line, what, .. } => {
                Error::Bad { path, line, what, hint: Some(text.to_owned()) }
            }
            other => other,
        }
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::File(ReadError::NotUtf8 { .. }) => Some(
                "a report or its samples were expected: name a directory that `lctl eval --out DIR` wrote"
                    .into(),
            ),
            Error::File(ReadError::Io { .. }) => Some(
                "name a directory that `lctl eval --suite .. --out DIR` wrote, or its report.json".into(),
            ),
            Error::File(source) => source.hint(),
            Error::Bad { hint, .. } => hint.clone(),
        }
    }
}

impl Run {
    /// Returns the report of a directory, or the file named.
    pub fn report_path(path: &Path) -> PathBuf {
        if path.is_dir() { path.join("report.json") } else { path.to_owned() }
    }

    /// Reads a directory's report.json and samples.jsonl, or the report named and the samples beside it.
    pub fn open(path: &Path) -> Result<Run, Error> {
        let report = Run::report_path(path);
        let samples = report.with_file_name("samples.jsonl");
        Run::read(&report, &read_text(&report)?, &samples, &read_text(&samples)?)
    }

    /// Reads a report's text and its samples' text; the paths are for messages.
    pub fn read(report_path: &Path, report: &str, samples_path: &Path, samples: &str) -> Result<Run, Error> {
        let file = parse_report(report_path, report)?;
        let mut tasks: Vec<TaskRun> = Vec::new();
        let mut suites: Vec<SuiteFacts> = Vec::new();
        for suite in file.suites {
            let new = |facts| TaskRun { suite: suite.facts.name.clone(), facts, samples: Vec::new() };
            tasks.extend(suite.tasks.into_iter().map(new));
            suites.push(suite.facts);
        }
        let mut reader = SampleReader::new(samples_path, &mut tasks);
        let mut n_lines = 0;
        for (index, line) in samples.split_inclusive('\n').enumerate() {
            n_lines = index + 1;
            reader.take(n_lines, line)?;
        }
        let digests: Vec<String> = reader.digests.into_iter().map(|digest| hex(&digest.finalize())).collect();
        for (task, digest) in tasks.iter_mut().zip(digests) {
            task.samples.sort_by_key(|sample| sample.document);
            check_whole(samples_path, n_lines, task, &digest)?;
            figures::check(report_path, report, task)?;
        }
        Ok(Run {
            path: report_path.to_owned(),
            lctl: file.lctl,
            model: file.model,
            settings: file.settings,
            facts: file.run,
            suites,
            tasks,
            licences: None,
        })
    }
}

/// Errors if a report is of another version, lacks something, or has nothing in it.
fn parse_report(path: &Path, text: &str) -> Result<ReportFile, Error> {
    let syntax = |error: serde_json::Error| {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        Error::bad(path, error.line().max(1), message)
    };
    let json: Json = serde_json::from_str(text).map_err(syntax)?;
    // JSON is YAML, whose locator there is
    let line_of = |steps: &[Step]| locate(text, steps).0;
    match json.get("lctl_report").map(Json::as_u64) {
        Some(Some(version)) if version == u64::from(report::VERSION) => {}
        None => {
            return Err(Error::bad(path, 1, "no `lctl_report`: this is no report over suites"));
        }
        Some(_) => {
            let line = line_of(&[Step::Key("lctl_report".into())]);
            let found = &json["lctl_report"];
            let what = format!("a report of version {found}; this program reads version {}", report::VERSION);
            return Err(
                Error::bad(path, line, what).with_hint("run `lctl eval` again with this version of lctl")
            );
        }
    }
    // from the text, so that errors have lines
    let report: ReportFile = serde_json::from_str(text).map_err(syntax)?;
    let mut known: HashMap<(&str, &str), ()> = HashMap::new();
    for (suite_index, suite) in report.suites.iter().enumerate() {
        let place = [Step::Key("suites".into()), Step::Item(suite_index)];
        if suite.tasks.is_empty() {
            return Err(Error::bad(
                path,
                line_of(&place),
                format!("the suite `{}` has no tasks", suite.facts.name),
            ));
        }
        for (index, task) in suite.tasks.iter().enumerate() {
            let [suites, at] = place.clone();
            let place = [suites, at, Step::Key("tasks".into()), Step::Item(index)];
            let bad = |what: String| Err(Error::bad(path, line_of(&place), what));
            let name = format!("{}/{}", suite.facts.name, task.id);
            if known.insert((&suite.facts.name, &task.id), ()).is_some() {
                return bad(format!("two tasks are called `{name}`"));
            }
            if task.documents == 0 {
                return bad(format!("the task `{name}` has no documents"));
            }
            if task.confusion.as_ref().is_some_and(|confusion| !confusion.is_square()) {
                return bad(format!(
                    "task `{name}`: the confusion matrix has not a row and a column per label"
                ));
            }
            if let Some(metric) = task.metrics.iter().find(|metric| metric.value.is_none()) {
                return bad(format!("task `{name}`: the value of `{}` is not a number", metric.name));
            }
        }
    }
    match report.suites.is_empty() {
        true => Err(Error::bad(path, line_of(&[Step::Key("suites".into())]), "the report has no suites")),
        false => Ok(report),
    }
}

/// Hands samples out to their tasks.
struct SampleReader<'a> {
    path: &'a Path,
    tasks: &'a mut Vec<TaskRun>,
    index: HashMap<(String, String), usize>,
    /// Per task, of its lines.
    digests: Vec<Sha256>,
    /// Line of each task's documents, and of its documents' own names.
    documents: Vec<HashMap<usize, usize>>,
    items: Vec<HashMap<String, usize>>,
}

impl<'a> SampleReader<'a> {
    fn new(path: &'a Path, tasks: &'a mut Vec<TaskRun>) -> SampleReader<'a> {
        let n = tasks.len();
        let key = |(index, task): (usize, &TaskRun)| ((task.suite.clone(), task.facts.id.clone()), index);
        SampleReader {
            path,
            index: tasks.iter().enumerate().map(key).collect(),
            tasks,
            digests: vec![Sha256::new(); n],
            documents: vec![HashMap::new(); n],
            items: vec![HashMap::new(); n],
        }
    }

    fn take(&mut self, number: usize, line: &str) -> Result<(), Error> {
        let bad = |what: String| Error::bad(self.path, number, what);
        if !line.ends_with('\n') {
            return Err(bad("the file breaks off in this line".into()).with_hint("was the run interrupted?"));
        }
        let sample: SampleLine = serde_json::from_str(line).map_err(|error| {
            let message = error.to_string();
            bad(message.split(" at line ").next().unwrap_or_default().to_owned())
        })?;
        let name = format!("{}/{}", sample.suite, sample.task);
        let index = *self
            .index
            .get(&(sample.suite, sample.task))
            .ok_or_else(|| bad(format!("report.json has no task `{name}`")))?;
        let document = sample.document;
        if let Some(first) = self.documents[index].insert(document, number) {
            return Err(bad(format!(
                "document {document} of `{name}` is there twice; the first is line {first}"
            )));
        }
        if let Some(item) = &sample.item
            && let Some(first) = self.items[index].insert(item.clone(), number)
        {
            return Err(bad(format!("item `{item}` of `{name}` is there twice; the first is line {first}")));
        }
        let mut scores = IndexMap::with_capacity(sample.scores.len());
        for (score, value) in sample.scores {
            let value =
                value.ok_or_else(|| bad(format!("the score `{score}` of `{name}` is not a number")))?;
            scores.insert(score, value);
        }
        self.digests[index].update(line);
        self.tasks[index].samples.push(SampleRun {
            document,
            line: sample.line,
            item: sample.item,
            cluster: sample.cluster,
            is_truncated: sample.truncated,
            question: sample.question,
            target: sample.error.is_none().then_some(sample.target),
            error: sample.error,
            prediction: sample.prediction,
            details: sample.details,
            scores,
        });
        Ok(())
    }
}

/// Errors if samples of a task are missing or not those of the report.
fn check_whole(path: &Path, n_lines: usize, task: &TaskRun, digest: &str) -> Result<(), Error> {
    let (found, expected) = (task.samples.len(), task.facts.documents);
    let name = task.name();
    if found != expected {
        let what = format!("the file ends with {found} samples of `{name}`, but report.json says {expected}");
        return Err(Error::bad(path, n_lines.max(1), what));
    }
    if digest != task.facts.samples_sha256 {
        let expected = &task.facts.samples_sha256;
        let what = format!("SHA-256 of the lines of `{name}` is {digest}, but report.json says {expected}");
        return Err(Error::bad(path, 1, what).with_hint("report and samples are of two runs, or were edited"));
    }
    let n_clustered = task.samples.iter().filter(|sample| sample.cluster.is_some()).count();
    if n_clustered != 0 && n_clustered != found {
        let what = format!("{n_clustered} of the {found} samples of `{name}` have a cluster");
        return Err(Error::bad(path, 1, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
