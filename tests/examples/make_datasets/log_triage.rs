//! log-triage: what a few log lines mean, as JSON.

use serde_json::{Map, Value as Json};

use super::fill::{Filler, range_of};
use super::item::Item;
use super::table::{Error, Row, Tables};

/// Excerpts made of each scenario.
const PER_SCENARIO: usize = 4;

/// Cells before the lines.
const FIELDS: [&str; 5] = ["verdict", "category", "severity", "source", "account"];

pub fn items(tables: &Tables) -> Result<Vec<Item>, Error> {
    items_of(tables, "log-triage.txt", PER_SCENARIO)
}

/// Returns `copies` excerpts of each scenario of a table.
pub fn items_of(tables: &Tables, table: &str, copies: usize) -> Result<Vec<Item>, Error> {
    let rows = tables.read(table, 7, 20)?;
    let (noise, scenarios): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.cells[0] == "noise");
    let mut items = Vec::new();
    for scenario in &scenarios {
        for copy in 1..=copies {
            items.push(item(scenario, &noise, copy)?);
        }
    }
    Ok(items)
}

fn item(scenario: &Row, noise: &[Row], copy: usize) -> Result<Item, Error> {
    let at = |what: String| scenario.error(what);
    let name = &scenario.cells[0];
    let id = format!("log-triage-{name}-{copy}");
    let mut filler = Filler::of_row(scenario, &id);
    filler.set_gap(scenario.property("gap")?).map_err(at)?;
    let mut lines: Vec<Line> = Vec::new();
    for cell in &scenario.cells[6..] {
        let (times, line) = repeated(cell, &mut filler).map_err(at)?;
        let (by, line) = match line.strip_prefix("= ") {
            Some(line) => (By::SameProcess, line),
            None => (By::NewProcess, line),
        };
        lines.extend(std::iter::repeat_n(Line { by, text: behind_head(scenario, line)? }, times));
    }
    add_noise(&mut lines, scenario, noise, &mut filler)?;
    let log = filled(&lines, &mut filler).map_err(at)?.join("\n");
    let mut answer = Map::new();
    for (field, cell) in FIELDS.iter().zip(&scenario.cells[1..6]) {
        answer.insert((*field).to_owned(), Json::String(filler.fill(cell).map_err(at)?));
    }
    let source = format!("{} {copy}", scenario.property("source")?);
    Ok(Item::new(id, format!("log-{name}"), source)
        .with("kind", scenario.property("log")?)
        .with("log", log)
        .with("answer", answer))
}

/// Who writes a line.
#[derive(Clone, Copy, PartialEq)]
enum By {
    NewProcess,
    /// Of the scenario's line before.
    SameProcess,
    Others,
}

#[derive(Clone)]
struct Line {
    by: By,
    text: String,
}

fn behind_head(row: &Row, line: &str) -> Result<String, Error> {
    let head = row.property("head")?;
    let separator = if head.ends_with([',', '{']) { "" } else { " " };
    Ok(format!("{head}{separator}{line}"))
}

/// Returns the lines with their places filled.
fn filled(lines: &[Line], filler: &mut Filler) -> Result<Vec<String>, String> {
    let mut process = None;
    let mut texts = Vec::new();
    for line in lines {
        texts.push(match line.by {
            By::SameProcess => filler.fill_of_process(&line.text, process)?,
            By::NewProcess | By::Others => filler.fill(&line.text)?,
        });
        if line.by == By::NewProcess {
            process = filler.pid();
        }
    }
    Ok(texts)
}

/// Reads `x5-9 line`: how many times the line stands there.
fn repeated<'a>(cell: &'a str, filler: &mut Filler) -> Result<(usize, &'a str), String> {
    let Some((range, line)) = cell.strip_prefix('x').and_then(|cell| cell.split_once(' ')) else {
        return Ok((1, cell));
    };
    if !range.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok((1, cell));
    }
    let (low, high) = range_of(range)?;
    Ok((filler.draws().between(low, high), line))
}

/// Puts up to two lines of other people's ordinary activity between the lines.
fn add_noise(lines: &mut Vec<Line>, scenario: &Row, noise: &[Row], filler: &mut Filler) -> Result<(), Error> {
    let log = scenario.property("log")?;
    let fit: Vec<&Row> =
        noise.iter().filter(|row| row.properties.get("log").is_some_and(|of| of == log)).collect();
    for _ in 0..filler.draws().below(3) {
        let row = filler.draws().pick(&fit);
        let place = filler.draws().below(lines.len() + 1);
        lines.insert(place, Line { by: By::Others, text: behind_head(row, &row.cells[6])? });
    }
    Ok(())
}
