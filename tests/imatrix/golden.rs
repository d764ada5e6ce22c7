//! Against llama-imatrix (tests/scripts/imatrix_goldens.py): names, shapes, order, keys and counts are equal, sums as far as f32 goes.

use std::path::Path;

use lctl::quantize::Importance;
use lctl::tensor::gguf::Gguf;

use super::{golden_dir, succeed, tensors, workplace};
use crate::common::test_data;

/// Largest difference of two sums, by the greatest sum of their tensor. The reference adds squares up in f32, and computes
/// activations by other orders of f32 sums; 7e-7 was seen.
const TOLERANCE: f32 = 2e-6;

/// The same, over 10240 rows; 1.8e-5 was seen.
const TOLERANCE_OF_MANY: f32 = 3e-5;

/// The same, for Gemma: the reference takes its GELU from a table of F16. 1.6e-4 was seen.
const TOLERANCE_OF_GELU: f32 = 5e-4;

fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) -> f32 {
    assert_eq!(found.len(), expected.len(), "{name}");
    let scale = expected.iter().fold(0f32, |scale, value| scale.max(value.abs()));
    let mut most = 0f32;
    for (column, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs() / scale.max(f32::MIN_POSITIVE);
        assert!(difference <= tolerance, "{name}[{column}]: {found}, expected {expected}");
        most = most.max(difference);
    }
    most
}

