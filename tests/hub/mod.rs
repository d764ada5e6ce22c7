//! `lctl pull` and hub ids, against a hub on loopback that can misbehave.

mod datasets;
mod fake;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use fake::{COMMIT, FakeHub, sha256_hex};
use lctl::hub::{self, Error, Event, Options, Origin, RepoId, Selection};

/// Runs the program with a clean Hugging Face environment.
fn lctl(hub: &FakeHub, home: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(crate::common::program());
    for name in
        ["HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
    {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", hub.url()).env("HF_HOME", home).env("NO_PROXY", "127.0.0.1");
    command.args(args).envs(env.iter().copied()).output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn options(hub: &FakeHub, home: &Path) -> Options {
    Options {
        endpoint: hub.url(),
        token: None,
        cache_dir: home.join("hub"),
        offline: false,
        verify_cached: false,
        retries: 3,
        backoff: Duration::from_millis(1),
    }
}

fn pull(hub: &FakeHub, home: &Path, change: impl FnOnce(&mut Options)) -> Result<hub::Pulled, Error> {
    let mut options = options(hub, home);
    change(&mut options);
    let id: RepoId = "acme/tiny".parse().unwrap();
    hub::pull(&id, &Selection::default(), &options, &mut |_: Event| ())
}

fn repository(home: &Path) -> PathBuf {
    home.join("hub/models--acme--tiny")
}

/// Two shards, so that order, index and resumption matter.
fn sharded() -> FakeHub {
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    FakeHub::new()
        .file("config.json", b"{\"model_type\": \"llama\"}\n")
        .file("tokenizer.json", b"{}")
        .file("model.safetensors.index.json", index.as_bytes())
        .lfs("model-00001-of-00002.safetensors", &[1; 300_000])
        .lfs("model-00002-of-00002.safetensors", &[2; 200_000])
        .lfs("pytorch_model.bin", &[3; 1000])
        .file("README.md", b"# tiny")
        .start()
}

#[test]
fn a_pull_fills_the_cache_that_python_reads() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    let output = lctl(&hub, home.path(), &["pull", "acme/tiny"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));

    let repository = repository(home.path());
    let snapshot = repository.join("snapshots").join(COMMIT);
    assert_eq!(stdout(&output), format!("{}\n", snapshot.display()));
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    let digest = sha256_hex(&[1; 300_000]);
    let link = fs::read_link(snapshot.join("model-00001-of-00002.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(&digest));
    assert_eq!(fs::read(repository.join("blobs").join(digest)).unwrap(), [1; 300_000]);
    // `git hash-object` of the two bytes `{}`.
    let link = fs::read_link(snapshot.join("tokenizer.json")).unwrap();
    assert_eq!(link, Path::new("../../blobs/9e26dfeeb6e641a33dae4961196235bdb965b21b"));
    assert!(!snapshot.join("pytorch_model.bin").exists() && !snapshot.join("README.md").exists());

    let talk = stderr(&output);
    assert!(talk.contains(&format!("acme/tiny: commit {COMMIT}")), "{talk}");
    let skipped = "skipped pytorch_model.bin (1.00 KB): a pickle file runs code when it is loaded";
    assert!(talk.contains(skipped), "{talk}");
    assert!(talk.contains("5 files, 500.12 KB, of which 500.12 KB received now"), "{talk}");
}

#[test]
fn quiet_leaves_the_result_alone() {
    for (quiet, is_said) in [(&["--quiet"][..], false), (&[][..], true)] {
        let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
        let snapshot = repository(home.path()).join("snapshots").join(COMMIT);
        // pulled by name, then found in the cache by the name
        for pull in [&["pull", "acme/tiny"][..], &["pull", "acme/tiny", "--offline"]] {
            let output = lctl(&hub, home.path(), &[pull, quiet].concat(), &[]);
            assert!(output.status.success(), "{}", stderr(&output));
            assert_eq!(stdout(&output), format!("{}\n", snapshot.display()));
            assert_eq!(!stderr(&output).is_empty(), is_said, "{}", stderr(&output));
        }
        // pulled because a command names it; its shards are none
        let home = tempfile::tempdir().unwrap();
        let out = home.path().join("o.gguf").display().to_string();
        let args = [&["quantize", "acme/tiny", "-t", "F16", "-o", &out][..], quiet].concat();
        let before = hub.transfers();
        let output = lctl(&hub, home.path(), &args, &[]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(hub.transfers() > before);
        assert_eq!(stderr(&output).starts_with("error: "), !is_said, "{}", stderr(&output));
    }
}

#[test]
fn a_second_pull_transfers_nothing() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    pull(&hub, home.path(), |_| ()).unwrap();
    let before = hub.transfers();
    let again = pull(&hub, home.path(), |_| ()).unwrap();
    assert_eq!(hub.transfers(), before);
    assert_eq!(again.received_bytes, 0);
    assert!(again.files.iter().all(|file| file.origin == Origin::Cached));
}

#[test]
fn a_broken_transfer_continues_where_it_stopped() {
    let hub = sharded();
    hub.cut_after("model-00001-of-00002.safetensors", 100_000, 1);
    let home = tempfile::tempdir().unwrap();
    let pulled = pull(&hub, home.path(), |_| ()).unwrap();
    assert_eq!(pulled.received_bytes, pulled.files.iter().map(|file| file.bytes).sum::<u64>());
    assert_eq!(hub.ranges(), ["bytes=100000-299999"]);
}

#[test]
fn a_pull_resumes_what_an_earlier_run_left() {
    let hub = sharded();
    hub.cut_after("model-00002-of-00002.safetensors", 70_000, 1);
    let home = tempfile::tempdir().unwrap();
    let error = pull(&hub, home.path(), |options| options.retries = 0).unwrap_err();
    assert!(matches!(error, Error::Transfer { .. }), "{error}");
    assert!(!repository(home.path()).join("refs/main").exists(), "a ref stands for a complete snapshot");
    let partial = format!("blobs/{}.incomplete", sha256_hex(&[2; 200_000]));
    assert_eq!(fs::metadata(repository(home.path()).join(&partial)).unwrap().len(), 70_000);

    let pulled = pull(&hub, home.path(), |_| ()).unwrap();
    assert_eq!(hub.ranges(), ["bytes=70000-199999"]);
    assert_eq!(pulled.received_bytes, 130_000);
    assert_eq!(pulled.files.last().unwrap().origin, Origin::Resumed);
    assert!(!repository(home.path()).join(partial).exists());
}

#[test]
fn a_damaged_partial_file_is_fetched_again_from_zero() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    let blobs = repository(home.path()).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let digest = sha256_hex(&[1; 300_000]);
    fs::write(blobs.join(format!("{digest}.incomplete")), [9; 5000]).unwrap();
    pull(&hub, home.path(), |_| ()).unwrap();
    assert_eq!(fs::read(blobs.join(digest)).unwrap(), [1; 300_000]);
}

#[test]
fn a_hub_that_ignores_ranges_still_ends_in_the_right_file() {
    let hub = sharded();
    hub.ignore_ranges();
    hub.cut_after("model-00001-of-00002.safetensors", 100_000, 1);
    let home = tempfile::tempdir().unwrap();
    pull(&hub, home.path(), |_| ()).unwrap();
    let blob = repository(home.path()).join("blobs").join(sha256_hex(&[1; 300_000]));
    assert_eq!(fs::read(blob).unwrap(), [1; 300_000]);
}

#[test]
fn wrong_content_is_deleted_and_refused() {
    for damaged in ["model-00001-of-00002.safetensors", "config.json"] {
        let hub = sharded();
        hub.damage(damaged);
        let home = tempfile::tempdir().unwrap();
        let output = lctl(&hub, home.path(), &["pull", "acme/tiny"], &[]);
        assert_eq!(output.status.code(), Some(2));
        let talk = stderr(&output);
        let expected = format!("error: acme/tiny: {damaged}: the content has digest ");
        assert!(
            talk.contains(&expected) && talk.contains("hint: the damaged download was deleted"),
            "{talk}"
        );
        assert!(!repository(home.path()).join("refs").exists());
        let names = fs::read_dir(repository(home.path()).join("blobs")).unwrap();
        let names: Vec<String> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert!(names.iter().all(|name| !name.ends_with(".incomplete")), "{names:?}");
    }
}

#[test]
fn verify_replaces_a_damaged_blob() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    pull(&hub, home.path(), |_| ()).unwrap();
    let blob = repository(home.path()).join("blobs").join(sha256_hex(&[2; 200_000]));
    fs::write(&blob, [7; 200_000]).unwrap();
    assert_eq!(pull(&hub, home.path(), |_| ()).unwrap().received_bytes, 0);
    assert_eq!(
        pull(&hub, home.path(), |options| options.verify_cached = true).unwrap().received_bytes,
        200_000
    );
    assert_eq!(fs::read(&blob).unwrap(), [2; 200_000]);
}

#[test]
fn offline_opens_no_connection_and_says_what_is_missing() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    let cache = home.path().join("hub");
    let begun = Instant::now();
    for (args, env) in [
        (vec!["pull", "--offline", "acme/tiny"], vec![]),
        (vec!["pull", "acme/tiny"], vec![("HF_HUB_OFFLINE", "1")]),
        (vec!["inspect", "acme/tiny"], vec![("HF_HUB_OFFLINE", "true")]),
    ] {
        let output = lctl(&hub, home.path(), &args, &env);
        assert_eq!(output.status.code(), Some(2));
        let expected = format!(
            "error: offline, and acme/tiny is not in the cache {}: missing the repository acme/tiny\n\
             hint: on a machine with network run `lctl pull acme/tiny`, or unset HF_HUB_OFFLINE and leave out --offline\n",
            cache.display()
        );
        assert_eq!(stderr(&output), expected);
    }
    // Generous for three process starts on a loaded machine; a single connection timeout is 15 s.
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(hub.connections(), 0);

    pull(&hub, home.path(), |_| ()).unwrap();
    let before = hub.connections();
    let output = lctl(&hub, home.path(), &["pull", "--offline", "acme/tiny"], &[]);
    assert_eq!(
        stdout(&output),
        format!("{}\n", repository(home.path()).join("snapshots").join(COMMIT).display())
    );
    assert_eq!(hub.connections(), before);
}

#[test]
fn a_missing_shard_is_named_offline_and_fetched_online() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    let pulled = pull(&hub, home.path(), |_| ()).unwrap();
    let shard = "model-00002-of-00002.safetensors";
    fs::remove_file(pulled.snapshot.join(shard)).unwrap();
    fs::remove_file(repository(home.path()).join("blobs").join(sha256_hex(&[2; 200_000]))).unwrap();

    let mut offline = options(&hub, home.path());
    offline.offline = true;
    let error = hub::resolve("acme/tiny", &offline, &mut |_| ()).unwrap_err();
    assert!(error.to_string().ends_with(&format!("missing {shard}")), "{error}");

    let found = hub::resolve("acme/tiny", &options(&hub, home.path()), &mut |_| ()).unwrap();
    assert_eq!(fs::read(found.join(shard)).unwrap(), [2; 200_000]);
}

