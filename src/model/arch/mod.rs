//! One file per model family, each a table of rows: HF name, role, GGUF name, transform.
//!
//! Adding an architecture is one file, one line in [`CLASSES`].

mod gemma;
mod llama;
mod phi;
mod qwen;

use std::path::Path;

use serde_json::Value;

use super::Error;
use super::config::ModelConfig;
use super::keys::Key;
use crate::nn::Activation;

/// Everything that tells one GGUF architecture from another.
pub struct Arch {
    /// The value of `general.architecture`.
    pub name: &'static str,
    /// `{arch}.*` keys, in the reference converter's order; a repeated key keeps its first place.
    pub(super) keys: &'static [Key],
    pub rows: &'static [Row],
    pub flags: Flags,
}

/// Traits shared by several architectures.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    /// `output.weight` is never written: the model shares its embedding (Gemma).
    pub drops_output: bool,
    /// Embedding rows past the tokenizer's vocabulary are dropped (Gemma 3).
    pub drops_unused_vocab: bool,
    /// Llama 3 frequency factors go into `rope_freqs.weight`.
    pub rope_freqs: bool,
    /// Long and short factors go into `rope_factors_*.weight`, and part of a head may rotate (Phi).
    pub longrope: bool,
    /// `sliding_window` holds only if `use_sliding_window` is true (Qwen).
    pub window_needs_switch: bool,
    /// The rope base of a GGUF without `rope.freq_base`.
    pub rope_theta_unwritten: f32,
    /// The base in layers of sliding attention of a GGUF without `rope.freq_base_swa`, where it differs.
    pub rope_theta_swa_unwritten: Option<f32>,
    /// The feed-forward's activation, unless config.json names another.
    pub activation: Activation,
    /// Embeddings are multiplied by the root of `d_model` (Gemma).
    pub scaled_embeddings: bool,
    /// Layers of a GGUF that see no further than the sliding window, if there is one.
    pub windows: Windows,
    /// Layers of the model whose heads are scaled by the root of `d_model / n_heads`, not of `head_dim`,
    /// in a GGUF, which has no key for it (Gemma 27B).
    pub wide_scale_layers: Option<usize>,
}

/// Which layers have sliding attention, if `sliding_window` is set and nothing else says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    Nowhere,
    Everywhere,
    /// From layer `max_window_layers` on (28 if unset: Qwen).
    FromLayer,
    /// All but every n-th layer.
    AllButEvery(usize),
}

/// No trait at all; tables override what differs.
pub(super) const PLAIN: Flags = Flags {
    drops_output: false,
    drops_unused_vocab: false,
    rope_freqs: false,
    longrope: false,
    window_needs_switch: false,
    rope_theta_unwritten: 10000.0,
    rope_theta_swa_unwritten: None,
    activation: Activation::Silu,
    scaled_embeddings: false,
    windows: Windows::Nowhere,
    wide_scale_layers: None,
};

/// A model class of transformers: the architecture it becomes, and the defaults of its config class.
pub struct HfClass {
    /// As in `architectures` of config.json.
    pub name: &'static str,
    pub arch: &'static Arch,
    /// Values transformers (5.23) assumes for keys that config.json leaves out, in order of evaluation.
    pub defaults: &'static [(&'static str, Default)],
    pub rope_theta: f64,
    pub rope_theta_swa: Option<f64>,
    pub rms_norm_eps: f32,
    pub windows: Windows,
}

/// A default value of a config class.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    Int(u64),
    Float(f64),
    Bool(bool),
    SameAs(&'static str),
    /// `hidden_size / num_attention_heads`
    HeadDim,
}

/// What a tensor is for, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    TokenEmbedding,
    Output,
    OutputNorm,
    AttnNorm,
    QProj,
    KProj,
    VProj,
    QkvProj,
    OProj,
    QBias,
    KBias,
    VBias,
    OBias,
    QNorm,
    KNorm,
    PostAttnNorm,
    FfnNorm,
    PostFfnNorm,
    GateProj,
    UpProj,
    DownProj,
    /// Gate rows, then up rows.
    GateUpProj,
    GateBias,
    UpBias,
    DownBias,
    Router,
    GateExperts,
    UpExperts,
    DownExperts,
}

