//! Models that have learned nothing yet.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::kernel::philox::{Philox, Purpose};
use crate::kernel::product::Values;
use crate::kernel::{Matrix, math64};
use crate::model::arch::{self, Arch, Presence, Role};
use crate::model::decoder::{self, Decoder, LoadOptions};
use crate::model::weights::{FeedForward, Layer, Linear, Mlp, Vector, Weights};
use crate::model::{Error, ModelConfig};
use crate::tensor::format::BF16;
use crate::tensor::{Dtype, RowMap};

/// Returns a decoder of the sizes in a config.json, its matrices drawn from a normal distribution of standard deviation
/// `initializer_range` (0.02 if config.json has none), norms 1, biases 0: as transformers begins.
///
/// Weights are f32. Errors as [`ModelConfig::from_hf`], on a kind of rope the decoder lacks, and where the system gives no
/// threads.
pub(super) fn decoder(config_path: &Path, seed: u64, options: &LoadOptions) -> Result<Decoder, Error> {
    let path = config_path.to_path_buf();
    let json = read(&path)?;
    let config = ModelConfig::from_hf(&json, &path)?;
    let compute = decoder::compute(&config, &path, options)?;
    let spread = json.get("initializer_range").and_then(Json::as_f64).unwrap_or(0.02);
    let biases = Biases::of(&config, &json, &path)?;
    let numbers = Numbers::Drawn { stream: Philox::new(seed, Purpose::Initial), spread, next: 0 };
    let weights = Drawer { config: &config, numbers, biases }.weights();
    Ok(Decoder::assembled(config, weights, compute, options))
}

