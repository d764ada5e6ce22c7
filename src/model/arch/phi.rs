//! Phi-3 and Phi-4: query, key and value fused, gate and up fused.

use super::common::*;
use super::{Arch, Default, Dim, Flags, HfClass, PLAIN, Role, Row, Windows};
use crate::model::keys::Key;

const QKV: Row = row(
    Role::QkvProj,
    &[whole("model.layers.{}.self_attn.qkv_proj.weight")],
    "blk.{}.attn_qkv.weight",
    &[Dim::Qkv, Dim::Model],
);
const GATE_UP: Row = row(
    Role::GateUpProj,
    &[whole("model.layers.{}.mlp.gate_up_proj.weight")],
    "blk.{}.ffn_up.weight",
    &[Dim::TwoFf, Dim::Model],
);

static PHI3: Arch = Arch {
    name: "phi3",
    keys: &[
        Key::ContextLength,
        Key::RopeOriginalContext,
        Key::EmbeddingLength,
        Key::FeedForwardLength,
        Key::BlockCount,
        Key::HeadCount,
        Key::HeadCountKv,
        Key::RmsNormEps,
        Key::RopeDimensionCount,
        Key::RopeFreqBase,
        Key::FileType,
        Key::SlidingWindowOrZero,
    ],
    rows: &[TOKEN_EMBD, OUTPUT, OUTPUT_NORM, ATTN_NORM, QKV, O, FFN_NORM, GATE_UP, DOWN],
    flags: Flags { longrope: true, windows: Windows::Everywhere, ..PLAIN },
};

pub static CLASSES: &[HfClass] = &[HfClass {
    name: "Phi3ForCausalLM",
    arch: &PHI3,
    defaults: &[
        ("vocab_size", Default::Int(32064)),
        ("max_position_embeddings", Default::Int(4096)),
        ("original_max_position_embeddings", Default::Int(4096)),
        ("rms_norm_eps", Default::Float(1e-5)),
        ("num_key_value_heads", Default::SameAs("num_attention_heads")),
    ],
    rope_theta: 10000.0,
    rope_theta_swa: None,
    rms_norm_eps: 1e-5,
    windows: Windows::Everywhere,
}];
