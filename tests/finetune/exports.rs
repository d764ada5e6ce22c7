//! What a run leaves behind computes what the trainer computed.

use std::path::{Path, PathBuf};

use lctl::kernel::{ComputeMode, Isa};
use lctl::model::export::{self, Changes, Stored};
use lctl::model::train::{Document, LowRankSpec, Method, Parameters, TargetModules, Trainable};
use lctl::model::{Decoder, LoadOptions, Segment, Wanted};
use lctl::tensor::gguf::Gguf;
use lctl::tensor::safetensors::SafeTensors;
use lctl::tensor::{StagedDir, TensorInfo, TensorSource};
use serde_json::json;

use super::{Setup, events};
use crate::common::{names_in, run_lctl};

fn options(adapter: Option<PathBuf>) -> LoadOptions {
    LoadOptions { adapter, ..LoadOptions::new(ComputeMode::F32, 2) }
}

/// Returns the logits of every position.
fn logits(model: &Decoder, tokens: &[u32]) -> Vec<f32> {
    let mut cache = model.new_cache(64 << 20);
    let sequence = cache.create();
    let segment = Segment { sequence, tokens, wanted: Wanted::All };
    let hidden = model.forward(&mut cache, &[segment]).unwrap();
    let logits = model.logits(&hidden).unwrap();
    lctl::nn::with_values(&logits, <[f32]>::to_vec).unwrap()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

/// Writes a golden model's weights as F32, so that merging rounds nothing.
fn in_f32(name: &str, into: &Path) -> PathBuf {
    let golden = crate::common::root().join("tests/golden/decoder").join(name);
    let source = SafeTensors::open_dir(&golden).unwrap();
    let values = |info: &TensorInfo| {
        let mut values = vec![0.0; info.n_elements()];
        info.dtype.decode(Isa::detect(), source.bytes(info).unwrap(), &mut values);
        values
    };
    let tensors: Vec<(&TensorInfo, Vec<f32>)> =
        source.tensors().iter().map(|info| (info, values(info))).collect();
    let dir = into.join(name);
    let staged = StagedDir::create(&dir).unwrap();
    let each = tensors.iter().map(|(info, values)| (info.name.as_str(), &info.shape[..], &values[..]));
    staged.write_tensors("model.safetensors", each).unwrap();
    staged.write("config.json", &std::fs::read(golden.join("config.json")).unwrap()).unwrap();
    staged.commit().unwrap();
    dir
}

/// Returns a trainer of a golden model, parameters that change something, and the model's directory.
fn trained(name: &str, spec: &LowRankSpec, into: &Path) -> (PathBuf, Trainable, Parameters) {
    let base = in_f32(name, into);
    let decoder = Decoder::open(&base, &options(None)).unwrap();
    let model = Trainable::new(decoder, &Method::LowRank(spec.clone())).unwrap();
    let mut params = model.initial_parameters(3);
    for (i, value) in params.iter_mut().enumerate() {
        *value += ((i * 37 % 101) as f32 / 50.0 - 1.0) * 0.02;
    }
    (base, model, params)
}

#[test]
fn adapters_and_merged_models_compute_what_the_trainer_computes() {
    let tmp = tempfile::tempdir().unwrap();
    let tokens: Vec<u32> = (0..20).map(|i| 3 + i * 7 % 40).collect();
    for (name, rslora, use_dora) in [
        ("llama", false, false),
        ("qwen3", true, false),
        ("phi3", false, false),
        ("mixtral", false, false),
        ("phi3", false, true),
    ] {
        let spec = LowRankSpec { use_rslora: rslora, use_dora, ..LowRankSpec::new(4) };
        let (base, model, params) = trained(name, &spec, tmp.path());
        let path = |end: &str| tmp.path().join(format!("{name}{end}"));
        export::write_peft(&path("-peft"), name, &spec, model.parameters(), &params).unwrap();
        let own = logits(&model.adapted(&params).unwrap(), &tokens);
        let plain = logits(model.decoder(), &tokens);
        assert!(difference(&own, &plain) > 0.01, "{name}: the adapter changes nothing");
        let with_peft = Decoder::open(&base, &options(Some(path("-peft")))).unwrap();
        assert!(logits(&with_peft, &tokens) == own, "{name}: the PEFT directory");
        let config = model.decoder().config();
        if use_dora {
            let error =
                export::write_gguf_adapter(&path(".gguf"), config, &spec, model.parameters(), &params);
            assert!(error.unwrap_err().to_string().contains("lora_magnitude_vector"));
        } else {
            export::write_gguf_adapter(&path(".gguf"), config, &spec, model.parameters(), &params).unwrap();
            let with_gguf = Decoder::open(&base, &options(Some(path(".gguf")))).unwrap();
            let off = difference(&logits(&with_gguf, &tokens), &own);
            assert!(off <= 1e-5, "{name}: the GGUF adapter, {off}");
        }
        let changes = Changes::open(&path("-peft"), Isa::detect()).unwrap();
        export::write_merged(&path("-merged"), &base, &changes, Stored::Own, Isa::detect()).unwrap();
        let merged = Decoder::open(&path("-merged"), &options(None)).unwrap();
        let off = difference(&logits(&merged, &tokens), &own);
        assert!(off <= 1e-4, "{name}: merged, {off}");
        // the trainer's own log-probabilities
        let is_target = vec![true; tokens.len()];
        let document = Document { tokens: &tokens, is_target: &is_target };
        let of_trainer = model.log_probs(Some(&params), &[document]).unwrap().concat();
        let vocabulary = own.len() / tokens.len();
        for (i, log_prob) in of_trainer.iter().enumerate() {
            let row = &own[i * vocabulary..][..vocabulary];
            let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            let expected = f64::from(row[tokens[i + 1] as usize]) - sum.ln();
            assert!((f64::from(*log_prob) - expected).abs() <= 1e-4, "{name}, {i}: {log_prob} {expected}");
        }
        // as parameters they are read back to the bit
        let read = model.read_parameters(&path("-peft/adapter_model.safetensors")).unwrap();
        assert!(read == params);
    }
}

#[test]
fn modules_saved_whole_are_read_back_and_merged() {
    let tmp = tempfile::tempdir().unwrap();
    let tokens: Vec<u32> = (0..12).map(|i| 5 + i * 3).collect();
    for (name, saved) in [
        ("qwen2", vec!["lm_head", "q_proj", "norm"]),
        ("phi3", vec!["qkv_proj", "embed_tokens"]),
        ("llama3-scaled-tied", vec!["lm_head", "embed_tokens"]),
        ("llama3-scaled-tied", vec!["embed_tokens"]),
        ("mixtral", vec!["gate", "layers.0.block_sparse_moe.experts.2.w1"]),
    ] {
        let modules_to_save: Vec<String> = saved.iter().map(|&name| name.to_owned()).collect();
        let target_modules = TargetModules::Names(vec!["o_proj".to_owned()]);
        let spec = LowRankSpec { modules_to_save, target_modules, use_dora: true, ..LowRankSpec::new(2) };
        let (base, model, params) = trained(name, &spec, tmp.path());
        let dir = tmp.path().join("adapter");
        export::write_peft(&dir, name, &spec, model.parameters(), &params).unwrap();
        let own = logits(&model.adapted(&params).unwrap(), &tokens);
        let read = Decoder::open(&base, &options(Some(dir.clone()))).unwrap();
        assert!(logits(&read, &tokens) == own, "{name} {saved:?}");
        let changes = Changes::open(&dir, Isa::detect()).unwrap();
        let out = tmp.path().join("merged");
        export::write_merged(&out, &base, &changes, Stored::Own, Isa::detect()).unwrap();
        let off = difference(&logits(&Decoder::open(&out, &options(None)).unwrap(), &tokens), &own);
        assert!(off <= 1e-4, "{name} {saved:?}: merged, {off}");
    }
}

/// Names and shapes suffice: nothing has to be trained to know.
#[test]
fn what_cannot_be_merged_is_told_before_the_first_step() {
    let tmp = tempfile::tempdir().unwrap();
    let saved = |name: &str| {
        let modules_to_save = vec![name.to_owned()];
        let target_modules = TargetModules::Names(vec!["o_proj".to_owned()]);
        LowRankSpec { modules_to_save, target_modules, ..LowRankSpec::new(2) }
    };
    for (name, module, is_right) in [
        ("gemma2", "embed_tokens", false),
        ("gemma2", "q_proj", true),
        ("llama3-scaled-tied", "embed_tokens", true),
    ] {
        let spec = saved(module);
        let (base, model, _) = trained(name, &spec, tmp.path());
        match export::check_merge(&base, Some(&spec), model.parameters()) {
            Ok(()) => assert!(is_right, "{name} {module}"),
            Err(error) => {
                assert!(!is_right && error.to_string().contains("no output apart"), "{name}: {error}")
            }
        }
    }
    let (other, ..) = trained("phi3", &LowRankSpec::new(2), tmp.path());
    let spec = LowRankSpec::new(2);
    let (_, model, _) = trained("llama", &spec, tmp.path());
    let error = export::check_merge(&other, Some(&spec), model.parameters()).unwrap_err();
    assert!(error.to_string().contains("fits no tensor"), "{error}");
    // by a run: a type that config.json names and nothing is written in
    let setup = Setup::new(&json!({"model": {"init": "random"}, "export": ["merged-safetensors"]}));
    std::fs::remove_file(setup.path("base/model.safetensors")).unwrap();
    for (name, key, value) in [
        ("recipe.yaml", "adapter", json!({"type": "none"})),
        ("base/config.json", "torch_dtype", json!("float64")),
        ("base/config.json", "dtype", json!("float64")),
    ] {
        let text = std::fs::read_to_string(setup.path(name)).unwrap();
        let mut edited: serde_json::Value = serde_json::from_str(&text).unwrap();
        edited[key] = value;
        std::fs::write(setup.path(name), edited.to_string()).unwrap();
    }
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "run"]);
    assert!(code == 2 && stderr.contains("float64") && !setup.path("run").exists(), "{stderr}");
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let spec = LowRankSpec::new(2);
    let (_, model, params) = trained("llama", &spec, tmp.path());
    let dir = tmp.path().join("adapter");
    export::write_peft(&dir, "llama", &spec, model.parameters(), &params).unwrap();
    let changes = Changes::open(&dir, Isa::detect()).unwrap();
    let other = in_f32("phi3", tmp.path());
    let error = export::write_merged(&tmp.path().join("x"), &other, &changes, Stored::Own, Isa::detect())
        .unwrap_err();
    assert!(error.to_string().contains("fits no tensor"), "{error}");
    let error =
        export::write_merged_gguf(&tmp.path().join("x"), &other, &changes, Stored::Own, Isa::detect());
    assert!(error.unwrap_err().to_string().contains("is no GGUF"));
    assert_eq!(names_in(tmp.path()), ["adapter", "llama", "phi3"]);
}