fn read(path: &Path) -> Result<Json, Error> {
    let bytes =
        crate::read::read_regular(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

/// Returns the bytes of the matrices of [`decoder`], before any of them is drawn.
///
/// Errors as [`ModelConfig::from_hf`].
pub(super) fn bytes(config_path: &Path) -> Result<u64, Error> {
    let config = ModelConfig::from_hf(&read(config_path)?, config_path)?;
    let ModelConfig { d_model, d_ff, vocab_size, n_layers, n_heads, n_kv_heads, head_dim, .. } = config;
    let n = |rows: usize| rows as u64 * d_model as u64;
    let attention = n(2 * n_heads * head_dim) + n(2 * n_kv_heads * head_dim);
    let feed_forward = match &config.experts {
        None => 3 * n(d_ff),
        Some(experts) => n(experts.n) + 3 * experts.n as u64 * n(experts.d_ff),
    };
    let outside = n(vocab_size) * if config.tied_embeddings { 1 } else { 2 };
    Ok(4 * (outside + n_layers as u64 * (attention + feed_forward)))
}

/// Returns a decoder of the sizes in `json`, a config.json, for timings: its matrices are bf16, or those within blocks `base` if that is
/// given, and pieces of one vector of random numbers, so that it is there at once, whatever its size.
///
/// Errors as [`decoder`].
pub(super) fn alike(json: &Json, base: Option<Dtype>, options: &LoadOptions) -> Result<Decoder, Error> {
    let path = Path::new("config.json");
    let config = ModelConfig::from_hf(json, path)?;
    let compute = decoder::compute(&config, path, options)?;
    let ModelConfig { d_model, d_ff, vocab_size, n_heads, head_dim, .. } = config;
    let n = |rows: usize| d_model * rows + (Alike::PLACES * Alike::STRIDE).next_multiple_of(d_model);
    let in_blocks = n(d_ff.max(n_heads * head_dim));
    let n_dense = n(vocab_size).max(in_blocks);
    let numbers = noise(n_dense);
    let linear = base.map(|dtype| {
        let values = cycled(numbers.iter().map(|x| x.to_f32()).collect(), in_blocks);
        let mut bytes = vec![0; in_blocks / dtype.block_len() * dtype.block_bytes()];
        dtype.encode(options.isa, &values, d_model, None, &mut bytes);
        (dtype, Arc::new(bytes))
    });
    let dense = cycled(numbers.iter().flat_map(|x| x.to_le_bytes()).collect(), 2 * n_dense);
    let dense = (Dtype(&BF16), Arc::new(dense));
    let biases = Biases::of(&config, json, path)?;
    let linear = linear.unwrap_or_else(|| dense.clone());
    let numbers = Numbers::Alike(Alike { dense, linear, next: 0 });
    let weights = Drawer { config: &config, numbers, biases }.weights();
    Ok(Decoder::assembled(config, weights, compute, options))
}

/// Returns numbers about normal, of standard deviation 0.02: `n`, or 2^24 + 43, a prime, so that rows of a matrix hold them at different
/// places when they come again. A GPU computes faster with numbers of fewer patterns, for it draws less power.
fn noise(n: usize) -> Vec<half::bf16> {
    const PERIOD: usize = (1 << 24) + 43;
    // the sum of four uniform numbers of 16 bits has the variance 4 / 12
    let scale = 0.02 / (4.0f32 / 12.0).sqrt() / 65_536.0;
    let value = |i: usize| {
        let bits = mixed(i as u64);
        let sum: u64 = (0..4).map(|word| bits >> (16 * word) & 0xffff).sum();
        half::bf16::from_f32((sum as f32 - 2.0 * 65_535.0) * scale)
    };
    (0..n.min(PERIOD)).map(value).collect()
}

/// Returns `n` values: these, again and again.
fn cycled<T: Copy>(mut values: Vec<T>, n: usize) -> Vec<T> {
    let period = values.len();
    values.reserve_exact(n.saturating_sub(period));
    while values.len() < n {
        values.extend_from_within(..period.min(n - values.len()));
    }
    values.truncate(n);
    values
}

/// Returns the number of a place in the sequence SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn mixed(i: u64) -> u64 {
    let x = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Which biases a model has: those its architecture always has, and those that config.json asks for.
struct Biases {
    arch: &'static Arch,
    attention: bool,
    mlp: bool,
}

impl Biases {
    fn of(config: &ModelConfig, json: &Json, path: &Path) -> Result<Biases, Error> {
        let is_on = |key: &str| json.get(key).and_then(Json::as_bool) == Some(true);
        let arch = arch::by_gguf_name(config.arch, path)?;
        Ok(Biases { arch, attention: is_on("attention_bias"), mlp: is_on("mlp_bias") })
    }

    fn has(&self, role: Role) -> bool {
        let row = self.arch.rows.iter().find(|row| row.role == role);
        row.is_some_and(|row| match (row.presence, role) {
            (Presence::Required, _) => true,
            (_, Role::GateBias | Role::UpBias | Role::DownBias) => self.mlp,
            _ => self.attention,
        })
    }
}

/// Tensors whose numbers no other tensor of the seed has: parameters of adapters are counted from 0.
const FIRST_TENSOR: u32 = 1 << 31;

struct Drawer<'a> {
    config: &'a ModelConfig,
    numbers: Numbers,
    biases: Biases,
}

/// Where values come from.
enum Numbers {
    Drawn { stream: Philox, spread: f64, next: u32 },
    Alike(Alike),
}

/// Bytes that matrices share.
struct Alike {
    /// Of bf16.
    dense: (Dtype, Arc<Vec<u8>>),
    /// What matrices within blocks are.
    linear: (Dtype, Arc<Vec<u8>>),
    /// The number of the next matrix, which says where it begins.
    next: usize,
}

impl Alike {
    /// How many places matrices begin at in turn.
    const PLACES: usize = 64;
    /// Values from one to the next: blocks of every format, and no rows of usual lengths.
    const STRIDE: usize = 256 * 251;

    fn matrix(&mut self, is_within_block: bool, rows: usize, cols: usize) -> Matrix {
        let (dtype, bytes) = if is_within_block { &self.linear } else { &self.dense };
        let first = self.next % Alike::PLACES * Alike::STRIDE;
        self.next += 1;
        let offset = first / dtype.block_len() * dtype.block_bytes();
        Matrix::new(bytes.clone(), offset, *dtype, rows, cols, RowMap::Identity)
    }
}

impl Drawer<'_> {
    fn weights(&mut self) -> Weights {
        let ModelConfig { vocab_size, d_model, n_layers, tied_embeddings, .. } = *self.config;
        let token_embedding = self.matrix(vocab_size, d_model);
        let output = match tied_embeddings {
            true => token_embedding.clone(),
            false => self.matrix(vocab_size, d_model),
        };
        Weights {
            token_embedding,
            output: Linear { weight: output, bias: None, low_rank: None },
            output_norm: ones(d_model),
            layers: (0..n_layers).map(|_| self.layer()).collect(),
        }
    }

    fn layer(&mut self) -> Layer {
        let ModelConfig { d_model, n_heads, n_kv_heads, head_dim, .. } = *self.config;
        let (q, kv) = (n_heads * head_dim, n_kv_heads * head_dim);
        let has = |role: Role| self.biases.arch.rows.iter().any(|row| row.role == role);
        let norm = |role: Role, len: usize| has(role).then(|| ones(len));
        let (q_norm, k_norm) = (norm(Role::QNorm, head_dim), norm(Role::KNorm, head_dim));
        let post_attn_norm = norm(Role::PostAttnNorm, d_model);
        let post_ffn_norm = norm(Role::PostFfnNorm, d_model);
        Layer {
            attn_norm: ones(d_model),
            q: self.linear(Role::QBias, q, d_model),
            k: self.linear(Role::KBias, kv, d_model),
            v: self.linear(Role::VBias, kv, d_model),
            o: self.linear(Role::OBias, d_model, q),
            q_norm,
            k_norm,
            post_attn_norm,
            ffn_norm: ones(d_model),
            ffn: self.feed_forward(),
            post_ffn_norm,
        }
    }

    fn feed_forward(&mut self) -> FeedForward {
        let d_model = self.config.d_model;
        let Some(experts) = self.config.experts.clone() else {
            return FeedForward::Dense(Box::new(self.mlp(self.config.d_ff)));
        };
        let router = Linear { weight: self.matrix(experts.n, d_model), bias: None, low_rank: None };
        FeedForward::Experts { router, experts: (0..experts.n).map(|_| self.mlp(experts.d_ff)).collect() }
    }

    fn mlp(&mut self, d_ff: usize) -> Mlp {
        let d_model = self.config.d_model;
        Mlp {
            gate: self.linear(Role::GateBias, d_ff, d_model),
            up: self.linear(Role::UpBias, d_ff, d_model),
            down: self.linear(Role::DownBias, d_model, d_ff),
        }
    }

    fn linear(&mut self, bias: Role, rows: usize, cols: usize) -> Linear {
        let bias = self.biases.has(bias).then(|| Vector::from(vec![0.0; rows]));
        let weight = match &mut self.numbers {
            Numbers::Alike(alike) => alike.matrix(true, rows, cols),
            Numbers::Drawn { .. } => self.matrix(rows, cols),
        };
        Linear { weight, bias, low_rank: None }
    }

    /// Returns normal numbers by pairs (Box and Muller, 1958), or those that all matrices share.
    fn matrix(&mut self, rows: usize, cols: usize) -> Matrix {
        let (stream, spread, next) = match &mut self.numbers {
            Numbers::Drawn { stream, spread, next } => (stream, *spread, next),
            Numbers::Alike(alike) => return alike.matrix(false, rows, cols),
        };
        let tensor = FIRST_TENSOR + *next;
        *next += 1;
        let mut values = Vec::with_capacity(rows * cols + 1);
        for pair in 0..(rows * cols).div_ceil(2) as u64 {
            let (first, second) =
                (stream.uniform_f64(tensor, 2 * pair), stream.uniform_f64(tensor, 2 * pair + 1));
            // 1 - u lies in (0, 1]
            let radius = spread * (-2.0 * math64::ln(1.0 - first)).sqrt();
            let (sin, cos) = math64::sin_cos(2.0 * std::f64::consts::PI * second);
            values.extend([(radius * cos) as f32, (radius * sin) as f32]);
        }
        values.truncate(rows * cols);
        Matrix::of_values(Arc::new(Values(values)), 0, rows, cols)
    }
}

