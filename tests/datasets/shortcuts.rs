//! Ways to answer without knowing anything: none may pay well.

use std::collections::HashSet;
use std::sync::LazyLock;

use lctl::eval::data::Document;
use regex::Regex;

use super::documents;

fn text<'a>(document: &'a Document, key: &str) -> &'a str {
    document.fields[key].as_str().unwrap()
}

fn stems(text: &str) -> HashSet<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| word.len() >= 3);
    words.map(|word| word.chars().take(5).collect()).collect()
}

/// Returns the share of right answers of whoever takes the choice with the largest value, and one of those at random
/// where there are several.
fn share_right(documents: &[Document], value: impl Fn(&Document, &str) -> i64) -> f64 {
    let mut right = 0.0;
    for document in documents {
        let choices = document.fields["choices"].as_array().unwrap();
        let values: Vec<i64> =
            choices.iter().map(|choice| value(document, choice.as_str().unwrap())).collect();
        let largest = *values.iter().max().unwrap();
        let gold =
            ["A", "B", "C", "D"].iter().position(|letter| *letter == text(document, "answer")).unwrap();
        if values[gold] == largest {
            right += 1.0 / values.iter().filter(|value| **value == largest).count() as f64;
        }
    }
    right / documents.len() as f64
}

#[test]
fn length_and_shared_words_hardly_tell_the_right_choice() {
    for (name, question) in
        [("soc-mcq", "question"), ("attack-map", "behaviour"), ("cve-to-cwe", "description")]
    {
        let documents = documents(&format!("{name}.jsonl"));
        let longest = share_right(&documents, |_, choice| choice.len() as i64);
        let shortest = share_right(&documents, |_, choice| -(choice.len() as i64));
        let shared = share_right(&documents, |document, choice| {
            stems(text(document, question)).intersection(&stems(choice)).count() as i64
        });
        // of four choices, 0.25 is chance; a name does share words with what it names
        assert!(longest <= 0.30 && shortest <= 0.30, "{name}: longest {longest:.3}, shortest {shortest:.3}");
        assert!(shared <= 0.40, "{name}: shared words {shared:.3}");
        eprintln!("{name}: longest {longest:.3}, shortest {shortest:.3}, shared words {shared:.3}");
    }
}

/// Chance is the share of malicious excerpts, 0.58.
#[test]
fn an_outside_address_does_not_tell_the_verdict() {
    static OUTSIDE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\b(?:192\.0\.2|198\.51\.100|203\.0\.113)\.").unwrap());
    let documents = documents("log-triage.jsonl");
    let right = documents.iter().filter(|document| {
        (document.fields["answer"]["verdict"] == "malicious") == OUTSIDE.is_match(text(document, "log"))
    });
    let share = right.count() as f64 / documents.len() as f64;
    assert!(share <= 0.70, "{share:.3}");
}
