//! Quantizations.

use std::path::Path;

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{flip, lctl, manifest, sha256, succeed, without_run};
use crate::common::names_in;
use crate::quantize::model::Model;

/// Returns a directory with m.gguf and q4.gguf, which it became.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    Model::default().write(dir.path(), "m.gguf");
    succeed(dir.path(), "quantize m.gguf --type int4 -o q4.gguf --quiet");
    dir
}

fn copy_checkpoint(to: &Path) {
    let source = crate::common::root().join("tests/golden/convert/Mistral-7B-v0.1");
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_manifest_says_what_was_made_of_what() {
    let dir = workplace();
    let dir = dir.path();
    assert_eq!(names_in(dir), ["m.gguf", "q4.gguf", "q4.gguf.manifest.json"]);
    let found = manifest(dir, "q4.gguf.manifest.json");
    assert_eq!(found["lctl_manifest"], 1);
    assert_eq!(found["lctl"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(found["lctl"]["sha256"], sha256(crate::common::program()));
    assert_eq!(
        (&found["job"]["command"], &found["job"]["settings"]["type"]),
        (&json!("quantize"), &json!("Q4_K_M"))
    );
    let model = sha256(&dir.join("m.gguf"));
    assert_eq!(
        found["inputs"],
        json!([{"role": "model", "name": null, "path": "m.gguf", "sha256": model, "manifest": null,
                "files": [{"name": "m.gguf", "sha256": model}]}])
    );
    assert_eq!(
        found["outputs"],
        json!([{"role": "model", "path": "q4.gguf", "content": "file", "sha256": sha256(&dir.join("q4.gguf"))}])
    );
    assert_eq!(found["licences"], json!({"base": "unknown", "adapter": null, "data": []}));
    assert!(found["run"]["seconds"].as_f64().unwrap() > 0.0 && found["run"]["cpu_features"].is_array());

    // the run apart, it is the same again, whatever the threads
    succeed(
        dir,
        "quantize m.gguf --type Q4_K_M -o q4.gguf --force --threads 1 --isa portable --no-stats --quiet",
    );
    let again = manifest(dir, "q4.gguf.manifest.json");
    assert_eq!(again["run"]["isa"], "portable");
    assert_eq!(without_run(again), without_run(found));
}

#[test]
fn a_replay_agrees_and_leaves_nothing() {
    let dir = workplace();
    let dir = dir.path();
    std::fs::create_dir(dir.join("work")).unwrap();
    let stdout = succeed(dir, "replay q4.gguf.manifest.json --work work --threads 1");
    let digest = sha256(&dir.join("q4.gguf"));
    assert_eq!(stdout, format!("same     {digest} q4.gguf\nthe bits agree\n"));
    assert_eq!(names_in(&dir.join("work")), Vec::<String>::new());
    assert_eq!(names_in(dir), ["m.gguf", "q4.gguf", "q4.gguf.manifest.json", "work"]);
    // the model may have moved and been renamed
    std::fs::create_dir(dir.join("elsewhere")).unwrap();
    std::fs::rename(dir.join("m.gguf"), dir.join("elsewhere/n.gguf")).unwrap();
    let (status, _, stderr) = lctl(dir, "replay q4.gguf.manifest.json");
    assert!(status == 2 && stderr.contains("m.gguf") && stderr.contains("hint: "), "{stderr}");
    succeed(dir, "replay q4.gguf.manifest.json --model elsewhere/n.gguf");
    succeed(dir, "replay q4.gguf.manifest.json --input m.gguf=elsewhere/n.gguf --quiet");
    // the artefact itself is not needed
    std::fs::remove_file(dir.join("q4.gguf")).unwrap();
    succeed(dir, "replay q4.gguf.manifest.json --model elsewhere/n.gguf");
}

#[test]
fn a_flipped_bit_of_the_model_is_named() {
    let dir = workplace();
    let dir = dir.path();
    let then = sha256(&dir.join("m.gguf"));
    flip(&dir.join("m.gguf"), 1);
    let now = sha256(&dir.join("m.gguf"));
    let (status, stdout, stderr) = lctl(dir, "replay q4.gguf.manifest.json --quiet");
    assert_eq!((status, stdout.as_str()), (2, ""));
    let expected = format!(
        "error: files of the manifest's inputs that changed: 1\n  model m.gguf: SHA-256 is {now}, in the manifest {then}\n"
    );
    assert!(stderr.starts_with(&expected), "{stderr}");
}

#[test]
fn another_result_is_told_from_the_same() {
    let dir = workplace();
    let dir = dir.path();
    let path = dir.join("q4.gguf.manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let digest = sha256(&dir.join("q4.gguf"));
    let other = format!("{}{}", if digest.starts_with('0') { '1' } else { '0' }, &digest[1..]);
    std::fs::write(&path, text.replace(&digest, &other)).unwrap();
    let (status, stdout, _) = lctl(dir, "replay q4.gguf.manifest.json");
    assert_eq!(status, 3);
    let expected = format!("differs  {digest} q4.gguf, in the manifest {other}\nthe bits differ\n");
    assert_eq!(stdout, expected);
    let (status, stdout, _) = lctl(dir, "replay q4.gguf.manifest.json --json --quiet");
    let json: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &json["agrees"], &json["rerun"]), (3, &json!(false), &json!(true)));
    assert_eq!(
        json["outputs"][0],
        json!({"role": "model", "path": "q4.gguf", "then": other, "now": digest, "agrees": false})
    );
    // so is another setting
    std::fs::write(&path, text.replace("\"Q4_K_M\"", "\"Q4_K_S\"")).unwrap();
    assert_eq!(lctl(dir, "replay q4.gguf.manifest.json").0, 3);
    std::fs::write(&path, text).unwrap();
    assert_eq!(lctl(dir, "replay q4.gguf.manifest.json").0, 0);
}

#[test]
fn every_setting_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let model = Model { n_layers: 3, ..Model::default() };
    model.write(dir, "m.gguf");
    std::fs::create_dir(dir.join("i")).unwrap();
    model.write_importance(dir, "i/m.dat");
    for options in [
        "--type Q4_K_M --imatrix i/m.dat --tensor-type attn_v=q8_0 --tensor-type ^blk\\.1=F16",
        "--type Q5_K --pure --leave-output-tensor --override-kv general.name=str:Mine --override-kv a.b=int:3",
        "--type Q8_0 --output-tensor-type f16 --token-embedding-type Q5_1 --split-max-size 400k",
    ] {
        succeed(dir, &format!("quantize m.gguf -o o.gguf --force --quiet {options}"));
        succeed(dir, "replay o.gguf.manifest.json --quiet");
    }
    // the output names the importance matrix as the first run did, wherever it is now
    succeed(dir, "quantize m.gguf --type Q4_K_M --imatrix i/m.dat -o g.gguf --quiet");
    std::fs::rename(dir.join("i/m.dat"), dir.join("moved.dat")).unwrap();
    succeed(dir, "replay g.gguf.manifest.json --input i/m.dat=moved.dat");
    flip(&dir.join("moved.dat"), 1);
    let (status, _, stderr) = lctl(dir, "replay g.gguf.manifest.json --input i/m.dat=moved.dat");
    assert!(status == 2 && stderr.contains("importance moved.dat: SHA-256 is "), "{stderr}");
}

/// A checkpoint's name may come from its directory's: a replay gives it the directory's old name.
#[test]
fn a_checkpoint_replays_from_another_directory() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    copy_checkpoint(&dir.join("Some-Model-7B"));
    std::fs::write(dir.join("Some-Model-7B/README.md"), "---\nlicense: apache-2.0\n---\n").unwrap();
    succeed(dir, "quantize Some-Model-7B --type Q8_0 -o o.gguf --quiet");
    let found = manifest(dir, "o.gguf.manifest.json");
    assert_eq!(found["licences"]["base"], "apache-2.0");
    assert_eq!(found["job"]["settings"]["directory"], "Some-Model-7B");
    assert_eq!(
        (&found["inputs"][0]["role"], &found["inputs"][1]["role"]),
        (&json!("model"), &json!("model_files"))
    );
    std::fs::rename(dir.join("Some-Model-7B"), dir.join("other")).unwrap();
    succeed(dir, "replay o.gguf.manifest.json --model other");
    // by its name the directory decides bits, which this shows
    succeed(dir, "quantize other --type Q8_0 -o p.gguf --quiet");
    assert_ne!(sha256(&dir.join("o.gguf")), sha256(&dir.join("p.gguf")));
    // every file that decides bits is an input, and so is one that came since
    flip(&dir.join("other/tokenizer.model"), 1);
    std::fs::write(dir.join("other/generation_config.json"), "{}").unwrap();
    let (status, _, stderr) = lctl(dir, "replay o.gguf.manifest.json --model other");
    assert_eq!(status, 2);
    assert!(stderr.contains("\n  model_files other (tokenizer.model): SHA-256 is "), "{stderr}");
    assert!(stderr.contains("\n  model_files other (generation_config.json): SHA-256 is "), "{stderr}");
}