#[cfg(unix)]
#[test]
fn a_link_whose_blob_is_gone_is_missing() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    let pulled = pull(&hub, home.path(), |_| ()).unwrap();
    let link = pulled.snapshot.join("tokenizer.json");
    let blob = pulled.snapshot.join(fs::read_link(&link).unwrap());
    fs::remove_file(&blob).unwrap();
    assert!(link.is_symlink() && !link.exists());
    for args in [
        vec!["pull", "acme/tiny", "--offline"],
        vec!["quantize", "acme/tiny", "-o", "x.gguf", "-t", "Q8_0", "--offline"],
    ] {
        let output = lctl(&hub, home.path(), &args, &[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(": missing tokenizer.json\n"), "{}", stderr(&output));
    }
    // what is not pulled need not lead anywhere
    std::os::unix::fs::symlink("gone", pulled.snapshot.join("pytorch_model.bin")).unwrap();
    let found = hub::resolve("acme/tiny", &options(&hub, home.path()), &mut |_| ()).unwrap();
    assert_eq!(fs::read(found.join("tokenizer.json")).unwrap(), b"{}");
    let output = lctl(&hub, home.path(), &["pull", "acme/tiny", "--offline"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn an_endpoint_that_is_no_address_is_named() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    for endpoint in ["bogus", "localhost:80", "ftp://hub"] {
        let output = lctl(&hub, home.path(), &["pull", "acme/tiny"], &[("HF_ENDPOINT", endpoint)]);
        assert_eq!(output.status.code(), Some(2));
        let expected = format!("error: HF_ENDPOINT={endpoint} is not a web address\nhint: ");
        assert!(stderr(&output).starts_with(&expected), "{}", stderr(&output));
    }
    assert_eq!(hub.connections(), 0);
}

#[test]
fn verifying_needs_the_hub() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    pull(&hub, home.path(), |_| ()).unwrap();
    let before = hub.connections();
    for (args, env) in [
        (vec!["pull", "acme/tiny", "--verify"], vec![("HF_HUB_OFFLINE", "1")]),
        (vec!["pull", "acme/tiny", "--verify"], vec![("TRANSFORMERS_OFFLINE", "yes")]),
    ] {
        let output = lctl(&hub, home.path(), &args, &env);
        assert_eq!(output.status.code(), Some(2));
        let expected = "the argument '--verify' cannot be used with '--offline'";
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    assert_eq!(hub.connections(), before);
}

#[test]
fn a_complete_snapshot_is_used_without_asking_the_hub() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    let pulled = pull(&hub, home.path(), |_| ()).unwrap();
    let before = hub.connections();
    for id in ["acme/tiny".to_owned(), format!("acme/tiny@{COMMIT}")] {
        let found = hub::resolve(&id, &options(&hub, home.path()), &mut |_| ()).unwrap();
        assert_eq!(found, pulled.snapshot);
    }
    assert_eq!(hub.connections(), before);
}

#[test]
fn a_revision_is_pinned_to_its_commit() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    let output = lctl(&hub, home.path(), &["pull", "acme/tiny@v1.0", "--json"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["commit"], COMMIT);
    assert_eq!(report["revision"], "v1.0");
    assert_eq!(report["files"][0]["path"], "config.json");
    assert_eq!(report["files"][4]["digest"], sha256_hex(&[2; 200_000]));
    assert_eq!(report["files"][4]["origin"], "downloaded");
    let pickle = serde_json::json!({"path": "pytorch_model.bin", "bytes": 1000, "reason": "pickle"});
    assert!(report["skipped"].as_array().unwrap().contains(&pickle), "{report}");
    assert_eq!(fs::read_to_string(repository(home.path()).join("refs/v1.0")).unwrap(), COMMIT);
    assert!(!repository(home.path()).join("refs/main").exists());
}

#[test]
fn include_and_exclude_choose() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    let args =
        ["pull", "acme/tiny", "--include", "*.json", "--include", "*.bin", "--exclude", "tok*", "--json"];
    let output = lctl(&hub, home.path(), &args, &[]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let paths: Vec<&str> =
        report["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["config.json", "model.safetensors.index.json"]);

    let output = lctl(&hub, home.path(), &["pull", "acme/tiny", "--include", "*.bin"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("none of its 7 files is matched by --include"), "{}", stderr(&output));
}

#[test]
fn a_repository_of_ggufs_asks_for_a_choice() {
    let hub = FakeHub::new().lfs("tiny-Q4_K_M.gguf", b"GGUF").lfs("tiny-Q8_0.gguf", b"GGUF").start();
    let home = tempfile::tempdir().unwrap();
    let output = lctl(&hub, home.path(), &["pull", "acme/tiny"], &[]);
    let expected = format!(
        "error: acme/tiny@{COMMIT}: nothing to download: none of its 2 files is a *.safetensors file\n\
         hint: choose with --include; the repository has e.g. tiny-Q4_K_M.gguf, tiny-Q8_0.gguf\n"
    );
    assert!(stderr(&output).ends_with(&expected), "{}", stderr(&output));
    let output = lctl(&hub, home.path(), &["pull", "acme/tiny", "--include", "*Q8_0*"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn the_token_goes_with_every_request_to_the_hub() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    hub.require_token("hf_secret");
    let output = lctl(&hub, home.path(), &["pull", "acme/tiny"], &[("HF_TOKEN", "hf_secret")]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stderr(&output).contains("hf_secret"));

    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("token"), "hf_secret\n").unwrap();
    let output = lctl(&hub, other.path(), &["pull", "acme/tiny"], &[]);
    assert!(output.status.success(), "the token file: {}", stderr(&output));
}

#[test]
fn without_a_token_none_is_sent() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    pull(&hub, home.path(), |_| ()).unwrap();
    assert_eq!(hub.authorizations(), [""; 0]);
}

#[test]
fn refusals_say_what_to_do() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    let talk = |args: &[&str], env: &[(&str, &str)]| {
        let output = lctl(&hub, home.path(), args, env);
        assert_eq!(output.status.code(), Some(2));
        stderr(&output)
    };
    assert_eq!(
        talk(&["pull", "acme/nothing"], &[]),
        "error: acme/nothing: the hub has no such repository, or hides it from this token\n\
         hint: check the spelling; for a private repository set HF_TOKEN\n"
    );
    assert_eq!(
        talk(&["pull", "acme/tiny@v9"], &[]),
        "error: acme/tiny: the hub has no revision `v9`\nhint: a revision is a branch, a tag or a 40-digit commit\n"
    );
    hub.require_token("hf_secret");
    let gated = talk(&["pull", "acme/tiny"], &[]);
    let hint =
        format!("hint: the model is gated: accept its terms at {}/acme/tiny and set HF_TOKEN\n", hub.url());
    assert!(
        gated.starts_with("error: acme/tiny: the hub refuses access (401): Access is restricted"),
        "{gated}"
    );
    assert!(gated.ends_with(&hint), "{gated}");
}

#[test]
fn a_hub_cannot_write_outside_the_snapshot() {
    for path in
        ["../../../../escaped.safetensors", "/tmp/escaped.safetensors", "a\\..\\b.safetensors", "x/../y.json"]
    {
        let hub = FakeHub::new().lfs("model.safetensors", &[1; 10]).file(path, b"x").start();
        let home = tempfile::tempdir().unwrap();
        let error = pull(&hub, home.path(), |_| ()).unwrap_err();
        assert!(matches!(error, Error::UnsafePath { .. }), "{path}: {error}");
        assert_eq!(hub.transfers(), 0);
        assert!(!repository(home.path()).exists());
    }
}

#[test]
fn a_hub_cannot_choose_the_blob_names() {
    let hub = sharded();
    hub.forge_etag("../../../escaped");
    let home = tempfile::tempdir().unwrap();
    let error = pull(&hub, home.path(), |_| ()).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    assert!(!home.path().join("escaped").exists());
}

#[test]
fn an_error_page_is_not_taken_for_a_file() {
    let hub = sharded();
    hub.fail("model-00001-of-00002.safetensors");
    let home = tempfile::tempdir().unwrap();
    let error = pull(&hub, home.path(), |_| ()).unwrap_err();
    assert!(matches!(error, Error::Refused { status: 418, .. }), "{error}");
}

#[test]
fn absurd_ids_are_usage_errors() {
    let (hub, home) = (sharded(), tempfile::tempdir().unwrap());
    for id in
        ["../../etc/passwd", "acme", "acme/ti ny", "acme/tiny@../../x", "acme/..", "a/b/c", "datasets/a/b/c"]
    {
        let output = lctl(&hub, home.path(), &["pull", id], &[]);
        assert_eq!(output.status.code(), Some(2), "{id}");
        assert!(stderr(&output).contains("is not a hub id"), "{}", stderr(&output));
    }
    assert_eq!(hub.connections(), 0);
}
