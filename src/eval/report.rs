//! report.json: what was measured, of what, how; the same bytes for the same measurement. And what is made of it for people
//! and for other programs: [`table`], [`markdown()`], [`junit()`], [`html()`], which need a [`super::gate::Run`] alone.
//!
//! What may differ between two runs that measure the same (threads, instruction set, times, what the journal
//! or the prefix cache saved) stands under `run`, apart from everything else.

mod calibration;
mod figures;
mod grade;
mod html;
mod junit;
mod markdown;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::data::hex;
use super::gate::{MetricFacts, TaskRun};
use super::run::{PlannedTask, Sample, TaskResult};
use super::score::{Metric, Valid, mean};
use super::stats::Interval;
use crate::layout;

pub use html::{Error as HtmlError, html};
pub use junit::{Cases, junit};
pub use markdown::markdown;

/// The version of the report's layout.
pub const VERSION: u32 = 2;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    /// Last part of its path.
    pub name: String,
    /// Of the digests and names of its files (docs/eval.md).
    pub sha256: String,
    pub adapter: Option<Adapter>,
    pub tokenizer_sha256: String,
    /// The chat template and the date it saw, if a task used it.
    pub chat_template: Option<ChatTemplateUse>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Adapter {
    pub name: String,
    pub sha256: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct ChatTemplateUse {
    pub sha256: String,
    /// What `strftime_now` told it, YYYY-MM-DD.
    pub date: String,
}

/// How it was measured, as far as results depend on it.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// `auto`, `f32`, `bf16` or `int8`.
    pub compute: &'static str,
    /// Tokens.
    pub context: usize,
    pub seed: u64,
    /// Documents per task, if the user limited them.
    pub limit: Option<usize>,
    /// Examples, if the user said so.
    pub few_shot: Option<usize>,
    /// `auto`, `on` or `off`.
    pub chat_template: &'static str,
    /// What computed, if it was not the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
}

/// A GPU, the type of its activations, and the versions that bits may depend on.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    pub name: String,
    /// `f32` or `bf16`.
    pub precision: &'static str,
    /// As [`crate::cuda::probe::DeviceFacts::driver`].
    pub driver: String,
    /// The version of cuBLAS.
    pub cublas: String,
}

/// What results do not depend on.
#[derive(Clone, Debug, Serialize)]
pub struct RunFacts {
    pub isa: &'static str,
    pub threads: usize,
    pub batch_tokens: usize,
    pub prefix_cache: bool,
    pub load_seconds: f64,
    pub plan_seconds: f64,
    pub engine_seconds: f64,
    pub requests: usize,
    /// Responses that an earlier, interrupted run had recorded.
    pub resumed: usize,
    /// Tokens the model computed.
    pub computed_tokens: usize,
    /// Tokens it would have computed without sharing what prompts have in common.
    pub plain_tokens: usize,
    pub tokens_per_second: f64,
}

/// Returns the report; `tasks` and `results` are in the same order.
pub fn report(
    model: &Model,
    settings: &Settings,
    tasks: &[PlannedTask],
    results: &[TaskResult],
    run: &RunFacts,
) -> Json {
    let mut suites: Vec<Json> = Vec::new();
    let mut begin = 0;
    while begin < tasks.len() {
        let suite = tasks[begin].suite;
        let count = tasks[begin..].iter().take_while(|task| std::ptr::eq(task.suite, suite)).count();
        let of_suite = tasks[begin..begin + count].iter().zip(&results[begin..]);
        suites.push(json!({
            "name": suite.name,
            "description": suite.description,
            "sha256": suite.sha256,
            "tasks": of_suite.map(|(task, result)| task_json(task, result)).collect::<Vec<_>>(),
        }));
        begin += count;
    }
    json!({
        "lctl_report": VERSION,
        "lctl": env!("CARGO_PKG_VERSION"),
        "model": model,
        "settings": settings,
        "suites": suites,
        "run": run,
    })
}

fn task_json(task: &PlannedTask, result: &TaskResult) -> Json {
    let file = |set: &super::data::DataSet| {
        let name = set.path.file_name().map(|name| name.to_string_lossy().into_owned());
        json!({"file": name, "sha256": set.sha256})
    };
    let few_shot = task.shots.as_ref().map(|(n, set)| json!({"n": n, "data": file(set)}));
    let mut json = json!({
        "id": task.spec.id,
        "type": task.spec.task_type.name,
        "description": task.spec.description,
        "data": file(&task.data),
        "few_shot": few_shot,
        "chat": task.is_chat,
        "documents": result.samples.len(),
        "errors": result.n_errors,
        "truncated": result.n_truncated,
        "gate": task.spec.gate,
        "task_sha256": task.spec.sha256,
        "prompts_sha256": task.prompts_sha256,
        "requests_sha256": result.requests_sha256,
        "samples_sha256": hex(&Sha256::digest(sample_lines(task, result))),
        "metrics": result.metrics,
        "first_prompt": task.first_prompt,
    });
    if let Some(clusters) = by_cluster(result) {
        json["by_cluster"] = clusters;
    }
    if let Some((key, explanation)) = &result.explanation {
        json[*key] = explanation.clone();
    }
    json
}

