//! Dense bases that are quantized when they are read.

use std::path::Path;

use lctl::finetune::recipe::Recipe;
use lctl::finetune::run::{self, Largest};
use lctl::kernel::{ComputeMode, Isa};
use lctl::model::train::{BaseFormat, Checkpointing, LowRankSpec, Method, Trainable};
use lctl::model::{Decoder, LoadOptions, Residence};
use lctl::tensor::format::{BlockFormat, Nf4, by_name};
use lctl::tensor::safetensors::SafeTensors;
use lctl::tensor::{StagedDir, TensorSource};
use serde_json::{Value, json};

use super::{Setup, adapter_bytes, events};

/// Writes the base anew, linear layers as a format gives them back, into the folder `other`.
fn write_decoded(setup: &Setup, format: &dyn BlockFormat) {
    let (base, other) = (setup.path("base"), setup.path("other"));
    std::fs::create_dir(&other).unwrap();
    for file in std::fs::read_dir(&base).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), other.join(file.file_name())).unwrap();
    }
    let source = SafeTensors::open_file(&base.join("model.safetensors")).unwrap();
    let mut tensors = Vec::new();
    for info in source.tensors() {
        let mut values = vec![0.0; info.n_elements()];
        info.dtype.decode(Isa::Portable, source.bytes(info).unwrap(), &mut values);
        if info.name.contains("_proj") {
            let mut bytes = vec![0; values.len() / format.block_len() * format.block_bytes()];
            format.encode(Isa::Portable, &values, info.row_len(), None, &mut bytes);
            format.decode(Isa::Portable, &bytes, &mut values);
        }
        tensors.push((info.name.clone(), info.shape.clone(), values));
    }
    let staged = StagedDir::create(&setup.path("decoded")).unwrap();
    let each = tensors.iter().map(|(name, shape, values)| (name.as_str(), &shape[..], &values[..]));
    staged.write_tensors("model.safetensors", each).unwrap();
    std::fs::copy(staged.file("model.safetensors"), other.join("model.safetensors")).unwrap();
}

fn losses(run: &Path) -> Vec<Value> {
    events(run).iter().map(|event| event["loss"].clone()).collect()
}

#[test]
fn a_quantized_base_trains_to_the_bit_as_what_it_stands_for() {
    let q8_0 = by_name("Q8_0").unwrap();
    let mut all = Vec::new();
    for (name, format) in [("none", None), ("nf4", Some(&Nf4 as &dyn BlockFormat)), ("q8_0", Some(q8_0.0))] {
        let setup = Setup::new(&json!({"output": "run", "model": {"quantization": name}}));
        let (code, _, err) = setup.run(&["--quiet"]);
        assert_eq!(code, 0, "{err}");
        all.push(losses(&setup.path("run")));
        let Some(format) = format else { continue };
        write_decoded(&setup, format);
        let sets = ["--quiet", "--set", "model.quantization=none", "--set", "model.path=other"];
        let (code, _, err) = setup.run(&[&sets[..], &["--set", "output=again"]].concat());
        assert_eq!(code, 0, "{err}");
        assert_eq!(losses(&setup.path("run")), losses(&setup.path("again")), "{name}");
        assert!(adapter_bytes(&setup.path("run")) == adapter_bytes(&setup.path("again")), "{name}");
    }
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
}

#[test]
fn double_quantization_costs_little_and_saves_its_share() {
    let setup = Setup::new(&json!({"output": "run", "model": {"quantization": "nf4"}}));
    assert_eq!(setup.run(&["--quiet"]).0, 0);
    let sets = ["--quiet", "--set", "model.quantization=nf4_double", "--set", "output=double"];
    let (code, _, err) = setup.run(&sets);
    assert_eq!(code, 0, "{err}");
    let (single, double) = (losses(&setup.path("run")), losses(&setup.path("double")));
    assert_ne!(single, double);
    for (a, b) in single.iter().zip(&double) {
        let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
        // scales are off by some percent of their spread
        assert!((a - b).abs() < 0.02 * a, "{a} and {b}");
    }
    let bytes = |format| {
        let options = LoadOptions { residence: Residence::Mapped, ..LoadOptions::new(ComputeMode::Auto, 1) };
        let decoder = Decoder::open(&setup.path("base"), &options).unwrap();
        let method = Method::LowRank(LowRankSpec::new(4));
        Trainable::with_base(decoder, &method, format).unwrap().base_bytes()
    };
    // two layers of 2 x 64 x 64 + 2 x 32 x 64 + 3 x 128 x 64, and what stays dense
    let linear = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64);
    let dense = bytes(None) - 4 * linear;
    assert_eq!(bytes(Some(BaseFormat::Nf4)) - dense, linear * 9 / 16);
    // of each of 14 matrices a mean, and an absmax as they have fewer than 256 blocks
    assert_eq!(bytes(Some(BaseFormat::Nf4Double)) - dense, linear / 2 + linear / 64 + 14 * 8);
}

#[test]
fn what_cannot_be_quantized_is_named() {
    let setup = Setup::new(&json!({"output": "run"}));
    let refused = |sets: &[&str]| {
        let args: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let (code, _, err) = setup.run(&args);
        assert_eq!(code, 2, "{err}");
        err
    };
    let err = refused(&["model.quantization=q4_k"]);
    assert!(
        err.contains(
            "`model.layers.0.self_attn.q_proj`: row length 64 is not a multiple of 256 (block of `q4_k`)"
        ),
        "{err}"
    );
    assert!(err.contains("`q4_0`"), "{err}");
    let err = refused(&["model.quantization=nf5"]);
    assert!(err.contains("did you mean `nf4`?"), "{err}");
    let err = refused(&["model.quantization=nf4", "adapter={type: none}"]);
    assert!(err.contains("quantized weights cannot be trained"), "{err}");
    let path = setup.path("base/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let source = SafeTensors::open_file(&path).unwrap();
    let at = source.find("model.layers.1.mlp.up_proj.weight").unwrap().offset as usize + 4 * (5 * 64 + 7);
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let err = refused(&["model.quantization=nf4"]);
    assert!(err.contains("`model.layers.1.mlp.up_proj`: row 5, column 7: the weight is not finite"), "{err}");
}

/// By hand, of two layers of 64, two heads of 32, one for keys, and 128 within the feed-forward, in f32.
#[test]
fn the_estimate_counts_what_the_last_block_computes() {
    let setup = Setup::new(&json!({}));
    let recipe = Recipe::open(&setup.path("recipe.yaml"), &[], &[]).unwrap();
    let decoder = Decoder::open(&setup.path("base"), &LoadOptions::new(ComputeMode::F32, 1)).unwrap();
    let model = Trainable::new(decoder, &Method::LowRank(LowRankSpec::new(4))).unwrap();
    let bytes = |targets, checkpointing| {
        run::memory(&recipe, &model, Largest { tokens: 100, targets }, checkpointing, None)
    };
    // with few targets the block before the last works on most, when what the last one kept is gone: per token its input, q, k, v
    // and what attention gave, two log-sums; the other half's input and gates
    let last = 100 * (4 * (64 + 2 * 64 + 2 * 32) + 4 * 2) + 100 * 4 * (64 + 2 * 128);
    // logits, their gradient, and as many that were freed, of 90 more
    let logits = 90 * 3 * 4 * super::V as u64;
    let [all, few] = [100, 10].map(|targets| bytes(targets, Checkpointing::None));
    assert_eq!(all - few, last + logits);
    // one block at a time is kept: the largest counts
    let [all, few] = [100, 10].map(|targets| bytes(targets, Checkpointing::Blocks));
    assert_eq!(all - few, logits);
}
