//! A report as Markdown, for a pull request or a step summary.

use std::fmt::Write as _;

use super::calibration::calibration;
use super::figures;
use crate::eval::gate::{self, Run, TaskRun, Verdict, escaped_markdown as escaped};

/// Returns the report as Markdown, with what a gate says first if there is one.
pub fn markdown(run: &Run, verdict: Option<&Verdict>) -> String {
    let mut out = String::new();
    if let Some(verdict) = verdict {
        out.push_str(&gate::markdown(verdict));
        out.push('\n');
    }
    let _ = writeln!(out, "## Evaluation of {}\n", escaped(&figures::model_name(run)));
    for suite in &run.suites {
        let _ = writeln!(out, "### {}\n", escaped(&suite.name));
        if !suite.description.is_empty() {
            let _ = writeln!(out, "{}\n", escaped(&suite.description));
        }
        out.push_str("| task | examples | metric | value | 95 % interval | documents |\n");
        out.push_str("| --- | ---: | --- | ---: | ---: | ---: |\n");
        run.tasks.iter().filter(|task| task.suite == suite.name).for_each(|task| rows(&mut out, task));
        out.push('\n');
    }
    calibrations(&mut out, run);
    unasked(&mut out, run);
    out.push_str("<details><summary>How it was measured</summary>\n\n");
    for (name, value) in figures::facts(run) {
        let _ = writeln!(out, "- {name}: {}", escaped(&value));
    }
    out.push_str("\n</details>\n");
    out
}

fn rows(out: &mut String, task: &TaskRun) {
    let shots = task.facts.few_shot.as_ref().map_or(0, |shots| shots.n);
    for (index, metric) in task.facts.metrics.iter().enumerate() {
        let is_share = figures::is_share(task, metric);
        let (id, shots) = match index {
            0 => (escaped(&task.facts.id), shots.to_string()),
            _ => (String::new(), String::new()),
        };
        let name = escaped(&metric.name);
        let less = if metric.higher_is_better { "" } else { " (less is better)" };
        let value = figures::value(metric.value(), is_share);
        let interval = figures::interval(metric.ci95, is_share);
        let _ = writeln!(out, "| {id} | {shots} | {name}{less} | {value} | {interval} | {} |", metric.n);
        if let Some(valid) = metric.valid.filter(|valid| valid.n < metric.n) {
            let value = valid.value.map_or("–".to_owned(), |value| figures::value(value, is_share));
            let _ = writeln!(out, "|  |  | {name}, valid answers{less} | {value} |  | {} |", valid.n);
        }
    }
}

fn calibrations(out: &mut String, run: &Run) {
    let found: Vec<_> =
        run.tasks.iter().filter_map(|task| Some((task.name(), calibration(&task.samples)?))).collect();
    if found.is_empty() {
        return;
    }
    out.push_str(
        "### Calibration\n\n| task | expected calibration error | mean confidence | accuracy | documents |\n",
    );
    out.push_str("| --- | ---: | ---: | ---: | ---: |\n");
    for (name, found) in found {
        let [ece, confidence, accuracy] =
            [found.ece, found.confidence, found.accuracy].map(|value| figures::value(value, true));
        let _ = writeln!(out, "| {} | {ece} | {confidence} | {accuracy} | {} |", escaped(&name), found.n);
    }
    out.push('\n');
}

/// What a table does not show: documents that count as wrong without an answer.
fn unasked(out: &mut String, run: &Run) {
    for task in &run.tasks {
        let facts = &task.facts;
        if facts.errors + facts.truncated > 0 {
            let (name, documents) = (escaped(&task.name()), facts.documents);
            let (errors, truncated) = (facts.errors, facts.truncated);
            let _ = writeln!(
                out,
                "- {name}: of {documents} documents {errors} could not be asked about and count as wrong; \
                 {truncated} prompts lost their beginning\n"
            );
        }
    }
}
