//! The `{arch}.*` keys of a GGUF, written from the hyperparameters.

use super::Error;
use super::config::{ModelConfig, RopeScaling, rope_dim};
use super::hparams::Hparams;
use super::rope_scaling::Yarn;
use crate::tensor::gguf::{Metadata, Value};

/// One key, or a group that comes together. Names: the GGUF specification (ggml/docs/gguf.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    BlockCount,
    ContextLength,
    EmbeddingLength,
    FeedForwardLength,
    HeadCount,
    HeadCountKv,
    /// Type, factor and the settings of YaRN; nothing without scaling.
    RopeScaling,
    RopeFreqBase,
    RopeFreqBaseSwa,
    RopeDimensionCount,
    RopeOriginalContext,
    RmsNormEps,
    /// Key and value length, if config.json or its class names a head size.
    HeadDim,
    FileType,
    VocabSize,
    ExpertCount,
    ExpertUsedCount,
    ExpertFeedForwardLength,
    /// Both caps: where the keys are missing, llama.cpp caps all the same (Gemma 2).
    LogitSoftcaps,
    /// The output's cap alone, if any: there is none on attention (Gemma 3).
    FinalLogitSoftcap,
    SlidingWindow,
    /// 0 without a window: tells Phi-4 from Phi-3.
    SlidingWindowOrZero,
    /// Nothing if `sliding_window_pattern` is 1: every layer sees everything.
    SlidingWindowUnlessFull,
}

/// What the keys are written from.
pub(super) struct Facts<'a> {
    pub config: &'a ModelConfig,
    pub hparams: &'a Hparams,
    /// `general.file_type`: 0 for F32, 1 for F16, 32 for BF16.
    pub file_type: u32,
}

