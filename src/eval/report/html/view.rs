//! What the page's template shows: texts ready to be read, in the order of the report.

use indexmap::IndexMap;
use serde::Serialize;

use super::matrix::{self, Matrix};
use super::plot::{self, Plot};
use crate::eval::gate::{self, Judged, MetricFacts, Outcome, Run, TaskRun, Verdict};
use crate::eval::report::calibration::{Calibration, calibration};
use crate::eval::report::figures;
use crate::eval::report::grade::Lens;
use crate::eval::score::mean;

/// Clusters shown of a task.
const MOST_CLUSTERS: usize = 20;

/// Everything but the samples.
#[derive(Serialize)]
pub struct Page {
    pub title: String,
    pub lctl: &'static str,
    /// The baseline first, if there is one.
    pub sides: Vec<Side>,
    pub verdict: Option<VerdictView>,
    pub suites: Vec<SuiteView>,
    pub matrices: Vec<MatrixPair>,
    pub reliability: Vec<ReliabilityView>,
    pub clusters: Vec<ClustersView>,
    pub n_samples: usize,
}

#[derive(Serialize)]
pub struct Side {
    pub name: String,
    pub facts: Vec<(&'static str, String)>,
}

#[derive(Serialize)]
pub struct VerdictView {
    pub name: &'static str,
    /// `good`, `bad` or `unsure`.
    pub kind: &'static str,
    pub reasons: Vec<String>,
    /// Licences and divergence.
    pub information: Vec<(&'static str, String)>,
    pub notes: Vec<String>,
    pub headings: Vec<String>,
    pub rows: Vec<VerdictRow>,
    pub details: Vec<String>,
}

#[derive(Serialize)]
pub struct VerdictRow {
    pub cells: Vec<String>,
    pub kind: &'static str,
    pub plot: Option<Plot>,
    /// Filters of the browser; `None` of the pool.
    pub lost: Option<String>,
    pub gained: Option<String>,
}

#[derive(Serialize)]
pub struct SuiteView {
    pub name: String,
    pub description: String,
    pub sha256: String,
    pub rows: Vec<Row>,
    pub tasks: Vec<TaskView>,
}

/// A figure.
#[derive(Serialize)]
pub struct Row {
    /// Of a task's first figure.
    pub task: Option<String>,
    pub badge: Option<&'static str>,
    pub wrong: Option<String>,
    pub metric: String,
    pub less_is_better: bool,
    pub plot: Option<Plot>,
    /// A side each, the baseline first.
    pub cells: Vec<Option<Cell>>,
    pub difference: Option<String>,
}

#[derive(Serialize)]
pub struct Cell {
    pub value: String,
    pub interval: String,
    pub n: usize,
    /// The figure over valid answers, if some are not.
    pub valid: Option<String>,
}

/// How a task was asked.
#[derive(Serialize)]
pub struct TaskView {
    pub name: String,
    pub description: String,
    pub facts: Vec<(&'static str, String)>,
    pub first_prompt: Option<String>,
}

/// A task's matrices, a side each.
#[derive(Serialize)]
pub struct MatrixPair {
    pub task: String,
    pub about: &'static str,
    pub sides: Vec<(String, Matrix)>,
}

/// A task's reliability diagrams, a side each.
#[derive(Serialize)]
pub struct ReliabilityView {
    pub task: String,
    pub sides: Vec<ReliabilitySide>,
}

#[derive(Serialize)]
pub struct ReliabilitySide {
    pub side: String,
    pub n: usize,
    pub ece: String,
    pub confidence: String,
    pub accuracy: String,
    pub leaning: &'static str,
    pub bars: Vec<plot::Bar>,
    /// Range of confidence, documents, mean confidence, accuracy, its interval.
    pub bins: Vec<[String; 5]>,
}

/// A task's clusters that score lowest.
#[derive(Serialize)]
pub struct ClustersView {
    pub task: String,
    pub metric: String,
    pub n: usize,
    /// Name, documents, mean, filter of the browser.
    pub rows: Vec<(String, usize, String, String)>,
}

/// Returns what there is to show of a run, beside the baseline's if there is one.
pub fn page(run: &Run, comparison: Option<(&Run, &Verdict)>) -> Page {
    let baseline = comparison.map(|(baseline, _)| baseline);
    let sides: Vec<&Run> = baseline.into_iter().chain([run]).collect();
    let name = figures::model_name(run);
    let title = match baseline {
        Some(baseline) => format!("{name} against {}", figures::model_name(baseline)),
        None => name,
    };
    let side = |run: &&Run| Side {
        name: figures::model_name(run),
        facts: [figures::facts(run), figures::run_facts(run)].concat(),
    };
    let names = side_names(&sides);
    Page {
        title,
        lctl: env!("CARGO_PKG_VERSION"),
        sides: sides.iter().map(side).collect(),
        verdict: comparison.map(|(_, verdict)| verdict_view(verdict)),
        suites: run.suites.iter().map(|suite| suite_view(run, baseline, suite)).collect(),
        matrices: run.tasks.iter().filter_map(|task| matrices(task, baseline, &names)).collect(),
        reliability: run.tasks.iter().filter_map(|task| reliability(task, baseline, &names)).collect(),
        clusters: run
            .tasks
            .iter()
            .filter_map(|task| clusters(task, &Lens::of(task, judged_metric(comparison, task))))
            .collect(),
        n_samples: run.tasks.iter().map(|task| task.samples.len()).sum(),
    }
}

/// Returns what a diagram's side is called; nothing if there is only one.
fn side_names(sides: &[&Run]) -> Vec<String> {
    match sides {
        [_] => vec![String::new()],
        _ => ["Baseline", "Candidate"].map(str::to_owned).to_vec(),
    }
}

/// Returns the metric that a gate compared in this task, if it did.
pub fn judged_metric<'a>(comparison: Option<(&Run, &'a Verdict)>, task: &TaskRun) -> Option<&'a str> {
    let (_, verdict) = comparison?;
    let judged = verdict.judgement.tasks.iter().find(|judged| judged.task == task.name())?;
    Some(&judged.metric)
}

