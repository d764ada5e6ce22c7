//! What a suite's data is like, and everything that is wrong with it: found without a model.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use super::data::{DataSet, Document, Place};
use super::gate::Policy;
use super::run::{DataSets, Error, RunOptions};
use super::stats::power::design_effect;
use super::suite::{Suite, TaskSpec};
use super::task::Ask;
use crate::data::shingles::{Alike, alike, texts_of, words};
use crate::hub::DatasetFile;

/// Words of the runs that near-duplicates are told by.
pub const RUN: usize = 5;
/// Jaccard similarity of the sets of runs from which on two documents are near-duplicates.
pub const NEAR: f64 = 0.6;

/// What is found about a task.
#[derive(Debug)]
pub struct TaskAudit {
    pub id: String,
    pub type_name: &'static str,
    pub data: PathBuf,
    /// Of the data file, lower-case hex.
    pub sha256: String,
    pub documents: usize,
    /// Number of clusters and the largest one's size; `None` if the task has no `cluster`.
    pub clusters: Option<(usize, usize)>,
    /// Characters of all questions, and of the longest.
    pub characters: (usize, usize),
    /// How often the right choice stands in each place, of a task with choices.
    pub positions: Vec<usize>,
    /// Distinct right answers.
    pub answers: usize,
    pub findings: Vec<Finding>,
    /// Files on a hub that documents and examples were taken from.
    pub hub: Vec<DatasetFile>,
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `None` if it is about the task as a whole.
    pub place: Option<Place>,
    pub what: String,
}

/// Returns what is found about every task of a suite. Errors if a data file cannot be read.
pub fn audit(suite: &Suite, options: &RunOptions) -> Result<Vec<TaskAudit>, Error> {
    let mut compared = HashSet::new();
    let mut sets = DataSets::default();
    let mut audits = Vec::new();
    for task in &suite.tasks {
        let data = sets.get(suite, &task.data, options)?;
        let from = task.prompting.as_ref().and_then(|prompting| prompting.few_shot.from.as_deref());
        let examples = from.filter(|name| *name != task.data);
        let examples = examples.map(|name| sets.get(suite, name, options)).transpose()?;
        // tasks that ask the same documents otherwise would find the same near-duplicates again
        let cluster = task.cluster.as_ref().map(|of| of.source().to_owned());
        let is_new = compared.insert((task.data.clone(), from.map(str::to_owned), cluster));
        let on_hub = |name: &str| suite.data[name].on_hub().filter(|_| !options.data.contains_key(name));
        let mut audit = audit_task(task, &data, examples.as_deref(), is_new);
        audit.hub = [Some(task.data.as_str()), from]
            .into_iter()
            .flatten()
            .filter_map(on_hub)
            .map(|hub| hub.file.clone())
            .collect();
        audit.hub.dedup();
        audits.push(audit);
    }
    Ok(audits)
}

fn audit_task(task: &TaskSpec, data: &DataSet, examples: Option<&DataSet>, is_new: bool) -> TaskAudit {
    let mut findings = Vec::new();
    let read = Reading::new(task, &data.documents, &mut findings);
    check_names(task, &data.documents, &mut findings);
    check_power(task, &data.documents, &mut findings);
    if !read.labels.are_classes() {
        check_positions(&read.positions, &mut findings);
    }
    if is_new {
        check_near(task, data, examples, &mut findings);
    }
    let clusters = task.cluster.as_ref().map(|_| {
        let sizes = read.clusters.values();
        (read.clusters.len(), sizes.copied().max().unwrap_or(0))
    });
    TaskAudit {
        id: task.id.clone(),
        type_name: task.task_type.name,
        data: data.path.to_path_buf(),
        sha256: data.sha256.clone(),
        hub: Vec::new(),
        documents: data.documents.len(),
        clusters,
        characters: read.characters,
        positions: read.positions,
        answers: read.answers.len(),
        findings,
    }
}

