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

/// Copies a random model of 352 tokens to `model` in the directory.
fn model(dir: &Path) -> String {
    let source = crate::common::root().join("tests/golden/convert/Mistral-7B-v0.1");
    let model = dir.join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    model.display().to_string()
}

#[test]
fn a_manifest_does_not_say_where_the_cache_is() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    let (model, path) = (model(dir.path()), suite(dir.path(), &sha256_hex(ROWS)));
    let out = dir.path().join("out").display().to_string();
    let manifest_path = dir.path().join("out/report.json.manifest.json");
    let made_in = |home: &str| -> serde_json::Value {
        let args = ["eval", &model, "--suite", &path, "--out", &out, "--force", "--quiet"];
        let output = lctl(&hub, &dir.path().join(home), &args, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let mut manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(&manifest_path).unwrap()).unwrap();
        assert!(manifest.as_object_mut().unwrap().shift_remove("run").is_some());
        manifest
    };
    let manifest = made_in("one");
    assert_eq!(made_in("two/deeper"), manifest);
    let input = manifest["inputs"].as_array().unwrap().last().unwrap();
    assert_eq!((input["role"].as_str(), input["name"].as_str()), (Some("suite_data"), Some("rows/rows")));
    assert_eq!(input["path"], format!("datasets/acme/tiny@{COMMIT}: data/rows.csv"));
    assert_eq!(
        (&input["files"][0]["name"], &input["sha256"]),
        (&"rows.csv".into(), &sha256_hex(ROWS).into())
    );

    // a replay looks where this machine's cache is
    let manifest_path = manifest_path.display().to_string();
    let before = hub.connections();
    let output = lctl(&hub, &dir.path().join("one"), &["replay", &manifest_path], &[]);
    assert!(output.status.success() && stdout(&output).ends_with("the bits agree\n"), "{}", stderr(&output));
    let output = lctl(&hub, &dir.path().join("empty"), &["replay", &manifest_path], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("data/rows.csv is not in the cache"), "{}", stderr(&output));
    assert_eq!(hub.connections(), before);
}

#[test]
fn further_files_are_asked_for_by_the_format_that_the_hub_has() {
    const REPORTS: &[u8] = b"Prompt\tURL\nWho?\tu\nAnd who?\tv\n";
    let hub = FakeHub::new().lfs("taa.tsv", REPORTS).start();
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let sha256 = sha256_hex(REPORTS);
    let suite = format!(
        "version: 1\nname: actors\ndata:\n  rows:\n    hub: {{dataset: acme/tiny, revision: {COMMIT}, file: taa.tsv, \
         sha256: '{sha256}', format: cti-taa}}\n    format: jsonl\ntasks:\n  - {{id: text, type: perplexity, data: rows, \
         text: '{{{{ Prompt }}}} {{{{ GT }}}}'}}\n"
    );
    let suite = write("suite.yaml", &suite);
    let truth = format!("rows.truth={}", write("truth", "GT\nfox\nwolf\n"));
    let alias = format!("rows.alias={}", write("alias", "{}"));
    let related = format!("rows.related={}", write("related", "{}"));
    let parts = ["--data", &truth, "--data", &alias, "--data", &related];
    let show = |more: &[&str]| lctl(&hub, home.path(), &[&["suite", "show", &suite], more].concat(), &[]);
    let output = show(&parts);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = show(&parts[..4]);
    assert!(
        output.status.code() == Some(2) && stderr(&output).contains("rows.related"),
        "{}",
        stderr(&output)
    );
    // of a copy, whose format has none, they are too many
    let copy = format!("rows={}", write("copy", "{\"Prompt\": \"a\", \"GT\": \"b\"}\n"));
    let output = show(&["--data", &copy, "--data", &truth]);
    assert!(output.status.code() == Some(2) && stderr(&output).contains("rows.truth"), "{}", stderr(&output));
}
