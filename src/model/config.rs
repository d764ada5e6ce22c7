//! What a decoder has to know of a model, from config.json or from GGUF keys.

use std::path::Path;

use serde_json::Value as Json;

use super::Error;
use super::arch::{self, HfClass, Windows};
use super::gguf_config;
use super::hparams::Hparams;
use super::keys::{llama3_factors, rope_factors};
use super::rope_scaling::{LongRope, Yarn};
use crate::kernel::attention::AttentionShape;
use crate::nn::Activation;
use crate::tensor::gguf::Metadata;

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
    /// What each layer's attention sees, `n_layers` of them.
    pub attention: Vec<Attention>,
    /// Factor on the scores of attention, before the cap.
    pub attn_scale: f32,
    pub attn_logit_softcap: Option<f32>,
    pub final_logit_softcap: Option<f32>,
    pub activation: Activation,
    /// Factor on the rows of the embedding.
    pub embedding_scale: f32,
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
    None,
    Linear {
        factor: f32,
    },
    /// Each pair's frequency is divided by a factor (`rope_freqs.weight`: Llama 3).
    Factors(Vec<f32>),
    Yarn(Yarn),
    LongRope(LongRope),
    /// A type that only the quantizer takes, which leaves it out.
    Unsupported(String),
}

/// What a layer's attention sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    Full,
    /// The last `sliding_window` keys.
    Sliding,
}

/// Mixture of experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    pub n: usize,
    pub n_used: usize,
    /// Width of one expert's feed-forward.
    pub d_ff: usize,
    /// The chosen experts' probabilities are divided by their sum.
    pub renormalize: bool,
}

/// Layers beyond which a file is taken for broken rather than deep.
pub(super) const MOST_LAYERS: usize = 1 << 16;