/// Compares two files; returns the greatest difference.
fn assert_same(found: &Path, expected: &Path, tolerance: f32) -> f32 {
    let keys = |path| {
        let mut keys = Gguf::open(path).unwrap().metadata().clone();
        keys.shift_remove("imatrix.stats_schema");
        keys.shift_remove("imatrix.datasets");
        keys.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(keys(found), keys(expected));
    let (found, expected) = (tensors(found), tensors(expected));
    let heads = |all: &[(String, Vec<usize>, Vec<f32>)]| {
        all.iter().map(|(name, shape, _)| (name.clone(), shape.clone())).collect::<Vec<_>>()
    };
    assert_eq!(heads(&found), heads(&expected));
    let mut most = 0f32;
    let mut sums_of_squares: Option<&[f32]> = None;
    for ((name, _, found), (_, _, expected)) in found.iter().zip(&expected) {
        if name.ends_with(".counts") {
            assert_eq!(found, expected, "{name}");
        } else if name.ends_with(".in_sum") {
            // sums of either sign: the squares' sum times the rows bounds what was added up
            let scale = sums_of_squares.map_or(0.0, |squares| squares.iter().fold(0f32, |a, b| a.max(*b)));
            let pairs = found.iter().zip(expected);
            pairs.for_each(|(a, b)| {
                assert!((a - b).abs() <= 10.0 * tolerance * scale.max(1.0), "{name}: {a}, expected {b}");
            });
        } else {
            sums_of_squares = Some(expected);
            most = most.max(assert_close(name, found, expected, tolerance));
        }
    }
    most
}

#[test]
fn tiny_models_of_every_family_are_measured_as_by_the_reference() {
    for (golden, checkpoint, options) in [
        ("mistral.gguf", "Mistral-7B-v0.1", "--context 32 --chunks 4 --process-output"),
        ("mixtral.gguf", "Mixtral-8x7B-Instruct-v0.1", "--context 32 --chunks 4 --process-output"),
        ("phi3.gguf", "Phi-3-mini-4k-instruct", "--context 32 --chunks 4"),
        ("gemma2.gguf", "gemma-2-2b-it", "--context 32 --chunks 4 --process-output"),
        ("qwen3.gguf", "Qwen3-0.6B", "--context 32 --chunks 4"),
        ("qwen3moe.gguf", "qwen3moe", "--context 32 --chunks 4"),
        ("mistral-part.gguf", "Mistral-7B-v0.1", "--context 64 --from-chunk 2 --chunks 3 --parse-special"),
    ] {
        let dir = workplace(checkpoint);
        let dir = dir.path();
        // the reference reads the GGUF's tokenizer; the checkpoint's own, which is transformers', may cut a text otherwise
        succeed(dir, "quantize model -t F32 -o model.gguf --quiet --no-manifest");
        let args = "imatrix model.gguf text.txt -o found.gguf --compute f32 --quiet --no-manifest";
        succeed(dir, &format!("{args} {options}"));
        let golden = golden_dir().join("imatrix").join(golden);
        let tolerance = if checkpoint.starts_with("gemma") { TOLERANCE_OF_GELU } else { TOLERANCE };
        let most = assert_same(&dir.join("found.gguf"), &golden, tolerance);
        println!("{}: {most:e}", golden.display());
    }
}

#[test]
fn earlier_files_are_added_as_by_the_reference() {
    for (golden, checkpoint, earlier) in [
        ("mistral-added.gguf", "Mistral-7B-v0.1", "mistral.gguf"),
        ("mixtral-added.gguf", "Mixtral-8x7B-Instruct-v0.1", "mixtral.dat"),
    ] {
        let dir = workplace(checkpoint);
        let dir = dir.path();
        std::fs::copy(golden_dir().join("imatrix").join(earlier), dir.join(earlier)).unwrap();
        let args = "imatrix model text.txt -o found.gguf --compute f32 --quiet --context 32 --chunks 2";
        succeed(dir, &format!("{args} --in-file {earlier}"));
        let golden = golden_dir().join("imatrix").join(golden);
        assert_same(&dir.join("found.gguf"), &golden, TOLERANCE);
        let datasets = |path: &Path| Gguf::open(path).unwrap().metadata().get("imatrix.datasets").cloned();
        assert_eq!(datasets(&dir.join("found.gguf")), datasets(&golden));
    }
}

#[test]
fn legacy_files_are_those_of_the_reference() {
    for (golden, checkpoint) in
        [("mistral.dat", "Mistral-7B-v0.1"), ("mixtral.dat", "Mixtral-8x7B-Instruct-v0.1")]
    {
        let dir = workplace(checkpoint);
        let dir = dir.path();
        let args = "imatrix model text.txt -o found.dat --compute f32 --quiet --context 32 --chunks 4";
        succeed(dir, args);
        let golden = golden_dir().join("imatrix").join(golden);
        // what surrounds the values is equal to the byte
        let (found, expected) =
            (std::fs::read(dir.join("found.dat")).unwrap(), std::fs::read(&golden).unwrap());
        assert_eq!(found.len(), expected.len());
        assert_eq!(
            (&found[..4], &found[found.len() - 16..]),
            (&expected[..4], &expected[expected.len() - 16..])
        );
        let importance = |path: &Path| Importance::open(path).unwrap();
        let (found, expected) = (importance(&dir.join("found.dat")), importance(&golden));
        let names: Vec<&str> = found.names().collect();
        assert_eq!(names, expected.names().collect::<Vec<_>>());
        for name in names {
            let n_experts = if name.contains("_exps") { 4 } else { 1 };
            let columns = if name.contains("ffn_down") { 64 } else { 32 };
            let of = |importance: &Importance| {
                importance.weights(name, &[n_experts, 1, columns]).unwrap().unwrap().to_vec()
            };
            assert_close(name, &of(&found), &of(&expected), TOLERANCE);
        }
    }
}

/// Real models, over 10240 tokens each.
#[test]
fn real_models_are_measured_as_by_the_reference() {
    let Some(data) = test_data() else { return };
    let dir = tempfile::tempdir().unwrap();
    for (golden, model, text, options) in [
        ("stories260K.json", "stories260K-hf", "tinystories-197k.txt", ""),
        ("llama2xs.json", "llama2xs-hf", "tinystories-197k.txt", ""),
        ("sec-llama-21m.json", "sec-llama-21m", "wiki.test.raw", " --process-output"),
    ] {
        let (model, text) = (data.join("models").join(model), data.join("corpora").join(text));
        let args = format!(
            "imatrix {} {} -o {golden}.gguf --compute f32 --quiet --no-manifest --context 256 --chunks 40{options}",
            model.display(),
            text.display()
        );
        succeed(dir.path(), &args);
        let found = tensors(&dir.path().join(format!("{golden}.gguf")));
        let text = std::fs::read_to_string(golden_dir().join("imatrix").join(golden)).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = expected.as_object().unwrap();
        let found = found.iter().filter(|(name, ..)| name.ends_with(".in_sum2"));
        let found: Vec<_> =
            found.map(|(name, _, values)| (name.trim_end_matches(".in_sum2"), values)).collect();
        assert_eq!(found.len(), expected.len());
        let mut most = 0f32;
        for (name, values) in found {
            let numbers = |key: &str| {
                let all = expected[name][key].as_array().unwrap().iter();
                all.map(|number| number.as_f64().unwrap() as f32).collect::<Vec<_>>()
            };
            // a column in 31, and the sum of all
            let some: Vec<f32> = values.iter().copied().step_by(31).collect();
            most = most.max(assert_close(name, &some, &numbers("every_31st"), TOLERANCE_OF_MANY));
            let total: f64 = values.iter().map(|value| f64::from(*value)).sum();
            let expected_total = f64::from(numbers("total")[0]);
            assert!((total / expected_total - 1.0).abs() <= f64::from(TOLERANCE_OF_MANY), "{name}: {total}");
        }
        println!("{golden}: {most:e}");
    }
}
