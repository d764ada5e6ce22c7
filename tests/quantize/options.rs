//! Every option does what it says.

use std::collections::BTreeMap;
use std::path::Path;

use lctl::tensor::TensorSource;
use lctl::tensor::gguf::{Gguf, Value};
use serde_json::Value as Json;

use super::model::Model;
use crate::common::{assert_snapshot, names_in, run_lctl};

fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    Model::default().write(dir.path(), "m.gguf");
    dir
}

/// Quantizes m.gguf and returns the report.
fn quantize(dir: &Path, options: &[&str]) -> Json {
    let mut args = vec!["quantize", "m.gguf", "-o", "o.gguf", "--force", "--json", "--quiet"];
    args.extend(options);
    let (status, stdout, stderr) = run_lctl(dir, &args);
    assert_eq!((status, stderr.as_str()), (0, ""), "{options:?}");
    serde_json::from_str(&stdout).unwrap()
}

/// Returns the type of every tensor of o.gguf.
fn types(dir: &Path) -> BTreeMap<String, String> {
    let file = Gguf::open(&dir.join("o.gguf")).unwrap();
    file.tensors().iter().map(|t| (t.name.clone(), t.dtype.name().to_owned())).collect()
}

#[test]
fn type_options_choose_formats() {
    let dir = model();
    let dir = dir.path();
    quantize(dir, &["--type", "Q4_K_M", "--pure"]);
    let of = |types: &BTreeMap<String, String>, name: &str| types[name].clone();
    let pure = types(dir);
    assert!(pure.iter().filter(|(name, _)| !name.contains("norm")).all(|(_, ty)| ty == "Q4_K"), "{pure:?}");

    quantize(dir, &["--type", "int4", "--output-tensor-type", "q8_0", "--token-embedding-type", "F16"]);
    let named = types(dir);
    assert_eq!((of(&named, "output.weight"), of(&named, "token_embd.weight")), ("Q8_0".into(), "F16".into()));

    quantize(dir, &["--type", "Q8_0", "--leave-output-tensor"]);
    assert_eq!(of(&types(dir), "output.weight"), "F16");

    quantize(dir, &["--type", "Q8_0", "--tensor-type", "ATTN_[qk]=Q5_1", "--tensor-type", "attn=Q4_1"]);
    let matched = types(dir);
    let attention = ["attn_q", "attn_k", "attn_v", "attn_output"];
    let got = attention.map(|name| of(&matched, &format!("blk.1.{name}.weight")));
    assert_eq!(got, ["Q5_1", "Q5_1", "Q4_1", "Q4_1"]);
    assert_eq!(of(&matched, "blk.1.attn_norm.weight"), "F32");
}

/// An override takes its tensor out of the count that decides which later layers get more bits.
#[test]
fn an_override_shifts_the_layers_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    Model { n_layers: 8, ..Model::default() }.write(dir.path(), "m.gguf");
    let attn_v = |options: &[&str]| -> Vec<String> {
        quantize(dir.path(), options);
        let types = types(dir.path());
        (0..8).map(|layer| types[&format!("blk.{layer}.attn_v.weight")].clone()).collect()
    };
    let plain = attn_v(&["--type", "Q4_K_M"]);
    assert_eq!(plain, ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]);
    let shifted = attn_v(&["--type", "Q4_K_M", "--tensor-type", r"blk\.0\.attn_v=Q8_0"]);
    assert_eq!(shifted, ["Q8_0", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K"]);
}

#[test]
fn options_for_an_output_tensor_that_is_not_there_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Model { tied: true, ..Model::default() }.write(dir, "tied.gguf");
    Model::default().write(dir, "own.gguf");
    let said = |model: &str, options: &str| -> String {
        let args = format!("quantize {model} -o o.gguf --force --no-manifest {options}");
        let (code, _, stderr) = run_lctl(dir, &args.split(' ').collect::<Vec<_>>());
        assert_eq!(code, 0, "{options}: {stderr}");
        stderr
    };
    for (options, option) in [
        ("-t Q8_0 --leave-output-tensor", "--leave-output-tensor leaves nothing: "),
        ("-t Q8_0 --pure --output-tensor-type Q6_K", "--output-tensor-type decides no tensor: "),
        (
            "-t Q8_0 --output-tensor-type Q6_K --token-embedding-type Q4_K",
            "--output-tensor-type decides no tensor: ",
        ),
    ] {
        let note =
            format!("note: {option}there is no output tensor, since the embedding is the output, too\n");
        assert!(said("tied.gguf", options).contains(&note), "{options}");
        assert!(!said("own.gguf", options).contains("there is no output tensor"), "{options}");
    }
    // the recipe's rules take the embedding for the output
    assert!(!said("tied.gguf", "-t Q8_0 --output-tensor-type Q6_K").contains("there is no output tensor"));
    assert_eq!(types(dir)["token_embd.weight"], "Q6_K");
}