impl ModelConfig {
    /// Returns what a layer of that kind of attention computes.
    pub(super) fn attention_shape(&self, attention: Attention) -> AttentionShape {
        AttentionShape {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            scale: self.attn_scale,
            softcap: self.attn_logit_softcap.filter(|cap| *cap != 0.0),
            window: self.sliding_window.filter(|_| attention == Attention::Sliding),
        }
    }

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
        let n_layers = hparams.require_positive(&["num_hidden_layers"])?;
        if n_layers > MOST_LAYERS {
            return Err(hparams.bad("num_hidden_layers", &Json::from(n_layers), "at most 65536"));
        }
        let sliding_window = sliding_window(hparams, class)?;
        let float = |key: &str| hparams.f64(key).map(|value| value.map(|value| value as f32));
        let config = ModelConfig {
            arch: class.arch.name,
            n_layers,
            d_model,
            n_heads,
            n_kv_heads,
            head_dim,
            d_ff,
            vocab_size: hparams.require_positive(&["vocab_size"])?,
            context_length: hparams.require_positive(&["max_position_embeddings"])?,
            rms_norm_eps: float("rms_norm_eps")?.unwrap_or(class.rms_norm_eps),
            rope: rope_from_hparams(hparams, class, head_dim)?,
            sliding_window,
            attention: attention_from_hparams(hparams, class, n_layers, sliding_window)?,
            attn_scale: inverse_root(hparams.f64("query_pre_attn_scalar")?.unwrap_or(head_dim as f64)),
            attn_logit_softcap: float("attn_logit_softcapping")?,
            final_logit_softcap: float("final_logit_softcapping")?,
            activation: activation(hparams, class)?,
            embedding_scale: embedding_scale(class.arch, d_model),
            experts: experts_from_hparams(hparams, class, d_ff)?,
            tied_embeddings: hparams.bool("tie_word_embeddings")?.unwrap_or(false),
        };
        config.check_hparams(hparams)?;
        Ok(config)
    }

    /// Errors on numbers no model can have: they would give NaN, or nothing at all.
    fn check_hparams(&self, hparams: &Hparams) -> Result<(), Error> {
        let positive = |key: &str, value: f32| match value > 0.0 {
            true => Ok(()),
            false => Err(hparams.bad(key, &Json::from(value), "a number above 0")),
        };
        positive("rms_norm_eps", self.rms_norm_eps)?;
        positive("query_pre_attn_scalar", self.attn_scale)?;
        positive("rope_parameters.rope_theta", self.rope.theta)?;
        positive("rope_local_base_freq", self.rope.theta_swa.unwrap_or(1.0))?;
        // NaN is the smallest of all
        let smaller = |a: f32, b: f32| if b >= a { a } else { b };
        match &self.rope.scaling {
            RopeScaling::Linear { factor } => positive("rope_parameters.factor", *factor)?,
            RopeScaling::Yarn(Yarn { factor, beta_fast, beta_slow, attention_factor, .. }) => {
                positive("rope_parameters.factor", *factor)?;
                positive("rope_parameters.beta_fast", *beta_fast)?;
                positive("rope_parameters.beta_slow", *beta_slow)?;
                positive("rope_parameters.attention_factor", *attention_factor)?;
            }
            RopeScaling::Factors(factors) => {
                positive("rope_parameters", factors.iter().copied().fold(f32::INFINITY, smaller))?;
            }
            RopeScaling::LongRope(long) => {
                positive("rope_parameters.attention_factor", long.attention_factor)?;
                let factors = long.short.iter().chain(&long.long);
                positive("rope_parameters", factors.copied().fold(f32::INFINITY, smaller))?;
            }
            RopeScaling::None | RopeScaling::Unsupported(_) => {}
        }
        if self.rope.dim == 0 || !self.rope.dim.is_multiple_of(2) || self.rope.dim > self.head_dim {
            let expected = "a share of the head that makes an even number of dimensions, at least 2";
            return Err(hparams.bad("partial_rotary_factor", &Json::from(self.rope.dim), expected));
        }
        if hparams.bool("use_bidirectional_attention")? == Some(true) {
            let expected = "false: a decoder's attention is causal";
            return Err(hparams.bad("use_bidirectional_attention", &Json::from(true), expected));
        }
        Ok(())
    }

    /// Reads the keys of a GGUF; `has_output` says whether it holds `output.weight`, `path` is for messages.
    ///
    /// The vocabulary's size comes from the key, or else from the token list. What GGUF has no key for
    /// is as llama.cpp (b11434) assumes it; factors of rope that lie in tensors are left empty.
    pub fn from_gguf(keys: &Metadata, has_output: bool, path: &Path) -> Result<Self, Error> {
        gguf_config::read(keys, has_output, path)
    }
}

fn sliding_window(hparams: &Hparams, class: &HfClass) -> Result<Option<usize>, Error> {
    // Qwen stores a window that `use_sliding_window` turns on, and no released model does
    if class.arch.flags.window_needs_switch && hparams.bool("use_sliding_window")? != Some(true) {
        return Ok(None);
    }
    Ok(hparams.int("sliding_window")?.filter(|window| *window > 0))
}

/// Returns what the scores of heads of that size (or of that `query_pre_attn_scalar`) are multiplied by.
pub(super) fn inverse_root(size: f64) -> f32 {
    (1.0 / size.sqrt()) as f32
}

/// Returns the factor on the embedding: transformers rounds it to the weights' type, which is f32 here.
pub(super) fn embedding_scale(arch: &arch::Arch, d_model: usize) -> f32 {
    if arch.flags.scaled_embeddings { (d_model as f64).sqrt() as f32 } else { 1.0 }
}

fn activation(hparams: &Hparams, class: &HfClass) -> Result<Activation, Error> {
    // Gemma 2 and 3 read this key alone, and their checkpoints may hold another value in the other
    let newer = matches!(class.arch.name, "gemma2" | "gemma3");
    let key = if newer { "hidden_activation" } else { "hidden_act" };
    let Some(value) = hparams.get(key) else { return Ok(class.arch.flags.activation) };
    match value.as_str() {
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        // the first Gemma configs, which meant the tanh form
        Some("gelu") if class.arch.name == "gemma" => Ok(Activation::GeluTanh),
        _ => Err(hparams.bad(key, value, "\"silu\" or \"gelu_pytorch_tanh\"")),
    }
}

