//! What a decoder has to know of a model, from config.json or from GGUF keys.

use std::path::Path;

use serde_json::Value as Json;

use super::Error;
use super::arch::{self, Arch, HfClass};
use super::hparams::Hparams;
use crate::tensor::gguf::{Metadata, Value};

/// A model's sizes and settings.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// GGUF architecture name, e.g. `llama`.
    pub arch: &'static str,
    pub n_layers: usize,
    pub d_model: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub d_ff: usize,
    pub vocab_size: usize,
    /// Positions the model was made for.
    pub context_length: usize,
    pub rms_norm_eps: f32,
    pub rope: Rope,
    /// Keys a query sees, itself included, in layers of sliding attention; `None`: all of them.
    pub sliding_window: Option<usize>,
    pub attn_logit_softcap: Option<f32>,
    pub final_logit_softcap: Option<f32>,
    pub experts: Option<Experts>,
    /// True if the output projection is the input embedding.
    pub tied_embeddings: bool,
}

/// Rotary position embedding (arXiv:2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Rotated dimensions of a head, <= `head_dim`.
    pub dim: usize,
    pub theta: f32,
    /// Base in layers of sliding attention, where it differs (Gemma 3).
    pub theta_swa: Option<f32>,
    pub scaling: RopeScaling,
}

/// How rope reaches past the context of pre-training.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None, or by a tensor of factors per frequency (`rope_freqs.weight`: Llama 3).
    None,
    Linear {
        factor: f32,
    },
    /// arXiv:2309.00071
    Yarn {
        factor: f32,
        original_context: usize,
    },
    /// Tensors `rope_factors_long` and `rope_factors_short` (arXiv:2402.13753).
    LongRope {
        original_context: usize,
    },
}

/// Mixture of experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    pub n: usize,
    pub n_used: usize,
    /// Width of one expert's feed-forward.
    pub d_ff: usize,
}

impl ModelConfig {
    /// Reads a config.json; `path` is for messages.
    ///
    /// Errors on an unknown architecture, a missing or ill-typed key, sizes that don't divide.
    pub fn from_hf(config: &Json, path: &Path) -> Result<Self, Error> {
        let class = arch::class_of(config, path)?;
        Self::from_hparams(&Hparams::new(config, class, path)?, class)
    }

    pub(super) fn from_hparams(hparams: &Hparams, class: &HfClass) -> Result<Self, Error> {
        let n_heads = hparams.require_positive(&["num_attention_heads"])?;
        let d_model = hparams.require_positive(&["hidden_size"])?;
        let n_kv_heads = hparams.int("num_key_value_heads")?.unwrap_or(n_heads);
        if n_kv_heads == 0 || n_heads % n_kv_heads != 0 {
            let given = Json::from(n_kv_heads);
            return Err(hparams.bad("num_key_value_heads", &given, "a divisor of num_attention_heads"));
        }
        let head_dim = hparams.int("head_dim")?.unwrap_or(d_model / n_heads);
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(hparams.bad("head_dim", &Json::from(head_dim), "a positive even integer"));
        }
        let d_ff = hparams.require_positive(&["intermediate_size"])?;
        let float = |key: &str| hparams.f64(key).map(|value| value.map(|value| value as f32));
        Ok(ModelConfig {
            arch: class.arch.name,
            n_layers: hparams.require_positive(&["num_hidden_layers"])?,
            d_model,
            n_heads,
            n_kv_heads,
            head_dim,
            d_ff,
            vocab_size: hparams.require_positive(&["vocab_size"])?,
            context_length: hparams.require_positive(&["max_position_embeddings"])?,
            rms_norm_eps: float("rms_norm_eps")?.unwrap_or(class.rms_norm_eps),
            rope: rope_from_hparams(hparams, class, head_dim)?,
            sliding_window: sliding_window(hparams, class)?,
            attn_logit_softcap: float("attn_logit_softcapping")?,
            final_logit_softcap: float("final_logit_softcapping")?,
            experts: experts_from_hparams(hparams, d_ff)?,
            tied_embeddings: hparams.bool("tie_word_embeddings")?.unwrap_or(false),
        })
    }

    /// Reads the keys of a GGUF; `has_output` says whether it holds `output.weight`, `path` is for messages.
    ///
    /// The vocabulary's size comes from the key, or else from the token list. Settings that GGUF
    /// has no key for (a `llama` model's sliding window) come out as `None`.
    pub fn from_gguf(keys: &Metadata, has_output: bool, path: &Path) -> Result<Self, Error> {
        let gguf = GgufKeys::new(keys, path)?;
        let arch = gguf.arch;
        let n_heads = gguf.require("attention.head_count")?;
        let d_model = gguf.require("embedding_length")?;
        let head_dim = match gguf.int("attention.key_length")? {
            Some(dim) => dim,
            None => d_model.checked_div(n_heads).unwrap_or(0),
        };
        let d_ff = gguf.require("feed_forward_length")?;
        let n_experts = gguf.int("expert_count")?.filter(|n| *n > 0);
        let experts = match n_experts {
            Some(n) => Some(Experts {
                n,
                n_used: gguf.require("expert_used_count")?,
                d_ff: gguf.int("expert_feed_forward_length")?.unwrap_or(d_ff),
            }),
            None => None,
        };
        Ok(ModelConfig {
            arch: arch.name,
            n_layers: gguf.require("block_count")?,
            d_model,
            n_heads,
            n_kv_heads: gguf.int("attention.head_count_kv")?.unwrap_or(n_heads),
            head_dim,
            d_ff,
            vocab_size: gguf.vocab_size()?,
            context_length: gguf.require("context_length")?,
            rms_norm_eps: gguf.f32("attention.layer_norm_rms_epsilon")?.ok_or_else(|| Error::MissingKey {
                path: path.to_path_buf(),
                key: gguf.key("attention.layer_norm_rms_epsilon"),
            })?,
            rope: gguf.rope(head_dim)?,
            sliding_window: gguf.int("attention.sliding_window")?.filter(|window| *window > 0),
            attn_logit_softcap: gguf.f32("attn_logit_softcapping")?,
            final_logit_softcap: gguf.f32("final_logit_softcapping")?,
            experts,
            tied_embeddings: !has_output,
        })
    }
}

