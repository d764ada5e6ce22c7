//! Data sets on a hub: `lctl pull datasets/..`, and suites that name a file there.

use std::fs;
use std::path::{Path, PathBuf};

use lctl::hub::{DatasetFile, Error, Options};

use super::fake::{COMMIT, FakeHub, sha256_hex};
use super::{lctl, options, stderr, stdout};

const ROWS: &[u8] = b"Question,A,B,Answer\nOne?,yes,no,A\nTwo?,yes,no,B\n";

fn hub() -> FakeHub {
    FakeHub::new()
        .lfs("data/rows.csv", ROWS)
        .file("README.md", b"# rows")
        .file("load.py", b"import os")
        .lfs("old.bin", b"pickle")
        .start()
}

fn repository(home: &Path) -> PathBuf {
    home.join("hub/datasets--acme--tiny")
}

fn file(revision: &str, path: &str, sha256: &str) -> DatasetFile {
    let id = format!("datasets/acme/tiny@{revision}").parse().unwrap();
    DatasetFile { id, path: path.into(), sha256: sha256.into() }
}

fn offline(options: Options) -> Options {
    Options { offline: true, ..options }
}

/// Writes a suite over the hub's file; returns its path.
fn suite(dir: &Path, sha256: &str) -> String {
    let text = format!(
        "version: 1\nname: rows\ndata:\n  rows:\n    hub: {{dataset: acme/tiny, revision: {COMMIT}, file: data/rows.csv, \
         sha256: '{sha256}'}}\n    format: csv\ntasks:\n  - id: ask\n    type: multiple_choice\n    data: rows\n    \
         prompt: '{{{{ Question }}}}'\n    choices: [A, B]\n    target: {{letter: '{{{{ Answer }}}}'}}\n    metrics: [acc]\n"
    );
    let path = dir.join("suite.yaml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_pull_of_a_data_set_takes_data_and_card() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let output = lctl(&hub, home.path(), &["pull", "datasets/acme/tiny@v1.0"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let snapshot = repository(home.path()).join("snapshots").join(COMMIT);
    assert_eq!(stdout(&output), format!("{}\n", snapshot.display()));
    assert_eq!(fs::read(snapshot.join("data/rows.csv")).unwrap(), ROWS);
    assert!(snapshot.join("README.md").is_file());
    assert!(!snapshot.join("load.py").exists() && !snapshot.join("old.bin").exists());
    assert_eq!(fs::read_to_string(repository(home.path()).join("refs/v1.0")).unwrap(), COMMIT);

    let args = ["pull", "datasets/acme/tiny@v1.0", "--offline", "--include", "*.tsv"];
    let output = lctl(&hub, home.path(), &args, &[]);
    assert_eq!(output.status.code(), Some(2), "a cache without what was asked for is no success");
    assert!(stderr(&output).contains("missing a file that --include matches"), "{}", stderr(&output));
}

#[test]
fn a_file_is_fetched_once_and_hashed_each_time() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let wanted = file("v1.0", "data/rows.csv", &sha256_hex(ROWS));
    let options = options(&hub, home.path());
    let missing = wanted.resolve(&offline(options.clone()), &mut |_| ()).unwrap_err();
    assert!(matches!(&missing, Error::FileNotCached { is_offline: true, .. }), "{missing}");
    assert_eq!(hub.connections(), 0);

    let path = wanted.resolve(&options, &mut |_| ()).unwrap();
    assert_eq!(path, repository(home.path()).join("snapshots").join(COMMIT).join("data/rows.csv"));
    assert!(!repository(home.path()).join("snapshots").join(COMMIT).join("README.md").exists());
    let before = hub.connections();
    assert_eq!(wanted.resolve(&options, &mut |_| ()).unwrap(), path);
    assert_eq!(wanted.resolve(&offline(options.clone()), &mut |_| ()).unwrap(), path);
    assert_eq!(hub.connections(), before);

    fs::write(&path, b"Question\n").unwrap();
    let damaged = wanted.resolve(&options, &mut |_| ()).unwrap_err();
    assert!(matches!(&damaged, Error::OtherContent { .. }), "{damaged}");
}

