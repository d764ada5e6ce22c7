//! Gemma, Gemma 2 and Gemma 3 (text; of a multimodal checkpoint the language model).

use super::common::*;
use super::{Arch, Default, Dim, Flags, HfClass, PLAIN, Presence, Role, Row, Transform, Windows};
use crate::model::keys::Key;
use crate::nn::Activation;

const GEMMA_FLAGS: Flags = Flags { activation: Activation::GeluTanh, scaled_embeddings: true, ..PLAIN };

const ADD_ONE: Transform = Transform::AddOne;

const POST_ATTN_NORM: Row = row(
    Role::PostAttnNorm,
    &[whole("model.layers.{}.post_attention_layernorm.weight")],
    "blk.{}.post_attention_norm.weight",
    &[Dim::Model],
)
.with(ADD_ONE);
const PRE_FFN_NORM: Row = row(
    Role::FfnNorm,
    &[whole("model.layers.{}.pre_feedforward_layernorm.weight")],
    "blk.{}.ffn_norm.weight",
    &[Dim::Model],
)
.with(ADD_ONE);
const POST_FFN_NORM: Row = row(
    Role::PostFfnNorm,
    &[whole("model.layers.{}.post_feedforward_layernorm.weight")],
    "blk.{}.post_ffw_norm.weight",
    &[Dim::Model],
)
.with(ADD_ONE);

static GEMMA: Arch = Arch {
    name: "gemma",
    keys: &[
        Key::ContextLength,
        Key::EmbeddingLength,
        Key::BlockCount,
        Key::FeedForwardLength,
        Key::HeadCount,
        Key::HeadCountKv,
        Key::RmsNormEps,
        Key::HeadDim,
        Key::FileType,
    ],
    rows: &[
        TOKEN_EMBD,
        OUTPUT_NORM.with(ADD_ONE),
        ATTN_NORM.with(ADD_ONE),
        Q,
        K,
        V,
        O,
        FFN_NORM.with(ADD_ONE),
        GATE,
        UP,
        DOWN,
    ],
    flags: Flags { drops_output: true, ..GEMMA_FLAGS },
};

static GEMMA2: Arch = Arch {
    name: "gemma2",
    keys: &[
        Key::ContextLength,
        Key::EmbeddingLength,
        Key::BlockCount,
        Key::FeedForwardLength,
        Key::HeadCount,
        Key::HeadCountKv,
        Key::RmsNormEps,
        Key::HeadDim,
        Key::FileType,
        Key::LogitSoftcaps,
        Key::SlidingWindow,
    ],
    rows: &[
        TOKEN_EMBD,
        OUTPUT_NORM.with(ADD_ONE),
        ATTN_NORM.with(ADD_ONE),
        Q,
        K,
        V,
        O,
        POST_ATTN_NORM,
        PRE_FFN_NORM,
        GATE,
        UP,
        DOWN,
        POST_FFN_NORM,
    ],
    flags: Flags {
        drops_output: true,
        windows: Windows::AllButEvery(2),
        wide_scale_layers: Some(46),
        ..GEMMA_FLAGS
    },
};

static GEMMA3: Arch = Arch {
    name: "gemma3",
    keys: &[
        Key::BlockCount,
        Key::ContextLength,
        Key::EmbeddingLength,
        Key::FeedForwardLength,
        Key::HeadCount,
        Key::HeadCountKv,
        Key::RopeScaling,
        Key::RopeFreqBase,
        Key::RopeFreqBaseSwa,
        Key::RmsNormEps,
        Key::HeadDim,
        Key::FileType,
        Key::FinalLogitSoftcap,
        Key::SlidingWindowUnlessFull,
    ],
    rows: &[
        TOKEN_EMBD,
        OUTPUT.when(Presence::Optional),
        OUTPUT_NORM.with(ADD_ONE),
        ATTN_NORM.with(ADD_ONE),
        Q,
        K,
        V,
        O,
        Q_NORM.with(ADD_ONE),
        K_NORM.with(ADD_ONE),
        POST_ATTN_NORM,
        PRE_FFN_NORM,
        GATE,
        UP,
        DOWN,
        POST_FFN_NORM,
    ],
    flags: Flags {
        drops_unused_vocab: true,
        rope_theta_unwritten: 1_000_000.0,
        rope_theta_swa_unwritten: Some(10000.0),
        windows: Windows::AllButEvery(6),
        wide_scale_layers: Some(62),
        ..GEMMA_FLAGS
    },
};

/// What google/gemma-3-4b's config.json leaves to transformers, and it leaves much.
const GEMMA3_DEFAULTS: &[(&str, Default)] = &[
    ("vocab_size", Default::Int(262_208)),
    ("num_attention_heads", Default::Int(8)),
    ("num_key_value_heads", Default::Int(4)),
    ("head_dim", Default::Int(256)),
    ("max_position_embeddings", Default::Int(131_072)),
    ("rms_norm_eps", Default::Float(1e-6)),
    ("sliding_window", Default::Int(4096)),
    ("tie_word_embeddings", Default::Bool(true)),
];

pub static CLASSES: &[HfClass] = &[
    HfClass {
        name: "GemmaForCausalLM",
        arch: &GEMMA,
        defaults: &[
            ("vocab_size", Default::Int(256_000)),
            ("num_key_value_heads", Default::Int(16)),
            ("head_dim", Default::Int(256)),
            ("max_position_embeddings", Default::Int(8192)),
            ("rms_norm_eps", Default::Float(1e-6)),
            ("tie_word_embeddings", Default::Bool(true)),
        ],
        rope_theta: 10000.0,
        rope_theta_swa: None,
        rms_norm_eps: 1e-6,
        windows: Windows::Nowhere,
    },
    HfClass {
        name: "Gemma2ForCausalLM",
        arch: &GEMMA2,
        defaults: &[
            ("vocab_size", Default::Int(256_000)),
            ("num_key_value_heads", Default::Int(4)),
            ("head_dim", Default::Int(256)),
            ("max_position_embeddings", Default::Int(8192)),
            ("rms_norm_eps", Default::Float(1e-6)),
            ("sliding_window", Default::Int(4096)),
            ("attn_logit_softcapping", Default::Float(50.0)),
            ("final_logit_softcapping", Default::Float(30.0)),
            ("tie_word_embeddings", Default::Bool(true)),
        ],
        rope_theta: 10000.0,
        rope_theta_swa: None,
        rms_norm_eps: 1e-6,
        windows: Windows::AllButEvery(2),
    },
    HfClass {
        name: "Gemma3ForCausalLM",
        arch: &GEMMA3,
        defaults: GEMMA3_DEFAULTS,
        rope_theta: 1_000_000.0,
        rope_theta_swa: Some(10000.0),
        rms_norm_eps: 1e-6,
        windows: Windows::AllButEvery(6),
    },
    HfClass {
        name: "Gemma3ForConditionalGeneration",
        arch: &GEMMA3,
        defaults: GEMMA3_DEFAULTS,
        rope_theta: 1_000_000.0,
        rope_theta_swa: Some(10000.0),
        rms_norm_eps: 1e-6,
        windows: Windows::AllButEvery(6),
    },
];
