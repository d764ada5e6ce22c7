//! Qwen2 / 2.5, Qwen3 and Qwen3-MoE.

use super::common::*;
use super::{Arch, Default, Flags, HfClass, PLAIN, Presence};
use crate::model::keys::Key;

const FLAGS: Flags = Flags { window_needs_switch: true, ..PLAIN };

static QWEN2: Arch = Arch {
    name: "qwen2",
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
        Key::HeadDim,
        Key::FileType,
    ],
    rows: &[
        TOKEN_EMBD,
        OUTPUT,
        OUTPUT_NORM,
        ATTN_NORM,
        Q,
        K,
        V,
        O,
        Q_BIAS,
        K_BIAS,
        V_BIAS,
        FFN_NORM,
        GATE,
        UP,
        DOWN,
    ],
    flags: FLAGS,
};

static QWEN3: Arch = Arch {
    name: "qwen3",
    keys: QWEN2.keys,
    rows: &[
        TOKEN_EMBD,
        OUTPUT,
        OUTPUT_NORM,
        ATTN_NORM,
        Q,
        K,
        V,
        O,
        Q_BIAS.when(Presence::Optional),
        K_BIAS.when(Presence::Optional),
        V_BIAS.when(Presence::Optional),
        O_BIAS,
        Q_NORM,
        K_NORM,
        FFN_NORM,
        GATE,
        UP,
        DOWN,
    ],
    flags: FLAGS,
};

static QWEN3_MOE: Arch = Arch {
    name: "qwen3moe",
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
        Key::ExpertFeedForwardLength,
    ],
    rows: &[
        TOKEN_EMBD,
        OUTPUT,
        OUTPUT_NORM,
        ATTN_NORM,
        Q,
        K,
        V,
        O,
        Q_BIAS.when(Presence::Optional),
        K_BIAS.when(Presence::Optional),
        V_BIAS.when(Presence::Optional),
        O_BIAS,
        Q_NORM,
        K_NORM,
        FFN_NORM,
        ROUTER.from(&[whole("model.layers.{}.mlp.gate.weight")]),
        GATE_EXPS.from(&[
            expert("model.layers.{}.mlp.experts.{}.gate_proj.weight"),
            half("model.layers.{}.mlp.experts.gate_up_proj", 0),
            half("model.layers.{}.mlp.experts.gate_up_proj.weight", 0),
        ]),
        DOWN_EXPS.from(&[
            expert("model.layers.{}.mlp.experts.{}.down_proj.weight"),
            whole("model.layers.{}.mlp.experts.down_proj"),
            whole("model.layers.{}.mlp.experts.down_proj.weight"),
        ]),
        UP_EXPS.from(&[
            expert("model.layers.{}.mlp.experts.{}.up_proj.weight"),
            half("model.layers.{}.mlp.experts.gate_up_proj", 1),
            half("model.layers.{}.mlp.experts.gate_up_proj.weight", 1),
        ]),
    ],
    flags: FLAGS,
};

pub static CLASSES: &[HfClass] = &[
    HfClass {
        name: "Qwen2ForCausalLM",
        arch: &QWEN2,
        defaults: &[
            ("vocab_size", Default::Int(151_936)),
            ("max_position_embeddings", Default::Int(32768)),
            ("rms_norm_eps", Default::Float(1e-6)),
            ("num_key_value_heads", Default::Int(32)),
        ],
        rope_theta: 10000.0,
        rope_theta_swa: None,
        rms_norm_eps: 1e-6,
    },
    HfClass {
        name: "Qwen3ForCausalLM",
        arch: &QWEN3,
        defaults: &[
            ("vocab_size", Default::Int(151_936)),
            ("max_position_embeddings", Default::Int(32768)),
            ("rms_norm_eps", Default::Float(1e-6)),
            ("num_key_value_heads", Default::Int(32)),
            ("head_dim", Default::Int(128)),
        ],
        rope_theta: 10000.0,
        rope_theta_swa: None,
        rms_norm_eps: 1e-6,
    },
    HfClass {
        name: "Qwen3MoeForCausalLM",
        arch: &QWEN3_MOE,
        defaults: &[
            ("vocab_size", Default::Int(151_936)),
            ("intermediate_size", Default::Int(6144)),
            ("max_position_embeddings", Default::Int(32768)),
            ("rms_norm_eps", Default::Float(1e-6)),
            ("num_key_value_heads", Default::Int(4)),
            ("moe_intermediate_size", Default::Int(768)),
            ("num_experts_per_tok", Default::Int(8)),
        ],
        rope_theta: 10000.0,
        rope_theta_swa: None,
        rms_norm_eps: 1e-6,
    },
];
