//! The samples, for the page's script.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use crate::eval::gate::{Run, SampleRun, TaskRun, Verdict};
use crate::eval::report::calibration::{confidence, probabilities};
use crate::eval::report::figures;
use crate::eval::report::grade::Lens;

/// Most characters of a text in the page; of a longer one its beginning and its end are shown.
const LONGEST: usize = 8000;

/// Returns the JSON between the page's tags: no `<` in it, so that no text can end its element or begin a comment.
///
/// `sides` (names), `tasks` (`name`, `suite`, `metric`), `samples`: `t` its task's index, `d` document, `l` line, `i` item, `c`
/// cluster, `q` question, `o` choices, `y` target, `k` the change, `s` a side each: `g` grade, `p` prediction, `x` text, `e`
/// error, `r` probabilities, `f` confidence, `u` truncated, `n` scores, `m` what else the sample has. Keys without a value
/// are left out.
pub fn json(run: &Run, comparison: Option<(&Run, &Verdict)>) -> String {
    let sides: Vec<&Run> = comparison.map(|(baseline, _)| baseline).into_iter().chain([run]).collect();
    let mut tasks = Vec::new();
    let mut samples = Vec::new();
    for (index, task) in run.tasks.iter().enumerate() {
        let lens = Lens::of(task, super::view::judged_metric(comparison, task));
        tasks.push(json!({"name": task.name(), "suite": task.suite, "metric": lens.metric()}));
        let other = comparison.and_then(|(baseline, _)| same_documents(baseline, task));
        let others: HashMap<usize, &SampleRun> = other
            .into_iter()
            .flat_map(|task| task.samples.iter().map(|sample| (sample.document, sample)))
            .collect();
        for sample in &task.samples {
            let other = others.get(&sample.document).copied();
            let mut entry = common(index, sample);
            let mut faces = Vec::new();
            if comparison.is_some() {
                faces.push(other.map_or(Json::Null, |other| face(&lens, other)));
            }
            if let Some(other) = other {
                entry.insert("k".into(), json!(lens.change(other, sample)));
            }
            faces.push(face(&lens, sample));
            entry.insert("s".into(), faces.into());
            samples.push(Json::Object(entry));
        }
    }
    let sides: Vec<String> = sides.into_iter().map(figures::model_name).collect();
    json!({"sides": sides, "tasks": tasks, "samples": samples}).to_string().replace('<', "\\u003c")
}

/// Returns the run's task over the same documents, if it has one.
fn same_documents<'a>(run: &'a Run, task: &TaskRun) -> Option<&'a TaskRun> {
    let is_same = |other: &&TaskRun| {
        other.suite == task.suite
            && other.facts.id == task.facts.id
            && other.facts.task_type == task.facts.task_type
            && other.facts.data.sha256 == task.facts.data.sha256
    };
    run.tasks.iter().find(is_same)
}

/// What both sides have in common.
fn common(task: usize, sample: &SampleRun) -> Map<String, Json> {
    let mut entry = Map::new();
    entry.insert("t".into(), task.into());
    entry.insert("d".into(), sample.document.into());
    entry.insert("l".into(), sample.line.into());
    let mut put = |key: &str, value: Option<Json>| {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            entry.insert(key.into(), shortened(value));
        }
    };
    put("i", sample.item.as_deref().map(Json::from));
    put("c", sample.cluster.as_deref().map(Json::from));
    put("q", sample.question.as_deref().map(Json::from));
    put("o", sample.details.get("choices").cloned());
    put("y", sample.target.clone());
    entry
}

/// What one model came to.
fn face(lens: &Lens, sample: &SampleRun) -> Json {
    let mut face = Map::new();
    face.insert("g".into(), json!(lens.grade(sample)));
    let mut put = |key: &str, value: Option<Json>| {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            face.insert(key.into(), shortened(value));
        }
    };
    put("p", Some(sample.prediction.clone()));
    put("x", sample.details.get("text").cloned());
    put("e", sample.error.as_deref().map(Json::from));
    put("r", probabilities(sample).map(|shares| shares.into_iter().map(rounded).collect()));
    put("f", confidence(sample).map(rounded));
    put("u", sample.is_truncated.then_some(Json::Bool(true)));
    let shown = ["choices", "text", "log_probs", "is_greedy"];
    let more: Map<String, Json> = sample
        .details
        .iter()
        .filter(|(key, _)| !shown.contains(&key.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    put("m", (!more.is_empty()).then_some(Json::Object(more)));
    face.insert("n".into(), sample.scores.iter().map(|(name, score)| (name.clone(), json!(score))).collect());
    face.into()
}

/// Six decimals: what is shown has four.
fn rounded(share: f64) -> Json {
    json!((share * 1e6).round() / 1e6)
}

/// Returns the value with its long texts cut in the middle.
fn shortened(value: Json) -> Json {
    match value {
        Json::String(text) if text.len() > LONGEST => {
            let n = text.chars().count();
            if n <= LONGEST {
                return Json::String(text);
            }
            let half = LONGEST / 2;
            let begin: String = text.chars().take(half).collect();
            let end: String = text.chars().skip(n - half).collect();
            Json::String(format!("{begin}\n[… {} characters left out of this page …]\n{end}", n - 2 * half))
        }
        Json::Array(items) => items.into_iter().map(shortened).collect(),
        Json::Object(entries) => entries.into_iter().map(|(key, value)| (key, shortened(value))).collect(),
        other => other,
    }
}
