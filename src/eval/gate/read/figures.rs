//! Whether a report's figures are those of its samples.

use std::path::Path;

use super::{Error, TaskRun};
use crate::eval::task::{Scores, figure_of};

/// Errors if a figure is not what the samples come to.
pub fn check(path: &Path, report: &str, task: &TaskRun) -> Result<(), Error> {
    let name = task.name();
    let line = || {
        let by_name = format!("\"{}\"", task.facts.samples_sha256);
        report.lines().position(|line| line.contains(&by_name)).map_or(1, |index| index + 1)
    };
    let bad = |what: String| {
        let what = format!("task `{name}`: {what}");
        Err(Error::bad(path, line(), what).with_hint("report and samples are of two runs, or were edited"))
    };
    let n_errors = task.samples.iter().filter(|sample| sample.error.is_some()).count();
    if n_errors != task.facts.errors {
        let said = task.facts.errors;
        return bad(format!("{said} documents could not be asked about, but {n_errors} of its samples"));
    }
    let scores: Vec<&Scores> = task.samples.iter().map(|sample| &sample.scores).collect();
    for metric in &task.facts.metrics {
        let found = figure_of(&task.facts.task_type, &metric.name, &scores);
        if let Some(found) = found.filter(|found| !is_same(metric.value(), *found)) {
            let said = metric.value();
            return bad(format!("`{}` is {said}, but its samples come to {found}", metric.name));
        }
        let with_score = scores.iter().filter(|scores| scores.contains_key(&metric.name)).count();
        if with_score > 0 && with_score != metric.n {
            let said = metric.n;
            return bad(format!(
                "`{}` is of {said} documents, but {with_score} samples have it",
                metric.name
            ));
        }
    }
    Ok(())
}

/// Decimal digits, and sums in another order, may cost a few of the last bits.
fn is_same(said: f64, found: f64) -> bool {
    (said - found).abs() <= 1e-9 * said.abs().max(found.abs()) || !found.is_finite()
}