#[test]
fn another_digest_names_both_and_a_missing_file_what_there_is() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let (options, wrong) = (options(&hub, home.path()), "0".repeat(64));
    let error = file("main", "data/rows.csv", &wrong).resolve(&options, &mut |_| ()).unwrap_err();
    let expected = format!(
        "datasets/acme/tiny@main: data/rows.csv: SHA-256 is {}, but the suite expects {wrong}",
        sha256_hex(ROWS)
    );
    assert_eq!(error.to_string(), expected);
    let error = file("main", "rows.csv", &wrong).resolve(&options, &mut |_| ()).unwrap_err();
    assert!(
        matches!(&error, Error::NoSuchFile { examples, .. } if examples == &["data/rows.csv"]),
        "{error}"
    );
}

#[test]
fn a_suite_reads_its_data_from_the_hub_then_from_the_cache() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let path = suite(home.path(), &sha256_hex(ROWS));
    let output = lctl(&hub, home.path(), &["suite", "validate", &path, "--offline"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let talk = stderr(&output);
    let named = format!("offline, and datasets/acme/tiny@{COMMIT}: data/rows.csv is not in the cache");
    assert!(talk.contains(&named) && talk.contains("--data NAME=FILE"), "{talk}");
    assert_eq!(hub.connections(), 0);

    let output = lctl(&hub, home.path(), &["suite", "validate", &path], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let from = format!(
        "1 tasks, 2 documents, nothing wrong\n  from datasets/acme/tiny@{COMMIT}: data/rows.csv, SHA-256 {}\n",
        sha256_hex(ROWS)
    );
    assert!(stdout(&output).ends_with(&from), "{}", stdout(&output));

    let before = hub.connections();
    let output = lctl(&hub, home.path(), &["suite", "show", &path, "--json"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(output.status.success(), "{}", stderr(&output));
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let data = &shown["tasks"][0]["data"];
    assert_eq!(data["hub"][0], format!("datasets/acme/tiny@{COMMIT}: data/rows.csv"));
    assert_eq!(data["sha256"], sha256_hex(ROWS));
    assert_eq!(hub.connections(), before);
}

#[test]
fn a_local_copy_stands_in_for_the_hub() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let path = suite(home.path(), &sha256_hex(ROWS));
    let copy = home.path().join("copy.csv");
    // another version: only the hub's file has a digest to keep
    fs::write(&copy, b"Question,A,B,Answer\nThree?,yes,no,A\nFour?,yes,no,B\n").unwrap();
    let data = format!("rows={}", copy.display());
    let output = lctl(&hub, home.path(), &["suite", "show", &path, "--data", &data], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stdout(&output).contains("hub "), "{}", stdout(&output));
    assert_eq!(hub.connections(), 0);
}

#[test]
fn a_suite_is_refused_another_version_of_its_data() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let wrong = "1".repeat(64);
    let path = suite(home.path(), &wrong);
    let output = lctl(&hub, home.path(), &["suite", "show", &path], &[]);
    assert_eq!(output.status.code(), Some(2));
    let talk = stderr(&output);
    assert!(talk.contains(&sha256_hex(ROWS)) && talk.contains(&wrong), "{talk}");
    assert!(talk.contains("hint: if the cache is damaged"), "{talk}");
}

#[test]
fn a_quiet_command_fetches_without_a_word() {
    for (quiet, is_said) in [(&["--quiet"][..], false), (&[][..], true)] {
        let (hub, home) = (hub(), tempfile::tempdir().unwrap());
        let path = suite(home.path(), &sha256_hex(ROWS));
        // the data is fetched before the model is looked for, which is not there
        let args = [&["eval", "nothing.gguf", "--suite", &path][..], quiet].concat();
        let output = lctl(&hub, home.path(), &args, &[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(hub.transfers() > 0);
        let talk = stderr(&output);
        assert_eq!(talk.starts_with("error: nothing.gguf: "), !is_said, "{talk}");
        assert_eq!(talk.contains("data/rows.csv"), is_said, "{talk}");
        assert!(!talk.contains("skipped"), "nobody asked for the other files: {talk}");
    }
}