/// A base in blocks: what changes is encoded anew, everything else is the same to the byte.
#[test]
fn a_gguf_in_blocks_is_a_base_of_runs_and_merges() {
    let setup = Setup::new(&json!({
        "model": {"path": "base.gguf"},
        "adapter": {"target_modules": ["q_proj", "up_proj"]},
        "train": {"max_steps": 4},
        "export": ["peft", {"merged-gguf": "q8_0"}],
    }));
    let dir = setup.dir.path();
    let (code, _, stderr) = run_lctl(dir, &["quantize", "base", "-t", "q4_0", "-o", "base.gguf"]);
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "run"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(names_in(&setup.path("run/result")), ["adapter", "model-q8_0.gguf"]);
    let adapter = setup.path("run/result/adapter");
    let merge = |args: &[&str]| {
        let (code, _, stderr) =
            run_lctl(dir, &[&["merge", "base.gguf", "run/result/adapter"], args].concat());
        assert_eq!(code, 0, "{stderr}");
    };
    merge(&["-o", "own.gguf"]);
    merge(&["-o", "q8.gguf", "--type", "q8_0"]);
    merge(&["-o", "f32.gguf", "--type", "f32"]);
    let bytes = |name: &str| std::fs::read(setup.path(name)).unwrap();
    assert!(bytes("q8.gguf") == bytes("run/result/model-q8_0.gguf"));
    let [base, own] = ["base.gguf", "own.gguf"].map(|name| Gguf::open(&setup.path(name)).unwrap());
    assert_eq!(base.metadata(), own.metadata());
    for (a, b) in base.tensors().iter().zip(own.tensors()) {
        assert_eq!((&a.name, &a.shape, a.dtype.name()), (&b.name, &b.shape, b.dtype.name()));
        let is_changed = a.name.ends_with("attn_q.weight") || a.name.ends_with("ffn_up.weight");
        assert_eq!(base.bytes(a).unwrap() != own.bytes(b).unwrap(), is_changed, "{}", a.name);
    }
    let tokens: Vec<u32> = (0..12).map(|i| 5 + i * 3).collect();
    let of =
        |name: &str, adapter| logits(&Decoder::open(&setup.path(name), &options(adapter)).unwrap(), &tokens);
    let beside = of("base.gguf", Some(adapter));
    let off = difference(&of("f32.gguf", None), &beside);
    assert!(off <= 1e-4, "merged in F32: {off}");
    // rounded to 4 and 8 bits it is near
    let scale = difference(&of("base.gguf", None), &beside);
    assert!(difference(&of("q8.gguf", None), &beside) < 0.5 * scale, "{scale}");
    let (code, _, stderr) = setup.run(&["--quiet", "--out", "b", "--set", "export=[merged-safetensors]"]);
    assert!(code == 2 && stderr.contains("a GGUF") && !setup.path("b").exists(), "{stderr}");
    let (code, _, stderr) = run_lctl(dir, &["merge", "base.gguf", "run/result/adapter", "-o", "own.gguf"]);
    assert!(code == 2 && stderr.contains("exists already"), "{stderr}");
}

