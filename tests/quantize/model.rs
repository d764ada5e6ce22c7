//! Small models made on the spot.

use std::path::{Path, PathBuf};

use lctl::kernel::Isa;
use lctl::tensor::gguf::{GgufWriter, Metadata, Value, WriteOptions};
use lctl::tensor::{Dtype, TensorDecl, format};

/// A Llama-shaped GGUF with random weights.
pub struct Model {
    pub n_layers: usize,
    pub d_model: usize,
    pub d_ff: usize,
    pub n_experts: usize,
    pub dtype: &'static str,
    pub tied: bool,
    /// Overwrites the first value of this tensor.
    pub poison: Option<(&'static str, f32)>,
}

impl Default for Model {
    fn default() -> Self {
        Model { n_layers: 2, d_model: 256, d_ff: 512, n_experts: 0, dtype: "F16", tied: false, poison: None }
    }
}

pub fn dtype(name: &str) -> Dtype {
    format::by_name(name).unwrap_or_else(|| panic!("no format {name}"))
}

/// xorshift64* (Vigna 2016), as a value near N(0, 0.02) with heavy tails.
pub fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        let mut uniform = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let sum = uniform() + uniform() + uniform();
        0.04 * sum * if uniform() > 0.49 { 8.0 } else { 1.0 }
    }
}

impl Model {
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, ff) = (self.d_model, self.d_ff);
        let mut all = vec![("token_embd.weight".to_owned(), vec![96, d])];
        if !self.tied {
            all.push(("output.weight".to_owned(), vec![96, d]));
        }
        all.push(("output_norm.weight".to_owned(), vec![d]));
        for layer in 0..self.n_layers {
            let mut push = |name: &str, shape: &[usize]| {
                all.push((format!("blk.{layer}.{name}.weight"), shape.to_vec()));
            };
            push("attn_norm", &[d]);
            push("attn_q", &[d, d]);
            push("attn_k", &[d / 2, d]);
            push("attn_v", &[d / 2, d]);
            push("attn_output", &[d, d]);
            push("ffn_norm", &[d]);
            if self.n_experts == 0 {
                push("ffn_gate", &[ff, d]);
                push("ffn_up", &[ff, d]);
                push("ffn_down", &[d, ff]);
            } else {
                push("ffn_gate_inp", &[self.n_experts, d]);
                push("ffn_gate_exps", &[self.n_experts, ff, d]);
                push("ffn_up_exps", &[self.n_experts, ff, d]);
                push("ffn_down_exps", &[self.n_experts, d, ff]);
            }
        }
        all
    }

    fn metadata(&self) -> Metadata {
        let mut keys = Metadata::new();
        let mut set = |key: &str, value: Value| keys.insert(key.to_owned(), value);
        let count = |n: usize| Value::U32(n as u32);
        set("general.architecture", "llama".into());
        set("general.file_type", Value::U32(1));
        set("llama.block_count", count(self.n_layers));
        set("llama.context_length", Value::U32(128));
        set("llama.embedding_length", count(self.d_model));
        set("llama.feed_forward_length", count(self.d_ff));
        set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
        set("llama.attention.head_count", Value::U32(4));
        set("llama.attention.head_count_kv", Value::U32(2));
        if self.n_experts > 0 {
            set("llama.expert_count", count(self.n_experts));
            set("llama.expert_used_count", Value::U32(2));
        }
        set("general.quantization_version", Value::U32(2));
        set("tokenizer.ggml.model", "llama".into());
        keys
    }

    /// Writes the model to `dir/name`.
    pub fn write(&self, dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        let declarations: Vec<TensorDecl> = self
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let is_plain = shape.len() == 1 || name.contains("ffn_gate_inp");
                TensorDecl { dtype: dtype(if is_plain { "F32" } else { self.dtype }), name, shape }
            })
            .collect();
        let options = WriteOptions::default();
        let mut writer = GgufWriter::create(&path, &self.metadata(), &declarations, &options).unwrap();
        let mut next = noise(7);
        for TensorDecl { name, dtype, shape } in &declarations {
            let mut values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
            if let Some((poisoned, value)) = self.poison
                && poisoned == name
            {
                values[0] = value;
            }
            let mut bytes = vec![0; values.len() / dtype.block_len() * dtype.block_bytes()];
            dtype.encode(Isa::Portable, &values, *shape.last().unwrap(), None, &mut bytes);
            writer.write(&bytes).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    /// Writes a legacy importance matrix for every weight of two or more dimensions to `dir/name`.
    pub fn write_importance(&self, dir: &Path, name: &str) -> PathBuf {
        let mut next = noise(11);
        let weights: Vec<(String, Vec<usize>)> = self
            .tensors()
            .into_iter()
            .filter(|(name, shape)| shape.len() > 1 && name.starts_with("blk"))
            .collect();
        let mut bytes = (weights.len() as i32).to_le_bytes().to_vec();
        for (name, shape) in weights {
            let experts = if shape.len() == 3 { shape[0] } else { 1 };
            let n = shape.last().unwrap() * experts;
            bytes.extend((name.len() as i32).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(2i32.to_le_bytes());
            bytes.extend((n as i32).to_le_bytes());
            (0..n).for_each(|_| bytes.extend(next().abs().to_le_bytes()));
        }
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}
