//! The same items of the same tasks of two runs, or why the runs do not compare.

use indexmap::IndexMap;

use super::policy::Policy;
use super::read::{DeviceFacts, Run, SampleRun, TaskRun};
use crate::error::{Diagnostic, nearest};

/// A task that both runs have.
#[derive(Clone, Debug)]
pub struct Pair {
    pub suite: String,
    pub task: String,
    pub figure: Figure,
    pub role: Role,
    /// How much worse is no worse, in the figure's unit; `None` if nobody said and points do not fit.
    pub margin: Option<f64>,
    /// Whether both runs' samples are the same to the last bit.
    pub is_identical: bool,
    /// Digest of the data set: tasks over one data set share items.
    pub data: String,
    pub items: Vec<Item>,
}

/// What is compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Figure {
    /// The mean of a score.
    Mean { metric: String, higher_is_better: bool },
    /// Of texts: bits to predict them over their bytes, less is better.
    BitsPerByte,
}

impl Figure {
    pub fn name(&self) -> &str {
        match self {
            Figure::Mean { metric, .. } => metric,
            Figure::BitsPerByte => BITS_PER_BYTE,
        }
    }

    /// Returns the names of the scores that it is made of.
    fn scores(&self) -> Vec<&str> {
        match self {
            Figure::Mean { metric, .. } => vec![metric],
            Figure::BitsPerByte => vec!["log_prob", "bytes"],
        }
    }
}

const BITS_PER_BYTE: &str = "bits_per_byte";

/// What a task counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Part of the pool; can fail the candidate.
    Gating,
    /// That, and has to be shown to be within its margin by itself.
    Critical,
    /// One item that was right and is wrong fails the candidate. Not part of the pool.
    ZeroTolerance,
    /// Decides nothing.
    Reported,
}

/// One item's two results.
#[derive(Clone, Debug)]
pub struct Item {
    /// Position in the data set.
    pub document: usize,
    /// In the data file.
    pub line: usize,
    pub name: Option<String>,
    pub cluster: Option<String>,
    pub baseline: f64,
    pub candidate: f64,
    /// What the results are divided by, summed over items: 1, or the text's bytes.
    pub weight: f64,
}

impl Item {
    /// Returns how people find it.
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => format!("line {}", self.line),
        }
    }
}

impl Pair {
    pub fn name(&self) -> String {
        format!("{}/{}", self.suite, self.task)
    }

    /// Returns how much better the candidate is on an item; negative if it is worse.
    pub fn delta(&self, item: &Item) -> f64 {
        match &self.figure {
            Figure::Mean { higher_is_better: true, .. } => item.candidate - item.baseline,
            _ => item.baseline - item.candidate,
        }
    }

    fn every_result(&self, is: impl Fn(f64) -> bool) -> bool {
        self.items.iter().all(|item| is(item.baseline) && is(item.candidate))
    }

    /// Returns true if every result is right or wrong.
    pub fn is_binary(&self) -> bool {
        matches!(self.figure, Figure::Mean { .. })
            && self.every_result(|result| result == 0.0 || result == 1.0)
    }

    /// Returns true if every result is from 0 to 1, so that differences are points.
    pub fn is_bounded(&self) -> bool {
        matches!(self.figure, Figure::Mean { .. })
            && self.every_result(|result| (0.0..=1.0).contains(&result))
    }
}

/// What two runs have in common.
#[derive(Debug, Default)]
pub struct Pairing {
    pub pairs: Vec<Pair>,
    /// Why the runs do not compare; if there are any, nothing is decided.
    pub obstacles: Vec<String>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// A policy, or a suite's keys, that do not fit the runs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the policy names the task `{name}`, which the baseline does not have")]
    UnknownTask { name: String, known: Vec<String> },

    #[error("task `{task}` has no score per item called `{metric}`")]
    UnknownMetric { task: String, metric: String, known: Vec<String> },