/// Returns the address that sets the browser's filters.
pub fn filter(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={}", encoded(value))).collect();
    format!("#filter:{}", pairs.join("&"))
}

/// Percent-encoding as `application/x-www-form-urlencoded` reads it.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn task_of<'a>(run: Option<&'a Run>, task: &TaskRun) -> Option<&'a TaskRun> {
    run?.tasks.iter().find(|other| other.suite == task.suite && other.facts.id == task.facts.id)
}

fn verdict_view(verdict: &Verdict) -> VerdictView {
    let judgement = &verdict.judgement;
    let rows = gate::rows(verdict);
    let judged: Vec<&Judged> = judgement.tasks.iter().chain(&judgement.pool).collect();
    // shares alone have one axis
    let reach = judged.iter().filter(|judged| judged.measured.is_bounded).flat_map(|judged| {
        let found = &judged.measured;
        [found.interval.lower.abs(), found.interval.upper.abs(), 1.25 * judged.margin.unwrap_or(0.0)]
    });
    let reach = reach.filter(|reach| reach.is_finite()).fold(0.01, f64::max);
    let row = |(judged, cells): (&&Judged, &[String; gate::COLUMNS.len()])| {
        let found = &judged.measured;
        let filter_of = |change: &str, items: &[String]| {
            (!items.is_empty()).then(|| filter(&[("task", &judged.task), ("change", change)]))
        };
        VerdictRow {
            cells: cells.to_vec(),
            kind: match judged.status {
                gate::Status::Worse | gate::Status::NewFailures => "bad",
                gate::Status::Undecided | gate::Status::TooSmall => "unsure",
                gate::Status::Reported => "plain",
                _ => "good",
            },
            plot: found
                .is_bounded
                .then(|| plot::difference(found.difference, found.interval, judged.margin, reach)),
            lost: filter_of("lost", &judged.lost),
            gained: filter_of("gained", &judged.gained),
        }
    };
    VerdictView {
        name: judgement.outcome.name(),
        kind: match judgement.outcome {
            Outcome::Pass => "good",
            Outcome::Fail => "bad",
            Outcome::Inconclusive | Outcome::NotComparable => "unsure",
        },
        reasons: judgement.reasons.clone(),
        information: gate::information(verdict),
        notes: verdict.notes.clone(),
        headings: rows[0].to_vec(),
        rows: judged.iter().zip(&rows[1..]).map(row).collect(),
        details: judged.iter().map(|judged| gate::details(judged)).collect(),
    }
}