impl Key {
    /// Writes the key into `out`; a key already there is left where it is.
    pub fn write(self, facts: &Facts, out: &mut Metadata) -> Result<(), Error> {
        let Facts { config, hparams, file_type } = *facts;
        let mut put = |suffix: &str, value: Value| {
            out.insert(format!("{}.{suffix}", config.arch), value);
        };
        // counts were checked to fit 32 bits when config.json was read
        let int = |count: usize| Value::U32(count as u32);
        match self {
            Key::BlockCount => put("block_count", int(config.n_layers)),
            Key::ContextLength => put("context_length", int(config.context_length)),
            Key::EmbeddingLength => put("embedding_length", int(config.d_model)),
            Key::FeedForwardLength => put("feed_forward_length", int(config.d_ff)),
            Key::HeadCount => put("attention.head_count", int(config.n_heads)),
            Key::HeadCountKv => put("attention.head_count_kv", int(config.n_kv_heads)),
            Key::RopeScaling => return write_rope_scaling(facts, out),
            Key::RopeFreqBase => put("rope.freq_base", Value::F32(config.rope.theta)),
            Key::RopeFreqBaseSwa => {
                if let Some(theta) = config.rope.theta_swa {
                    put("rope.freq_base_swa", Value::F32(theta));
                }
            }
            Key::RopeDimensionCount => put("rope.dimension_count", int(config.rope.dim)),
            Key::RopeOriginalContext => {
                let length = hparams.require_rope_f64("original_max_position_embeddings")?;
                put("rope.scaling.original_context_length", Value::U32(length as u32));
            }
            Key::RmsNormEps => put("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps)),
            Key::HeadDim => {
                if let Some(dim) = hparams.int("head_dim")? {
                    put("attention.key_length", int(dim));
                    put("attention.value_length", int(dim));
                }
            }
            Key::FileType => {
                out.insert("general.file_type".to_owned(), Value::U32(file_type));
            }
            Key::VocabSize => put("vocab_size", int(config.vocab_size)),
            Key::ExpertCount | Key::ExpertUsedCount | Key::ExpertFeedForwardLength => {
                if let Some(experts) = &config.experts {
                    match self {
                        Key::ExpertCount => put("expert_count", int(experts.n)),
                        Key::ExpertUsedCount => put("expert_used_count", int(experts.n_used)),
                        _ => put("expert_feed_forward_length", int(experts.d_ff)),
                    }
                }
            }
            Key::LogitSoftcaps => {
                let caps = [
                    ("attn_logit_softcapping", config.attn_logit_softcap),
                    ("final_logit_softcapping", config.final_logit_softcap),
                ];
                for (name, cap) in caps {
                    let given = || hparams.get(name).cloned().unwrap_or_default();
                    let cap = cap.filter(|cap| *cap > 0.0).ok_or_else(|| {
                        hparams.bad(name, &given(), "a number above 0: this model's logits are capped")
                    })?;
                    put(name, Value::F32(cap));
                }
            }
            Key::FinalLogitSoftcap => {
                if let Some(cap) = hparams.get("attn_logit_softcapping") {
                    return Err(hparams.bad(
                        "attn_logit_softcapping",
                        cap,
                        "null: a GGUF of this model has no key for it",
                    ));
                }
                if let Some(cap) = config.final_logit_softcap.filter(|cap| *cap != 0.0) {
                    put("final_logit_softcapping", Value::F32(cap));
                }
            }
            Key::SlidingWindow => {
                if let Some(window) = config.sliding_window {
                    put("attention.sliding_window", int(window));
                }
            }
            Key::SlidingWindowOrZero => {
                put("attention.sliding_window", int(config.sliding_window.unwrap_or(0)));
            }
            Key::SlidingWindowUnlessFull => {
                if let (Some(window), true) =
                    (config.sliding_window, hparams.int("sliding_window_pattern")? != Some(1))
                {
                    put("attention.sliding_window", int(window));
                }
            }
        }
        Ok(())
    }
}

fn write_rope_scaling(facts: &Facts, out: &mut Metadata) -> Result<(), Error> {
    let Facts { config, hparams, .. } = *facts;
    let key = |suffix: &str| format!("{}.rope.scaling.{suffix}", config.arch);
    match &config.rope.scaling {
        RopeScaling::None
        | RopeScaling::LongRope(_)
        | RopeScaling::Factors(_)
        | RopeScaling::Unsupported(_) => {}
        RopeScaling::Linear { factor } => {
            out.insert(key("type"), "linear".into());
            out.insert(key("factor"), Value::F32(*factor));
        }
        RopeScaling::Yarn(Yarn { factor, original_context, .. }) => {
            out.insert(key("type"), "yarn".into());
            out.insert(key("factor"), Value::F32(*factor));
            out.insert(key("original_context_length"), Value::U32(*original_context as u32));
            let settings = [
                (["extrapolation_factor", "extrapolation_factor"], "yarn_ext_factor"),
                (["attention_factor", "attn_factor"], "yarn_attn_factor"),
                (["beta_fast", "beta_fast"], "yarn_beta_fast"),
                (["beta_slow", "beta_slow"], "yarn_beta_slow"),
            ];
            for ([name, older], suffix) in settings {
                let value = match hparams.rope_f64(name)? {
                    Some(value) => Some(value),
                    None => hparams.rope_f64(older)?,
                };
                if let Some(value) = value {
                    out.insert(key(suffix), Value::F32(value as f32));
                }
            }
        }
    }
    Ok(())
}

/// Returns a sentence if the config scales rope in a way that the GGUF will not say.
pub(super) fn unwritten_rope(facts: &Facts) -> Result<Option<String>, Error> {
    let Facts { config, hparams, .. } = *facts;
    let flags = super::arch::by_gguf_name(config.arch, hparams.path())?.flags;
    let kind = hparams.rope_type();
    let written = match config.rope.scaling {
        RopeScaling::Factors(_) => flags.rope_freqs,
        RopeScaling::Unsupported(_) => false,
        _ => true,
    };
    Ok((!written).then(|| {
        format!("rope scaling `{kind}` has no form in a `{}` GGUF: long contexts will differ", config.arch)
    }))
}

/// A tensor computed from the config: GGUF name and values.
pub(super) type Generated = (&'static str, Vec<f32>);

/// Returns the tensors that no checkpoint stores and the keys that come with them.
///
/// Llama 3: `rope_freqs.weight`, by which each frequency is divided (arXiv:2407.21783, section
/// 3.4.1; the bounds are wavelengths). Phi-3: long and short factors and the attention factor
/// (arXiv:2402.13753, section 3.3).
pub(super) fn generated(facts: &Facts) -> Result<(Vec<Generated>, Metadata), Error> {
    let flags = super::arch::by_gguf_name(facts.config.arch, facts.hparams.path())?.flags;
    let mut keys = Metadata::new();
    let mut tensors = Vec::new();
    if flags.rope_freqs && facts.hparams.rope_type() == "llama3" {
        tensors.push(("rope_freqs.weight", llama3_factors(facts.hparams, facts.config.head_dim)?));
    }
    if flags.longrope && facts.hparams.rope.get("long_factor").is_some_and(|factors| !factors.is_null()) {
        let (long, short) =
            (rope_factors(facts.hparams, "long_factor")?, rope_factors(facts.hparams, "short_factor")?);
        keys.insert(
            format!("{}.rope.scaling.attn_factor", facts.config.arch),
            Value::F32(longrope_attn_factor(facts)? as f32),
        );
        tensors.push(("rope_factors_long.weight", long));
        tensors.push(("rope_factors_short.weight", short));
    }
    Ok((tensors, keys))
}

/// Returns what Llama 3 divides each frequency by: one per pair of a head of `dim` dimensions.
///
/// Single precision throughout, each power rounded once: what torch computes. It divides a number by
/// a tensor as the tensor's reciprocal times the number, and that rounds twice.
pub(super) fn llama3_factors(hparams: &Hparams, dim: usize) -> Result<Vec<f32>, Error> {
    let theta = hparams.require_rope_f64("rope_theta")?;
    let or = |key: &str, default: f64| hparams.rope_f64(key).map(|value| value.unwrap_or(default));
    let factor = or("factor", 8.0)?;
    let low = or("low_freq_factor", 1.0)?;
    let high = or("high_freq_factor", 4.0)?;
    let old_context = or("original_max_position_embeddings", 8192.0)?;
    let (low_wavelen, high_wavelen) = ((old_context / low) as f32, (old_context / high) as f32);
    let divide = |number: f64, by: f32| (1.0 / by) * number as f32;
    let factors = (0..dim).step_by(2).map(|i| {
        let exponent = i as f32 / dim as f32;
        let freq = 1.0 / theta.powf(f64::from(exponent)) as f32;
        let wavelen = divide(std::f64::consts::TAU, freq);
        if wavelen < high_wavelen {
            1.0
        } else if wavelen > low_wavelen {
            factor as f32
        } else {
            let smooth = (divide(old_context, wavelen) - low as f32) / (high - low) as f32;
            1.0 / ((1.0 - smooth) / factor as f32 + smooth)
        }
    });
    Ok(factors.collect())
}

/// Returns the long or short factors of LongRoPE: one per rotated pair.
pub(super) fn rope_factors(hparams: &Hparams, key: &str) -> Result<Vec<f32>, Error> {
    let name = format!("rope_parameters.{key}");
    let missing = || Error::MissingKey { path: hparams.path().to_path_buf(), key: name.clone() };
    let value = hparams.rope.get(key).ok_or_else(missing)?;
    let factors: Option<Vec<f32>> =
        value.as_array().and_then(|list| list.iter().map(|x| x.as_f64().map(|x| x as f32)).collect());
    let partial = hparams.rope_f64("partial_rotary_factor")?.unwrap_or(1.0);
    let n = rope_dim(hparams, partial)? / 2;
    factors
        .filter(|factors| factors.len() == n)
        .ok_or_else(|| hparams.bad(&name, value, "a list of one number per rotated pair"))
}

fn longrope_attn_factor(facts: &Facts) -> Result<f64, Error> {
    let hparams = facts.hparams;
    let original = hparams.require_rope_f64("original_max_position_embeddings")?;
    let scale = facts.config.context_length as f64 / original;
    Ok(if scale > 1.0 { (1.0 + scale.ln() / original.ln()).sqrt() } else { 1.0 })
}