    #[error("task `{task}` has to be within its margin, but no figure of it has a score per item")]
    NoScores { task: String },

    #[error("task `{task}` is critical, but `{metric}` is not from 0 to 1 and has no margin")]
    NoMargin { task: String, metric: String },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::UnknownTask { name, known } | Error::UnknownMetric { metric: name, known, .. } => {
                Some(match nearest(name, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are: {}", known.join(", ")),
                })
            }
            Error::NoScores { .. } => None,
            Error::NoMargin { .. } => {
                Some("say `margin:` in the suite or the policy, in the figure's own unit".into())
            }
        }
    }
}

/// Returns the tasks of both runs, item by item.
///
/// Errors if the policy does not fit the baseline.
pub fn pair(baseline: &Run, candidate: &Run, policy: &Policy) -> Result<Pairing, Error> {
    check_names(baseline, policy)?;
    let mut pairing = Pairing::default();
    compare_settings(baseline, candidate, &mut pairing);
    let theirs: IndexMap<String, &TaskRun> = candidate.tasks.iter().map(|task| (task.name(), task)).collect();
    for task in &baseline.tasks {
        let Some(other) = theirs.get(&task.name()) else {
            pairing.obstacles.push(format!("{}: the candidate was not asked", task.name()));
            continue;
        };
        match obstacle(task, other) {
            Some(why) => pairing.obstacles.push(format!("{}: {why}", task.name())),
            None => {
                let pair = pair_task(task, other, policy, &mut pairing)?;
                pairing.pairs.extend(pair);
            }
        }
    }
    for name in theirs.keys().filter(|name| !baseline.tasks.iter().any(|task| task.name() == **name)) {
        pairing.notes.push(format!("{name}: not in the baseline, so not compared"));
    }
    Ok(pairing)
}

fn check_names(baseline: &Run, policy: &Policy) -> Result<(), Error> {
    let mut known: Vec<String> = baseline.tasks.iter().map(TaskRun::name).collect();
    known.extend(baseline.tasks.iter().map(|task| format!("{}/*", task.suite)));
    known.dedup();
    match policy.tasks.keys().find(|name| !known.contains(name)) {
        Some(name) => Err(Error::UnknownTask { name: name.clone(), known }),
        None => Ok(()),
    }
}

fn compare_settings(baseline: &Run, candidate: &Run, pairing: &mut Pairing) {
    let (ours, theirs) = (&baseline.settings, &candidate.settings);
    let mut differ = |what: &str, ours: &str, theirs: &str| {
        if ours != theirs {
            let why = format!("{what}: the baseline ran with `{ours}`, the candidate with `{theirs}`");
            pairing.obstacles.push(why);
        }
    };
    differ("--compute", &ours.compute, &theirs.compute);
    differ("--chat-template", &ours.chat_template, &theirs.chat_template);
    // the CPU keeps f32 between products, a GPU in bf16 does not
    let arithmetic = |device: &Option<DeviceFacts>| {
        device.as_ref().map_or("the CPU".to_owned(), |device| format!("a GPU in {}", device.precision))
    };
    differ("--device", &arithmetic(&ours.device), &arithmetic(&theirs.device));
    let mut note = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            pairing.notes.push(format!("{what}: {ours} for the baseline, {theirs} for the candidate"));
        }
    };
    note("context in tokens", ours.context.to_string(), theirs.context.to_string());
    note("--seed", ours.seed.to_string(), theirs.seed.to_string());
    let name =
        |device: &Option<DeviceFacts>| device.as_ref().map_or("the CPU".to_owned(), |d| d.name.clone());
    note("device", name(&ours.device), name(&theirs.device));
    // of two GPUs: a CPU has neither
    if let (Some(ours), Some(theirs)) = (&ours.device, &theirs.device) {
        let said = |version: &Option<String>| version.clone().unwrap_or_else(|| "not given".to_owned());
        note("driver", said(&ours.driver), said(&theirs.driver));
        note("cuBLAS", said(&ours.cublas), said(&theirs.cublas));
    }
    note("lctl", baseline.lctl.clone(), candidate.lctl.clone());
    let template = |run: &Run| match &run.model.chat_template {
        Some(template) => format!("SHA-256 {}", template.sha256.get(..12).unwrap_or(&template.sha256)),
        None => "none".to_owned(),
    };
    note("chat template", template(baseline), template(candidate));
}