#[test]
fn overridden_keys_come_last_with_the_references_types() {
    let dir = model();
    let overrides = ["general.name=str:Mine", "llama.block_count=int:2", "a.b=float:0.5", "c=bool:true"];
    let mut options = vec!["--type", "Q8_0"];
    overrides.iter().for_each(|o| options.extend(["--override-kv", o]));
    quantize(dir.path(), &options);
    let file = Gguf::open(&dir.path().join("o.gguf")).unwrap();
    let last: Vec<(&str, &Value)> = file.metadata().iter().map(|(k, v)| (k.as_str(), v)).skip(8).collect();
    let expected = [
        ("general.quantization_version", &Value::U32(2)),
        ("general.file_type", &Value::U32(7)),
        ("general.name", &Value::from("Mine")),
        ("llama.block_count", &Value::U32(2)),
        ("a.b", &Value::F32(0.5)),
        ("c", &Value::Bool(true)),
    ];
    assert_eq!(last, expected);
}

#[test]
fn a_split_model_holds_the_same_tensors_and_reads_back() {
    let dir = model();
    let dir = dir.path();
    let whole = quantize(dir, &["--type", "Q8_0"]);
    let split = quantize(dir, &["--type", "Q8_0", "--split-max-size", "400k"]);
    let n_files = split["files"].as_array().unwrap().len();
    assert!(n_files > 1);
    assert_eq!(whole["tensors"], split["tensors"]);
    let first = format!("o-00001-of-{n_files:05}.gguf");
    let (whole, split) = (Gguf::open(&dir.join("o.gguf")).unwrap(), Gguf::open(&dir.join(&first)).unwrap());
    assert_eq!(split.files().len(), n_files);
    for tensor in whole.tensors() {
        let other = split.find(&tensor.name).unwrap();
        assert_eq!(whole.bytes(tensor).unwrap(), split.bytes(other).unwrap(), "{}", tensor.name);
    }
    // a split model is a source like any other, and its split keys go
    let args = ["quantize", &first, "--type", "Q8_0", "-o", "again.gguf", "--quiet"];
    assert_eq!(run_lctl(dir, &args).0, 0);
    assert_eq!(std::fs::read(dir.join("again.gguf")).unwrap(), std::fs::read(dir.join("o.gguf")).unwrap());
    // none of its files is ever the output
    let (status, _, stderr) = run_lctl(
        dir,
        &["quantize", &first, "--type", "Q8_0", "--split-max-size", "400k", "-o", "o.gguf", "--force"],
    );
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.contains("is the input itself"), "{stderr}");
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Model { d_ff: 480, ..Model::default() }.write(dir, "m.gguf");
    let (status, stdout, stderr) = run_lctl(dir, &["quantize", "m.gguf", "--type", "Q4_K_M", "--dry-run"]);
    assert_eq!(status, 0);
    assert_snapshot("quantize_dry_run.txt", &format!("{stdout}--- stderr\n{stderr}"));
    let (_, json, _) = run_lctl(dir, &["quantize", "m.gguf", "--type", "Q4_K_M", "--dry-run", "--json"]);
    let plan: Json = serde_json::from_str(&json).unwrap();
    assert_eq!((&plan["dry_run"], plan["files"].as_array().unwrap().len()), (&Json::Bool(true), 0));
    assert_eq!(names_in(dir), ["m.gguf"]);

    assert_eq!(run_lctl(dir, &["quantize", "m.gguf", "--type", "Q4_K_M", "-o", "o.gguf"]).0, 0);
    let written = Gguf::open(&dir.join("o.gguf")).unwrap();
    let planned = plan["tensors"].as_array().unwrap();
    assert_eq!(planned.len(), written.tensors().len());
    for (planned, written) in planned.iter().zip(written.tensors()) {
        assert_eq!(planned["name"], written.name);
        assert_eq!(planned["to"], written.dtype.name());
        assert_eq!(planned["bytes"], written.n_bytes);
    }
}

#[test]
fn the_report_says_what_was_lost() {
    let dir = model();
    let report = quantize(dir.path(), &["--type", "Q4_0"]);
    for tensor in report["tensors"].as_array().unwrap() {
        let rmse = tensor["relative_rmse"].as_f64().unwrap();
        // uniform rounding to 16 levels of a block's range: well under a fifth, well over a hundredth
        let expected = match tensor["to"].as_str().unwrap() {
            "F32" => 0.0..1e-12,
            "Q6_K" => 0.001..0.05,
            _ => 0.03..0.25,
        };
        assert!(expected.contains(&rmse), "{tensor}");
    }
    let bare = quantize(dir.path(), &["--type", "Q4_0", "--no-stats"]);
    assert_eq!(bare["files"][0]["sha256"], report["files"][0]["sha256"]);
    assert!(bare["tensors"].as_array().unwrap().iter().all(|t| t["relative_rmse"].is_null()));

    let (status, stdout, _) = run_lctl(dir.path(), &["quantize", "m.gguf", "--type", "Q4_0", "-o", "p.gguf"]);
    assert_eq!(status, 0);
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].starts_with("Q4_0: ") && lines[0].contains(" bits per weight, "), "{stdout}");
    assert_eq!((lines[1], lines.len()), ("worst tensors by relative RMSE:", 8), "{stdout}");
    let digest = report["files"][0]["sha256"].as_str().unwrap();
    assert_eq!(lines[7], format!("sha256 {digest}  p.gguf"));
}

#[test]
fn sources_are_reported_in_the_references_order() {
    let dir = model();
    let report = quantize(dir.path(), &["--type", "Q8_0"]);
    let names: Vec<&str> =
        report["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(
        names[..5],
        [
            "output.weight",
            "output_norm.weight",
            "token_embd.weight",
            "blk.0.attn_k.weight",
            "blk.0.attn_norm.weight"
        ]
    );
}