/// One tensor of an architecture: where it comes from, what it is, what it becomes.
pub struct Row {
    pub role: Role,
    /// Spellings in checkpoints; `{}` stands for the layer, then for the expert.
    pub sources: &'static [Source],
    /// GGUF name; `{}` stands for the layer.
    pub gguf: &'static str,
    /// Shape in the GGUF, outermost first.
    pub shape: &'static [Dim],
    pub transform: Transform,
    pub presence: Presence,
}

/// One spelling of a tensor, and how much of the target it holds.
pub struct Source {
    pub hf: &'static str,
    pub part: Part,
}

/// What one source tensor is of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// One expert of a stack along a new outermost dimension.
    Expert,
    /// The first (0) or second (1) half of every expert's rows: fused gate and up.
    Half(usize),
}

/// A change of rows or values, besides the gathering of parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    None,
    /// Rows of each query head from halves to interleaved pairs, as ggml's rope wants them for `llama`.
    InterleaveQ,
    /// The same for the fewer key heads.
    InterleaveK,
    /// The norm's weight is stored less one (Gemma).
    AddOne,
}

/// A dimension by meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    Vocab,
    Model,
    /// `n_heads * head_dim`
    Q,
    /// `n_kv_heads * head_dim`
    Kv,
    /// `Q + 2 * Kv`
    Qkv,
    Head,
    Ff,
    /// `2 * Ff`
    TwoFf,
    Experts,
    ExpertFf,
}

/// When a tensor has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Required,
    Optional,
    /// Required unless the embeddings are tied.
    Untied,
    /// Required in a mixture of experts, impossible otherwise.
    Moe,
    /// The reverse of [`Presence::Moe`].
    Dense,
}

impl Presence {
    /// Returns true if a model of this config must have the tensor.
    pub fn required(self, config: &ModelConfig) -> bool {
        match self {
            Presence::Required => true,
            Presence::Optional => false,
            Presence::Untied => !config.tied_embeddings,
            Presence::Moe => config.experts.is_some(),
            Presence::Dense => config.experts.is_none(),
        }
    }
}

impl Row {
    /// Returns true if the row stands for one tensor per layer.
    pub fn per_layer(&self) -> bool {
        self.gguf.contains("{}")
    }

    /// Returns the GGUF name in `layer` (ignored unless [`Row::per_layer`]).
    pub fn gguf_name(&self, layer: usize) -> String {
        self.gguf.replacen("{}", &layer.to_string(), 1)
    }

    /// Returns the GGUF shape, outermost dimension first; 0 for experts a dense model lacks.
    pub fn shape(&self, config: &ModelConfig) -> Vec<usize> {
        self.shape.iter().map(|dim| dim.size(config)).collect()
    }
}

impl Dim {
    fn size(self, config: &ModelConfig) -> usize {
        let q = config.n_heads * config.head_dim;
        let kv = config.n_kv_heads * config.head_dim;
        let experts = config.experts.as_ref();
        match self {
            Dim::Vocab => config.vocab_size,
            Dim::Model => config.d_model,
            Dim::Q => q,
            Dim::Kv => kv,
            Dim::Qkv => q + 2 * kv,
            Dim::Head => config.head_dim,
            Dim::Ff => config.d_ff,
            Dim::TwoFf => 2 * config.d_ff,
            Dim::Experts => experts.map_or(0, |experts| experts.n),
            Dim::ExpertFf => experts.map_or(0, |experts| experts.d_ff),
        }
    }
}

/// Every model class we read, by family.
pub static CLASSES: &[&[HfClass]] = &[llama::CLASSES, qwen::CLASSES, gemma::CLASSES, phi::CLASSES];

/// Returns every model class.
pub fn classes() -> impl Iterator<Item = &'static HfClass> {
    CLASSES.iter().flat_map(|family| family.iter())
}

