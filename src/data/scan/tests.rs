use std::path::Path;

use super::*;

fn rows(texts: &[&str]) -> Vec<(Place, Record)> {
    let path: std::sync::Arc<Path> = Path::new("t.jsonl").into();
    let row = |(index, text): (usize, &&str)| {
        (Place { path: path.clone(), line: index + 1 }, Record::Text((*text).to_owned()))
    };
    texts.iter().enumerate().map(row).collect()
}

fn lines(texts: &[&str], policy: Policy, suites: Option<&Suites>) -> Vec<String> {
    let rows = rows(texts);
    let rows: Vec<&(Place, Record)> = rows.iter().collect();
    let found = scan(&rows, &policy, suites);
    found.iter().flat_map(|found| found.findings.iter().map(ToString::to_string)).collect()
}

/// Written in two parts so that no scanner takes this file for a leak.
fn joined(parts: [&str; 2]) -> String {
    parts.concat()
}

#[test]
fn secrets_are_told_by_their_shape_and_not_shown() {
    let key = joined(["AKIA", "QX7LMZ4TR2WVKJ5P"]);
    let token = joined(["ghp_", "a8Kd03LmQz71VbNx5Wr2TgYh64Jc9PfUs0Ei"]);
    let pem = joined(["-----BEGIN RSA PRIVATE ", "KEY-----\nMIIEpAIBAAKCAQEA3Tz2mr7SZiAMfQyuvBjM9Oi\n"]);
    let url = joined(["postgres://svc:", "t7Kw!92zQm@db01/app"]);
    let assigned = joined(["api_key = \"", "9fJ2kLx83Qz7WmB4tYp1\""]);
    let texts = [key.as_str(), "nothing", &token, &pem, &url, &assigned];
    let policy = Policy { secrets: Level::Fail, ..Policy::default() };
    assert_eq!(
        lines(&texts, policy, None),
        [
            "t.jsonl:1: an AWS access key id `AKIA…` (20 characters)",
            "t.jsonl:3: a GitHub token `ghp_…` (40 characters)",
            "t.jsonl:4: a private key `----…` (72 characters)",
            "t.jsonl:5: a password in an address `t7Kw…` (10 characters)",
            "t.jsonl:6: a password or key in an assignment `9fJ2…` (20 characters)",
        ]
    );
}

#[test]
fn what_only_looks_like_a_secret_is_left_alone() {
    let texts = [
        "AKIAIOSFODNN7EXAMPLE",
        "api_key = \"your_api_key_goes_here\"",
        "password: \"xxxxxxxxxxxxxxxxxxxx\"",
        "https://user:${PASSWORD}@host/",
        "-----BEGIN PRIVATE KEY----- is how such a file begins",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b, sk-learn, hf_transfer",
        "Failed password for root from 203.0.113.9 port 40022 ssh2",
    ];
    assert_eq!(
        lines(&texts, Policy { secrets: Level::Warn, ..Policy::default() }, None),
        Vec::<String>::new()
    );
}

#[test]
fn personal_data_is_told_by_form_and_check_digits() {
    let texts = [
        "write to maria.lopez@gmx.de",
        "call +49 30 901820-0 today",
        "card 4539 1488 0343 6467",
        "IBAN DE89 3704 0044 0532 0130 00",
        "ssn 219-09-9999",
    ];
    let policy = Policy { personal: Level::Warn, ..Policy::default() };
    let found = lines(&texts, policy, None);
    let expected =
        ["a mail address", "a telephone number", "a card number", "an IBAN", "a US social security number"];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(found.starts_with(&format!("t.jsonl:{}: {expected} `", index + 1)), "{found}");
    }
    let clean = [
        "u.schmid@corp.example, news@example.org, root@db.internal, git@host",
        "+1 212 555 0142, +0200, 2026-01-01T10:00:00+02:00 203.0.113.9",
        "4539 1488 0343 6468, 4111 1111 1111 1111, order 1234567890123456",
        "DE88 3704 0044 0532 0130 00, GB00 0000 0000 0000",
        "000-12-3456, 219-09-0000, 2026-01-1234",
    ];
    assert_eq!(lines(&clean, policy, None), Vec::<String>::new());
}

#[test]
fn rows_that_come_twice_or_nearly() {
    let long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen \
                seventeen eighteen nineteen twenty twenty-one twenty-two twenty-three twenty-four";
    let nearly = format!("{long} more");
    let other = "nothing of the kind stands in this row, which is about the weather and the sea";
    let texts = [long, other, long, &nearly, "short", "short"];
    let policy = Policy { duplicates: Level::Warn, near_duplicates: Level::Warn, ..Policy::default() };
    assert_eq!(
        lines(&texts, policy, None),
        [
            "t.jsonl:3: says what t.jsonl:1 says",
            "t.jsonl:6: says what t.jsonl:5 says",
            "t.jsonl:4: is 0.96 like t.jsonl:1",
        ]
    );
}

/// Every pair of a thousand rows of one template is alike; comparing them all would take half a million comparisons.
#[test]
fn near_duplicates_are_found_among_many_of_one_template() {
    let row = |n: usize| {
        let words: Vec<String> = (0..60).map(|word| format!("w{word}")).collect();
        format!("{} number{n}", words.join(" "))
    };
    let texts: Vec<String> = (0..1000).map(row).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let policy = Policy { near_duplicates: Level::Warn, ..Policy::default() };
    assert_eq!(lines(&texts, policy, None).len(), 999);
}

#[test]
fn overlap_names_the_suites_document() {
    let mut suites = Suites::default();
    let question = "which of these accounts was used to log on to the domain controller from outside";
    suites.add("logs.jsonl:7 of suite logs".into(), [question]);
    suites.add("short".into(), ["yes"]);
    assert_eq!((suites.len(), suites.untold), (2, 1));
    let given = format!("Q: {} A: none", question.to_uppercase());
    let policy = Policy { eval_overlap: Level::Fail, ..Policy::default() };
    assert_eq!(
        lines(&["yes", &given], policy, Some(&suites)),
        ["t.jsonl:2: shares 13 words in a row with logs.jsonl:7 of suite logs"]
    );
    assert!(lines(&["yes", &given], Policy::default(), Some(&suites)).is_empty());
}