/// What the documents of a task say.
#[derive(Default)]
struct Reading {
    clusters: BTreeMap<String, usize>,
    characters: (usize, usize),
    positions: Vec<usize>,
    /// The choices of all documents so far, if they are the same for all.
    labels: Labels,
    answers: BTreeSet<String>,
}

/// Whether all documents have the same choices.
#[derive(Debug, Default, PartialEq)]
enum Labels {
    #[default]
    Unknown,
    Same(Vec<String>),
    Differ,
}

impl Labels {
    fn meet(&mut self, choices: &[&str]) {
        match self {
            Labels::Unknown => {
                *self = Labels::Same(choices.iter().map(|choice| (*choice).to_owned()).collect())
            }
            Labels::Same(known) if known != choices => *self = Labels::Differ,
            _ => {}
        }
    }

    /// Returns whether the choices are a fixed set of words, such as yes and no, and not letters for texts in the
    /// question: how often each is right is then a matter of the data, not of places.
    fn are_classes(&self) -> bool {
        matches!(self, Labels::Same(labels) if labels.iter().any(|label| label.chars().count() > 1))
    }
}

impl Reading {
    fn new(task: &TaskSpec, documents: &[Document], findings: &mut Vec<Finding>) -> Reading {
        let mut reading = Reading::default();
        let mut questions: HashMap<String, usize> = HashMap::new();
        for document in documents {
            if let Some(Ok(cluster)) = task.cluster.as_ref().map(|of| of.render(&document.fields)) {
                *reading.clusters.entry(cluster).or_default() += 1;
            }
            let asked = task.task.inquire(document);
            let solved = task.task.solution(document);
            let inquiry = match asked {
                Ok(inquiry) => inquiry,
                Err(error) => {
                    findings.push(at(document, error.to_string()));
                    continue;
                }
            };
            let count = inquiry.question.chars().count();
            reading.characters = (reading.characters.0 + count, reading.characters.1.max(count));
            let choices: Vec<&str> = inquiry.asks.iter().filter_map(choice).collect();
            // perplexity has no solution, and one ask
            let solution = match solved {
                Ok(solution) => solution,
                Err(error) if !choices.is_empty() => {
                    findings.push(at(document, error.to_string()));
                    continue;
                }
                Err(_) => String::new(),
            };
            if choices.len() > 1 {
                reading.labels.meet(&choices);
                reading.positions.resize(reading.positions.len().max(choices.len()), 0);
                if let Some(position) = choices.iter().position(|choice| *choice == solution) {
                    reading.positions[position] += 1;
                }
                let distinct: HashSet<&&str> = choices.iter().collect();
                if distinct.len() < choices.len() {
                    findings.push(at(document, "two choices are the same"));
                }
            }
            reading.answers.insert(solution);
            let texts: Vec<&str> = inquiry.asks.iter().filter_map(text_of).collect();
            let asked = format!("{}\u{1f}{}", inquiry.question, texts.join("\u{1f}"));
            if let Some(other) = questions.insert(asked, document.place.line) {
                findings.push(at(document, format!("asks the same as line {other}")));
            }
        }
        reading
    }
}

fn choice(ask: &Ask) -> Option<&str> {
    match ask {
        Ask::Likelihood(text) => Some(text),
        Ask::Text(_) | Ask::Generation { .. } => None,
    }
}

/// Returns the text that an ask has beside the question.
fn text_of(ask: &Ask) -> Option<&str> {
    match ask {
        Ask::Likelihood(text) | Ask::Text(text) => Some(text),
        Ask::Generation { .. } => None,
    }
}

fn at(document: &Document, what: impl Into<String>) -> Finding {
    Finding { place: Some(document.place.clone()), what: what.into() }
}

fn check_names(task: &TaskSpec, documents: &[Document], findings: &mut Vec<Finding>) {
    let mut known: HashMap<String, usize> = HashMap::new();
    for document in documents {
        let templates = [("cluster", &task.cluster), ("item", &task.item)];
        for (key, template) in templates.into_iter().filter_map(|(key, of)| Some((key, of.as_ref()?))) {
            match template.render(&document.fields) {
                Err(error) => findings.push(at(document, format!("`{key}`: {error}"))),
                Ok(name) if key == "item" => {
                    if let Some(other) = known.insert(name.clone(), document.place.line) {
                        findings.push(at(document, format!("is called `{name}` as line {other} is")));
                    }
                }
                Ok(_) => {}
            }
        }
    }
}

