//! Adapters against PEFT, goldens of tests/scripts/make_adapter_goldens.py; and those that don't fit.

use std::path::{Path, PathBuf};

use lctl::error::Diagnostic;
use lctl::kernel::ComputeMode;
use lctl::model::export::{self, Changes, Stored};
use lctl::model::{Decoder, Error, LoadOptions};
use lctl::tensor::format::by_name;
use lctl::tensor::safetensors::{SafeTensors, SafeTensorsWriter};
use lctl::tensor::{TensorDecl, TensorSource};
use serde_json::{Value, json};

use super::{Golden, TOLERANCE, all_logits, difference, golden_dir, open, options, write_gguf};

/// Pairs, scaled by rank or patterns, DoRA on biases, modules saved whole, fused and tied ones, embeddings.
pub(super) const ADAPTERS: [&str; 9] = [
    "llama",
    "llama-patterns",
    "qwen3-rslora",
    "phi3",
    "qwen2-dora",
    "tied-saved",
    "gemma2-saved",
    "llama-vocabulary",
    "gemma2-embedding",
];

pub(super) fn adapter_dir() -> PathBuf {
    crate::common::root().join("tests/golden/adapter")
}

fn open_with(model: &Path, adapter: &Path) -> Result<Decoder, Error> {
    let adapter = Some(adapter.to_path_buf());
    Decoder::open(model, &LoadOptions { adapter, ..options(ComputeMode::F32, 1) })
}

/// Returns the base model's name and PEFT's logits.
pub(super) fn golden(name: &str) -> (String, Vec<f32>) {
    let file = SafeTensors::open_file(&adapter_dir().join(format!("{name}.safetensors"))).unwrap();
    let bytes = file.bytes(file.find("logits").unwrap()).unwrap();
    let logits = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (file.metadata(0)["base"].clone(), logits)
}

#[test]
fn adapters_compute_what_peft_computes() {
    let tmp = tempfile::tempdir().unwrap();
    for name in ADAPTERS {
        let (base, expected) = golden(name);
        let tokens = Golden::read(&base).tokens;
        let dir = golden_dir().join(&base);
        let plain = all_logits(&open(&dir), &tokens);
        assert!(difference(&plain, &expected) > 0.05, "{name}: the adapter changes nothing");
        let gguf = tmp.path().join(format!("{base}.gguf"));
        write_gguf(&dir, by_name("F32").unwrap(), &gguf);
        let mut adapters = vec![adapter_dir().join(name)];
        adapters.extend(Some(adapter_dir().join(format!("{name}.gguf"))).filter(|path| path.is_file()));
        let adapted = all_logits(&open_with(&dir, &adapters[0]).unwrap(), &tokens);
        let found = difference(&adapted, &expected);
        println!("{name}: {found:.1e}, {} forms", adapters.len());
        assert!(found <= TOLERANCE, "{name}: {found}");
        for adapter in &adapters {
            for model in [&dir, &gguf] {
                let same = all_logits(&open_with(model, adapter).unwrap(), &tokens);
                assert!(same == adapted, "{} on {}", adapter.display(), model.display());
            }
        }
    }
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let on = |base: &str, adapter: &str| {
        let error = open_with(&golden_dir().join(base), &adapter_dir().join(adapter)).err();
        let error = error.unwrap_or_else(|| panic!("{adapter} on {base}"));
        assert!(error.hint().is_some(), "{error}");
        error
    };
    assert!(matches!(on("phi3", "llama"), Error::AdapterTarget { .. }));
    assert!(matches!(on("mixtral", "llama"), Error::AdapterTarget { .. }));
    assert!(matches!(on("phi3", "llama.gguf"), Error::AdapterArch { .. }));
    assert!(matches!(on("mistral-nemo", "llama.gguf"), Error::AdapterShape { .. }));
    let error = on("mistral-nemo", "llama").to_string();
    assert!(error.contains("has shape [16, 4], but") && error.ends_with("imply [32, 4]"), "{error}");
    // a model is no adapter
    assert!(matches!(on("llama", "../decoder/llama/model.safetensors"), Error::MissingKey { .. }));
}