fn suite_view(run: &Run, baseline: Option<&Run>, suite: &gate::SuiteFacts) -> SuiteView {
    let tasks = || run.tasks.iter().filter(|task| task.suite == suite.name);
    SuiteView {
        name: suite.name.clone(),
        description: suite.description.clone(),
        sha256: suite.sha256.clone(),
        rows: tasks().flat_map(|task| rows(task, baseline)).collect(),
        tasks: tasks().map(task_view).collect(),
    }
}

fn rows(task: &TaskRun, baseline: Option<&Run>) -> Vec<Row> {
    let other = task_of(baseline, task);
    let chance = chance(task);
    let row = |(index, metric): (usize, &MetricFacts)| {
        let theirs = other.and_then(|task| {
            let theirs = task.facts.metrics.iter().find(|theirs| theirs.name == metric.name)?;
            Some((task, theirs))
        });
        let is_share = figures::is_share(task, metric)
            && theirs.is_none_or(|(task, metric)| figures::is_share(task, metric));
        let sides: Vec<Option<&MetricFacts>> = match baseline {
            Some(_) => vec![theirs.map(|(_, metric)| metric), Some(metric)],
            None => vec![Some(metric)],
        };
        let marks: Vec<_> =
            sides.iter().map(|side| side.map(|metric| (metric.value(), metric.ci95))).collect();
        let keys = task.facts.gate;
        let badge = match (keys.critical, keys.zero_tolerance) {
            (_, true) => Some("zero tolerance"),
            (true, _) => Some("critical"),
            _ => None,
        };
        Row {
            task: (index == 0).then(|| task.facts.id.clone()),
            badge: badge.filter(|_| index == 0),
            wrong: (index == 0).then(|| filter(&[("task", &task.name()), ("grade", "wrong")])),
            metric: metric.name.clone(),
            less_is_better: !metric.higher_is_better,
            plot: is_share.then(|| plot::shares(&marks, chance.filter(|_| metric.name == "acc"))),
            cells: sides.iter().map(|side| side.map(|metric| cell(metric, is_share))).collect(),
            difference: theirs
                .map(|(_, theirs)| figures::difference(metric.value() - theirs.value(), is_share)),
        }
    };
    task.facts.metrics.iter().enumerate().map(row).collect()
}

fn cell(metric: &MetricFacts, is_share: bool) -> Cell {
    let valid = metric.valid.filter(|valid| valid.n < metric.n);
    Cell {
        value: figures::value(metric.value(), is_share),
        interval: figures::interval(metric.ci95, is_share),
        n: metric.n,
        valid: valid.map(|valid| {
            let value = valid.value.map_or("–".to_owned(), |value| figures::value(value, is_share));
            format!("{value} over {} valid answers", valid.n)
        }),
    }
}

/// Returns what guessing gets, where every document has as many choices.
fn chance(task: &TaskRun) -> Option<f64> {
    let choices = |sample: &gate::SampleRun| Some(sample.details.get("log_probs")?.as_array()?.len());
    let mut counts = task.samples.iter().filter(|sample| sample.error.is_none()).map(choices);
    let first = counts.next()?.filter(|n| *n > 1)?;
    counts.all(|count| count == Some(first)).then(|| 1.0 / first as f64)
}