/// Returns why two runs of a task do not compare.
fn obstacle(ours: &TaskRun, theirs: &TaskRun) -> Option<String> {
    let (a, b) = (&ours.facts, &theirs.facts);
    if a.task_sha256 != b.task_sha256 {
        return Some("another task: the suite asks or scores otherwise".into());
    }
    if a.data.sha256 != b.data.sha256 {
        return Some(format!("other data: SHA-256 {} and {}", a.data.sha256, b.data.sha256));
    }
    if a.documents != b.documents {
        return Some(format!("{} documents and {}", a.documents, b.documents));
    }
    if a.prompts_sha256 != b.prompts_sha256 {
        return Some("other prompts, before any tokenizer or chat template".into());
    }
    let differ = |is_other: fn(&SampleRun, &SampleRun) -> bool| {
        ours.samples.iter().zip(&theirs.samples).find(|(a, b)| is_other(a, b)).map(|(a, _)| a.document)
    };
    if let Some(document) = differ(|a, b| a.document != b.document) {
        return Some(format!("document {document} is not in both"));
    }
    if let Some(document) = differ(|a, b| a.cluster != b.cluster) {
        return Some(format!("document {document} is in other clusters"));
    }
    // a document that could not be asked about has no target
    if let Some(document) = differ(|a, b| a.target.is_some() && b.target.is_some() && a.target != b.target) {
        return Some(format!("document {document} has other targets"));
    }
    let document = differ(|a, b| !has_scores_of(a, b) || !has_scores_of(b, a))?;
    Some(format!("document {document} has scores of other names"))
}

/// Returns whether a sample has the scores of another, in any order. One that could not be asked about may lack such as only
/// answers have.
fn has_scores_of(sample: &SampleRun, other: &SampleRun) -> bool {
    sample.error.is_some() || other.scores.keys().all(|name| sample.scores.contains_key(name))
}

