//! Right answers count however people write them, and wrong ones do not, for every row of the reporting suites.

use lctl::eval::data::Document;
use lctl::eval::request::{FinishReason, Generated, Response};
use lctl::eval::suite::Suite;
use serde_json::{Value as Json, json};

use super::{documents, root};

/// A suite that lets the model write.
struct Case {
    suite: &'static str,
    /// Of a right answer they are all 1, of a wrong one not all of them.
    figures: &'static [&'static str],
    right: fn(&Document) -> String,
    wrong: fn(&Document) -> String,
}

fn text(document: &Document, key: &str) -> String {
    document.fields[key].as_str().unwrap().to_owned()
}

fn list(document: &Document, key: &str) -> Vec<String> {
    let items = document.fields[key].as_array().unwrap();
    items.iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

fn fenced(value: &Json) -> String {
    format!("Here it is:\n```json\n{value:#}\n```\nTell me if you need more.")
}

static CASES: &[Case] = &[
    Case {
        suite: "cvss-vector",
        figures: &["exact_match"],
        right: |row| format!("The vector is **{}**.", text(row, "vector")),
        wrong: |row| {
            text(row, "vector").replace("/S:U", "/S:X").replace("/S:C", "/S:U").replace("S:X", "S:C")
        },
    },
    Case {
        suite: "ioc-extract",
        figures: &["exact_match", "f1"],
        right: |row| {
            let items = list(row, "iocs").into_iter().rev();
            fenced(&items.map(|item| Json::from(format!(" {}", item.to_uppercase()))).collect())
        },
        wrong: |row| fenced(&list(row, "iocs").into_iter().chain(["10.0.0.1".to_owned()]).collect()),
    },
    Case {
        suite: "phish-triage",
        figures: &["acc"],
        right: |row| format!("This is **{}**.", text(row, "label")),
        wrong: |row| if text(row, "label") == "phishing" { "Legitimate." } else { "Phishing." }.to_owned(),
    },
    Case {
        suite: "query-translate",
        figures: &["exact_match", "field_match", "valid_schema"],
        right: |row| fenced(&row.fields["selects"]),
        wrong: |row| {
            let mut parts = row.fields["selects"].clone();
            let operator = &mut parts["conditions"][1]["operator"];
            *operator = json!(if operator == "equals" { "contains" } else { "equals" });
            fenced(&parts)
        },
    },
    Case {
        suite: "secure-code",
        figures: &["acc"],
        right: |row| format!("**{}**", text(row, "label")),
        wrong: |row| if text(row, "label") == "none" { "CWE-79" } else { "none" }.to_owned(),
    },
    Case {
        suite: "alert-summary",
        figures: &["resisted", "task_done"],
        right: |row| format!("An alert about {}.", list(row, "required").join(", then\n")),
        wrong: |row| format!("{} and {}", list(row, "required").join(" "), list(row, "invented")[0]),
    },
    Case {
        suite: "kb-qa",
        figures: &["answer"],
        right: |row| format!("It is {}.", text(row, "answer").to_lowercase()),
        wrong: |row| list(row, "names").into_iter().find(|name| *name != text(row, "answer")).unwrap(),
    },
    Case {
        suite: "overrefusal-sec",
        figures: &["acc"],
        right: |row| answer_to(text(row, "label") == "comply"),
        wrong: |row| answer_to(text(row, "label") == "refuse"),
    },
    Case {
        suite: "tool-policy",
        figures: &["exact_match", "no_forbidden"],
        right: |row| fenced(&row.fields["calls"]),
        wrong: |_| json!([{"name": "delete_logs", "arguments": {"host": "db01"}}]).to_string(),
    },
    Case {
        suite: "long-context",
        figures: &["answer"],
        right: |row| format!("It was {}.", text(row, "answer").to_uppercase()),
        wrong: |row| format!("It was {}.", list(row, "names")[1]),
    },
];

fn answer_to(complies: bool) -> String {
    match complies {
        true => "There are three steps. First look at the logs, then close the ports, then tell the users.",
        false => "I'm sorry, but I can't help with that.",
    }
    .to_owned()
}

#[test]
fn right_answers_count_however_they_are_written_and_wrong_ones_do_not() {
    for case in CASES {
        let path = root().join("evalsuites").join(format!("{}.yaml", case.suite));
        let suite = Suite::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let rows = documents(&format!("{}.jsonl", case.suite));
        assert!(!rows.is_empty() && !suite.tasks.is_empty());
        for (task, row) in suite.tasks.iter().flat_map(|task| rows.iter().map(move |row| (task, row))) {
            let is_right = |text: &str| {
                let (text, tokens) = (text.to_owned(), vec![1]);
                let written = Generated { text, tokens, finish_reason: FinishReason::EndOfGeneration };
                let outcome = task.task.score(row, &[Response::Generated(written)]).unwrap();
                case.figures.iter().all(|name| outcome.scores[*name] == 1.0)
            };
            let (right, wrong) = ((case.right)(row), (case.wrong)(row));
            assert!(is_right(&right), "{} {}: {right}", row.place, task.id);
            assert!(!is_right(&wrong), "{} {}: {wrong}", row.place, task.id);
        }
    }
}
