use std::path::Path;

use super::*;
use crate::data::encode::Settings;
use crate::data::testing::{CHATML, tokenizer};
use crate::data::{Example, Pair};
use crate::error::Diagnostic;

/// Files in a directory, with a tokenizer.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(files: &[(&str, &str)]) -> Files {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Files { dir }
    }

    fn source(&self, name: &str, weight: f64) -> Source {
        Source { path: self.dir.path().join(name), container: None, format: None, weight }
    }

    fn spec(&self, names: &[&str]) -> Spec {
        Spec {
            train: names.iter().map(|name| self.source(name, 1.0)).collect(),
            held: Held::Nothing,
            max_seq_len: 64,
            truncation: Truncation::Error,
            seed: 1,
            scan: scan::Policy::default(),
        }
    }

    fn load(&self, spec: &Spec) -> Result<Loaded<Example>, Error> {
        let tokenizer = tokenizer(self.dir.path(), Some(CHATML), false);
        let encoder = Encoder::new(&tokenizer, &Settings::default()).unwrap();
        load(spec, &encoder, Encoder::example, None)
    }

    /// Returns a message without the directory.
    fn said(&self, error: &Error) -> String {
        error.to_string().replace(&format!("{}/", self.dir.path().display()), "")
    }
}

fn texts(n: usize) -> String {
    (0..n).map(|row| format!("{{\"text\": \"row {row}\", \"part\": {}}}\n", row % 5)).collect()
}

#[test]
fn files_are_counted_and_mixed() {
    let files = Files::new(&[
        ("a.jsonl", &texts(4)),
        ("b.csv", "prompt,completion\nask,tell\n"),
        (
            "c.json",
            r#"[{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}]"#,
        ),
    ]);
    let mut spec = files.spec(&["a.jsonl", "b.csv", "c.json"]);
    spec.train[0].weight = 0.5;
    let loaded = files.load(&spec).unwrap();
    assert_eq!((loaded.train.len(), loaded.mixture.epoch_len(), loaded.validation.len()), (6, 4, 0));
    assert_eq!(loaded.mixture.parts[1], Part { range: 4..5, weight: 1.0 });
    let counts = |index: usize| {
        let file = &loaded.files[index];
        (file.container, file.format, file.rows, file.examples, file.tokens, file.targets)
    };
    // `row 0` and the end token; the first token is never trained
    assert_eq!(counts(0), ("jsonl", "text", 4, 4, 24, 20));
    assert_eq!(counts(1), ("csv", "completion", 1, 1, 8, 5));
    assert_eq!((counts(2).0, counts(2).1, counts(2).5), ("json", "chat", 2));
    assert_eq!(
        loaded.train[5].source.to_string(),
        format!("{}:1", files.dir.path().join("c.json").display())
    );
    assert_eq!(loaded.files[0].sha256.len(), 64);
}

#[test]
fn every_bad_row_of_every_file_is_told_at_once() {
    let mut lines = texts(2);
    for row in 0..25 {
        lines += &format!("{{\"text\": {row}}}\n");
    }
    let files = Files::new(&[("a.jsonl", &lines), ("b.csv", "text\n\"x\"\ny,z\n")]);
    let Err(error) = files.load(&files.spec(&["a.jsonl", "b.csv"])) else { panic!() };
    let said = files.said(&error);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 21);
    assert_eq!(
        (lines[0], lines[19]),
        ("a.jsonl:3: `text` is a number, not text", "a.jsonl:22: `text` is a number, not text")
    );
    assert_eq!((lines[20], error.exit_code()), ("and 6 more", 2));
}

#[test]
fn rows_without_a_trained_token_are_errors_with_a_hint() {
    let row = |role| format!("{{\"messages\": [{{\"role\": \"{role}\", \"content\": \"x\"}}]}}\n");
    let files = Files::new(&[("a.jsonl", &(row("user") + &row("user")))]);
    let Err(error) = files.load(&files.spec(&["a.jsonl"])) else { panic!() };
    assert_eq!(
        files.said(&error),
        "a.jsonl:1: no token of it is trained\na.jsonl:2: no token of it is trained"
    );
    assert!(error.hint().unwrap().contains("train_on"));
}

#[test]
fn long_rows_are_errors_or_dropped_or_cut() {
    let long = "x".repeat(150);
    let files = Files::new(&[("a.jsonl", &format!("{{\"text\": \"{long}\"}}\n{{\"text\": \"short\"}}\n"))]);
    let mut spec = files.spec(&["a.jsonl"]);
    let Err(error) = files.load(&spec) else { panic!() };
    assert_eq!(files.said(&error), "a.jsonl:1: 151 tokens, more than `max_seq_len` 64");
    assert!(error.hint().unwrap().contains("truncation: drop"));
    spec.truncation = Truncation::Drop;
    let dropped = files.load(&spec).unwrap();
    assert_eq!((dropped.train.len(), dropped.files[0].dropped, dropped.files[0].cut), (1, 1, 0));
    spec.truncation = Truncation::Split;
    let cut = files.load(&spec).unwrap();
    assert_eq!((cut.train.len(), cut.files[0].dropped, cut.files[0].cut), (4, 0, 1));
    assert_eq!(cut.files[0].targets, 150 + 5);
    spec.truncation = Truncation::Drop;
    spec.max_seq_len = 3;
    assert!(matches!(files.load(&spec), Err(Error::Nothing { rows: 2, .. })));
}