/// Returns the model class that config.json (at `path`) names in `architectures`.
pub fn class_of(config: &Value, path: &Path) -> Result<&'static HfClass, Error> {
    let first = |config: &Value| Some(config.get("architectures")?.get(0)?.as_str()?.to_owned());
    let name = config.get("text_config").and_then(first).or_else(|| first(config));
    let name =
        name.ok_or_else(|| Error::MissingKey { path: path.to_path_buf(), key: "architectures".to_owned() })?;
    classes().find(|class| class.name == name).ok_or_else(|| {
        let known: Vec<_> = classes().map(|class| class.name).collect();
        unknown(name, known, path)
    })
}

/// Returns the architecture of that GGUF name; `path` is for messages.
pub fn by_gguf_name(name: &str, path: &Path) -> Result<&'static Arch, Error> {
    classes().map(|class| class.arch).find(|arch| arch.name == name).ok_or_else(|| {
        let mut known: Vec<_> = classes().map(|class| class.arch.name).collect();
        known.dedup();
        unknown(name.to_owned(), known, path)
    })
}

fn unknown(name: String, known: Vec<&'static str>, path: &Path) -> Error {
    let nearest = crate::error::nearest(&name, known.iter().copied()).map(str::to_owned);
    Error::UnknownArchitecture { path: path.to_path_buf(), name, nearest, known }
}

/// Rows that several families share word for word.
mod common {
    use super::{Dim, Part, Presence, Role, Row, Source, Transform};

    pub const fn whole(hf: &'static str) -> Source {
        Source { hf, part: Part::Whole }
    }

    pub const fn expert(hf: &'static str) -> Source {
        Source { hf, part: Part::Expert }
    }

    pub const fn half(hf: &'static str, half: usize) -> Source {
        Source { hf, part: Part::Half(half) }
    }

    /// A required row without a transform.
    pub const fn row(
        role: Role,
        sources: &'static [Source],
        gguf: &'static str,
        shape: &'static [Dim],
    ) -> Row {
        Row { role, sources, gguf, shape, transform: Transform::None, presence: Presence::Required }
    }

    impl Row {
        pub const fn with(mut self, transform: Transform) -> Row {
            self.transform = transform;
            self
        }

        pub const fn from(mut self, sources: &'static [Source]) -> Row {
            self.sources = sources;
            self
        }

        pub const fn when(mut self, presence: Presence) -> Row {
            self.presence = presence;
            self
        }
    }

    pub const EMBED: &str = "model.embed_tokens.weight";

