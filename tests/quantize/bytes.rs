//! The promise: the same bytes for any number of threads and on every instruction set.

use lctl::kernel::Isa;
use lctl::quantize::recipe::RECIPES;

use super::model::Model;
use crate::common::run_lctl;

/// Returns the digest of the file and the statistics that the run reports.
fn digest(dir: &std::path::Path, model: &str, options: &[&str]) -> (String, String) {
    let mut args = vec!["quantize", model, "-o", "out.gguf", "--force", "--json", "--quiet"];
    args.extend(options);
    let (status, stdout, stderr) = run_lctl(dir, &args);
    assert_eq!(status, 0, "{options:?}: {stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    (report["files"][0]["sha256"].as_str().unwrap().to_owned(), report["tensors"].to_string())
}

fn check_every_recipe(model: &Model) {
    let dir = tempfile::tempdir().unwrap();
    model.write(dir.path(), "m.gguf");
    model.write_importance(dir.path(), "i.dat");
    for recipe in RECIPES {
        for importance in [&[][..], &["--imatrix", "i.dat"]] {
            if recipe.needs_importance && importance.is_empty() {
                continue;
            }
            let with = |threads: &'static str, isa: Isa| {
                let mut options = vec!["--type", recipe.name, "--threads", threads, "--isa", isa.name()];
                options.extend(importance);
                digest(dir.path(), "m.gguf", &options)
            };
            let expected = with("1", Isa::Portable);
            for (isa, threads) in Isa::available().zip(["2", "7", "3"]) {
                assert_eq!(with(threads, isa), expected, "{} {importance:?} {}", recipe.name, isa.name());
            }
            assert_eq!(with("7", Isa::detect()), expected, "{} {importance:?}, 7 threads", recipe.name);
        }
    }
}

#[test]
fn dense_models_quantize_the_same_everywhere() {
    check_every_recipe(&Model::default());
}

#[test]
fn mixtures_of_experts_quantize_the_same_everywhere() {
    check_every_recipe(&Model { n_experts: 3, n_layers: 1, d_ff: 256, dtype: "BF16", ..Model::default() });
}

#[test]
fn rows_that_fit_no_block_of_256_quantize_the_same_everywhere() {
    check_every_recipe(&Model { d_model: 96, d_ff: 160, dtype: "F32", tied: true, ..Model::default() });
}