fn pair_task(
    ours: &TaskRun,
    theirs: &TaskRun,
    policy: &Policy,
    pairing: &mut Pairing,
) -> Result<Option<Pair>, Error> {
    let notes = &mut pairing.notes;
    let name = ours.name();
    let said = policy.of(&ours.suite, &ours.facts.id);
    let keys = ours.facts.gate;
    if keys != theirs.facts.gate {
        notes.push(format!("{name}: the suite's keys for the gate have changed; the baseline's hold"));
    }
    let zero_tolerance = said.zero_tolerance.unwrap_or(keys.zero_tolerance);
    let mut role = match (said.gating, zero_tolerance, said.critical.unwrap_or(keys.critical)) {
        (Some(false), ..) => Role::Reported,
        (_, true, _) => Role::ZeroTolerance,
        (_, _, true) => Role::Critical,
        _ => Role::Gating,
    };
    let Some(figure) = figure(ours, said.metric.as_deref())? else {
        if matches!(role, Role::Critical | Role::ZeroTolerance) {
            return Err(Error::NoScores { task: name });
        }
        notes.push(format!("{name}: no figure with a score per item, so not compared"));
        return Ok(None);
    };
    let lacking = figure.scores().into_iter().find_map(|score| {
        let sample = theirs.samples.iter().find(|sample| !sample.scores.contains_key(score))?;
        Some(format!("{name}: document {} of the candidate has no score `{score}`", sample.document))
    });
    if let Some(why) = lacking {
        pairing.obstacles.push(why);
        return Ok(None);
    }
    for (side, task) in [("baseline", ours), ("candidate", theirs)] {
        let (errors, cut) = (task.facts.errors, task.facts.truncated);
        if errors + cut > 0 {
            notes.push(format!(
                "{name}: of the {side}, {errors} documents could not be asked about and {cut} prompts were cut"
            ));
        }
    }
    // a document that neither was asked about says nothing; one that only one of them was counts as wrong of the other
    let was_asked = |(a, b): &(&SampleRun, &SampleRun)| a.target.is_some() || b.target.is_some();
    let asked = ours.samples.iter().zip(&theirs.samples).filter(was_asked);
    let items: Vec<Item> = asked.map(|(a, b)| item(&figure, a, b)).collect();
    if items.is_empty() {
        let why = format!("{name}: neither run could be asked about a single document");
        match role {
            Role::Critical | Role::ZeroTolerance => pairing.obstacles.push(why),
            Role::Gating | Role::Reported => notes.push(why),
        }
        return Ok(None);
    }
    let mut pair = Pair {
        suite: ours.suite.clone(),
        task: ours.facts.id.clone(),
        figure,
        role,
        margin: said.margin.or(keys.margin),
        is_identical: ours.facts.samples_sha256 == theirs.facts.samples_sha256,
        data: ours.facts.data.sha256.clone(),
        items,
    };
    if pair.margin.is_none() {
        if pair.is_bounded() {
            pair.margin = Some(policy.margin);
        } else if role == Role::Critical {
            return Err(Error::NoMargin { task: name, metric: pair.figure.name().to_owned() });
        } else if role == Role::Gating {
            role = Role::Reported;
            let metric = pair.figure.name();
            notes
                .push(format!("{name}: `{metric}` is not from 0 to 1 and has no margin: it decides nothing"));
        }
    }
    Ok(Some(Pair { role, ..pair }))
}

/// Returns the figure to compare: the one the policy names, or the first with a score per item.
pub fn figure(task: &TaskRun, wanted: Option<&str>) -> Result<Option<Figure>, Error> {
    let has = |name: &str| task.samples.iter().all(|sample| sample.scores.contains_key(name));
    let mut known: Vec<Figure> = Vec::new();
    if has("log_prob") && has("bytes") && task.facts.metrics.iter().any(|metric| metric.name == BITS_PER_BYTE)
    {
        known.push(Figure::BitsPerByte);
    }
    let with_scores = task.facts.metrics.iter().filter(|metric| has(&metric.name));
    known.extend(with_scores.map(|metric| Figure::Mean {
        metric: metric.name.clone(),
        higher_is_better: metric.higher_is_better,
    }));
    let Some(wanted) = wanted else { return Ok(known.into_iter().next()) };
    match known.iter().position(|figure| figure.name() == wanted) {
        Some(index) => Ok(Some(known.swap_remove(index))),
        None => Err(Error::UnknownMetric {
            task: task.name(),
            metric: wanted.to_owned(),
            known: known.iter().map(|figure| figure.name().to_owned()).collect(),
        }),
    }
}

fn item(figure: &Figure, ours: &SampleRun, theirs: &SampleRun) -> Item {
    // `figure` and `obstacle` have looked for the names in both
    let score = |sample: &SampleRun, name: &str| sample.scores.get(name).copied().unwrap_or(0.0);
    let (baseline, candidate, weight) = match figure {
        Figure::Mean { metric, .. } => (score(ours, metric), score(theirs, metric), 1.0),
        Figure::BitsPerByte => {
            let bits = |sample| -score(sample, "log_prob") / std::f64::consts::LN_2;
            (bits(ours), bits(theirs), score(ours, "bytes"))
        }
    };
    Item {
        document: ours.document,
        line: ours.line,
        name: ours.item.clone(),
        cluster: ours.cluster.clone(),
        baseline,
        candidate,
        weight,
    }
}