#[test]
fn a_run_exports_every_form_with_a_manifest_and_a_report() {
    let setup = Setup::new(&json!({
        "train": {"max_steps": 4},
        "export": ["peft", "gguf-lora", "merged-safetensors", {"merged-gguf": "q8_0"}],
    }));
    let (code, stdout, stderr) = setup.run(&["--out", "run"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.contains("finished after 4 of 4 steps") && stderr.contains("step 4/4: loss "),
        "{stdout}{stderr}"
    );
    let result = setup.path("run/result");
    assert_eq!(names_in(&result), ["adapter", "adapter.gguf", "merged", "model-q8_0.gguf"]);
    assert_eq!(names_in(&result.join("adapter")), ["adapter_config.json", "adapter_model.safetensors"]);
    assert!(names_in(&result.join("merged")).contains(&"tokenizer.json".to_owned()));
    let html = std::fs::read_to_string(setup.path("run/report.html")).unwrap();
    assert!(html.contains("rows.jsonl") && html.matches("<svg").count() == 3);
    assert_eq!(events(&setup.path("run")).len(), 4 + 2);
    let manifest = std::fs::read_to_string(setup.path("run/result.manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(
        (manifest["job"]["command"].as_str(), manifest["outputs"].as_array().unwrap().len()),
        (Some("finetune"), 4)
    );
    // merging by hand gives the same bytes
    let dir = setup.dir.path();
    let (code, _, stderr) = run_lctl(dir, &["merge", "base", "run/result/adapter", "-o", "by-hand"]);
    assert_eq!(code, 0, "{stderr}");
    let weights = |dir: &str| std::fs::read(setup.path(dir).join("model.safetensors")).unwrap();
    assert!(weights("by-hand") == weights("run/result/merged"));
    let (code, _, stderr) =
        run_lctl(dir, &["merge", "base", "run/result/adapter", "-o", "m.gguf", "-t", "q8_0"]);
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) =
        run_lctl(dir, &["merge", "base", "run/result/adapter", "-o", "m.gguf", "-t", "q8_0"]);
    assert!(code == 2 && stderr.contains("exists already"), "{stderr}");
    let (code, _, stderr) = run_lctl(dir, &["replay", "run/result.manifest.json", "--check"]);
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn all_weights_are_trained_from_the_model_and_from_nothing() {
    for init in ["weights", "random"] {
        let setup = Setup::new(&json!({
            "model": {"init": init},
            "train": {"max_steps": 3, "lr": 0.001},
            "export": ["merged-safetensors"],
        }));
        let recipe = setup.path("recipe.yaml");
        let text = std::fs::read_to_string(&recipe).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["adapter"] = json!({"type": "none"});
        std::fs::write(&recipe, value.to_string()).unwrap();
        if init == "random" {
            std::fs::remove_file(setup.path("base/model.safetensors")).unwrap();
        }
        let (code, _, stderr) = setup.run(&["--quiet", "--out", "run"]);
        assert_eq!(code, 0, "{init}: {stderr}");
        Decoder::open(&setup.path("run/result/merged"), &options(None)).unwrap();
    }
}
