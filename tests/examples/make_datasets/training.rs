//! Training sets of the shipped recipes: conversations that ask as the suites ask, about other scenarios.
//!
//! The questions are written by the suites' own templates, so that what is trained is what is measured.

use std::path::Path;

use lctl::text::chat::{Limits, RecordTemplate};
use serde_json::{Value as Json, json};

use super::item::Item;
use super::table::{Error, Tables};
use super::templated;

/// A task of a suite: how it asks.
struct Asker {
    system: Option<String>,
    prompt: RecordTemplate,
}

impl Asker {
    fn read(tables: &Tables, suite: &str, task: &str) -> Result<Asker, Error> {
        let path = tables.suites().join(format!("{suite}.yaml"));
        let wrong = |what: String| Error::Row { path: path.clone(), line: 1, what };
        let text =
            std::fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let yaml: Json = serde_yaml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let tasks = yaml["tasks"].as_array().into_iter().flatten();
        let task = tasks
            .into_iter()
            .find(|other| other["id"] == task)
            .ok_or_else(|| wrong(format!("no task `{task}`")))?;
        let prompt = task["prompt"].as_str().ok_or_else(|| wrong("the task has no prompt".into()))?;
        let prompt =
            RecordTemplate::new(prompt, Limits::default()).map_err(|error| wrong(error.to_string()))?;
        // as the suite reader does with a block of text
        let system = task["system"].as_str().map(|system| system.trim_end_matches('\n').to_owned());
        Ok(Asker { system, prompt })
    }

    /// Returns a conversation of one question about a row's fields, and its answer.
    fn ask(&self, item: &Item, answer: String) -> Result<Json, Error> {
        let prompt = self.prompt.render(item.fields()).map_err(|error| Error::Row {
            path: Path::new("suite").to_owned(),
            line: 1,
            what: error.to_string(),
        })?;
        let system = self.system.iter().map(|system| json!({"role": "system", "content": system}));
        let turn =
            [json!({"role": "user", "content": prompt}), json!({"role": "assistant", "content": answer})];
        Ok(system.chain(turn).collect())
    }
}

/// Returns an item that is a conversation; it is called as the one it is made of, with an ending.
fn conversation(item: &Item, ending: &str, messages: Json) -> Item {
    let text = |name: &str| item.text(name).unwrap_or_default().to_owned();
    Item::new(format!("{}{ending}", text("id")), text("cluster"), text("source")).with("messages", messages)
}

/// Mails, labelled by one word.
pub fn phish_triage(tables: &Tables) -> Result<Vec<Item>, Error> {
    let asker = Asker::read(tables, "phish-triage", "label")?;
    let items = templated::items(tables, "phish-triage-train")?;
    let row = |item: &Item| {
        let label = item.text("label").unwrap_or_default().to_owned();
        Ok(conversation(item, "", asker.ask(item, label)?))
    };
    items.iter().map(row).collect()
}

/// Log excerpts, their verdicts as JSON.
pub fn log_triage(tables: &Tables) -> Result<Vec<Item>, Error> {
    let asker = Asker::read(tables, "log-triage", "json")?;
    let items = super::log_triage::items_of(tables, "log-triage-train.txt", 6)?;
    let row = |item: &Item| Ok(conversation(item, "", asker.ask(item, item.fields()["answer"].to_string())?));
    items.iter().map(row).collect()
}

/// Queries and requests, their parts as JSON.
pub fn query_translate(tables: &Tables) -> Result<Vec<Item>, Error> {
    let askers = [
        ("selects", Asker::read(tables, "query-translate", "selects")?),
        ("request", Asker::read(tables, "query-translate", "request")?),
    ];
    let items = super::query_translate::items_of(tables, "query-translate-train.txt")?;
    let mut rows = Vec::new();
    for item in &items {
        for (task, asker) in &askers {
            let messages = asker.ask(item, item.fields()["selects"].to_string())?;
            rows.push(conversation(item, &format!("-{task}"), messages));
        }
    }
    Ok(rows)
}

/// What the reports of ir-report are asked for.
const REPORT: &str = "You write incident reports for a security team out of an analyst's timeline. Use the headings Summary, Timeline, \
                      Indicators, Impact and Next steps. State only what the timeline says; where it is silent, write \"not known\".";

/// Timelines of incidents, and reports of them.
pub fn ir_report(tables: &Tables) -> Result<Vec<Item>, Error> {
    let items = templated::items(tables, "ir-report-train")?;
    let row = |item: &Item| {
        let text = |name: &str| item.text(name).unwrap_or_default().to_owned();
        let messages = json!([
            {"role": "system", "content": REPORT},
            {"role": "user", "content": format!("Incident {}\n{}\n\nReport:", text("number"), text("timeline"))},
            {"role": "assistant", "content": report(&text("summary"), &text("timeline"), &list(item, "indicators"),
                                                    &text("impact"), &list(item, "next"))},
        ]);
        conversation(item, "", messages)
    };
    Ok(items.iter().map(row).collect())
}

fn list(item: &Item, name: &str) -> Vec<String> {
    let texts = item.fields().get(name).and_then(Json::as_array).into_iter().flatten();
    texts.filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn report(summary: &str, timeline: &str, indicators: &[String], impact: &str, next: &[String]) -> String {
    let listed = |items: &[String]| match items {
        [] => "not known".to_owned(),
        items => items.iter().map(|item| format!("- {item}")).collect::<Vec<_>>().join("\n"),
    };
    let events: Vec<String> = timeline.lines().map(|line| format!("- {line}")).collect();
    format!(
        "## Summary\n{summary}\n\n## Timeline\n{}\n\n## Indicators\n{}\n\n## Impact\n{impact}\n\n## Next steps\n{}",
        events.join("\n"),
        listed(indicators),
        listed(next)
    )
}
