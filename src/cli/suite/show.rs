//! What `lctl suite` prints.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use crate::cli::term::printable;
use crate::eval::audit::{Finding, TaskAudit};
use crate::eval::suite::{Suite, TaskSpec};

/// Returns a table of suites.
pub fn list(suites: &[Suite]) -> String {
    // `format!` takes no width above 65535
    let width = suites.iter().map(|suite| suite.name.len()).max().unwrap_or(0).min(200);
    let rows = suites.iter().map(|suite| {
        let tasks: Vec<&str> = suite.tasks.iter().map(|task| task.id.as_str()).collect();
        format!("{:width$}  {}  [{}]\n", suite.name, printable(&suite.description), tasks.join(", "))
    });
    rows.collect()
}

/// Returns a suite of [`list`] as JSON.
pub fn row(suite: &Suite) -> Json {
    let tasks: Vec<Json> = suite
        .tasks
        .iter()
        .map(|task| json!({"id": task.id, "type": task.task_type.name, "gate": task.gate}))
        .collect();
    json!({
        "name": suite.name,
        "description": suite.description,
        "file": suite.path.display().to_string(),
        "sha256": suite.sha256,
        "tasks": tasks,
    })
}

/// Returns a suite and what its data is like.
pub fn text(suite: &Suite, audits: &[TaskAudit]) -> String {
    let mut text = format!(
        "{}: {}\n  file       {}\n  sha256     {}\n",
        suite.name,
        printable(&suite.description),
        printable(&suite.path.display().to_string()),
        suite.sha256
    );
    for (task, audit) in suite.tasks.iter().zip(audits) {
        // writing to a String cannot fail
        let _ = write_task(&mut text, task, audit);
    }
    text
}

fn write_task(text: &mut String, task: &TaskSpec, audit: &TaskAudit) -> std::fmt::Result {
    writeln!(text, "\n{} ({}){}", task.id, audit.type_name, gate(task))?;
    writeln!(text, "  data       {}", printable(&audit.data.display().to_string()))?;
    writeln!(text, "  sha256     {}", audit.sha256)?;
    for file in &audit.hub {
        writeln!(text, "  hub        {file}")?;
    }
    writeln!(text, "  documents  {}", audit.documents)?;
    if let Some((clusters, largest)) = audit.clusters {
        writeln!(text, "  clusters   {clusters}, the largest of {largest}")?;
    }
    let mean = audit.characters.0 as f64 / audit.documents.max(1) as f64;
    writeln!(text, "  question   {mean:.0} characters on average, at most {}", audit.characters.1)?;
    writeln!(text, "  answers    {} different", audit.answers)?;
    if !audit.positions.is_empty() {
        writeln!(text, "  places     {:?}", audit.positions)?;
    }
    if !audit.findings.is_empty() {
        writeln!(text, "  problems   {} (lctl suite validate)", audit.findings.len())?;
    }
    Ok(())
}

fn gate(task: &TaskSpec) -> String {
    let mut words = Vec::new();
    if task.gate.critical {
        words.push("critical".to_owned());
    }
    if let Some(margin) = task.gate.margin {
        words.push(format!("margin {margin}"));
    }
    if task.gate.zero_tolerance {
        words.push("zero tolerance".to_owned());
    }
    words.iter().map(|word| format!(", {word}")).collect()
}

/// Returns what [`text`] says, as JSON.
pub fn json(suite: &Suite, audits: &[TaskAudit]) -> Json {
    let tasks: Vec<Json> = suite
        .tasks
        .iter()
        .zip(audits)
        .map(|(task, audit)| {
            json!({
                "id": audit.id,
                "type": audit.type_name,
                "gate": task.gate,
                "data": {
                    "file": audit.data.display().to_string(),
                    "sha256": audit.sha256,
                    "hub": audit.hub.iter().map(ToString::to_string).collect::<Vec<_>>(),
                },
                "documents": audit.documents,
                "clusters": audit.clusters.map(|(n, largest)| json!({"n": n, "largest": largest})),
                "characters": {"total": audit.characters.0, "longest": audit.characters.1},
                "answers": audit.answers,
                "places": audit.positions,
                "problems": audit.findings.iter().map(line).collect::<Vec<_>>(),
            })
        })
        .collect();
    let mut suite = row(suite);
    suite["tasks"] = json!(tasks);
    suite
}

/// Returns a line per file that was taken from a hub.
pub fn hub_files(audits: &[TaskAudit]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for file in audits.iter().flat_map(|audit| &audit.hub) {
        let line = format!("  from {file}, SHA-256 {}\n", file.sha256);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.concat()
}

/// Returns a line per problem: place, task, what.
pub fn problems(suite: &Suite, audits: &[TaskAudit]) -> Vec<String> {
    let mut lines = Vec::new();
    for audit in audits {
        for finding in &audit.findings {
            let place = match &finding.place {
                Some(place) => place.to_string(),
                None => suite.path.display().to_string(),
            };
            lines.push(format!("{place}: task `{}`: {}", audit.id, finding.what));
        }
    }
    lines
}

fn line(finding: &Finding) -> String {
    match &finding.place {
        Some(place) => format!("{place}: {}", finding.what),
        None => finding.what.clone(),
    }
}

/// Returns the documents found in training files, and how many.
pub fn overlaps(rows: &[Json]) -> String {
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut lines: String = rows
        .iter()
        .map(|row| {
            let name = if row["id"].is_null() { &row["document"] } else { &row["id"] };
            let line =
                format!("{} {}: {}:{}", text(&row["data"]), text(name), text(&row["file"]), row["file_line"]);
            format!("{}\n", printable(&line))
        })
        .collect();
    lines.push_str(&format!("{} documents found\n", rows.len()));
    lines
}
