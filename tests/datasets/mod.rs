//! The data in datasets/: made by the generator, and sound.

mod answers;
mod reporting;
mod reserved;
mod shortcuts;
mod training;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use lctl::eval::audit::audit;
use lctl::eval::data::{Document, Options, format, read};
use lctl::eval::run::RunOptions;
use lctl::eval::suite::{Source, Suite};

use crate::common::{make_datasets, run_lctl};

fn root() -> &'static Path {
    crate::common::root()
}

fn documents(name: &str) -> Vec<Document> {
    let path = root().join("datasets").join(name);
    read(&path, format("jsonl").unwrap(), &Options::default())
        .unwrap_or_else(|error| panic!("{error}"))
        .documents
}

fn data_files() -> Vec<String> {
    let names = std::fs::read_dir(root().join("datasets")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".jsonl")).collect()
}

/// Suites that come with their data.
fn suites() -> Vec<Suite> {
    let mut suites = Vec::new();
    for entry in std::fs::read_dir(root().join("evalsuites")).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            suites.push(Suite::open(&path).unwrap_or_else(|error| panic!("{error}")));
        }
    }
    suites.retain(|suite| suite.data.values().all(|spec| matches!(spec.source, Source::Shipped(_))));
    suites
}

#[test]
fn the_generator_makes_the_files_byte_for_byte() {
    let sources = root().join("datasets/sources");
    let mut made = HashSet::new();
    for file in make_datasets::FILES {
        let text = make_datasets::text_of(file, &sources).unwrap_or_else(|error| panic!("{error}"));
        let stored = std::fs::read_to_string(root().join("datasets").join(file.name)).unwrap();
        let first = text.lines().zip(stored.lines()).position(|(made, stored)| made != stored);
        assert!(text == stored, "{} differs from line {:?} on", file.name, first.map(|line| line + 1));
        made.insert(file.name.to_owned());
    }
    let stored: HashSet<String> = data_files().into_iter().collect();
    assert_eq!(stored, made, "every file is generated");
}

#[test]
fn every_row_has_a_name_of_its_own_a_cluster_and_a_source() {
    let mut n = 0;
    let mut known: HashMap<String, String> = HashMap::new();
    for name in data_files() {
        for document in documents(&name) {
            let text = |key: &str| {
                let value =
                    document.fields.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
                assert!(!value.trim().is_empty(), "{}: no {key}", document.place);
                value
            };
            let (id, _, _) = (text("id"), text("cluster"), text("source"));
            let other = known.insert(id.clone(), document.place.to_string());
            assert!(other.is_none(), "{}: {id} is the name of {other:?}", document.place);
            n += 1;
        }
    }
    assert!(n >= 4500, "{n}");
}

/// Duplicates, near-duplicates across clusters (Jaccard of runs of 5 words from 0.6 on), examples that resemble
/// questions, gold outside its choices, uneven places, too few documents: `lctl suite validate` says it all.
#[test]
fn the_audit_finds_nothing_wrong_with_any_suite() {
    let suites = suites();
    assert!(suites.len() >= 5, "{}", suites.len());
    for suite in &suites {
        for task in audit(suite, &RunOptions::default()).unwrap() {
            let first: Vec<String> = task
                .findings
                .iter()
                .take(5)
                .map(|finding| format!("{:?} {}", finding.place, finding.what))
                .collect();
            assert!(
                first.is_empty(),
                "{} {}: {} problems: {first:#?}",
                suite.name,
                task.id,
                task.findings.len()
            );
        }
    }
}

#[test]
fn right_answers_stand_equally_often_in_every_place() {
    let mut n = 0;
    for suite in suites() {
        for task in
            audit(&suite, &RunOptions::default()).unwrap().iter().filter(|task| task.positions.len() == 4)
        {
            // blocks of four with every place once: the counts differ by at most one
            let (least, most) = (task.positions.iter().min().unwrap(), task.positions.iter().max().unwrap());
            assert!(most - least <= 1, "{} {}: {:?}", suite.name, task.id, task.positions);
            n += 1;
        }
    }
    assert!(n >= 3, "{n}");
}

#[test]
fn gating_suites_are_large_enough() {
    let least = BTreeMap::from([
        ("soc-mcq", 1000),
        ("attack-map", 800),
        ("cve-to-cwe", 800),
        ("log-triage", 800),
        ("inject-canary", 200),
    ]);
    for (name, least) in least {
        let n = documents(&format!("{name}.jsonl")).len();
        assert!(n >= least, "{name}: {n}");
    }
    // the power of a gate comes from clusters, not from copies of one scenario
    let scenarios: HashSet<String> =
        documents("log-triage.jsonl").iter().map(|row| row.fields["cluster"].to_string()).collect();
    assert!(scenarios.len() >= 160, "{}", scenarios.len());
}