#[test]
fn settings_that_are_not_applied_are_refused_by_name() {
    let from = adapter_dir().join("llama");
    let text = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let original: Value = serde_json::from_str(&text).unwrap();
    let changes = [
        ("ensure_weight_tying", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("peft_type", json!("IA3")),
        ("r", json!(0)),
        ("r", json!("four")),
        ("lora_alpha", Value::Null),
        ("rank_pattern", json!({"(": 2})),
    ];
    for (key, value) in changes {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::copy(from.join("adapter_model.safetensors"), tmp.path().join("adapter_model.safetensors"))
            .unwrap();
        let mut config = original.clone();
        config[key] = value.clone();
        std::fs::write(tmp.path().join("adapter_config.json"), config.to_string()).unwrap();
        let error = open_with(&golden_dir().join("llama"), tmp.path()).err();
        let error = error.unwrap_or_else(|| panic!("{key} = {value}"));
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
    }
    // pairs without magnitudes, and the reverse
    for (name, base, use_dora, said) in [
        ("llama", "llama", true, "`lora_magnitude_vector`"),
        ("gemma2-embedding", "gemma2", true, "`lora_magnitude_vector`"),
        ("qwen2-dora", "qwen2", false, "`use_dora` is false"),
    ] {
        let tmp = tempfile::tempdir().unwrap();
        let from = adapter_dir().join(name);
        std::fs::copy(from.join("adapter_model.safetensors"), tmp.path().join("adapter_model.safetensors"))
            .unwrap();
        let text = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["use_dora"] = json!(use_dora);
        std::fs::write(tmp.path().join("adapter_config.json"), config.to_string()).unwrap();
        let error = open_with(&golden_dir().join(base), tmp.path()).err().unwrap();
        assert!(error.to_string().contains(said), "{error}");
    }
    // the rank in the config is not that of the tensors
    let tmp = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("adapter_model.safetensors"), tmp.path().join("adapter_model.safetensors"))
        .unwrap();
    let mut config = original;
    config["r"] = json!(5);
    std::fs::write(tmp.path().join("adapter_config.json"), config.to_string()).unwrap();
    let error = open_with(&golden_dir().join("llama"), tmp.path()).err().unwrap();
    assert!(matches!(error, Error::AdapterShape { .. }), "{error}");
}

/// PEFT passes over tensors that the settings leave out: a merge, too, would be of another adapter than its file holds.
#[test]
fn an_adapter_is_refused_whose_settings_leave_out_its_tensors() {
    let tmp = tempfile::tempdir().unwrap();
    let open = |name: &str, key: &str, value: &Value| {
        let from = adapter_dir().join(name);
        let text = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config[key] = value.clone();
        std::fs::copy(from.join("adapter_model.safetensors"), tmp.path().join("adapter_model.safetensors"))
            .unwrap();
        std::fs::write(tmp.path().join("adapter_config.json"), config.to_string()).unwrap();
        let merged = Changes::open(tmp.path(), lctl::kernel::Isa::detect());
        let opened = open_with(&golden_dir().join(golden(name).0), tmp.path());
        // eval and generate say the same
        let merged = merged.err().map(|error| error.to_string());
        let opened = opened.err().map(|error| error.to_string());
        assert_eq!(merged, opened, "{name} {key} {value}");
        opened
    };
    for (name, key, value, tensor) in [
        ("llama", "layers_to_transform", json!([0]), "layers.1."),
        ("llama", "layers_to_transform", json!(0), "layers.1."),
        ("llama", "target_modules", json!(["q_proj"]), "lm_head.lora_A.weight"),
        ("qwen3-rslora", "target_modules", json!(["q_proj"]), "layers.0.self_attn.v_proj.lora_A.weight"),
        ("qwen3-rslora", "target_modules", json!("q_proj"), "layers.0.self_attn.q_proj.lora_A.weight"),
        ("llama", "target_modules", json!("all-linear"), "lm_head.lora_A.weight"),
        ("qwen3-rslora", "exclude_modules", json!(["v_proj"]), "layers.0.self_attn.v_proj.lora_A.weight"),
        ("qwen3-rslora", "modules_to_save", json!(["q_proj"]), "layers.0.self_attn.q_proj.lora_A.weight"),
    ] {
        let error = open(name, key, &value).unwrap_or_else(|| panic!("{name} {key} {value}"));
        let said = format!("is left out by the adapter_config.json beside it: its `{key}` is {value}");
        assert!(error.contains(tensor) && error.ends_with(&said), "{error}");
    }
    // nothing of what was to be saved whole
    let error = open("llama-patterns", "modules_to_save", &json!(["lm_head"])).unwrap();
    assert!(error.contains("holds nothing of `lm_head`, which `modules_to_save`"), "{error}");
    // as PEFT writes it
    for (name, key, value) in [
        ("llama", "layers_to_transform", json!([0, 1])),
        ("llama", "target_modules", json!(r"(.*\.(q|k|v|o|gate|up|down)_proj)|lm_head")),
        ("phi3", "target_modules", json!("all-linear")),
        ("qwen3-rslora", "target_modules", json!(["v_proj", "q_proj", "o_proj"])),
        ("qwen3-rslora", "target_modules", Value::Null),
        ("qwen3-rslora", "exclude_modules", json!([])),
        ("tied-saved", "modules_to_save", json!(["gate_proj", "lm_head"])),
        // one list for several architectures
        ("tied-saved", "modules_to_save", json!(["score", "gate_proj", "lm_head"])),
        // saved because the vocabulary grew, and not named
        ("tied-saved", "modules_to_save", json!(["gate_proj"])),
    ] {
        assert_eq!(open(name, key, &value), None, "{name} {key} {value}");
    }
}