fn ones(n: usize) -> Vector {
    vec![1.0; n].into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{ComputeMode, Isa};
    use crate::model::train::BaseFormat;

    #[test]
    fn numbers_for_timings_are_about_normal_and_do_not_follow_one_another() {
        let values: Vec<f64> = noise(1 << 18).iter().map(|x| f64::from(x.to_f32())).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let spread = (values.iter().map(|x| x * x).sum::<f64>() / n).sqrt();
        // standard errors of 262,144 numbers: 0.02 / 512 and about 0.02 / 724
        assert!(mean.abs() < 2e-4 && (spread - 0.02).abs() < 2e-4, "{mean} {spread}");
        for lag in [1, 2, 64, 4096] {
            let pairs = values.iter().zip(&values[lag..]);
            let correlation = pairs.map(|(a, b)| a * b).sum::<f64>() / n / (spread * spread);
            assert!(correlation.abs() < 0.01, "{lag}: {correlation}");
        }
        assert_eq!(cycled(vec![1, 2, 3], 8), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(cycled(vec![1, 2, 3], 2), [1, 2]);
    }

    #[test]
    fn matrices_of_a_model_for_timings_differ() {
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
            "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "vocab_size": 100, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": false, "hidden_act": "silu",
        });
        for base in [None, Some(BaseFormat::Nf4.dtype())] {
            let options = LoadOptions::new(ComputeMode::F32, 1);
            let Weights { layers, token_embedding, output, .. } =
                alike(&config, base, &options).unwrap().weights;
            let row = |matrix: &Matrix| {
                let mut row = vec![0.0; matrix.cols()];
                matrix.decode_row(Isa::detect(), 0, &mut row);
                row
            };
            let mut rows = vec![row(&token_embedding), row(&output.weight)];
            for layer in &layers {
                rows.extend([&layer.q, &layer.k, &layer.v, &layer.o].map(|linear| row(&linear.weight)));
                let FeedForward::Dense(mlp) = &layer.ffn else { panic!("a Llama has no experts") };
                rows.extend([&mlp.gate, &mlp.up, &mlp.down].map(|linear| row(&linear.weight)));
            }
            for (i, row) in rows.iter().enumerate() {
                assert!(row.iter().any(|x| *x != 0.0));
                assert!(rows[..i].iter().all(|before| before[..32] != row[..32]), "{i}");
            }
        }
    }
}
