//! The training sets of the shipped recipes.

use std::collections::HashSet;

use lctl::data::scan::SharedRuns;
use lctl::data::shingles::texts_of;
use lctl::eval::audit::audit;
use lctl::eval::run::{DataSets, RunOptions};
use lctl::finetune::recipe::Recipe;
use serde_json::Value as Json;

use super::{documents, root, suites};
use crate::common::run_lctl;

const SETS: [&str; 6] = [
    "phish-triage-train.jsonl",
    "log-triage-train.jsonl",
    "query-translate-train.jsonl",
    "ir-report-train.jsonl",
    "demo-soc-train.jsonl",
    "demo-queue-train.jsonl",
];

/// No 13 words in a row, no whole text of 8 to 12 words, of any document of any suite that comes with its data.
#[test]
fn no_suite_shares_anything_with_a_training_set() {
    let mut runs = SharedRuns::default();
    let mut places = Vec::new();
    for suite in suites() {
        let mut sets = DataSets::default();
        let names: HashSet<&str> = suite.tasks.iter().map(|task| task.data.as_str()).collect();
        for name in names {
            for document in &sets.get(&suite, name, &RunOptions::default()).unwrap().documents {
                runs.add(places.len(), texts_of(&document.fields));
                places.push(document.place.to_string());
            }
        }
    }
    assert!(places.len() > 4000, "{}", places.len());
    // the instructions of a suite stand in every row of its set
    let mut known = HashSet::new();
    for row in SETS.into_iter().flat_map(documents) {
        for text in texts_of(&row.fields).into_iter().filter(|text| known.insert((*text).to_owned())) {
            let found = runs.holders_of(text);
            assert!(found.is_empty(), "{} and {:?}", row.place, found.first().map(|index| &places[*index]));
        }
    }
}

#[test]
fn every_row_is_a_conversation_that_ends_with_its_answer() {
    for set in SETS {
        let rows = documents(set);
        assert!(rows.len() >= 200, "{set}: {}", rows.len());
        let mut texts = HashSet::new();
        for row in &rows {
            let messages = row.fields["messages"].as_array().unwrap();
            let last = messages.last().unwrap();
            assert_eq!(last["role"], "assistant", "{}", row.place);
            assert!(
                !last["content"].as_str().unwrap().contains(['{', '}']) || is_json(last),
                "{}",
                row.place
            );
            assert!(texts.insert(texts_of(&row.fields).join("\n")), "{}: comes twice", row.place);
        }
    }
}

fn is_json(message: &Json) -> bool {
    serde_json::from_str::<Json>(message["content"].as_str().unwrap_or_default()).is_ok()
}

/// Answers are what the suite's own scorer would take for right: every value is one that its questions have, too.
#[test]
fn answers_have_the_values_of_the_suites() {
    let labels: HashSet<String> = answers("phish-triage-train.jsonl").into_iter().collect();
    assert_eq!(labels, HashSet::from(["phishing".to_owned(), "legitimate".to_owned()]));
    let known = |set: &str, field: &str| -> HashSet<String> {
        documents(set).iter().map(|row| row.fields["answer"][field].to_string()).collect()
    };
    let rows: Vec<Json> =
        answers("log-triage-train.jsonl").iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    for field in ["verdict", "category", "severity"] {
        let known = known("log-triage.jsonl", field);
        let stranger = rows.iter().map(|row| row[field].to_string()).find(|value| !known.contains(value));
        assert_eq!(stranger, None, "{field}");
    }
    let malicious = rows.iter().filter(|row| row["verdict"] == "malicious").count();
    let n = rows.len();
    assert!(malicious * 3 > n && malicious * 4 < 3 * n, "{malicious} of {n}");
    for text in answers("query-translate-train.jsonl") {
        let parts: Json = serde_json::from_str(&text).unwrap();
        assert_eq!(parts["conditions"].as_array().map(Vec::len), Some(2), "{text}");
    }
}

fn answers(set: &str) -> Vec<String> {
    let answer = |row: &lctl::eval::data::Document| {
        let messages = row.fields["messages"].as_array().unwrap();
        messages.last().unwrap()["content"].as_str().unwrap().to_owned()
    };
    documents(set).iter().map(answer).collect()
}

/// A row asks as the suite asks, so that what is learnt is what is measured.
#[test]
fn questions_are_the_suites_own() {
    let suite = suites().into_iter().find(|suite| suite.name == "log-triage").unwrap();
    assert!(!audit(&suite, &RunOptions::default()).unwrap().is_empty());
    let text = std::fs::read_to_string(root().join("evalsuites/log-triage.yaml")).unwrap();
    let yaml: Json = serde_yaml::from_str(&text).unwrap();
    let system = yaml["tasks"][0]["system"].as_str().unwrap().trim_end();
    for row in documents("log-triage-train.jsonl") {
        assert_eq!(row.fields["messages"][0]["content"], system, "{}", row.place);
    }
}

#[test]
fn every_shipped_recipe_is_right_and_its_files_are_there() {
    let mut n = 0;
    let mut recipes = Vec::new();
    for entry in walk(&root().join("recipes")) {
        let name = entry.strip_prefix(root()).unwrap().display().to_string();
        if !name.ends_with(".yaml") || name.ends_with("gate.yaml") {
            continue;
        }
        let recipe = Recipe::open(&entry, &[], &["q4_k_m"]).unwrap_or_else(|error| panic!("{error}"));
        let is_preset = name.contains("presets/");
        for (key, file) in recipe.files().into_iter().filter(|_| !is_preset) {
            assert!(root().join(file).exists(), "{name}: {key}");
        }
        n += 1;
        if !is_preset {
            recipes.push(name);
        }
    }
    assert!(n >= 10 && recipes.len() == 6, "{n} {recipes:?}");
    let args: Vec<&str> =
        ["recipe", "validate"].into_iter().chain(recipes.iter().map(String::as_str)).collect();
    let (code, stdout, stderr) = run_lctl(root(), &args);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout.matches("nothing wrong").count(), 6, "{stdout}");
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(walk(&path)),
            false => found.push(path),
        }
    }
    found
}