/// PEFT takes such a pair out of the base as training begins; beside another base it computes something else.
#[test]
fn pairs_that_began_as_part_of_the_base_are_refused() {
    let from = adapter_dir().join("llama");
    let text = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let tmp = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("adapter_model.safetensors"), tmp.path().join("adapter_model.safetensors"))
        .unwrap();
    for (value, is_known) in [
        (json!("pissa"), false),
        (json!("pissa_niter_16"), false),
        (json!("olora"), false),
        (json!("corda"), false),
        (json!("loftq"), false),
        (json!("lora_ga"), false),
        (json!(1), false),
        (json!(true), true),
        (json!(false), true),
        (Value::Null, true),
        (json!("gaussian"), true),
        (json!("eva"), true),
        (json!("orthogonal"), true),
    ] {
        config["init_lora_weights"] = value.clone();
        std::fs::write(tmp.path().join("adapter_config.json"), config.to_string()).unwrap();
        let opened = open_with(&golden_dir().join("llama"), tmp.path());
        assert_eq!(opened.is_ok(), is_known, "{value}");
        let merged = Changes::open(tmp.path(), lctl::kernel::Isa::detect());
        assert_eq!(merged.is_ok(), is_known, "{value}");
        if let Err(error) = opened {
            assert!(matches!(error, Error::AdapterInit { .. }), "{error}");
            assert!(error.to_string().contains(&format!("`init_lora_weights` is {value}:")), "{error}");
            assert!(error.hint().unwrap().contains("path_initial_model_for_weight_conversion"));
        }
    }
    config.as_object_mut().unwrap().remove("init_lora_weights");
    std::fs::write(tmp.path().join("adapter_config.json"), config.to_string()).unwrap();
    assert!(open_with(&golden_dir().join("llama"), tmp.path()).is_ok());
}

/// What is merged computes what is added beside it, in a checkpoint and in a GGUF.
#[test]
fn adapters_are_merged_into_checkpoints_and_ggufs() {
    let tmp = tempfile::tempdir().unwrap();
    let isa = lctl::kernel::Isa::detect();
    for name in
        ["llama", "llama-patterns", "qwen3-rslora", "phi3", "qwen2-dora", "tied-saved", "llama-vocabulary"]
    {
        let (base, expected) = golden(name);
        let tokens = Golden::read(&base).tokens;
        let dir = golden_dir().join(&base);
        let changes = Changes::open(&adapter_dir().join(name), isa).unwrap();
        let gguf = tmp.path().join(format!("{name}-base.gguf"));
        write_gguf(&dir, by_name("F32").unwrap(), &gguf);
        let merged = tmp.path().join(format!("{name}.gguf"));
        export::write_merged_gguf(&merged, &gguf, &changes, Stored::Own, isa).unwrap();
        let found = difference(&all_logits(&open(&merged), &tokens), &expected);
        assert!(found <= TOLERANCE, "{name}, GGUF: {found}");
        // the checkpoint is in BF16, to which the sum is rounded: what is merged in f32 and rounded then is the same
        let merged = tmp.path().join(name);
        export::write_merged(&merged, &dir, &changes, Stored::Own, isa).unwrap();
        let rounded = tmp.path().join(format!("{name}-bf16.gguf"));
        let bf16 = tmp.path().join(format!("{name}-bf16-base.gguf"));
        write_gguf(&dir, by_name("BF16").unwrap(), &bf16);
        export::write_merged_gguf(&rounded, &bf16, &changes, Stored::Own, isa).unwrap();
        let of_checkpoint = all_logits(&open(&merged), &tokens);
        assert!(of_checkpoint == all_logits(&open(&rounded), &tokens), "{name}: checkpoint and GGUF differ");
        let found = difference(&of_checkpoint, &expected);
        assert!(found < 0.1, "{name}, rounded to BF16: {found}");
    }
}