#[test]
fn the_chain_goes_on_and_carries_the_licence() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    copy_checkpoint(&dir.join("base"));
    std::fs::write(dir.join("base/README.md"), "---\nlicense: other\nlicense_name: acme-1.0\n---\n").unwrap();
    succeed(dir, "quantize base --type F16 -o f16.gguf --split-max-size 20k --quiet");
    let first = names_in(dir).into_iter().find(|name| name.contains("-00001-of-")).unwrap();
    succeed(dir, &format!("quantize {first} --type Q8_0 -o q8.gguf --quiet"));
    let (parent, child) = (manifest(dir, "f16.gguf.manifest.json"), manifest(dir, "q8.gguf.manifest.json"));
    assert_eq!(child["licences"]["base"], "other (acme-1.0)");
    // the parent's digest is of its text without the run
    let text = format!("{:#}\n", without_run(parent));
    std::fs::write(dir.join("t"), text).unwrap();
    assert_eq!(child["inputs"][0]["manifest"], sha256(&dir.join("t")));
    succeed(dir, "replay q8.gguf.manifest.json --quiet");
}

#[test]
fn a_manifest_is_an_output_like_others() {
    let dir = workplace();
    let dir = dir.path();
    succeed(dir, "quantize m.gguf --type Q8_0 -o q8.gguf --no-manifest --quiet");
    assert!(!dir.join("q8.gguf.manifest.json").exists());
    // without its artefact it speaks of nothing and goes; any other file stays
    std::fs::remove_file(dir.join("q4.gguf")).unwrap();
    succeed(dir, "quantize m.gguf --type Q4_0 -o q4.gguf --quiet");
    assert_eq!(manifest(dir, "q4.gguf.manifest.json")["job"]["settings"]["type"], "Q4_0");
    std::fs::remove_file(dir.join("q4.gguf")).unwrap();
    std::fs::write(dir.join("q4.gguf.manifest.json"), "mine").unwrap();
    let (status, _, stderr) = lctl(dir, "quantize m.gguf --type Q4_0 -o q4.gguf");
    assert!(status == 2 && stderr.contains("q4.gguf.manifest.json: exists already"), "{stderr}");
    assert!(!dir.join("q4.gguf").exists());
    // what fails has none
    std::fs::remove_file(dir.join("q4.gguf.manifest.json")).unwrap();
    Model { poison: Some(("output.weight", f32::NAN)), ..Model::default() }.write(dir, "bad.gguf");
    assert_eq!(lctl(dir, "quantize bad.gguf --type Q4_0 -o q4.gguf").0, 2);
    assert_eq!(names_in(dir), ["bad.gguf", "m.gguf", "q8.gguf"]);
}

#[test]
fn a_check_reads_and_runs_nothing() {
    let dir = workplace();
    let dir = dir.path();
    let digest = sha256(&dir.join("q4.gguf"));
    let stdout = succeed(dir, "replay q4.gguf.manifest.json --check");
    assert_eq!(stdout, format!("same     {digest} q4.gguf\nthe bits agree\n"));
    flip(&dir.join("q4.gguf"), 1);
    let (status, stdout, _) = lctl(dir, "replay q4.gguf.manifest.json --check");
    assert!(status == 3 && stdout.starts_with("differs  "), "{stdout}");
    std::fs::remove_file(dir.join("q4.gguf")).unwrap();
    let (status, stdout, _) = lctl(dir, "replay q4.gguf.manifest.json --check");
    assert!(status == 3 && stdout.starts_with("differs  not there q4.gguf"), "{stdout}");
}
