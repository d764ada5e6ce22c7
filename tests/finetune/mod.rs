//! Fine-tuning end to end: runs that are killed and go on, what they leave behind, input that is wrong.

mod bad;
#[cfg(feature = "cuda-host")]
mod cuda;
mod exports;
#[cfg(target_os = "linux")]
mod memory;
mod parallel;
mod promotion;
mod quantized;
mod resume;

use std::path::{Path, PathBuf};

use clap::Parser;
use lctl::tensor::StagedDir;
use serde_json::{Value, json};

use crate::common::{make_checkpoint, run_lctl};

/// A small model, data and a recipe in a folder.
pub struct Setup {
    pub dir: tempfile::TempDir,
}

/// Rows of words that the model can learn.
const WORDS: [&str; 12] =
    ["alert", "login", "host", "port", "user", "deny", "allow", "scan", "mail", "file", "hash", "rule"];

impl Setup {
    /// `recipe` is what differs from the usual one, by sections.
    pub fn new(recipe: &Value) -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        write_base(&base);
        let row = |i: usize| {
            let words: Vec<&str> =
                (0..3 + i * 7 % 11).map(|j| WORDS[(i * 5 + j * j) % WORDS.len()]).collect();
            json!({"prompt": format!("event {i}:"), "completion": format!(" {}", words.join(" "))})
        };
        let rows: Vec<String> = (0..24).map(|i| row(i).to_string()).collect();
        std::fs::write(dir.path().join("rows.jsonl"), rows.join("\n") + "\n").unwrap();
        std::fs::write(dir.path().join("general.txt"), "The rain fell on the hills all day. ".repeat(20))
            .unwrap();
        let mut whole = usual();
        merge(&mut whole, recipe);
        // JSON is YAML
        std::fs::write(dir.path().join("recipe.yaml"), whole.to_string()).unwrap();
        Setup { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `lctl finetune recipe.yaml` with further arguments.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        run_lctl(self.dir.path(), &[&["finetune", "recipe.yaml"], args].concat())
    }
}

/// Writes a Llama of two layers that knows nothing, in F32, with the tokenizer of tests/examples/make_checkpoint.rs.
fn write_base(dir: &Path) {
    write_base_of(dir, C, F);
}

/// The same of that width, and width of the feed-forward.
pub fn write_base_of(dir: &Path, d_model: usize, d_ff: usize) {
    let args = ["make", "--shape", "probe", "--dtype", "f32", "--out", dir.to_str().unwrap()];
    make_checkpoint::run(make_checkpoint::Args::parse_from(args)).unwrap();
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let sizes = [
        ("hidden_size", d_model),
        ("intermediate_size", d_ff),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
    ];
    for (key, size) in sizes.into_iter().chain([("num_hidden_layers", 2), ("vocab_size", V)]) {
        config[key] = json!(size);
    }
    config.as_object_mut().unwrap().remove("head_dim");
    std::fs::write(&path, config.to_string()).unwrap();
    let mut shapes = vec![("model.embed_tokens".to_owned(), vec![V, d_model])];
    for layer in 0..2 {
        for (name, shape) in [
            ("self_attn.q_proj", vec![d_model, d_model]),
            ("self_attn.k_proj", vec![d_model / 2, d_model]),
            ("self_attn.v_proj", vec![d_model / 2, d_model]),
            ("self_attn.o_proj", vec![d_model, d_model]),
            ("mlp.gate_proj", vec![d_ff, d_model]),
            ("mlp.up_proj", vec![d_ff, d_model]),
            ("mlp.down_proj", vec![d_model, d_ff]),
            ("input_layernorm", vec![d_model]),
            ("post_attention_layernorm", vec![d_model]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    shapes.extend([("model.norm".to_owned(), vec![d_model]), ("lm_head".to_owned(), vec![V, d_model])]);
    let mut state = 1u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.5
    };
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let n = shape.iter().product();
            // logits are small at first: all tokens are about as likely
            let by = if name == "lm_head" { 0.2 } else { 1.0 };
            let values = if shape.len() == 1 { vec![1.0; n] } else { (0..n).map(|_| by * draw()).collect() };
            (format!("{name}.weight"), shape, values)
        })
        .collect();
    let staged = StagedDir::create(&dir.with_file_name("weights")).unwrap();
    let each = tensors.iter().map(|(name, shape, values)| (name.as_str(), &shape[..], &values[..]));
    staged.write_tensors("model.safetensors", each).unwrap();
    std::fs::copy(staged.file("model.safetensors"), dir.join("model.safetensors")).unwrap();
}

/// Width, width of the feed-forward, tokens.
const C: usize = 64;
const F: usize = 128;
const V: usize = 288;

fn usual() -> Value {
    json!({
        "version": 1,
        "kind": "finetune",
        "model": {"path": "base", "compute": "f32"},
        "adapter": {"type": "lora", "r": 4, "alpha": 8, "dropout": 0.1, "target_modules": "all-linear"},
        "data": {
            "train": [{"path": "rows.jsonl"}],
            "val_fraction": 0.2,
            "max_seq_len": 128,
            "packing": "first_fit",
            "scan": {"near_duplicates": "off"},
        },
        "train": {
            "max_steps": 10, "micro_batch_size": 1, "grad_accum": 2, "lr": 0.01, "lr_schedule": "cosine",
            "warmup_steps": 2, "weight_decay": 0.01, "seed": 5,
        },
        "eval": {"every_steps": 3},
        "checkpoint": {"every_steps": 2, "keep": 3},
        "export": ["peft"],
        "log": ["jsonl", "csv", "tensorboard"],
    })
}

/// Puts values over those of the same path; null takes a key away.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                if value.is_null() {
                    into.remove(key);
                    continue;
                }
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// Returns the steps and validations in the log of a run, without times.
pub fn events(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let events = text.lines().map(|line| serde_json::from_str(line).unwrap());
    events
        .filter(|event: &Value| event["event"] != "run")
        .map(|mut event| {
            event.as_object_mut().unwrap().remove("seconds").unwrap();
            event
        })
        .collect()
}

pub fn adapter_bytes(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("result/adapter/adapter_model.safetensors")).unwrap()
}