#[test]
fn a_tied_model_whose_output_is_trained_becomes_one_of_two_matrices() {
    let tmp = tempfile::tempdir().unwrap();
    let isa = lctl::kernel::Isa::detect();
    let changes = Changes::open(&adapter_dir().join("tied-saved"), isa).unwrap();
    let base = golden_dir().join("llama3-scaled-tied");
    let merged = tmp.path().join("merged");
    export::write_merged(&merged, &base, &changes, Stored::Own, isa).unwrap();
    let config: Value = serde_json::from_slice(&std::fs::read(merged.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], json!(false));
    let source = SafeTensors::open_dir(&merged).unwrap();
    let own = SafeTensors::open_dir(&base).unwrap();
    let bytes = |source: &SafeTensors, name: &str| source.bytes(source.find(name).unwrap()).unwrap().to_vec();
    let embedding = "model.embed_tokens.weight";
    assert!(own.find("lm_head.weight").is_none());
    assert!(bytes(&source, embedding) == bytes(&own, embedding));
    assert!(bytes(&source, "lm_head.weight") != bytes(&own, embedding));
    let gguf = tmp.path().join("base.gguf");
    write_gguf(&base, by_name("F32").unwrap(), &gguf);
    let out = tmp.path().join("merged.gguf");
    export::write_merged_gguf(&out, &gguf, &changes, Stored::Own, isa).unwrap();
    assert!(!open(&out).config().tied_embeddings && open(&gguf).config().tied_embeddings);
    // a Gemma has no tensor for it
    let gguf = tmp.path().join("gemma2.gguf");
    write_gguf(&golden_dir().join("gemma2"), by_name("F32").unwrap(), &gguf);
    for name in ["gemma2-saved", "gemma2-embedding"] {
        let changes = Changes::open(&adapter_dir().join(name), isa).unwrap();
        let (dir, file) = (tmp.path().join("g"), tmp.path().join("g.gguf"));
        let error = export::write_merged(&dir, &golden_dir().join("gemma2"), &changes, Stored::Own, isa);
        assert!(error.unwrap_err().to_string().contains("no output apart from its embedding"), "{name}");
        let error = export::write_merged_gguf(&file, &gguf, &changes, Stored::Own, isa);
        assert!(error.unwrap_err().to_string().contains("no output apart from its embedding"), "{name}");
        assert!(!dir.exists() && !file.exists());
    }
}

/// Multimodal checkpoints put the language model one level down; an adapter of such a one has its names.
#[test]
fn a_tied_model_under_other_names_is_not_merged_into_one_that_stays_tied() {
    let tmp = tempfile::tempdir().unwrap();
    let isa = lctl::kernel::Isa::detect();
    let renamed = |from: &Path, to: &Path, before: &str| {
        let file = SafeTensors::open_file(from).unwrap();
        let name = |name: &str| {
            let plain = name.strip_prefix(before).unwrap_or(name);
            format!("{}language_model.{plain}", &name[..name.len() - plain.len()])
        };
        let decl = |info: &lctl::tensor::TensorInfo| TensorDecl {
            name: name(&info.name),
            shape: info.shape.clone(),
            dtype: info.dtype,
        };
        let decls: Vec<TensorDecl> = file.tensors().iter().map(decl).collect();
        let mut writer = SafeTensorsWriter::create(to, [], &decls, true).unwrap();
        file.tensors().iter().for_each(|info| writer.write(file.bytes(info).unwrap()).unwrap());
        writer.finish().unwrap();
    };
    let (base, adapter) = (tmp.path().join("base"), tmp.path().join("adapter"));
    let from = (golden_dir().join("llama3-scaled-tied"), adapter_dir().join("tied-saved"));
    for (dir, from, config, weights, before) in [
        (&base, from.0, "config.json", "model.safetensors", ""),
        (&adapter, from.1, "adapter_config.json", "adapter_model.safetensors", "base_model.model."),
    ] {
        std::fs::create_dir(dir).unwrap();
        std::fs::copy(from.join(config), dir.join(config)).unwrap();
        renamed(&from.join(weights), &dir.join(weights), before);
    }
    let changes = Changes::open(&adapter, isa).unwrap();
    let out = tmp.path().join("merged");
    let error = export::write_merged(&out, &base, &changes, Stored::Own, isa).unwrap_err();
    assert!(error.to_string().contains("of which an adapter of `language_model.lm_head.weight` makes two"));
    assert!(error.hint().unwrap().contains("merge it into a GGUF of the base") && !out.exists(), "{error}");
    // as the hint says
    let gguf = tmp.path().join("base.gguf");
    write_gguf(&base, by_name("F32").unwrap(), &gguf);
    let out = tmp.path().join("merged.gguf");
    export::write_merged_gguf(&out, &gguf, &changes, Stored::Own, isa).unwrap();
    let (base, expected) = golden("tied-saved");
    let found = difference(&all_logits(&open(&out), &Golden::read(&base).tokens), &expected);
    assert!(found <= TOLERANCE, "{found}");
}

