//! Manifests that nobody vouches for: each is refused, and nothing is touched.

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{lctl, manifest, sha256, succeed};
#[cfg(unix)]
use crate::common::{make_pipe, run_without_waiting};
use crate::common::{names_in, run_lctl};
use crate::quantize::model::Model;

fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    Model::default().write(dir.path(), "m.gguf");
    succeed(dir.path(), "quantize m.gguf --type Q8_0 -o o.gguf --quiet");
    dir
}

/// Replays the manifest with a change; returns status and stderr.
fn replay(dir: &TempDir, change: impl FnOnce(&mut Json)) -> (i32, String) {
    replay_of(dir, "o.gguf.manifest.json", change)
}

/// As [`replay`], of the manifest of that name.
fn replay_of(dir: &TempDir, name: &str, change: impl FnOnce(&mut Json)) -> (i32, String) {
    let mut json = manifest(dir.path(), name);
    change(&mut json);
    std::fs::write(dir.path().join("bad.json"), format!("{json:#}\n")).unwrap();
    let (status, stdout, stderr) = lctl(dir.path(), "replay bad.json --quiet");
    assert!(status != 2 || stdout.is_empty(), "{stdout}");
    (status, stderr)
}

#[test]
fn every_kind_of_bad_manifest_is_an_error() {
    let dir = workplace();
    let refused = |change: &dyn Fn(&mut Json), expected: &str| {
        let (status, stderr) = replay(&dir, |json| change(json));
        assert_eq!(status, 2, "{expected}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(expected), "{expected}: {stderr}");
    };
    refused(
        &|json| json["lctl_manifest"] = 2.into(),
        "a manifest of version 2; this program reads version 1",
    );
    refused(&|json| json["lctl_manifest"] = "1".into(), "a manifest of version \"1\"");
    refused(&|json| drop(json.as_object_mut().unwrap().shift_remove("lctl_manifest")), "this is no manifest");
    refused(&|json| drop(json.as_object_mut().unwrap().shift_remove("inputs")), "bad.json:");
    refused(&|json| json["surprise"] = 1.into(), "unknown field `surprise`");
    refused(&|json| json["job"]["command"] = "sh".into(), "unknown variant `sh`");
    refused(&|json| json["job"]["settings"]["pure"] = 1.into(), "expected a boolean");
    refused(&|json| json["job"]["settings"]["type"] = "Q9".into(), "unknown type `Q9`");
    refused(&|json| json["job"]["settings"]["override_kv"] = json!(["x"]), "`=` is missing");
    refused(
        &|json| json["job"]["settings"]["tensor_types"] = json!([{"pattern": "(", "format": "F16"}]),
        "not a regular expression",
    );
    refused(&|json| json["inputs"] = json!([]), "`quantize` with 0 inputs `model`");
    refused(&|json| json["inputs"][0]["files"][0]["sha256"] = "x".into(), "is no SHA-256");
    refused(&|json| json["outputs"][0]["path"] = "/".into(), "names no file");
    for directory in ["..", "a/b", "/", ".", ""] {
        refused(
            &|json| json["job"]["settings"]["directory"] = directory.into(),
            "which is no directory's name",
        );
    }
}

#[test]
fn a_bad_manifest_of_a_merge_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    super::merge::place(dir.path());
    succeed(dir.path(), "merge base adapter -o out --quiet");
    let names = || names_in(dir.path());
    let before = (names(), sha256(&dir.path().join("base/config.json")));
    let refused = |change: &dyn Fn(&mut Json), expected: &str| {
        let (status, stderr) = replay_of(&dir, "out.manifest.json", |json| change(json));
        assert_eq!(status, 2, "{expected}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(expected), "{expected}: {stderr}");
    };
    refused(&|json| json["job"]["settings"]["type"] = "Q9".into(), "unknown type `Q9`");
    refused(&|json| json["job"]["settings"]["shell"] = "rm".into(), "unknown field `shell`");
    refused(&|json| json["job"]["settings"]["directory"] = 1.into(), "invalid type: integer `1`");
    for directory in ["..", "a/b", "/", ".", "", "/tmp"] {
        let change = |json: &mut Json| {
            json["job"]["settings"] = json!({"type": "Q8_0", "directory": directory});
        };
        refused(&change, "which is no directory's name");
    }
    refused(
        &|json| drop(json["inputs"].as_array_mut().unwrap().pop()),
        "`merge` with 0 inputs `adapter`, which takes 1 to 1",
    );
    refused(&|json| json["inputs"][1]["role"] = "policy".into(), "`merge` has no input `policy`");
    refused(&|json| json["outputs"][0]["role"] = "adapter".into(), "these are not the outputs of `merge`");
    refused(&|json| json["inputs"][2]["path"] = "base".into(), "base/adapter_config.json: cannot read");
    #[cfg(unix)]
    refused(&|json| json["inputs"][2]["path"] = "/dev/zero".into(), "/dev/zero: is no regular file");
    // outputs' paths are for messages
    for path in ["base/config.json", "../../new", "out"] {
        let (status, stderr) =
            replay_of(&dir, "out.manifest.json", |json| json["outputs"][0]["path"] = path.into());
        assert_eq!(status, 0, "{path}: {stderr}");
    }
    std::fs::remove_file(dir.path().join("bad.json")).unwrap();
    assert_eq!((names(), sha256(&dir.path().join("base/config.json"))), before);
}

#[test]
fn a_manifest_cut_short_says_where() {
    let dir = workplace();
    let whole = std::fs::read(dir.path().join("o.gguf.manifest.json")).unwrap();
    for len in [0, 1, whole.len() / 2, whole.len() - 3] {
        std::fs::write(dir.path().join("cut.json"), &whole[..len]).unwrap();
        let (status, _, stderr) = lctl(dir.path(), "replay cut.json");
        assert!(status == 2 && stderr.starts_with("error: cut.json:"), "{len}: {stderr}");
        assert!(stderr.contains("hint: was the file cut short, or edited?"), "{len}: {stderr}");
    }
    let (status, _, stderr) = lctl(dir.path(), "replay absent.json");
    assert!(status == 2 && stderr.contains("absent.json: cannot read"), "{stderr}");
    let (status, _, stderr) = lctl(dir.path(), "replay m.gguf");
    assert!(status == 2 && stderr.starts_with("error: m.gguf:1:"), "{stderr}");
    let (status, _, stderr) = lctl(dir.path(), "replay .");
    assert!(status == 2 && stderr.contains("is no regular file"), "{stderr}");
}

/// The outputs' paths are for messages: wherever they lead, nothing is written there.
#[test]
fn outputs_overwrite_nothing() {
    let dir = workplace();
    let before = sha256(&dir.path().join("m.gguf"));
    let absolute = dir.path().join("m.gguf").display().to_string();
    let outside = dir.path().join("new.gguf").display().to_string();
    for path in ["m.gguf", absolute.as_str(), outside.as_str(), "../../new.gguf", "o.gguf"] {
        let (status, stderr) = replay(&dir, |json| json["outputs"][0]["path"] = path.into());
        assert_eq!(status, 0, "{path}: {stderr}");
    }
    assert_eq!(sha256(&dir.path().join("m.gguf")), before);
    assert_eq!(names_in(dir.path()), ["bad.json", "m.gguf", "o.gguf", "o.gguf.manifest.json"]);
}

#[cfg(unix)]
#[test]
fn inputs_without_end_are_refused() {
    let dir = workplace();
    let (status, stderr) = replay(&dir, |json| {
        let mut input = json["inputs"][0].clone();
        (input["role"], input["path"]) = ("importance".into(), "/dev/zero".into());
        json["inputs"].as_array_mut().unwrap().push(input);
    });
    assert!(status == 2 && stderr.contains("/dev/zero: is no regular file"), "{stderr}");
    // names of files within an input lead nowhere: an input's files are found as a run finds them
    let (status, stderr) = replay(&dir, |json| json["inputs"][0]["files"][0]["name"] = "/dev/zero".into());
    assert_eq!(status, 0, "{stderr}");
}

#[cfg(unix)]
#[test]
fn outputs_without_end_are_refused() {
    let dir = workplace();
    make_pipe(&dir.path().join("report.json"));
    let mut json = manifest(dir.path(), "o.gguf.manifest.json");
    (json["outputs"][0]["path"], json["outputs"][0]["content"]) =
        ("report.json".into(), "json_without_run".into());
    std::fs::write(dir.path().join("bad.json"), json.to_string()).unwrap();
    let args = ["replay", "bad.json", "--check", "--quiet"];
    let (status, stderr) = run_without_waiting(crate::common::lctl(dir.path(), &args));
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.contains("report.json: not a regular file"), "{stderr}");
}

#[test]
fn a_hub_id_is_not_downloaded() {
    let dir = workplace();
    let (status, stderr) = replay(&dir, |json| json["inputs"][0]["path"] = "some-org/some-model".into());
    assert!(status == 2 && stderr.contains("some-org/some-model"), "{stderr}");
}

#[test]
fn options_are_checked() {
    let dir = workplace();
    for (args, message) in [
        (["--input", "m.gguf"], "--input m.gguf: not OLD=NEW"),
        (["--input", "x=y"], "the manifest has no input of that path"),
        (["--model", "absent.gguf"], "absent.gguf"),
        (["--work", "absent"], "absent: cannot make a temporary directory"),
    ] {
        let (status, stdout, stderr) =
            run_lctl(dir.path(), &[&["replay", "o.gguf.manifest.json", "--quiet"], &args[..]].concat());
        assert_eq!((status, stdout.as_str()), (2, ""), "{args:?}");
        assert!(stderr.contains(message), "{args:?}: {stderr}");
    }
}