#[test]
fn what_is_held_out_does_not_depend_on_the_order_of_rows_and_groups_stay_together() {
    let forward = texts(40);
    let backward: Vec<&str> = forward.lines().rev().collect();
    let files = Files::new(&[("a.jsonl", &forward), ("b.jsonl", &backward.join("\n"))]);
    let held = |name: &str, group: Option<&str>| {
        let mut spec = files.spec(&[name]);
        spec.held = Held::Share { share: 0.2, group: group.map(str::to_owned) };
        let loaded = files.load(&spec).unwrap();
        assert_eq!(loaded.train.len() + loaded.validation.len(), 40);
        assert_eq!(loaded.files[0].held_out, loaded.validation.len());
        let mut tokens: Vec<Vec<u32>> = loaded.validation.into_iter().map(|example| example.tokens).collect();
        tokens.sort();
        tokens
    };
    assert_eq!(held("a.jsonl", None).len(), 8);
    assert_eq!(held("a.jsonl", None), held("b.jsonl", None));
    assert_eq!(held("a.jsonl", Some("part")).len(), 8);
    let mut spec = files.spec(&["a.jsonl"]);
    spec.held = Held::Share { share: 0.2, group: Some("family".into()) };
    let Err(error) = files.load(&spec) else { panic!() };
    assert!(files.said(&error).starts_with("a.jsonl:1: there is no `family`, by which rows stay together"));
    spec.held = Held::Files(vec![files.source("b.jsonl", 1.0)]);
    let loaded = files.load(&spec).unwrap();
    assert_eq!((loaded.train.len(), loaded.validation.len(), loaded.files[1].is_validation), (40, 40, true));
    let one = Files::new(&[("a.jsonl", "{\"text\": \"a\"}")]);
    let mut spec = one.spec(&["a.jsonl"]);
    spec.held = Held::Share { share: 0.5, group: None };
    assert!(matches!(one.load(&spec), Err(Error::NothingButValidation { rows: 1, held: 1 })));
}

#[test]
fn scans_fail_or_warn() {
    let files =
        Files::new(&[("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"a\"}\n{\"text\": \"me@mail.org\"}\n")]);
    let mut spec = files.spec(&["a.jsonl"]);
    spec.scan = scan::Policy { duplicates: Level::Warn, personal: Level::Fail, ..scan::Policy::default() };
    let Err(error) = files.load(&spec) else { panic!() };
    assert_eq!(
        files.said(&error),
        "personal data: found in 1 row\na.jsonl:3: a mail address `me@m…` (11 characters)"
    );
    spec.scan.personal = Level::Off;
    let loaded = files.load(&spec).unwrap();
    assert_eq!(
        (loaded.findings.len(), loaded.findings[0].summary()),
        (1, "duplicates: found in 1 row".into())
    );
}

#[test]
fn formats_that_cannot_be_told_are_errors_that_list_them() {
    let files =
        Files::new(&[("a.jsonl", "{\"question\": 1}"), ("b.jsonl", "{\"text\": \"a\", \"messages\": []}")]);
    let error = |name: &str| files.load(&files.spec(&[name])).err().unwrap();
    let unknown = error("a.jsonl");
    assert_eq!(
        files.said(&unknown),
        "a.jsonl:1: cannot tell the format of its rows; their fields are: question"
    );
    assert!(unknown.hint().unwrap().contains("sharegpt"));
    assert_eq!(files.said(&error("b.jsonl")), "b.jsonl:1: its rows fit several formats: chat, text");
    let mut spec = files.spec(&["b.jsonl"]);
    spec.train[0].format = format::by_name("text");
    assert_eq!(files.load(&spec).unwrap().train.len(), 1);
}

#[test]
fn pairs_are_loaded_and_single_answers_refused() {
    let files = Files::new(&[
        ("pairs.jsonl", "{\"prompt\": \"p\", \"chosen\": \"yes\", \"rejected\": \"no\"}\n"),
        ("a.jsonl", "{\"text\": \"a\"}\n"),
    ]);
    let tokenizer = tokenizer(files.dir.path(), None, false);
    let encoder = Encoder::new(&tokenizer, &Settings::default()).unwrap();
    let pairs: Loaded<Pair> = load(&files.spec(&["pairs.jsonl"]), &encoder, Encoder::pair, None).unwrap();
    assert_eq!((pairs.train.len(), pairs.files[0].targets, pairs.files[0].tokens), (1, 4 + 3, 5 + 4));
    let Err(error) = load(&files.spec(&["a.jsonl"]), &encoder, Encoder::pair, None) else { panic!() };
    assert_eq!(files.said(&error), "a.jsonl:1: the row is no pair of answers");
    let Err(error) = load(&files.spec(&["pairs.jsonl"]), &encoder, Encoder::example, None) else { panic!() };
    assert_eq!(files.said(&error), "pairs.jsonl:1: the row is a pair of answers, for `kind: dpo`");
}

#[test]
fn threads_change_nothing() {
    let files = Files::new(&[("a.jsonl", &texts(300))]);
    let mut spec = files.spec(&["a.jsonl"]);
    spec.held = Held::Share { share: 0.1, group: None };
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let loaded = pool.install(|| files.load(&spec).unwrap());
        (loaded.train, loaded.validation, loaded.files)
    };
    assert_eq!(with(1), with(7));
    assert!(Path::new(&with(2).2[0].path).ends_with("a.jsonl"));
}