/// Pairs of an embedding, and what PEFT saves with them: half of one, of another vocabulary, for what has none.
#[test]
fn pairs_of_an_embedding_that_do_not_fit_are_refused() {
    let from = adapter_dir().join("llama-vocabulary");
    let file = SafeTensors::open_file(&from.join("adapter_model.safetensors")).unwrap();
    let tmp = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("adapter_config.json"), tmp.path().join("adapter_config.json")).unwrap();
    let prefix = "base_model.model.";
    // what becomes of a tensor's name and shape, if it stays
    type Changed = Option<(String, Option<Vec<usize>>)>;
    type Change<'a> = &'a dyn Fn(&str) -> Changed;
    let refused = |base: &str, change: Change<'_>| {
        let mut decls = Vec::new();
        let mut values = Vec::new();
        for info in file.tensors() {
            let plain = info.name.strip_prefix(prefix).unwrap();
            let Some((name, shape)) = change(plain) else { continue };
            let shape = shape.unwrap_or_else(|| info.shape.clone());
            let n_bytes = 2 * shape.iter().product::<usize>();
            decls.push(TensorDecl {
                name: format!("{prefix}{name}"),
                shape,
                dtype: by_name("BF16").unwrap(),
            });
            values.push(file.bytes(info).unwrap()[..n_bytes].to_vec());
        }
        let path = tmp.path().join("adapter_model.safetensors");
        let mut writer = SafeTensorsWriter::create(&path, [], &decls, true).unwrap();
        values.iter().for_each(|bytes| writer.write(bytes).unwrap());
        writer.finish().unwrap();
        let opened = open_with(&golden_dir().join(base), tmp.path()).err().map(|error| error.to_string());
        // a merge takes no more
        let isa = lctl::kernel::Isa::detect();
        let (base, out) = (golden_dir().join(base), tmp.path().join("merged"));
        let merge = |changes| export::write_merged(&out, &base, &changes, Stored::Own, isa).is_ok();
        assert_eq!(Changes::open(tmp.path(), isa).is_ok_and(merge), opened.is_none(), "{opened:?}");
        opened
    };
    let as_is = |name: &str| Some((name.to_owned(), None));
    assert_eq!(refused("llama", &as_is), None);
    let cases: [(&str, Change<'_>); 8] = [
        ("`model.embed_tokens` is missing: its `lora_B`", &|name| {
            as_is(name).filter(|_| !name.ends_with("lora_embedding_B"))
        }),
        ("`base_model.model.model.embed_tokens.lora_embedding_A` has shape [3, 8]", &|name| {
            Some((name.to_owned(), name.ends_with("lora_embedding_A").then(|| vec![3, 8])))
        }),
        ("`base_model.model.lm_head.base_layer.weight` has shape [8, 16]", &|name| {
            Some((name.to_owned(), (name == "lm_head.base_layer.weight").then(|| vec![8, 16])))
        }),
        // PEFT saves what lies beneath a pair under another name
        ("`base_model.model.lm_head.weight` lies beside a pair", &|name| {
            Some((name.replace(".base_layer", ""), None))
        }),
        // nothing lies beside it
        ("`base_model.model.lm_head.base_layer.weight`", &|name| {
            as_is(name).filter(|_| !name.starts_with("lm_head.lora"))
        }),
        // a linear layer's
        ("self_attn.q_proj.lora_embedding_A`", &|name| {
            let halves = name.strip_suffix(".weight").filter(|_| name.contains("q_proj.lora_"));
            let name = halves.map_or(name.to_owned(), |name| name.replace(".lora_", ".lora_embedding_"));
            Some((name, None))
        }),
        // of both kinds
        ("model.embed_tokens.lora_A.weight`", &|name| {
            let is_other = name.ends_with("q_proj.lora_A.weight") && name.contains("layers.0.");
            Some((if is_other { "model.embed_tokens.lora_A.weight" } else { name }.to_owned(), None))
                .filter(|_| is_other || !name.contains("q_proj"))
        }),
        ("model.embed_tokens.lora_A.weight`", &|name| {
            let is_half = name.contains("embed_tokens.lora_");
            let half = || format!("{}.weight", name.replace("lora_embedding_", "lora_"));
            Some((if is_half { half() } else { name.to_owned() }, None))
        }),
    ];
    for (said, change) in cases {
        let error = refused("llama", change).unwrap_or_else(|| panic!("{said}: it is taken"));
        assert!(error.contains(said), "{error}");
    }
}
