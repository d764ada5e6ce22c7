//! A model's sizes and settings from the keys of a GGUF.
//!
//! What GGUF has no key for is as llama.cpp's loader (b11434) assumes it: the activation, the scale of
//! Gemma's embedding and heads, which layers have a window, that chosen experts are renormalised.

use std::path::Path;

use super::Error;
use super::arch::{self, Arch, Windows};
use super::config::{
    Attention, Experts, MOST_LAYERS, ModelConfig, Rope, RopeScaling, embedding_scale, inverse_root,
};
use super::rope_scaling::{LongRope, Yarn};
use crate::kernel::Isa;
use crate::tensor::gguf::{Array, Gguf, Metadata, Value};
use crate::tensor::{TensorInfo, TensorSource};

/// See [`ModelConfig::from_gguf`].
pub(super) fn read(keys: &Metadata, has_output: bool, path: &Path) -> Result<ModelConfig, Error> {
    let gguf = GgufKeys::new(keys, path)?;
    let arch = gguf.arch;
    let n_heads = gguf.positive("attention.head_count")?;
    let d_model = gguf.positive("embedding_length")?;
    let n_kv_heads = gguf.int("attention.head_count_kv")?.unwrap_or(n_heads);
    if n_kv_heads == 0 || n_heads % n_kv_heads != 0 {
        return Err(gguf.bad_int("attention.head_count_kv", n_kv_heads, "a divisor of attention.head_count"));
    }
    let head_dim = gguf.int("attention.key_length")?.unwrap_or(d_model / n_heads);
    if head_dim == 0 || head_dim % 2 != 0 {
        return Err(gguf.bad_int("attention.key_length", head_dim, "a positive even integer"));
    }
    let d_ff = gguf.positive("feed_forward_length")?;
    let n_layers = gguf.positive("block_count")?;
    if n_layers > MOST_LAYERS {
        return Err(gguf.bad_int("block_count", n_layers, "at most 65536"));
    }
    let sliding_window = gguf.int("attention.sliding_window")?.filter(|window| *window > 0);
    let wide_heads = arch.flags.wide_scale_layers == Some(n_layers);
    let scaled_size = if wide_heads { d_model / n_heads } else { head_dim };
    Ok(ModelConfig {
        arch: arch.name,
        n_layers,
        d_model,
        n_heads,
        n_kv_heads,
        head_dim,
        d_ff,
        vocab_size: gguf.vocab_size()?,
        context_length: gguf.require("context_length")?,
        rms_norm_eps: gguf.positive_f32("attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
            Error::MissingKey { path: path.to_path_buf(), key: gguf.key("attention.layer_norm_rms_epsilon") }
        })?,
        rope: gguf.rope(head_dim)?,
        sliding_window,
        attention: gguf.attention(n_layers, sliding_window)?,
        attn_scale: inverse_root(scaled_size as f64),
        attn_logit_softcap: gguf.f32("attn_logit_softcapping")?,
        final_logit_softcap: gguf.f32("final_logit_softcapping")?,
        activation: arch.flags.activation,
        embedding_scale: embedding_scale(arch, d_model),
        experts: gguf.experts(d_ff)?,
        tied_embeddings: !has_output,
    })
}

/// Returns the config of an opened GGUF, the factors of rope that lie in tensors included.
///
/// Errors as [`ModelConfig::from_gguf`]; on factors that are not one positive number per rotated pair.
pub(super) fn with_factors(gguf: &Gguf) -> Result<ModelConfig, Error> {
    let has_output = gguf.find("output.weight").is_some();
    let mut config = read(gguf.metadata(), has_output, gguf.path())?;
    let n_pairs = config.rope.dim / 2;
    let factors = |name: &str| gguf.find(name).map(|info| read_factors(gguf, info, n_pairs)).transpose();
    match &mut config.rope.scaling {
        RopeScaling::LongRope(long) => {
            let missing = |name: &str| Error::MissingTensor {
                path: gguf.path().to_path_buf(),
                name: name.to_owned(),
                detail: String::new(),
            };
            let required = |name: &str| factors(name)?.ok_or_else(|| missing(name));
            long.short = required("rope_factors_short.weight")?;
            long.long = required("rope_factors_long.weight")?;
        }
        scaling @ RopeScaling::None => {
            if let Some(factors) = factors("rope_freqs.weight")? {
                *scaling = RopeScaling::Factors(factors);
            }
        }
        _ => {}
    }
    Ok(config)
}

