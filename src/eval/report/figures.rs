//! Figures as people read them.

use crate::eval::gate::{MetricFacts, Run, TaskRun};
use crate::eval::stats::Interval;

/// Returns true if a figure is a share of something, so that it reads as percent; deviations and perplexities do not.
pub fn is_share(task: &TaskRun, metric: &MetricFacts) -> bool {
    let scores: Vec<f64> =
        task.samples.iter().filter_map(|sample| sample.scores.get(&metric.name).copied()).collect();
    match metric.higher_is_better {
        _ if !(0.0..=1.0).contains(&metric.value()) => false,
        true => scores.iter().all(|score| (0.0..=1.0).contains(score)),
        // a rate of mistakes, not how large they are
        false => !scores.is_empty() && scores.iter().all(|score| *score == 0.0 || *score == 1.0),
    }
}

/// Returns `71.25 %` of a share, else four decimals.
pub fn value(value: f64, is_share: bool) -> String {
    match is_share {
        true => format!("{:.2} %", 100.0 * value),
        false if value.abs() >= 1000.0 => format!("{value:.1}"),
        false => format!("{value:.4}"),
    }
}

/// Returns `68.10 to 74.20 %`, or a dash where there is no interval.
pub fn interval(interval: Option<Interval>, is_share: bool) -> String {
    match (interval, is_share) {
        (Some(found), true) => format!("{:.2} to {:.2} %", 100.0 * found.lower, 100.0 * found.upper),
        (Some(found), false) => format!("{} to {}", value(found.lower, false), value(found.upper, false)),
        (None, _) => "–".to_owned(),
    }
}

/// Returns `+1.25` points of shares, else four decimals with their sign.
pub fn difference(value: f64, is_share: bool) -> String {
    if is_share { format!("{:+.2}", 100.0 * value) } else { format!("{value:+.4}") }
}

/// Returns the first twelve digits, as many as tell files apart.
pub fn short_digest(digest: &str) -> String {
    digest.chars().take(12).collect()
}

/// Returns the model's name, with its adapter's.
pub fn model_name(run: &Run) -> String {
    match &run.model.adapter {
        Some(adapter) => format!("{} + {}", run.model.name, adapter.name),
        None => run.model.name.clone(),
    }
}

/// Returns what results do not depend on: names and values.
pub fn run_facts(run: &Run) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let text =
        |key: &str| run.facts.get(key).map(|value| value.as_str().map_or(value.to_string(), str::to_owned));
    for (name, key) in [("Instruction set", "isa"), ("Threads", "threads")] {
        facts.extend(text(key).map(|value| (name, value)));
    }
    if let Some(seconds) = run.facts.get("engine_seconds").and_then(|value| value.as_f64()) {
        facts.push(("Time in the model", format!("{seconds:.1} s")));
    }
    facts
}

/// Returns what was measured and how, as far as results depend on it: names and values.
pub fn facts(run: &Run) -> Vec<(&'static str, String)> {
    let given = |value: Option<u64>| value.map_or("as the suite says".to_owned(), |value| value.to_string());
    let mut facts = vec![("Model", run.model.name.clone()), ("Model SHA-256", run.model.sha256.clone())];
    if let Some(adapter) = &run.model.adapter {
        facts.push(("Adapter", adapter.name.clone()));
        facts.push(("Adapter SHA-256", adapter.sha256.clone()));
    }
    facts.push(("Tokenizer SHA-256", run.model.tokenizer_sha256.clone()));
    if let Some(template) = &run.model.chat_template {
        facts.push(("Chat template SHA-256", template.sha256.clone()));
        facts.push(("Day that templates see", template.date.clone()));
    }
    let settings = &run.settings;
    facts.extend([("Compute", settings.compute.clone())]);
    if let Some(device) = &settings.device {
        facts.push(("Device", format!("{}, {}", device.name, device.precision)));
        facts.extend(device.driver.clone().map(|version| ("Driver", version)));
        facts.extend(device.cublas.clone().map(|version| ("cuBLAS", version)));
    }
    facts.extend([
        ("Context", format!("{} tokens", settings.context)),
        ("Seed", settings.seed.to_string()),
        ("Limit", settings.limit.map_or("none".to_owned(), |limit| format!("{limit} documents per task"))),
        ("Examples", given(settings.few_shot)),
        ("Chat template", settings.chat_template.clone()),
        ("lctl", run.lctl.clone()),
    ]);
    facts
}
