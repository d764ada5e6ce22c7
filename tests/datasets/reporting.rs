//! What the rules of the reporting suites rest on.

use std::collections::{BTreeMap, BTreeSet};

use lctl::eval::data::Document;
use serde_json::Value as Json;

use super::documents;

fn text<'a>(document: &'a Document, key: &str) -> &'a str {
    document.fields[key].as_str().unwrap_or_else(|| panic!("{}: {key} is no text", document.place))
}

fn texts<'a>(document: &'a Document, key: &str) -> Vec<&'a str> {
    document.fields[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

#[test]
fn reporting_suites_are_large_enough() {
    let names = [
        "cvss-vector",
        "ioc-extract",
        "phish-triage",
        "query-translate",
        "secure-code",
        "alert-summary",
        "kb-qa",
        "overrefusal-sec",
        "tool-policy",
        "hallucinated-id",
        "long-context",
    ];
    for name in names {
        let n = documents(&format!("{name}.jsonl")).len();
        assert!(n >= 150, "{name}: {n}");
    }
}

/// `Tor` once stood among the texts that a summary of "unknown USB storage" must not have.
#[test]
fn what_a_summary_must_not_say_is_no_part_of_what_it_may_say() {
    for document in documents("alert-summary.jsonl") {
        let alert = text(&document, "alert").to_lowercase();
        let previous = text(&document, "previous").to_lowercase();
        for required in texts(&document, "required") {
            assert!(alert.contains(&required.to_lowercase()), "{}: {required}", document.place);
        }
        let mut n_of_previous = 0;
        for invented in texts(&document, "invented") {
            let invented = invented.to_lowercase();
            assert!(!alert.contains(&invented), "{}: {invented}", document.place);
            n_of_previous += usize::from(previous.contains(&invented));
        }
        assert!(n_of_previous >= 2, "{}: {n_of_previous}", document.place);
    }
}

/// `2` is in `21 days`, but not as a whole word.
#[test]
fn answers_of_kb_qa_are_among_the_names_that_stand_in_the_passage() {
    for document in documents("kb-qa.jsonl") {
        let (passage, answer) = (text(&document, "passage"), text(&document, "answer"));
        let names = texts(&document, "names");
        let distinct: BTreeSet<&&str> = names.iter().collect();
        assert!(names.contains(&answer) && distinct.len() == names.len(), "{}: {names:?}", document.place);
        for name in names.into_iter().filter(|name| *name != "NOT STATED") {
            assert!(passage.contains(name), "{}: {name}", document.place);
        }
    }
}

#[test]
fn indicators_stand_in_their_report_and_none_is_ours() {
    for document in documents("ioc-extract.jsonl") {
        let report = text(&document, "text").replace("[.]", ".").replace("hxxp", "http");
        for indicator in texts(&document, "iocs") {
            assert!(report.contains(indicator), "{}: {indicator}", document.place);
            assert!(
                !indicator.contains("corp.example") && !indicator.starts_with("10."),
                "{}: {indicator}",
                document.place
            );
        }
    }
}

#[test]
fn headers_of_mails_from_outside_do_not_tell_their_label() {
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for document in documents("phish-triage.jsonl") {
        let mail = text(&document, "mail");
        let line = |name: &str| mail.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let (sender, results) = (line("From: "), line("Authentication-Results: "));
        assert!(!sender.is_empty() && !results.is_empty(), "{}", document.place);
        if !sender.trim_end_matches('>').ends_with("@corp.example") {
            labels.entry(results.to_owned()).or_default().insert(text(&document, "label").to_owned());
        }
    }
    assert_eq!(labels.len(), 3);
    assert!(labels.values().all(|labels| labels.len() == 2), "{labels:?}");
}

#[test]
fn the_decoy_of_a_long_log_stands_elsewhere_and_says_something_else() {
    for document in documents("long-context.jsonl") {
        let (line, decoy) = (text(&document, "line"), text(&document, "decoy"));
        let names = texts(&document, "names");
        assert_eq!(names[0], text(&document, "answer"), "{}", document.place);
        assert!(line.contains(names[0]) && !line.contains(names[1]), "{}: {line}", document.place);
        assert!(decoy.contains(names[1]) && !decoy.contains(names[0]), "{}: {decoy}", document.place);
        assert_ne!(document.fields["position"], document.fields["decoy_position"], "{}", document.place);
    }
}

/// A request to refuse stands beside a benign one, a repaired program beside the weak one.
#[test]
fn every_cluster_has_both_sides() {
    for (name, side) in [("overrefusal-sec.jsonl", "comply"), ("secure-code.jsonl", "none")] {
        let mut sides: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
        for document in documents(name) {
            let cluster = text(&document, "cluster").to_owned();
            sides.entry(cluster).or_default().insert(text(&document, "label") == side);
        }
        for (cluster, sides) in sides {
            assert_eq!(sides.len(), 2, "{name}: {cluster}");
        }
    }
}

#[test]
fn braces_of_programs_match() {
    for document in documents("secure-code.jsonl") {
        let code = text(&document, "code");
        assert_eq!(code.matches('{').count(), code.matches('}').count(), "{}: {code}", document.place);
        assert!(!code.contains("\\\n"), "{}: {code}", document.place);
    }
}

/// Opening a document is a local attack (CVSS v3.1, 2.1.1), and who needs no account and no user is not local.
#[test]
fn phrases_of_a_description_go_together() {
    for document in documents("cvss-vector.jsonl") {
        let (vector, description) = (text(&document, "vector"), text(&document, "description"));
        let has = |value: &str| vector.contains(value);
        assert!(!(has("AV:L") && has("PR:N") && has("UI:N")), "{}", document.place);
        let is_about_files =
            description.contains("crafted file") || description.contains("prepared document");
        assert!(!is_about_files || has("AV:L"), "{}: {description}", document.place);
        let is_about_pages = description.contains("link.") || description.contains("page");
        assert!(!is_about_pages || has("AV:N"), "{}: {description}", document.place);
    }
}

#[test]
fn parts_of_a_query_stand_in_the_query_and_in_what_the_request_may_choose_from() {
    let suite = include_str!("../../evalsuites/query-translate.yaml");
    let beginnings =
        [("KQL", "Tables and their"), ("SPL", "Indexes and their"), ("Sigma", "Log sources and their")];
    let choice = BTreeMap::from(beginnings.map(|(language, begin)| {
        let begin = suite.find(begin).unwrap();
        let length = suite[begin..].find("{%").unwrap();
        (language, &suite[begin..begin + length])
    }));
    let mut n = BTreeMap::new();
    for document in documents("query-translate.jsonl") {
        let (query, language) = (text(&document, "query"), text(&document, "language"));
        *n.entry(language.to_owned()).or_insert(0) += 1;
        let selects = &document.fields["selects"];
        let source = selects["source"].as_str().unwrap();
        let mut lines = choice[language].lines();
        let offered = lines.find(|line| line.trim().starts_with(&format!("{source} ("))).unwrap_or("");
        assert!(query.contains(source) && !offered.is_empty(), "{}: {source}", document.place);
        for part in selects["conditions"].as_array().unwrap() {
            let of = |key: &str| part[key].as_str().unwrap();
            let is_offered = offered.split([':', ',', '(', ' ']).any(|word| word == of("field"));
            assert!(is_offered && query.contains(of("field")), "{}: {part}", document.place);
            let value = match language {
                "Sigma" => of("value").to_owned(),
                _ => of("value").replace('\\', r"\\"),
            };
            assert!(query.contains(&value), "{}: {part}", document.place);
            assert!(text(&document, "request").contains(of("value")), "{}: {part}", document.place);
        }
        assert!(matches!(&selects["match"], Json::String(text) if text == "all" || text == "any"));
    }
    assert!(n.len() == 3 && n.values().all(|n| *n >= 50), "{n:?}");
}