fn task_view(task: &TaskRun) -> TaskView {
    let facts = &task.facts;
    let file = facts.data.file.clone().unwrap_or_default();
    let mut shown = vec![
        ("Type", facts.task_type.clone()),
        ("Data", format!("{file} (SHA-256 {})", facts.data.sha256)),
        ("Documents", facts.documents.to_string()),
        ("Could not be asked about", facts.errors.to_string()),
        ("Prompts cut", facts.truncated.to_string()),
        ("Examples", facts.few_shot.as_ref().map_or(0, |shots| shots.n).to_string()),
        ("Chat template", if facts.chat { "used" } else { "not used" }.to_owned()),
    ];
    if let Some(margin) = facts.gate.margin {
        shown.push(("Margin", margin.to_string()));
    }
    for (name, digest) in
        [("Task", &facts.task_sha256), ("Prompts", &facts.prompts_sha256), ("Samples", &facts.samples_sha256)]
    {
        shown.push((name, format!("SHA-256 {}", figures::short_digest(digest))));
    }
    TaskView {
        name: task.name(),
        description: facts.description.clone(),
        facts: shown,
        first_prompt: facts.first_prompt.clone(),
    }
}

fn matrices(task: &TaskRun, baseline: Option<&Run>, names: &[String]) -> Option<MatrixPair> {
    let (about, ours) = matrix::of(task)?;
    let theirs = baseline.map(|run| task_of(Some(run), task).and_then(matrix::of).map(|(_, matrix)| matrix));
    let sides = theirs.into_iter().chain([Some(ours)]);
    let named = names.iter().cloned().zip(sides).filter_map(|(name, matrix)| Some((name, matrix?)));
    Some(MatrixPair { task: task.name(), about, sides: named.collect() })
}

fn reliability(task: &TaskRun, baseline: Option<&Run>, names: &[String]) -> Option<ReliabilityView> {
    let ours = calibration(&task.samples)?;
    let theirs = baseline.map(|run| task_of(Some(run), task).and_then(|task| calibration(&task.samples)));
    let sides = theirs.into_iter().chain([Some(ours)]);
    let named = names.iter().zip(sides).filter_map(|(name, found)| Some(reliability_side(name, &found?)));
    Some(ReliabilityView { task: task.name(), sides: named.collect() })
}

fn reliability_side(name: &str, found: &Calibration) -> ReliabilitySide {
    let percent = |share: f64| figures::value(share, true);
    let bins = found.bins.iter().enumerate().filter_map(|(index, bin)| {
        let bin = bin.as_ref()?;
        let tenth = 100 / found.bins.len();
        let range = format!("{} to {} %", tenth * index, tenth * (index + 1));
        Some([
            range,
            bin.n.to_string(),
            percent(bin.confidence),
            percent(bin.accuracy),
            figures::interval(bin.interval, true),
        ])
    });
    ReliabilitySide {
        side: name.to_owned(),
        n: found.n,
        ece: percent(found.ece),
        confidence: percent(found.confidence),
        accuracy: percent(found.accuracy),
        leaning: match found.confidence - found.accuracy {
            gap if gap > 0.02 => "overconfident",
            gap if gap < -0.02 => "underconfident",
            _ => "about right on average",
        },
        bars: plot::reliability(found),
        bins: bins.collect(),
    }
}

fn clusters(task: &TaskRun, lens: &Lens) -> Option<ClustersView> {
    let metric = task.facts.metrics.iter().find(|metric| Some(metric.name.as_str()) == lens.metric())?;
    let mut found: IndexMap<&str, Vec<f64>> = IndexMap::new();
    for sample in &task.samples {
        let score = sample.scores.get(&metric.name)?;
        found.entry(sample.cluster.as_deref()?).or_default().push(*score);
    }
    if found.len() == task.samples.len() {
        return None;
    }
    let n = found.len();
    let is_share = figures::is_share(task, metric);
    let mut means: Vec<(&str, usize, f64)> =
        found.iter().map(|(name, scores)| (*name, scores.len(), mean(scores))).collect();
    let badness = |value: f64| if metric.higher_is_better { value } else { -value };
    // of equal ones the larger tells more
    means.sort_by(|a, b| badness(a.2).total_cmp(&badness(b.2)).then(b.1.cmp(&a.1)).then(a.0.cmp(b.0)));
    means.truncate(MOST_CLUSTERS);
    let row = |(name, n, value): (&str, usize, f64)| {
        let address = filter(&[("task", &task.name()), ("cluster", name)]);
        (name.to_owned(), n, figures::value(value, is_share), address)
    };
    Some(ClustersView {
        task: task.name(),
        metric: metric.name.clone(),
        n,
        rows: means.into_iter().map(row).collect(),
    })
}