fn read_factors(gguf: &Gguf, info: &TensorInfo, n_pairs: usize) -> Result<Vec<f32>, Error> {
    let path = gguf.path().to_path_buf();
    let name = info.name.clone();
    if info.shape != [n_pairs] {
        return Err(Error::Shape { path, name, found: info.shape.clone(), expected: vec![n_pairs] });
    }
    if !info.dtype.can_decode() || info.dtype.block_len() != 1 {
        return Err(Error::UnreadableDtype { path, name, dtype: info.dtype.name().to_owned() });
    }
    let mut factors = vec![0.0; n_pairs];
    info.dtype.decode(Isa::detect(), gguf.bytes(info)?, &mut factors);
    match factors.iter().find(|factor| !(**factor > 0.0 && factor.is_finite())) {
        None => Ok(factors),
        Some(factor) => {
            Err(Error::BadValue { path, key: name, found: factor.to_string(), expected: "positive numbers" })
        }
    }
}

/// The `{arch}.*` keys of a GGUF.
struct GgufKeys<'a> {
    arch: &'static Arch,
    keys: &'a Metadata,
    path: &'a Path,
}

impl<'a> GgufKeys<'a> {
    fn new(keys: &'a Metadata, path: &'a Path) -> Result<Self, Error> {
        let missing =
            || Error::MissingKey { path: path.to_path_buf(), key: "general.architecture".to_owned() };
        let name = keys.get("general.architecture").and_then(Value::as_str).ok_or_else(missing)?;
        Ok(GgufKeys { arch: arch::by_gguf_name(name, path)?, keys, path })
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.arch.name)
    }

    fn bad(&self, suffix: &str, value: &Value, expected: &'static str) -> Error {
        let mut found = format!("{value:?}");
        found.truncate(found.char_indices().nth(60).map_or(found.len(), |(at, _)| at));
        Error::BadValue { path: self.path.to_path_buf(), key: self.key(suffix), found, expected }
    }

    fn int(&self, suffix: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.keys.get(&self.key(suffix)) else { return Ok(None) };
        let int = value.as_u64().and_then(|int| usize::try_from(int).ok());
        int.map(Some).ok_or_else(|| self.bad(suffix, value, "a non-negative integer"))
    }

    fn require(&self, suffix: &str) -> Result<usize, Error> {
        let missing = || Error::MissingKey { path: self.path.to_path_buf(), key: self.key(suffix) };
        self.int(suffix)?.ok_or_else(missing)
    }

    fn positive(&self, suffix: &str) -> Result<usize, Error> {
        match self.require(suffix)? {
            0 => Err(self.bad_int(suffix, 0, "a positive integer")),
            int => Ok(int),
        }
    }

    fn bad_int(&self, suffix: &str, found: usize, expected: &'static str) -> Error {
        self.bad(suffix, &Value::U64(found as u64), expected)
    }

    fn positive_f32(&self, suffix: &str) -> Result<Option<f32>, Error> {
        let value = self.f32(suffix)?;
        match value.filter(|value| !(*value > 0.0 && value.is_finite())) {
            Some(bad) => Err(self.bad(suffix, &Value::F32(bad), "a number above 0")),
            None => Ok(value),
        }
    }

    fn f32(&self, suffix: &str) -> Result<Option<f32>, Error> {
        match self.keys.get(&self.key(suffix)) {
            None => Ok(None),
            Some(Value::F32(value)) => Ok(Some(*value)),
            Some(Value::F64(value)) => Ok(Some(*value as f32)),
            Some(other) => Err(self.bad(suffix, other, "a number")),
        }
    }

    fn vocab_size(&self) -> Result<usize, Error> {
        if let Some(size) = self.int("vocab_size")? {
            return Ok(size);
        }
        match self.keys.get("tokenizer.ggml.tokens") {
            Some(Value::Array(Array::String(tokens))) => Ok(tokens.len()),
            _ => Err(Error::MissingKey {
                path: self.path.to_path_buf(),
                key: "tokenizer.ggml.tokens".to_owned(),
            }),
        }
    }

    fn rope(&self, head_dim: usize) -> Result<Rope, Error> {
        let dim = self.int("rope.dimension_count")?.unwrap_or(head_dim);
        if dim == 0 || dim % 2 != 0 || dim > head_dim {
            return Err(self.bad_int("rope.dimension_count", dim, "an even number of dimensions of a head"));
        }
        Ok(Rope {
            dim,
            theta: self.positive_f32("rope.freq_base")?.unwrap_or(self.arch.flags.rope_theta_unwritten),
            theta_swa: self.positive_f32("rope.freq_base_swa")?.or(self.arch.flags.rope_theta_swa_unwritten),
            scaling: self.rope_scaling()?,
        })
    }

    fn rope_scaling(&self) -> Result<RopeScaling, Error> {
        let kind = self.keys.get(&self.key("rope.scaling.type")).and_then(Value::as_str);
        let original = self.int("rope.scaling.original_context_length")?.filter(|length| *length > 0);
        let attention_factor = self.positive_f32("rope.scaling.attn_factor")?;
        Ok(match (kind, self.positive_f32("rope.scaling.factor")?) {
            (Some("linear"), Some(factor)) => RopeScaling::Linear { factor },
            (Some("yarn"), Some(factor)) => {
                let default = Yarn::default_attention_factor(f64::from(factor), None) as f32;
                RopeScaling::Yarn(Yarn {
                    factor,
                    original_context: match original {
                        Some(length) => length,
                        None => self.positive("context_length")?,
                    },
                    attention_factor: self.positive_f32("rope.scaling.yarn_attn_factor")?.unwrap_or(default),
                    beta_fast: self.positive_f32("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    beta_slow: self.positive_f32("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                    truncate: true,
                })
            }
            // Phi-3 names no type: the attention factor comes with the long and short factors
            _ => match (original, attention_factor) {
                (Some(original_context), Some(attention_factor)) => RopeScaling::LongRope(LongRope {
                    original_context,
                    attention_factor,
                    short: Vec::new(),
                    long: Vec::new(),
                }),
                _ => RopeScaling::None,
            },
        })
    }

    fn attention(&self, n_layers: usize, window: Option<usize>) -> Result<Vec<Attention>, Error> {
        let suffix = "attention.sliding_window_pattern";
        let pattern = match (self.arch.flags.windows, self.keys.get(&self.key(suffix))) {
            (Windows::AllButEvery(_), Some(Value::Array(Array::Bool(slides))))
                if slides.len() == n_layers =>
            {
                let kind = |slides: &bool| if *slides { Attention::Sliding } else { Attention::Full };
                return Ok(slides.iter().map(kind).collect());
            }
            (Windows::AllButEvery(_), Some(value)) => {
                let n = value.as_u64().and_then(|n| usize::try_from(n).ok());
                Windows::AllButEvery(n.ok_or_else(|| {
                    self.bad(suffix, value, "a number of layers, or true or false for each layer")
                })?)
            }
            (windows, _) => windows,
        };
        // llama.cpp turns the pattern (and the local rope base) off where Gemma 3 names no window
        let pattern = if window.is_none() && self.arch.name == "gemma3" { Windows::Nowhere } else { pattern };
        Ok(pattern.layers(n_layers, window.is_some(), n_layers))
    }

    fn experts(&self, d_ff: usize) -> Result<Option<Experts>, Error> {
        let Some(n) = self.int("expert_count")?.filter(|n| *n > 0) else { return Ok(None) };
        let n_used = self.positive("expert_used_count")?;
        if n_used > n {
            return Err(self.bad_int("expert_used_count", n_used, "at most expert_count"));
        }
        let d_ff = self.int("expert_feed_forward_length")?.unwrap_or(d_ff);
        Ok(Some(Experts { n, n_used, d_ff, renormalize: true }))
    }
}
