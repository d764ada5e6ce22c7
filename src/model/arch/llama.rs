//! Llama 2 / 3 / 3.x, Code Llama, Mistral and Mixtral: all `llama` in GGUF.

use super::common::*;
use super::{Arch, Default, Dim, Flags, HfClass, PLAIN, Presence, Role, Row, Transform, Windows};
use crate::model::keys::Key;

static LLAMA: Arch = Arch {
    name: "llama",
    keys: &[
        Key::BlockCount,
        Key::ContextLength,
        Key::EmbeddingLength,
        Key::FeedForwardLength,
        Key::HeadCount,
        Key::HeadCountKv,
        Key::RopeScaling,
        Key::RopeFreqBase,
        Key::RmsNormEps,
        Key::ExpertCount,
        Key::ExpertUsedCount,
        Key::HeadDim,
        Key::FileType,
        Key::VocabSize,
        Key::RopeDimensionCount,
    ],
    rows: &[
        TOKEN_EMBD,
        OUTPUT,
        OUTPUT_NORM,
        ATTN_NORM,
        Q.with(Transform::InterleaveQ),
        K.with(Transform::InterleaveK),
        V,
        O,
        Q_BIAS.with(Transform::InterleaveQ).when(Presence::Optional),
        K_BIAS.with(Transform::InterleaveK).when(Presence::Optional),
        V_BIAS.when(Presence::Optional),
        O_BIAS,
        FFN_NORM,
        GATE.when(Presence::Dense),
        UP.when(Presence::Dense),
        DOWN.when(Presence::Dense),
        GATE_BIAS,
        UP_BIAS,
        DOWN_BIAS,
        ROUTER,
        GATE_EXPS,
        DOWN_EXPS,
        UP_EXPS,
    ],
    flags: Flags { rope_freqs: true, ..PLAIN },
};

/// `mlp_bias` of transformers' Llama.
const GATE_BIAS: Row =
    row(Role::GateBias, &[whole("model.layers.{}.mlp.gate_proj.bias")], "blk.{}.ffn_gate.bias", &[Dim::Ff])
        .when(Presence::Optional);
const UP_BIAS: Row =
    row(Role::UpBias, &[whole("model.layers.{}.mlp.up_proj.bias")], "blk.{}.ffn_up.bias", &[Dim::Ff])
        .when(Presence::Optional);
const DOWN_BIAS: Row = row(
    Role::DownBias,
    &[whole("model.layers.{}.mlp.down_proj.bias")],
    "blk.{}.ffn_down.bias",
    &[Dim::Model],
)
.when(Presence::Optional);

const LLAMA_DEFAULTS: &[(&str, Default)] = &[
    ("vocab_size", Default::Int(32000)),
    ("max_position_embeddings", Default::Int(2048)),
    ("rms_norm_eps", Default::Float(1e-6)),
    ("num_key_value_heads", Default::SameAs("num_attention_heads")),
    ("head_dim", Default::HeadDim),
];

pub static CLASSES: &[HfClass] = &[
    HfClass {
        name: "LlamaForCausalLM",
        arch: &LLAMA,
        defaults: LLAMA_DEFAULTS,
        rope_theta: 10000.0,
        rope_theta_swa: None,
        rms_norm_eps: 1e-6,
        windows: Windows::Nowhere,
    },
    HfClass {
        name: "LLaMAForCausalLM",
        arch: &LLAMA,
        defaults: LLAMA_DEFAULTS,
        rope_theta: 10000.0,
        rope_theta_swa: None,
        rms_norm_eps: 1e-6,
        windows: Windows::Nowhere,
    },
    HfClass {
        name: "MistralForCausalLM",
        arch: &LLAMA,
        defaults: &[
            ("vocab_size", Default::Int(32000)),
            ("max_position_embeddings", Default::Int(131_072)),
            ("rms_norm_eps", Default::Float(1e-6)),
            ("num_key_value_heads", Default::Int(8)),
            ("head_dim", Default::HeadDim),
            ("sliding_window", Default::Int(4096)),
        ],
        rope_theta: 10000.0,
        rope_theta_swa: None,
        rms_norm_eps: 1e-6,
        windows: Windows::Everywhere,
    },
    HfClass {
        name: "MixtralForCausalLM",
        arch: &LLAMA,
        // no default for head_dim: its keys are written only if config.json has it
        defaults: &[
            ("vocab_size", Default::Int(32000)),
            ("max_position_embeddings", Default::Int(131_072)),
            ("rms_norm_eps", Default::Float(1e-5)),
            ("num_key_value_heads", Default::Int(8)),
            ("num_local_experts", Default::Int(8)),
            ("num_experts_per_tok", Default::Int(2)),
        ],
        rope_theta: 1_000_000.0,
        rope_theta_swa: None,
        rms_norm_eps: 1e-5,
        windows: Windows::Everywhere,
    },
];