/// Returns what each layer sees: `layer_types`, or else the pattern of the model's class.
fn attention_from_hparams(
    hparams: &Hparams,
    class: &HfClass,
    n_layers: usize,
    window: Option<usize>,
) -> Result<Vec<Attention>, Error> {
    let pattern = match class.windows {
        Windows::AllButEvery(n) => Windows::AllButEvery(hparams.int("sliding_window_pattern")?.unwrap_or(n)),
        other => other,
    };
    if let (Windows::FromLayer | Windows::AllButEvery(_), Some(types)) = (pattern, hparams.get("layer_types"))
    {
        return layer_types(hparams, types, n_layers);
    }
    let first = hparams.int("max_window_layers")?.unwrap_or(28);
    Ok(pattern.layers(n_layers, window.is_some(), first))
}

fn layer_types(hparams: &Hparams, types: &Json, n_layers: usize) -> Result<Vec<Attention>, Error> {
    let expected = "a list of \"full_attention\" or \"sliding_attention\", one per layer";
    let bad = || hparams.bad("layer_types", types, expected);
    let kind = |value: &Json| match value.as_str() {
        Some("full_attention") => Some(Attention::Full),
        Some("sliding_attention") => Some(Attention::Sliding),
        _ => None,
    };
    let kinds: Option<Vec<Attention>> = types.as_array().and_then(|list| list.iter().map(kind).collect());
    kinds.filter(|kinds| kinds.len() == n_layers).ok_or_else(bad)
}

impl Windows {
    /// Returns what `n_layers` layers see; `first` is the first windowed layer where the pattern asks for it.
    pub(super) fn layers(self, n_layers: usize, has_window: bool, first: usize) -> Vec<Attention> {
        let slides = |layer: usize| match self {
            Windows::Nowhere => false,
            Windows::Everywhere => has_window,
            Windows::FromLayer => has_window && layer >= first,
            Windows::AllButEvery(n) => n > 0 && !(layer + 1).is_multiple_of(n),
        };
        let kind = |layer| if slides(layer) { Attention::Sliding } else { Attention::Full };
        (0..n_layers).map(kind).collect()
    }
}

fn experts_from_hparams(hparams: &Hparams, class: &HfClass, d_ff: usize) -> Result<Option<Experts>, Error> {
    let n = match hparams.int("num_local_experts")? {
        Some(n) => Some(n),
        None => hparams.int("num_experts")?,
    };
    let Some(n) = n.filter(|n| *n > 0) else { return Ok(None) };
    let n_used = hparams.require_positive(&["num_experts_per_tok"])?;
    if n_used > n {
        return Err(hparams.bad("num_experts_per_tok", &Json::from(n_used), "at most the number of experts"));
    }
    let dense_layers =
        hparams.get("mlp_only_layers").filter(|list| list.as_array().is_none_or(|list| !list.is_empty()));
    if let Some(list) = dense_layers {
        return Err(hparams.bad("mlp_only_layers", list, "an empty list: every layer has experts"));
    }
    if let Some(step) = hparams.int("decoder_sparse_step")?.filter(|step| *step != 1) {
        return Err(hparams.bad("decoder_sparse_step", &Json::from(step), "1: every layer has experts"));
    }
    Ok(Some(Experts {
        n,
        n_used,
        d_ff: hparams.int("moe_intermediate_size")?.unwrap_or(d_ff),
        renormalize: class.arch.name != "qwen3moe" || hparams.bool("norm_topk_prob")?.unwrap_or(false),
    }))
}

