//! A verdict for people: on a terminal, and as Markdown for a pull request or a step summary.

use std::fmt::Write as _;

use indexmap::IndexMap;

use super::divergence::{Bounded, Divergence};
use super::judge::{Judged, Status, items, p_value, show};
use super::measure::Measured;
use super::pair::Role;
use super::verdict::{Side, Verdict};
use crate::layout::{table, wrapped};
use crate::provenance::{DataLicence, Licences};

/// Lost and gained items shown; a verdict as JSON has all.
const MOST_ITEMS: usize = 20;

/// Headings of [`rows`].
pub const COLUMNS: [&str; 12] = [
    "task",
    "metric",
    "items",
    "baseline",
    "candidate",
    "difference",
    "at worst",
    "95 % interval",
    "p worse",
    "p two-sided",
    "lost/gained",
    "result",
];

/// Returns the verdict for a terminal, in lines of at most `width` characters where words allow it. Names are as the files
/// have them: print it with control characters escaped.
pub fn text(verdict: &Verdict, width: Option<usize>) -> String {
    let mut out = String::new();
    let line = |out: &mut String, text: &str| line(out, &wrapped(text, width));
    for (name, side) in [("baseline", &verdict.baseline), ("candidate", &verdict.candidate)] {
        line(&mut out, &format!("{name:<10} {}", side_text(side)));
    }
    for (what, of) in information(verdict) {
        line(&mut out, &format!("{what:<10} {of}"));
    }
    let judgement = &verdict.judgement;
    if !judgement.tasks.is_empty() {
        out.push('\n');
        out.push_str(&table(&rows(verdict), is_left, width));
        out.push('\n');
        for judged in judgement.pool.iter().chain(&judgement.tasks) {
            line(&mut out, &details(judged));
        }
        for (what, of) in changed(verdict) {
            line(&mut out, &format!("{what}: {of}"));
        }
        if judgement.tasks.iter().any(|judged| judged.lost.len().max(judged.gained.len()) > MOST_ITEMS) {
            line(&mut out, "items that are not shown stand in the verdict as JSON: --json");
        }
    }
    out.push('\n');
    verdict.notes.iter().for_each(|note| line(&mut out, &format!("note: {note}")));
    for reason in &judgement.reasons {
        line(&mut out, &format!("- {reason}"));
    }
    line(&mut out, judgement.outcome.name());
    out
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

fn side_text(side: &Side) -> String {
    let adapter = side.adapter.as_ref().map_or(String::new(), |adapter| format!(" + {adapter}"));
    let digest = side.sha256.get(..12).unwrap_or(&side.sha256);
    format!("{}{adapter} (sha256 {digest}, lctl {})", side.model, side.lctl)
}

/// Returns what is said and decides nothing, with its name: licences, and the models' divergence where both were at hand.
pub fn information(verdict: &Verdict) -> Vec<(&'static str, String)> {
    let (baseline, candidate) = (&verdict.baseline.licences, &verdict.candidate.licences);
    let licences = match baseline == candidate {
        true => licences_text(candidate.as_ref()),
        false => {
            let of = |licences: &Option<Licences>| licences_text(licences.as_ref());
            format!("candidate {}; baseline {}", of(candidate), of(baseline))
        }
    };
    let mut lines = vec![("licences", licences)];
    lines.extend(verdict.divergence.as_ref().map(|found| ("divergence", divergence_text(found, verdict))));
    lines
}

fn licences_text(licences: Option<&Licences>) -> String {
    let Some(Licences { base, adapter, data }) = licences else {
        return "unknown (no manifest beside the report)".to_owned();
    };
    let adapter = adapter.as_ref().map_or(String::new(), |adapter| format!(", adapter {adapter}"));
    // files of one licence together
    let mut by_licence: IndexMap<&str, Vec<&str>> = IndexMap::new();
    for DataLicence { name, licence } in data {
        by_licence.entry(licence).or_default().push(name);
    }
    let data = by_licence.iter().map(|(licence, names)| format!(", data {licence} ({})", names.join(", ")));
    format!("base {base}{adapter}{}", data.collect::<String>())
}

fn divergence_text(found: &Divergence, verdict: &Verdict) -> String {
    let level = 100.0 * (1.0 - verdict.policy.alpha);
    let bounds = |of: Bounded, shown: &dyn Fn(f64) -> String| match of.interval {
        Some(interval) => format!(
            "{} ({level:.0} % interval {} to {})",
            shown(of.value),
            shown(interval.lower),
            shown(interval.upper)
        ),
        None => shown(of.value),
    };
    format!(
        "mean KL {} nats; same first choice {} %; {} tokens of {}",
        bounds(found.mean_kl, &|value| format!("{value:.6}")),
        bounds(found.same_top, &|value| format!("{:.2}", 100.0 * value)),
        found.tokens,
        found.over,
    )
}

/// Returns the rows of a table: headings, the tasks, the pool.
pub fn rows(verdict: &Verdict) -> Vec<[String; COLUMNS.len()]> {
    let level = 100.0 * (1.0 - verdict.policy.alpha);
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows[0][7] = format!("{level:.0} % interval");
    rows.extend(verdict.judgement.tasks.iter().chain(&verdict.judgement.pool).map(row));
    rows
}

fn row(judged: &Judged) -> [String; COLUMNS.len()] {
    let found = &judged.measured;
    let role = match judged.role {
        Role::Critical if judged.task != "pool" => " (critical)",
        Role::ZeroTolerance => " (zero tolerance)",
        _ => "",
    };
    [
        format!("{}{role}", judged.task),
        judged.metric.clone(),
        found.items.to_string(),
        value(found.baseline, found),
        value(found.candidate, found),
        difference(found.difference, found),
        difference(found.lower, found),
        format!("{} to {}", difference(found.interval.lower, found), difference(found.interval.upper, found)),
        p_value(found.p.worse),
        p_value(found.p.two_sided),
        format!("{}/{}", found.lost, found.gained),
        judged.status.name().to_owned(),
    ]
}

/// Results from 0 to 1 are percent, their differences points.
fn value(value: f64, found: &Measured) -> String {
    if found.is_bounded { format!("{:.2} %", 100.0 * value) } else { format!("{value:.4}") }
}

fn difference(value: f64, found: &Measured) -> String {
    match found.is_bounded {
        _ if value.is_infinite() => "?".to_owned(),
        true => format!("{:+.2}", 100.0 * value),
        false => format!("{value:+.4}"),
    }
}

/// Returns whether a column of [`rows`] is words.
fn is_left(column: usize) -> bool {
    matches!(column, 0 | 1 | 11)
}

/// Returns what a table has no room for: test, interval, clusters, flips, margin.
pub fn details(judged: &Judged) -> String {
    let found = &judged.measured;
    let mut out = format!("{}: {}; {}", judged.task, found.test, found.interval_method);
    if found.clusters < found.items {
        let _ = write!(out, "; {} clusters, design effect {:.2}", found.clusters, found.design_effect);
    }
    let _ = write!(
        out,
        "; flips {:.2} %; detectable loss {}",
        100.0 * found.flips,
        show(found.detectable, found)
    );
    if let Some(margin) = judged.margin {
        let _ = write!(out, "; margin {}", show(margin, found));
    }
    if let Some(p) = judged.p_adjusted {
        let _ = write!(out, "; p {} after Holm", p_value(p));
    }
    if let Some(planned) = judged.planned_items.filter(|_| judged.status == Status::TooSmall) {
        let _ = write!(out, "; a plan for this margin takes {planned:.0} items");
    }
    if let Some(n) = judged.deciding_items {
        let _ = write!(out, "; {} would decide", items(n as usize));
    }
    out
}

/// Lists of items, each with its heading.
fn changed(verdict: &Verdict) -> Vec<(String, String)> {
    let mut lists = Vec::new();
    for judged in &verdict.judgement.tasks {
        for (what, items) in [("lost", &judged.lost), ("gained", &judged.gained)] {
            if items.is_empty() {
                continue;
            }
            let mut of = items[..items.len().min(MOST_ITEMS)].join(", ");
            if items.len() > MOST_ITEMS {
                let _ = write!(of, " and {} more", items.len() - MOST_ITEMS);
            }
            lists.push((format!("{} {what} {}", judged.task, items.len()), of));
        }
    }
    lists
}

/// Returns the verdict as Markdown.
pub fn markdown(verdict: &Verdict) -> String {
    let judgement = &verdict.judgement;
    let mut out = format!("## Regression gate: {}\n\n", judgement.outcome.name());
    judgement.reasons.iter().for_each(|reason| line(&mut out, &format!("- {}", escaped_markdown(reason))));
    out.push('\n');
    for (name, side) in [("Baseline", &verdict.baseline), ("Candidate", &verdict.candidate)] {
        line(&mut out, &format!("{name}: {}  ", escaped_markdown(&side_text(side))));
    }
    for (what, of) in information(verdict) {
        let (first, rest) = what.split_at(1);
        line(&mut out, &format!("{}{rest}: {}  ", first.to_uppercase(), escaped_markdown(&of)));
    }
    if !judgement.tasks.is_empty() {
        out.push('\n');
        for (index, row) in rows(verdict).iter().enumerate() {
            let cells = row.iter().map(|cell| escaped_markdown(cell)).collect::<Vec<_>>();
            line(&mut out, &format!("| {} |", cells.join(" | ")));
            if index == 0 {
                let rule = (0..COLUMNS.len()).map(|column| if is_left(column) { "---" } else { "---:" });
                line(&mut out, &format!("| {} |", rule.collect::<Vec<_>>().join(" | ")));
            }
        }
        out.push_str("\nDifferences in points where results are percent, the candidate's less the baseline's, positive if it is \
                      better; \"at worst\" is the one-sided bound that decides.\n");
        section(&mut out, "Method", judgement.pool.iter().chain(&judgement.tasks).map(details));
        section(&mut out, "Changed items", changed(verdict).iter().map(|(what, of)| format!("{what}: {of}")));
    }
    section(&mut out, "Notes", verdict.notes.iter().cloned());
    out
}

/// A folded list, if it is not empty.
fn section(out: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let lines: Vec<String> = lines.map(|text| format!("- {}", escaped_markdown(&text))).collect();
    if !lines.is_empty() {
        let _ = write!(out, "\n<details><summary>{title}</summary>\n\n{}\n\n</details>\n", lines.join("\n"));
    }
}

/// Returns text that Markdown shows as it is, on one line: names are out of files.
pub fn escaped_markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' | '!' | '~' | '&' | '@' => {
                // an entity rather than a backslash: tables and mentions do not look at backslashes
                let _ = write!(out, "&#{};", u32::from(c));
            }
            _ if c.is_control() => out.extend(c.escape_default()),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_write_markdown() {
        assert_eq!(escaped_markdown("a|b <img> @x\ny"), "a&#124;b &#60;img&#62; &#64;x\\ny");
        assert_eq!(escaped_markdown("größe 1.5 %"), "größe 1.5 %");
    }
}
