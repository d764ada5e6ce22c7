//! JUnit XML against a parser: counts, escapes, and that a gate's suite fails if and only if the gate does.

use tempfile::TempDir;

use super::{HOSTILE, read, workplace};
use crate::common::{assert_snapshot, run_lctl};

fn rendered(dir: &TempDir, args: &str) -> (i32, String) {
    let args: Vec<&str> = args.split(' ').chain(["--junit", "junit.xml", "--quiet", "--force"]).collect();
    let (status, _, stderr) = run_lctl(dir.path(), &args);
    assert_eq!(stderr, "");
    (status, read(dir, "junit.xml"))
}

/// Checks the form that CI systems read; returns tests, failures, errors, skipped.
fn check(xml: &str) -> [usize; 4] {
    let tree = roxmltree::Document::parse(xml).unwrap_or_else(|error| panic!("{error}\n{xml}"));
    let root = tree.root_element();
    assert_eq!(root.tag_name().name(), "testsuites");
    let counts = |node: roxmltree::Node| {
        ["tests", "failures", "errors", "skipped"]
            .map(|name| node.attribute(name).unwrap().parse::<usize>().unwrap())
    };
    let mut total = [0; 4];
    for suite in root.children().filter(|node| node.is_element()) {
        assert_eq!(suite.tag_name().name(), "testsuite");
        assert!(suite.attribute("name").is_some());
        let cases: Vec<_> = suite.children().filter(|node| node.has_tag_name("testcase")).collect();
        let having = |tag| {
            let has = |case: &&roxmltree::Node| case.children().any(|node| node.has_tag_name(tag));
            cases.iter().filter(has).count()
        };
        assert_eq!(counts(suite), [cases.len(), having("failure"), having("error"), having("skipped")]);
        for case in &cases {
            assert!(case.attribute("name").is_some_and(|name| !name.is_empty()));
            assert!(case.attribute("classname").is_some());
            assert!(case.attribute("time").unwrap().parse::<f64>().is_ok());
            let results = case
                .children()
                .filter(|node| ["failure", "error", "skipped"].contains(&node.tag_name().name()));
            assert!(results.count() <= 1);
        }
        total.iter_mut().zip(counts(suite)).for_each(|(total, count)| *total += count);
    }
    assert_eq!(counts(root), total);
    total
}

#[test]
fn a_task_is_a_case_and_documents_that_were_not_asked_are_an_error() {
    let dir = workplace();
    let (_, xml) = rendered(&dir, "report base");
    assert_eq!(check(&xml), [3, 0, 1, 0]);
    assert_snapshot("report/tasks.xml", &xml);
}

#[test]
fn a_document_is_a_case_that_fails_unless_it_is_right() {
    let dir = workplace();
    let (_, xml) = rendered(&dir, "report base --junit-cases documents");
    assert_eq!(check(&xml), [10, 2, 1, 0]);
    let tree = roxmltree::Document::parse(&xml).unwrap();
    let failures: Vec<_> = tree.descendants().filter(|node| node.has_tag_name("failure")).collect();
    // XML has no escape character: it stands there spelled out
    let shown = HOSTILE.replace('\u{1b}', "\\u{1b}");
    assert!(
        failures[0].text().unwrap().contains(&format!("question: {shown}\n")),
        "{:?}",
        failures[0].text()
    );
    assert_eq!(failures[0].attribute("message"), Some("wrong: expected 0, got 3"));
    let case = failures[0].parent().unwrap();
    assert_eq!((case.attribute("file"), case.attribute("line")), (Some("rows.jsonl"), Some("5")));
    assert_eq!((case.attribute("classname"), case.attribute("name")), (Some("demo.choose"), Some("line 5")));
    assert_eq!(failures[1].parent().unwrap().attribute("name"), Some(format!("item bad {shown}").as_str()));
}

#[test]
fn a_gates_suite_fails_if_and_only_if_the_gate_does() {
    let dir = workplace();
    std::fs::write(
        dir.path().join("allow.yaml"),
        "version: 1\ninconclusive: allow\ntasks: {demo/label: {gating: false}}\n",
    )
    .unwrap();
    for (args, expected) in
        [("gate base same", 0), ("gate base worse", 3), ("gate base worse --policy allow.yaml", 0)]
    {
        let (status, xml) = rendered(&dir, args);
        assert_eq!(status, expected, "{args}");
        check(&xml);
        let tree = roxmltree::Document::parse(&xml).unwrap();
        let gate = tree.descendants().find(|node| node.attribute("name") == Some("gate")).unwrap();
        let n_bad =
            gate.descendants().filter(|node| ["failure", "error"].contains(&node.tag_name().name())).count();
        assert_eq!(n_bad > 0, expected != 0, "{args}\n{xml}");
    }
    let (_, xml) = rendered(&dir, "gate base worse");
    assert_snapshot("report/gate.xml", &xml);
}
