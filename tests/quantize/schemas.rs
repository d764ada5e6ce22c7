//! Plans against the reference's own snapshots of real models: per recipe, the tensors that deviate.

use std::collections::BTreeMap;
use std::path::Path;

use lctl::quantize::plan::{Hyper, Input, Options, plan};
use lctl::quantize::recipe::{RECIPES, Recipe};
use lctl::tensor::{Dtype, format};

use crate::common::test_data;

/// What a plan needs to know of a dense decoder.
struct Shape {
    arch: &'static str,
    d_model: usize,
    d_ff: usize,
    vocab_size: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    tied: bool,
}

impl Shape {
    fn of_config(arch: &'static str, path: &Path) -> Shape {
        let text = std::fs::read_to_string(path).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        let get = |key: &str| config[key].as_u64().map(|n| n as usize);
        let (d_model, n_heads) = (get("hidden_size").unwrap(), get("num_attention_heads").unwrap());
        Shape {
            arch,
            d_model,
            d_ff: get("intermediate_size").unwrap(),
            vocab_size: get("vocab_size").unwrap(),
            n_layers: get("num_hidden_layers").unwrap(),
            n_heads,
            n_kv_heads: get("num_key_value_heads").unwrap(),
            head_dim: get("head_dim").unwrap_or(d_model / n_heads),
            tied: false,
        }
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        let mut all = vec![("token_embd.weight".to_owned(), vec![self.vocab_size, self.d_model])];
        if !self.tied {
            all.push(("output.weight".to_owned(), vec![self.vocab_size, self.d_model]));
        }
        all.push(("output_norm.weight".to_owned(), vec![self.d_model]));
        for layer in 0..self.n_layers {
            let mut push = |name: &str, shape: &[usize]| {
                all.push((format!("blk.{layer}.{name}.weight"), shape.to_vec()));
            };
            push("attn_norm", &[self.d_model]);
            push("attn_q", &[q, self.d_model]);
            push("attn_k", &[kv, self.d_model]);
            push("attn_v", &[kv, self.d_model]);
            push("attn_output", &[self.d_model, q]);
            push("attn_q_norm", &[self.head_dim]);
            push("ffn_norm", &[self.d_model]);
            push("ffn_gate", &[self.d_ff, self.d_model]);
            push("ffn_up", &[self.d_ff, self.d_model]);
            push("ffn_down", &[self.d_model, self.d_ff]);
        }
        all
    }
}

struct Section {
    recipe: String,
    base: String,
    deviations: BTreeMap<String, String>,
}

fn sections(path: &Path) -> Vec<Section> {
    let mut all: Vec<Section> = Vec::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (left, right) = line.split_once(' ').unwrap();
        match left.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            Some(recipe) => all.push(Section {
                recipe: recipe.to_owned(),
                base: right.to_owned(),
                deviations: BTreeMap::new(),
            }),
            None => {
                all.last_mut().unwrap().deviations.insert(left.to_owned(), right.to_owned());
            }
        }
    }
    all
}

/// Checks every section whose recipe is built here, and that none of our recipes is missing.
fn check(schema: &Path, shape: &Shape) {
    let tensors = shape.tensors();
    let f32 = format::by_name("F32").unwrap();
    let inputs: Vec<Input> = tensors.iter().map(|(name, shape)| Input { name, shape, stored: f32 }).collect();
    let hyper = Hyper {
        arch: shape.arch.to_owned(),
        n_layers: shape.n_layers,
        n_heads: shape.n_heads,
        n_kv_heads: shape.n_kv_heads,
        n_experts: 0,
    };
    let dtype = |name: &str| -> Dtype { format::by_name(name).unwrap() };
    let mut n_checked = 0;
    for section in sections(schema) {
        let Ok(recipe) = Recipe::by_name(&section.recipe) else { continue };
        n_checked += 1;
        assert_eq!(recipe.base(), dtype(&section.base), "[{}]", section.recipe);
        let planned = plan(&hyper, &inputs, &Options::new(recipe)).unwrap();
        let mut deviations = BTreeMap::new();
        for row in planned.iter().filter(|row| inputs[row.input].shape.len() > 1) {
            if row.dtype != recipe.base() {
                deviations.insert(inputs[row.input].name.to_owned(), row.dtype.name().to_lowercase());
            }
        }
        let expected: BTreeMap<_, _> =
            section.deviations.into_iter().map(|(name, ty)| (name, ty.to_lowercase())).collect();
        assert_eq!(deviations, expected, "{} [{}]", schema.display(), section.recipe);
    }
    assert_eq!(n_checked, RECIPES.len(), "{}", schema.display());
}

#[test]
fn llama_31_70b() {
    let Some(data) = test_data() else { return };
    let config = data.join("configs/real/meta-llama--Meta-Llama-3.1-70B_config.json");
    let schema = data.join("configs/quant-schemas/meta-llama-3.1-70b-instruct.schema");
    check(&schema, &Shape::of_config("llama", &config));
}

/// The snapshot was made from a file that stores the output apart from the embedding.
#[test]
fn qwen3_06b_untied() {
    let Some(data) = test_data() else { return };
    let config = data.join("configs/real/Qwen--Qwen3-0.6B_config.json");
    check(&data.join("configs/quant-schemas/qwen3-0.6b.schema"), &Shape::of_config("qwen3", &config));
}

/// Sizes from the snapshot's first lines; the head dimension is the model's published 256.
#[test]
fn gemma3_4b() {
    let Some(data) = test_data() else { return };
    let shape = Shape {
        arch: "gemma3",
        d_model: 2560,
        d_ff: 10240,
        vocab_size: 262144,
        n_layers: 34,
        n_heads: 8,
        n_kv_heads: 4,
        head_dim: 256,
        tied: true,
    };
    check(&data.join("configs/quant-schemas/gemma-3-4b-it.schema"), &shape);
}