fn sliding_window(hparams: &Hparams, class: &HfClass) -> Result<Option<usize>, Error> {
    // Qwen stores a window that `use_sliding_window` turns on, and no released model does
    if class.arch.flags.window_needs_switch && hparams.bool("use_sliding_window")? != Some(true) {
        return Ok(None);
    }
    Ok(hparams.int("sliding_window")?.filter(|window| *window > 0))
}

fn experts_from_hparams(hparams: &Hparams, d_ff: usize) -> Result<Option<Experts>, Error> {
    let n = match hparams.int("num_local_experts")? {
        Some(n) => Some(n),
        None => hparams.int("num_experts")?,
    };
    let Some(n) = n.filter(|n| *n > 0) else { return Ok(None) };
    Ok(Some(Experts {
        n,
        n_used: hparams.require_positive(&["num_experts_per_tok"])?,
        d_ff: hparams.int("moe_intermediate_size")?.unwrap_or(d_ff),
    }))
}

fn rope_from_hparams(hparams: &Hparams, class: &HfClass, head_dim: usize) -> Result<Rope, Error> {
    let original_context = || -> Result<usize, Error> {
        Ok(hparams.require_rope_f64("original_max_position_embeddings")? as usize)
    };
    let scaling = match (hparams.rope_type().as_str(), hparams.rope_f64("factor")?) {
        ("linear", Some(factor)) => RopeScaling::Linear { factor: factor as f32 },
        ("yarn", Some(factor)) if !class.arch.flags.longrope => {
            RopeScaling::Yarn { factor: factor as f32, original_context: original_context()? }
        }
        ("longrope" | "su" | "yarn", _) if class.arch.flags.longrope => {
            RopeScaling::LongRope { original_context: original_context()? }
        }
        _ => RopeScaling::None,
    };
    let partial = hparams.rope_f64("partial_rotary_factor")?.unwrap_or(1.0);
    let dim = match class.arch.flags.longrope {
        true => rope_dim(hparams, partial)?,
        false => head_dim,
    };
    Ok(Rope {
        dim,
        theta: hparams.require_rope_f64("rope_theta")? as f32,
        theta_swa: hparams.rope_theta_swa.map(|theta| theta as f32),
        scaling,
    })
}

/// Returns the rotated dimensions of a head where only a part of it turns (Phi).
pub(super) fn rope_dim(hparams: &Hparams, partial: f64) -> Result<usize, Error> {
    let d_model = hparams.require_positive(&["hidden_size"])?;
    let n_heads = hparams.require_positive(&["num_attention_heads"])?;
    Ok((partial * d_model as f64) as usize / n_heads)
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

    fn f32(&self, suffix: &str) -> Result<Option<f32>, Error> {
        match self.keys.get(&self.key(suffix)) {
            None => Ok(None),
            Some(Value::F32(value)) => Ok(Some(*value)),
            Some(Value::F64(value)) => Ok(Some(*value as f32)),
            Some(other) => Err(self.bad(suffix, other, "a number")),
        }
    }

    fn vocab_size(&self) -> Result<usize, Error> {
        use crate::tensor::gguf::Array;
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
        let kind = self.keys.get(&self.key("rope.scaling.type")).and_then(Value::as_str);
        let original = self.int("rope.scaling.original_context_length")?;
        let scaling = match (kind, self.f32("rope.scaling.factor")?, original) {
            (Some("linear"), Some(factor), _) => RopeScaling::Linear { factor },
            (Some("yarn"), Some(factor), Some(original_context)) => {
                RopeScaling::Yarn { factor, original_context }
            }
            // Phi-3 names no type: the attention factor comes with the long and short factors
            (_, _, Some(original_context)) if self.f32("rope.scaling.attn_factor")?.is_some() => {
                RopeScaling::LongRope { original_context }
            }
            _ => RopeScaling::None,
        };
        Ok(Rope {
            dim: self.int("rope.dimension_count")?.unwrap_or(head_dim),
            theta: self.f32("rope.freq_base")?.unwrap_or(self.arch.flags.rope_theta_unwritten),
            theta_swa: self.f32("rope.freq_base_swa")?,
            scaling,
        })
    }
}
