//! Confusion matrices: of classifications, and of which place a multiple choice's answers stand in.

use serde::Serialize;

use super::view::filter;
use crate::eval::gate::{SampleRun, TaskRun};

/// Labels up to which a cell links to its documents: in a larger matrix there would be too many stops for a keyboard.
const MOST_LINKED: usize = 12;

/// Choices up to which a matrix of places is shown.
const MOST_CHOICES: usize = 12;

/// Rows: what is right; columns: what was answered.
#[derive(Serialize)]
pub struct Matrix {
    pub columns: Vec<String>,
    pub rows: Vec<MatrixRow>,
}

#[derive(Serialize)]
pub struct MatrixRow {
    pub label: String,
    pub cells: Vec<MatrixCell>,
    pub n: u64,
    /// Share of the row that is right.
    pub recall: String,
}

#[derive(Serialize)]
pub struct MatrixCell {
    pub count: u64,
    /// 0 to 10: tenths of the row, rounded up.
    pub heat: u64,
    pub is_right: bool,
    /// Filters of the browser.
    pub link: Option<String>,
}

/// Returns the matrix of a task that has one, and what it shows.
pub fn of(task: &TaskRun) -> Option<(&'static str, Matrix)> {
    if let Some(confusion) = &task.facts.confusion {
        let has_unlabelled = confusion.no_label.iter().any(|count| *count > 0);
        let mut columns: Vec<(String, Option<String>)> =
            confusion.labels.iter().map(|label| (label.clone(), Some(as_json(label)))).collect();
        if has_unlabelled {
            columns.push(("no label".to_owned(), None));
        }
        let counts = confusion.matrix.iter().zip(&confusion.no_label).map(|(row, none)| {
            row.iter().copied().chain(has_unlabelled.then_some(*none)).collect::<Vec<u64>>()
        });
        let targets = confusion.labels.iter().map(|label| (label.clone(), as_json(label)));
        return Some(("labels", matrix(task, targets.collect(), columns, counts.collect())));
    }
    places(task)
}

fn as_json(label: &str) -> String {
    serde_json::Value::from(label).to_string()
}

/// Returns how often each place was right, and chosen, where all documents have as many choices.
fn places(task: &TaskRun) -> Option<(&'static str, Matrix)> {
    if task.facts.task_type != "multiple_choice" {
        return None;
    }
    let texts = |sample: &SampleRun| -> Option<Vec<String>> {
        let choices = sample.details.get("choices")?.as_array()?;
        choices.iter().map(|choice| choice.as_str().map(str::to_owned)).collect()
    };
    let answered: Vec<&SampleRun> = task.samples.iter().filter(|sample| sample.error.is_none()).collect();
    let first = texts(answered.first()?)?;
    let n = first.len();
    if !(2..=MOST_CHOICES).contains(&n) {
        return None;
    }
    let mut counts = vec![vec![0; n]; n];
    let mut are_names = true;
    for sample in answered {
        let choices = texts(sample).filter(|choices| choices.len() == n)?;
        are_names &= choices == first;
        let place = |value: Option<u64>| usize::try_from(value?).ok().filter(|place| *place < n);
        let target = place(sample.target.as_ref()?.as_u64())?;
        let answer = place(sample.prediction.as_u64())?;
        counts[target][answer] += 1;
    }
    let name = |place: usize| if are_names { first[place].clone() } else { format!("{}", place + 1) };
    let targets = (0..n).map(|place| (name(place), place.to_string())).collect();
    let columns = (0..n).map(|place| (name(place), Some(place.to_string()))).collect();
    let about = if are_names { "choices" } else { "places of choices" };
    Some((about, matrix(task, targets, columns, counts)))
}

/// `targets` and `columns`: name, and the sample's target and prediction as JSON.
fn matrix(
    task: &TaskRun,
    targets: Vec<(String, String)>,
    columns: Vec<(String, Option<String>)>,
    counts: Vec<Vec<u64>>,
) -> Matrix {
    let is_linked = targets.len() <= MOST_LINKED;
    let name = task.name();
    let row = |(index, ((label, target), counts)): (usize, ((String, String), Vec<u64>))| {
        let n: u64 = counts.iter().sum();
        let cell = |(place, count): (usize, &u64)| {
            let answer = columns[place].1.as_deref().unwrap_or("null");
            let pairs = [("task", name.as_str()), ("target", target.as_str()), ("answer", answer)];
            MatrixCell {
                count: *count,
                heat: (10 * count).div_ceil(n.max(1)),
                is_right: place == index,
                link: (is_linked && *count > 0).then(|| filter(&pairs)),
            }
        };
        let cells: Vec<MatrixCell> = counts.iter().enumerate().map(cell).collect();
        let recall = match n {
            0 => "–".to_owned(),
            _ => format!("{:.0} %", 100.0 * counts[index] as f64 / n as f64),
        };
        MatrixRow { label, cells, n, recall }
    };
    let rows = targets.into_iter().zip(counts).enumerate().map(row).collect();
    Matrix { columns: columns.into_iter().map(|(name, _)| name).collect(), rows }
}