/// A critical task must show, with the power that the default policy plans for, that an equal model is within its margin;
/// clusters are allowed for as there.
fn check_power(task: &TaskSpec, documents: &[Document], findings: &mut Vec<Finding>) {
    if !task.gate.critical || task.gate.zero_tolerance {
        return;
    }
    let n = documents.len().min(task.limit.unwrap_or(usize::MAX));
    let mut sizes: HashMap<String, usize> = HashMap::new();
    for document in &documents[..n] {
        let cluster = task.cluster.as_ref().and_then(|of| of.render(&document.fields).ok());
        *sizes.entry(cluster.unwrap_or_else(|| document.place.to_string())).or_default() += 1;
    }
    let policy = Policy::default();
    let n_clusters = sizes.len();
    let effect = design_effect(sizes.into_values(), policy.correlation);
    let assumed = policy.assumptions(effect);
    let margin = task.gate.margin.unwrap_or(policy.margin);
    let needed = assumed.required(margin);
    if (n as f64) < needed {
        let clusters = match effect > 1.0 {
            true => format!(" in {n_clusters} clusters (design effect {effect:.2})"),
            false => String::new(),
        };
        let what = format!(
            "is critical, but {n} documents{clusters} decide a margin of {margin} with a power of {:.2}; {} takes {needed}",
            assumed.power_at(n as f64, margin),
            policy.power,
        );
        findings.push(Finding { place: None, what });
    }
}

/// Right answers stand about equally often in every place: within four standard deviations of a fair draw.
fn check_positions(positions: &[usize], findings: &mut Vec<Finding>) {
    let n: usize = positions.iter().sum();
    let k = positions.len();
    if k < 2 || n < 5 * k {
        return;
    }
    let share = 1.0 / k as f64;
    let tolerance = 4.0 * (n as f64 * share * (1.0 - share)).sqrt();
    if positions.iter().any(|count| (*count as f64 - n as f64 * share).abs() > tolerance) {
        let what = format!(
            "right answers stand {positions:?} times in the {k} places; {:.0} +- {tolerance:.0} would be fair",
            n as f64 * share
        );
        findings.push(Finding { place: None, what });
    }
}

/// Near-duplicates belong into one cluster, and no example may be like a question.
fn check_near(task: &TaskSpec, data: &DataSet, examples: Option<&DataSet>, findings: &mut Vec<Finding>) {
    let cluster = |document: &Document| task.cluster.as_ref()?.render(&document.fields).ok();
    let others = examples.map(|set| set.documents.as_slice()).unwrap_or_default();
    let all: Vec<&Document> = data.documents.iter().chain(others).collect();
    let n = data.documents.len();
    if let Some(known) =
        task.cluster.as_ref().map(|_| data.documents.iter().filter_map(cluster).collect::<HashSet<_>>())
    {
        for example in
            others.iter().filter(|example| cluster(example).is_some_and(|name| known.contains(&name)))
        {
            findings.push(at(example, "is an example, and its cluster has questions"));
        }
    }
    if task.cluster.is_none() && others.is_empty() {
        return;
    }
    let texts: Vec<Vec<String>> =
        all.iter().map(|document| words(&texts_of(&document.fields).join(" "))).collect();
    for Alike { first, second, similarity } in alike(&texts, RUN, NEAR) {
        let (one, other) = (all[first], all[second]);
        if second >= n && first < n {
            let what =
                format!("is an example, and {similarity:.2} like the question at line {}", one.place.line);
            findings.push(at(other, what));
        } else if second < n && task.cluster.is_some() && cluster(one) != cluster(other) {
            let what =
                format!("is {similarity:.2} like line {}, which is of another cluster", one.place.line);
            findings.push(at(other, what));
        }
    }
}