/// Returns the mean of each cluster, of the first figure with a score per document; `None` without clusters.
fn by_cluster(result: &TaskResult) -> Option<Json> {
    let scores = |name: &str| {
        let score = |sample: &Sample| sample.scores.get(name).copied();
        result.samples.iter().map(score).collect::<Option<Vec<f64>>>()
    };
    let (metric, scores) = result.metrics.iter().find_map(|metric| Some((metric, scores(&metric.name)?)))?;
    let mut clusters: IndexMap<&str, Vec<f64>> = IndexMap::new();
    for (sample, score) in result.samples.iter().zip(scores) {
        clusters.entry(sample.cluster.as_deref()?).or_default().push(score);
    }
    let cluster = |(name, scores): (&str, Vec<f64>)| json!({"cluster": name, "n": scores.len(), "value": mean(&scores)});
    let clusters: Vec<Json> = clusters.into_iter().map(cluster).collect();
    Some(json!({"metric": metric.name, "clusters": clusters}))
}

/// Returns samples.jsonl: a line per document, in the tasks' order.
pub fn samples(tasks: &[PlannedTask], results: &[TaskResult]) -> String {
    let mut text = String::new();
    for (task, result) in tasks.iter().zip(results) {
        text.push_str(&sample_lines(task, result));
    }
    text
}

fn sample_lines(task: &PlannedTask, result: &TaskResult) -> String {
    let line = |sample: &Sample| format!("{}\n", sample.json(&task.suite.name, &task.spec.id));
    result.samples.iter().map(line).collect()
}

/// A task's rows of the table.
pub struct TableTask<'a> {
    pub id: &'a str,
    /// Examples before each question.
    pub shots: usize,
    pub metrics: Vec<TableFigure<'a>>,
}

/// A figure's row.
pub struct TableFigure<'a> {
    pub name: &'a str,
    pub value: f64,
    /// Clusters allowed for.
    pub stderr: Option<f64>,
    pub ci95: Option<Interval>,
    pub n: usize,
    pub valid: Option<Valid>,
}

impl<'a> TableTask<'a> {
    /// Returns the rows of a task that was just measured.
    pub fn measured(task: &'a PlannedTask, result: &'a TaskResult) -> TableTask<'a> {
        let figure = |metric: &'a Metric| TableFigure {
            name: &metric.name,
            value: metric.value,
            stderr: metric.clustered_stderr.or(metric.stderr),
            ci95: metric.ci95,
            n: metric.n,
            valid: metric.valid,
        };
        TableTask {
            id: &task.spec.id,
            shots: task.shots.as_ref().map_or(0, |(n, _)| *n),
            metrics: result.metrics.iter().map(figure).collect(),
        }
    }

    /// Returns the rows of a task out of a report.
    pub fn saved(task: &'a TaskRun) -> TableTask<'a> {
        let figure = |metric: &'a MetricFacts| TableFigure {
            name: &metric.name,
            value: metric.value(),
            stderr: metric.clustered_stderr.or(metric.stderr),
            ci95: metric.ci95,
            n: metric.n,
            valid: metric.valid,
        };
        TableTask {
            id: &task.facts.id,
            shots: task.facts.few_shot.as_ref().map_or(0, |shots| shots.n),
            metrics: task.facts.metrics.iter().map(figure).collect(),
        }
    }
}

/// Returns the table for the terminal, a line per figure. Names are as the files have them: print it with control characters
/// escaped.
pub fn table<'a>(tasks: impl Iterator<Item = TableTask<'a>>) -> String {
    let mut rows = vec![["task", "shots", "metric", "value", "stderr", "95 %", "n"].map(str::to_owned)];
    for task in tasks {
        for (index, metric) in task.metrics.iter().enumerate() {
            let first = [task.id.to_owned(), task.shots.to_string()];
            let [id, shots] = if index == 0 { first } else { [String::new(), String::new()] };
            let error = metric.stderr.map_or(String::new(), |error| format!("± {error:.4}"));
            let bounds =
                metric.ci95.map(|found| format!("{} to {}", figure(found.lower), figure(found.upper)));
            let (value, bounds) = (figure(metric.value), bounds.unwrap_or_default());
            rows.push([id, shots, metric.name.to_owned(), value, error, bounds, metric.n.to_string()]);
            rows.extend(valid_row(metric));
        }
    }
    layout::table(&rows, |column| matches!(column, 0 | 2), None)
}

fn valid_row(metric: &TableFigure) -> Option<[String; 7]> {
    let valid = metric.valid.filter(|valid| valid.n < metric.n)?;
    let value = valid.value.map_or("-".to_owned(), figure);
    let name = format!("{}, valid answers", metric.name);
    let [id, shots, error, bounds] = [const { String::new() }; 4];
    Some([id, shots, name, value, error, bounds, valid.n.to_string()])
}

fn figure(value: f64) -> String {
    if value.abs() >= 1000.0 { format!("{value:.1}") } else { format!("{value:.4}") }
}