#[test]
fn addresses_and_domains_are_reserved_ones() {
    for name in data_files() {
        for document in documents(&name) {
            let text = serde_json::Value::Object(document.fields.clone()).to_string();
            let strange = reserved::strangers(&text);
            assert!(strange.is_empty(), "{}: {strange:?}", document.place);
        }
    }
}

#[test]
fn a_canary_stands_in_its_own_document_alone() {
    let documents = documents("inject-canary.jsonl");
    let text = |document: &Document, key: &str| document.fields[key].as_str().unwrap().to_owned();
    let canaries: HashSet<String> = documents.iter().map(|document| text(document, "canary")).collect();
    assert_eq!(canaries.len(), documents.len());
    for document in &documents {
        let (body, canary) = (text(document, "text"), text(document, "canary"));
        assert!(body.contains(&canary) && body.contains(&text(document, "expect")), "{}", document.place);
        assert!(!text(document, "question").contains(&canary) && !text(document, "expect").contains(&canary));
    }
}

#[test]
fn the_command_lists_shows_and_validates() {
    let (code, stdout, stderr) = run_lctl(root(), &["suite", "list"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.lines().any(|line| line.starts_with("soc-mcq") && line.ends_with("[letter]")), "{stdout}");
    let (code, stdout, stderr) = run_lctl(root(), &["suite", "show", "evalsuites/soc-mcq.yaml", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let task = &shown["tasks"][0];
    assert_eq!(task["documents"].as_u64().unwrap() as usize, documents("soc-mcq.jsonl").len());
    assert_eq!((&task["gate"]["critical"], task["problems"].as_array().unwrap().len()), (&true.into(), 0));
    let (code, stdout, _) = run_lctl(root(), &["suite", "validate", "evalsuites/inject-canary.yaml"]);
    assert_eq!(
        (code, stdout.as_str()),
        (0, "evalsuites/inject-canary.yaml: 1 tasks, 240 documents, nothing wrong\n")
    );
}

const BROKEN: &str = "
version: 1
name: broken
description: everything wrong
data: {test: {path: rows.jsonl, format: jsonl}, dev: {path: dev.jsonl, format: jsonl}}
tasks:
  - id: letter
    type: multiple_choice
    data: test
    item: '{{ id }}'
    cluster: '{{ cluster }}'
    critical: true
    few_shot: {n: 0, from: dev}
    prompt: '{{ q }}'
    choices: [A, B]
    target: {letter: '{{ answer }}'}
    metrics: [acc]
";

#[test]
fn validate_says_everything_that_is_wrong_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("broken.yaml", BROKEN);
    let row = |id: &str, cluster: &str, q: &str, answer: &str| {
        format!("{}\n", serde_json::json!({"id": id, "cluster": cluster, "q": q, "answer": answer}))
    };
    // the answers are words, too: 11 shared runs of 14, and 11 of 13
    let long = "which of the two was the first to be there when the lights went out";
    let mut rows = row("a", "1", long, "A") + &row("b", "2", &format!("{long} again"), "A");
    rows += &(row("a", "3", "short", "C") + &row("d", "4", "short", "A"));
    write("rows.jsonl", &rows);
    write("dev.jsonl", &(row("e", "4", "another question", "A") + &row("f", "9", long, "B")));
    let (code, stdout, stderr) = run_lctl(dir.path(), &["suite", "validate", "broken.yaml"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    let expected = [
        "rows.jsonl:3: task `letter`: the target `C` is none of the 2 choices",
        "rows.jsonl:3: task `letter`: is called `a` as line 1 is",
        "broken.yaml: task `letter`: is critical, but 4 documents decide a margin of 0.02",
        "dev.jsonl:1: task `letter`: is an example, and its cluster has questions",
        "rows.jsonl:2: task `letter`: is 0.79 like line 1, which is of another cluster",
        "dev.jsonl:2: task `letter`: is an example, and 0.85 like the question at line 1",
        "error: ",
    ];
    for line in expected {
        assert!(stderr.lines().any(|found| found.starts_with(line)), "{line}\nis not in\n{stderr}");
    }
}

/// A suite that cannot be read keeps none of the others from being looked at.
#[test]
fn validate_goes_through_all_suites() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let suite = |name: &str| {
        format!(
            "version: 1\nname: {name}\ndata: {{t: {{path: {name}.jsonl, format: jsonl}}}}\ntasks:\n  - {{id: x, type: perplexity, data: t, text: '{{{{ t }}}}'}}\n"
        )
    };
    write("syntax.yaml", "version: [1\n");
    write("key.yaml", &suite("key").replace("tasks:", "taks: 1\ntasks:").replace("name:", "nmae:"));
    write("lacking.yaml", &suite("lacking"));
    write("good.yaml", &suite("good"));
    write("good.jsonl", "{\"t\": \"one text\"}\n{\"t\": \"another text\"}\n");
    write("twice.yaml", &suite("twice"));
    write("twice.jsonl", "{\"t\": \"one text\"}\n{\"t\": \"one text\"}\n");
    let names = ["syntax.yaml", "key.yaml", "lacking.yaml", "twice.yaml", "good.yaml"];
    let args = [&["suite", "validate"][..], &names[..]].concat();
    let (code, stdout, stderr) = run_lctl(dir.path(), &args);
    assert_eq!((code, stdout.as_str()), (2, "good.yaml: 1 tasks, 2 documents, nothing wrong\n"), "{stderr}");
    let expected = [
        "syntax.yaml:",
        "key.yaml:4:1: unknown key `taks`",
        "lacking.jsonl",
        "twice.jsonl:2: task `x`: asks the same as line 1",
        "problems in 5 suites",
    ];
    for text in expected {
        assert!(stderr.contains(text), "{text}\nis not in\n{stderr}");
    }
    let (code, stdout, _) = run_lctl(dir.path(), &[&args[..], &["--json"]].concat());
    let rows: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, rows.as_array().unwrap().len()), (2, 5));
    let problems = |index: usize| rows[index]["problems"].as_array().unwrap().len();
    assert!((0..4).all(|index| problems(index) > 0) && problems(4) == 0, "{rows}");
    assert_eq!((&rows[0]["suite"], &rows[4]["documents"]), (&"syntax.yaml".into(), &2.into()));
    // one alone has JSON, too
    let (code, stdout, _) = run_lctl(dir.path(), &["suite", "validate", "syntax.yaml", "--json"]);
    assert!(code == 2 && stdout.contains("\"problems\""), "{stdout}");
}

/// Items of a cluster are not independent: 1,000 in clusters of 20 are worth 345.
#[test]
fn validate_allows_for_clusters_in_the_power_of_critical_tasks() {
    let dir = tempfile::tempdir().unwrap();
    let row = |n: usize| {
        let answer = ["A", "B"][n % 2];
        let row =
            serde_json::json!({"id": n, "cluster": n / 20, "q": format!("number {n}"), "answer": answer});
        format!("{row}\n")
    };
    std::fs::write(dir.path().join("rows.jsonl"), (0..1000).map(row).collect::<String>()).unwrap();
    let suite = BROKEN.replace("    few_shot: {n: 0, from: dev}\n", "");
    std::fs::write(dir.path().join("clusters.yaml"), &suite).unwrap();
    let single = suite.replace("    cluster: '{{ cluster }}'\n", "");
    std::fs::write(dir.path().join("single.yaml"), single).unwrap();
    let (code, _, stderr) = run_lctl(dir.path(), &["suite", "validate", "clusters.yaml"]);
    let expected = "clusters.yaml: task `letter`: is critical, but 1000 documents in 50 clusters (design effect 2.90) \
                    decide a margin of 0.02 with a power of 0.51; 0.8 takes 2242";
    assert!(code == 2 && stderr.lines().any(|line| line == expected), "{stderr}");
    let (code, _, stderr) = run_lctl(dir.path(), &["suite", "validate", "single.yaml"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
}

#[test]
fn overlap_finds_the_documents_that_a_training_file_holds() {
    let dir = tempfile::tempdir().unwrap();
    let document = documents("attack-map.jsonl").swap_remove(7);
    let (id, text) = (&document.fields["id"], document.fields["behaviour"].as_str().unwrap());
    let clean = "{\"text\": \"nothing of the kind\"}\n";
    std::fs::write(dir.path().join("clean.jsonl"), clean).unwrap();
    let dirty = format!("{clean}{}\n", serde_json::json!({"messages": [{"content": text.to_uppercase()}]}));
    std::fs::write(dir.path().join("dirty.jsonl"), dirty).unwrap();
    let suite = root().join("evalsuites/attack-map.yaml");
    let run =
        |file: &str| run_lctl(dir.path(), &["suite", "overlap", suite.to_str().unwrap(), file, "--json"]);
    let (code, stdout, _) = run("clean.jsonl");
    assert_eq!((code, stdout.as_str()), (0, "[]\n"));
    let (code, stdout, _) = run("dirty.jsonl");
    let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, found.as_array().unwrap().len()), (1, 1), "{stdout}");
    assert_eq!((&found[0]["id"], &found[0]["file_line"]), (id, &2.into()));
}