    pub const TOKEN_EMBD: Row =
        row(Role::TokenEmbedding, &[whole(EMBED)], "token_embd.weight", &[Dim::Vocab, Dim::Model]);
    pub const OUTPUT: Row =
        row(Role::Output, &[whole("lm_head.weight")], "output.weight", &[Dim::Vocab, Dim::Model])
            .when(Presence::Untied);
    pub const OUTPUT_NORM: Row =
        row(Role::OutputNorm, &[whole("model.norm.weight")], "output_norm.weight", &[Dim::Model]);
    pub const ATTN_NORM: Row = row(
        Role::AttnNorm,
        &[whole("model.layers.{}.input_layernorm.weight")],
        "blk.{}.attn_norm.weight",
        &[Dim::Model],
    );
    pub const FFN_NORM: Row = row(
        Role::FfnNorm,
        &[whole("model.layers.{}.post_attention_layernorm.weight")],
        "blk.{}.ffn_norm.weight",
        &[Dim::Model],
    );
    pub const Q: Row = row(
        Role::QProj,
        &[whole("model.layers.{}.self_attn.q_proj.weight")],
        "blk.{}.attn_q.weight",
        &[Dim::Q, Dim::Model],
    );
    pub const K: Row = row(
        Role::KProj,
        &[whole("model.layers.{}.self_attn.k_proj.weight")],
        "blk.{}.attn_k.weight",
        &[Dim::Kv, Dim::Model],
    );
    pub const V: Row = row(
        Role::VProj,
        &[whole("model.layers.{}.self_attn.v_proj.weight")],
        "blk.{}.attn_v.weight",
        &[Dim::Kv, Dim::Model],
    );
    pub const O: Row = row(
        Role::OProj,
        &[whole("model.layers.{}.self_attn.o_proj.weight")],
        "blk.{}.attn_output.weight",
        &[Dim::Model, Dim::Q],
    );
    pub const Q_BIAS: Row =
        row(Role::QBias, &[whole("model.layers.{}.self_attn.q_proj.bias")], "blk.{}.attn_q.bias", &[Dim::Q]);
    pub const K_BIAS: Row =
        row(Role::KBias, &[whole("model.layers.{}.self_attn.k_proj.bias")], "blk.{}.attn_k.bias", &[Dim::Kv]);
    pub const V_BIAS: Row =
        row(Role::VBias, &[whole("model.layers.{}.self_attn.v_proj.bias")], "blk.{}.attn_v.bias", &[Dim::Kv]);
    pub const O_BIAS: Row = row(
        Role::OBias,
        &[whole("model.layers.{}.self_attn.o_proj.bias")],
        "blk.{}.attn_output.bias",
        &[Dim::Model],
    )
    .when(Presence::Optional);
    pub const Q_NORM: Row = row(
        Role::QNorm,
        &[whole("model.layers.{}.self_attn.q_norm.weight")],
        "blk.{}.attn_q_norm.weight",
        &[Dim::Head],
    );
    pub const K_NORM: Row = row(
        Role::KNorm,
        &[whole("model.layers.{}.self_attn.k_norm.weight")],
        "blk.{}.attn_k_norm.weight",
        &[Dim::Head],
    );
    pub const GATE: Row = row(
        Role::GateProj,
        &[whole("model.layers.{}.mlp.gate_proj.weight")],
        "blk.{}.ffn_gate.weight",
        &[Dim::Ff, Dim::Model],
    );
    pub const UP: Row = row(
        Role::UpProj,
        &[whole("model.layers.{}.mlp.up_proj.weight")],
        "blk.{}.ffn_up.weight",
        &[Dim::Ff, Dim::Model],
    );
    pub const DOWN: Row = row(
        Role::DownProj,
        &[whole("model.layers.{}.mlp.down_proj.weight")],
        "blk.{}.ffn_down.weight",
        &[Dim::Model, Dim::Ff],
    );
    /// Experts as Mixtral published them, one tensor each, or in the stacks of transformers 5 (gate and up fused).
    pub const ROUTER: Row = row(
        Role::Router,
        &[whole("model.layers.{}.block_sparse_moe.gate.weight"), whole("model.layers.{}.mlp.gate.weight")],
        "blk.{}.ffn_gate_inp.weight",
        &[Dim::Experts, Dim::Model],
    )
    .when(Presence::Moe);
    pub const GATE_EXPS: Row = row(
        Role::GateExperts,
        &[
            expert("model.layers.{}.block_sparse_moe.experts.{}.w1.weight"),
            half("model.layers.{}.mlp.experts.gate_up_proj", 0),
            half("model.layers.{}.mlp.experts.gate_up_proj.weight", 0),
        ],
        "blk.{}.ffn_gate_exps.weight",
        &[Dim::Experts, Dim::ExpertFf, Dim::Model],
    )
    .when(Presence::Moe);
    pub const DOWN_EXPS: Row = row(
        Role::DownExperts,
        &[
            expert("model.layers.{}.block_sparse_moe.experts.{}.w2.weight"),
            whole("model.layers.{}.mlp.experts.down_proj"),
            whole("model.layers.{}.mlp.experts.down_proj.weight"),
        ],
        "blk.{}.ffn_down_exps.weight",
        &[Dim::Experts, Dim::Model, Dim::ExpertFf],
    )
    .when(Presence::Moe);
    pub const UP_EXPS: Row = row(
        Role::UpExperts,
        &[
            expert("model.layers.{}.block_sparse_moe.experts.{}.w3.weight"),
            half("model.layers.{}.mlp.experts.gate_up_proj", 1),
            half("model.layers.{}.mlp.experts.gate_up_proj.weight", 1),
        ],
        "blk.{}.ffn_up_exps.weight",
        &[Dim::Experts, Dim::ExpertFf, Dim::Model],
    )
    .when(Presence::Moe);
}
