//! What `lctl quantize` prints: the plan as a table, the summary, both as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::term;
use crate::error::Failure;
use crate::kernel::Isa;
use crate::layout;
use crate::quantize::{Outcome, PlanRow, Prepared};

/// Rows of the summary's list of worst tensors.
const N_WORST: usize = 5;

/// A plan and its totals.
pub struct Report<'a> {
    prepared: &'a Prepared,
    rows: Vec<PlanRow<'a>>,
    pub n_weights: u64,
    /// Tensor data that will be written, without header and padding.
    n_bytes: u64,
    /// Size of the source's files.
    source_bytes: u64,
}

/// What a run adds to a report.
pub struct Finished {
    pub outcome: Outcome,
    pub elapsed: Duration,
    pub isa: Isa,
    pub n_threads: usize,
}

impl<'a> Report<'a> {
    pub fn new(prepared: &'a Prepared) -> Self {
        let rows: Vec<PlanRow> = prepared.rows().collect();
        let files = prepared.source.tensors.files().iter();
        Report {
            prepared,
            n_weights: rows.iter().map(|row| row.n_weights).sum(),
            n_bytes: rows.iter().map(|row| row.n_bytes).sum(),
            source_bytes: files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum(),
            rows,
        }
    }

    fn bits_per_weight(&self) -> f64 {
        self.n_bytes as f64 * 8.0 / self.n_weights.max(1) as f64
    }
}

/// Prints the report to stdout: as JSON, or as a table (a plan) or a summary (a finished run) unless `quiet`.
pub fn print(
    report: &Report,
    finished: Option<&Finished>,
    as_json: bool,
    quiet: bool,
) -> Result<(), Failure> {
    match finished {
        _ if as_json => term::out_json(&to_json(report, finished)),
        _ if quiet => Ok(()),
        Some(finished) => term::out(&summary(report, finished)),
        None => term::out(&table(report)),
    }
}

fn shape_text(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

/// Returns the plan, one line per tensor, the total last.
fn table(report: &Report) -> String {
    let mut lines = vec![["tensor", "shape", "from", "to", "bytes", "bits/weight"].map(str::to_owned)];
    for row in &report.rows {
        let to = match row.fallback_from {
            Some(wanted) => format!("{} (not {wanted})", row.to),
            None => row.to.to_string(),
        };
        lines.push([
            term::printable(row.name),
            shape_text(row.shape),
            row.from.to_string(),
            to,
            row.n_bytes.to_string(),
            format!("{:.4}", row.bits_per_weight()),
        ]);
    }
    lines.push([
        format!("{} tensors", report.rows.len()),
        format!("{} weights", report.n_weights),
        String::new(),
        report.prepared.recipe.name.to_owned(),
        report.n_bytes.to_string(),
        format!("{:.4}", report.bits_per_weight()),
    ]);
    layout::table(&lines, |column| matches!(column, 0 | 2 | 3), None)
}

fn summary(report: &Report, finished: &Finished) -> String {
    let out_bytes: u64 = finished.outcome.files.iter().map(|file| file.bytes).sum();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}: {} -> {} ({:.2} x smaller), {:.4} bits per weight, {:.1} s",
        report.prepared.recipe.name,
        term::bytes(report.source_bytes),
        term::bytes(out_bytes),
        report.source_bytes as f64 / out_bytes.max(1) as f64,
        report.bits_per_weight(),
        finished.elapsed.as_secs_f64(),
    );
    let worst = worst(report, finished);
    if !worst.is_empty() {
        text.push_str("worst tensors by relative RMSE:\n");
    }
    for (row, rmse) in worst {
        let _ = writeln!(text, "  {rmse:.5}  {:<6}  {}", row.to, term::printable(row.name));
    }
    for file in &finished.outcome.files {
        let digest = file.sha256_hex().unwrap_or_default();
        let _ = writeln!(text, "sha256 {digest}  {}", term::printable(&file.path.display().to_string()));
    }
    text
}

/// Returns the tensors that lost most, worst first; none if nothing was lost or measured.
fn worst<'r, 'a>(report: &'r Report<'a>, finished: &Finished) -> Vec<(&'r PlanRow<'a>, f64)> {
    let rmse = finished.outcome.relative_rmse.iter().copied();
    let mut rows: Vec<_> = report.rows.iter().zip(rmse).filter(|(_, rmse)| *rmse > 0.0).collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    rows.truncate(N_WORST);
    rows
}

fn to_json(report: &Report, finished: Option<&Finished>) -> Value {
    let rmse = |i: usize| finished.and_then(|f| f.outcome.relative_rmse.get(i).copied());
    let tensor = |(i, row): (usize, &PlanRow)| {
        json!({
            "name": row.name,
            "shape": row.shape,
            "from": row.from.name(),
            "to": row.to.name(),
            "fallback_from": row.fallback_from.map(|dtype| dtype.name()),
            "bytes": row.n_bytes,
            "bits_per_weight": row.bits_per_weight(),
            "relative_rmse": rmse(i),
        })
    };
    let file = |file: &crate::tensor::WrittenFile| json!({ "path": file.path.display().to_string(), "bytes": file.bytes, "sha256": file.sha256_hex() });
    let files = finished.map(|f| f.outcome.files.iter().map(file).collect::<Vec<_>>()).unwrap_or_default();
    json!({
        "schema": "lctl.quantize/1",
        "dry_run": finished.is_none(),
        "model": report.prepared.source.tensors.path().display().to_string(),
        "architecture": report.prepared.source.arch,
        "type": report.prepared.recipe.name,
        "file_type": report.prepared.recipe.file_type,
        "weights": report.n_weights,
        "source_bytes": report.source_bytes,
        "tensor_bytes": report.n_bytes,
        "bits_per_weight": report.bits_per_weight(),
        "elapsed_seconds": finished.map(|f| f.elapsed.as_secs_f64()),
        "threads": finished.map(|f| f.n_threads),
        "isa": finished.map(|f| f.isa.name()),
        "files": files,
        "tensors": report.rows.iter().enumerate().map(tensor).collect::<Vec<_>>(),
        "notes": report.prepared.notices,
    })
}