fn rope_from_hparams(hparams: &Hparams, class: &HfClass, head_dim: usize) -> Result<Rope, Error> {
    let partial = hparams.rope_f64("partial_rotary_factor")?.unwrap_or(1.0);
    let dim = match class.arch.flags.longrope {
        true => rope_dim(hparams, partial)?,
        false => head_dim,
    };
    Ok(Rope {
        dim,
        theta: hparams.require_rope_f64("rope_theta")? as f32,
        theta_swa: hparams.rope_theta_swa.map(|theta| theta as f32),
        scaling: scaling_from_hparams(hparams, class, head_dim)?,
    })
}

fn scaling_from_hparams(hparams: &Hparams, class: &HfClass, head_dim: usize) -> Result<RopeScaling, Error> {
    let kind = hparams.rope_type();
    Ok(match (kind.as_str(), hparams.rope_f64("factor")?) {
        ("default", _) => RopeScaling::None,
        ("linear", Some(factor)) => RopeScaling::Linear { factor: factor as f32 },
        ("llama3", _) => RopeScaling::Factors(llama3_factors(hparams, head_dim)?),
        ("longrope" | "su" | "yarn", factor) if class.arch.flags.longrope => {
            RopeScaling::LongRope(longrope_from_hparams(hparams, factor)?)
        }
        ("yarn", factor) => RopeScaling::Yarn(yarn_from_hparams(hparams, factor)?),
        _ => RopeScaling::Unsupported(kind),
    })
}

fn original_context(hparams: &Hparams) -> Result<usize, Error> {
    match hparams.require_rope_f64("original_max_position_embeddings")? {
        length if length >= 1.0 => Ok(length as usize),
        length => {
            let key = "rope_parameters.original_max_position_embeddings";
            Err(hparams.bad(key, &Json::from(length), "a positive integer"))
        }
    }
}

fn yarn_from_hparams(hparams: &Hparams, factor: Option<f64>) -> Result<Yarn, Error> {
    let original_context = original_context(hparams)?;
    let context = hparams.require_positive(&["max_position_embeddings"])?;
    let factor = factor.unwrap_or(context as f64 / original_context as f64);
    // older files call it so
    let given = match hparams.rope_f64("attention_factor")? {
        Some(given) => Some(given),
        None => hparams.rope_f64("attn_factor")?,
    };
    let nonzero = |key: &str| hparams.rope_f64(key).map(|value| value.filter(|value| *value != 0.0));
    let mscales = nonzero("mscale")?.zip(nonzero("mscale_all_dim")?);
    Ok(Yarn {
        factor: factor as f32,
        original_context,
        attention_factor: given.unwrap_or_else(|| Yarn::default_attention_factor(factor, mscales)) as f32,
        beta_fast: nonzero("beta_fast")?.unwrap_or(32.0) as f32,
        beta_slow: nonzero("beta_slow")?.unwrap_or(1.0) as f32,
        truncate: hparams.rope.get("truncate").and_then(Json::as_bool).unwrap_or(true),
    })
}

fn longrope_from_hparams(hparams: &Hparams, factor: Option<f64>) -> Result<LongRope, Error> {
    let original_context = original_context(hparams)?;
    let context = hparams.require_positive(&["max_position_embeddings"])?;
    let factor = factor.unwrap_or(context as f64 / original_context as f64);
    let given = hparams.rope_f64("attention_factor")?;
    let attention_factor =
        given.unwrap_or_else(|| LongRope::default_attention_factor(factor, original_context));
    Ok(LongRope {
        original_context,
        attention_factor: attention_factor as f32,
        short: rope_factors(hparams, "short_factor")?,
        long: rope_factors(hparams, "long_factor")?,
    })
}

/// Returns the rotated dimensions of a head where only a part of it turns (Phi).
pub(super) fn rope_dim(hparams: &Hparams, partial: f64) -> Result<usize, Error> {
    let d_model = hparams.require_positive(&["hidden_size"])?;
    let n_heads = hparams.require_positive(&["num_attention_heads"])?;
    Ok((partial * d_model as f64) as usize / n_heads)
}
