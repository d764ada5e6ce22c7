//! What a tensor's name says: its role, whether it may be quantized, where it stands in the output.

use super::Error;
use super::plan::Input;
use super::recipe::Role;

/// Returns the role a tensor's name says.
pub fn role_of(name: &str) -> Role {
    match name {
        "output.weight" => return Role::Output,
        "token_embd.weight" | "per_layer_token_embd.weight" => return Role::TokenEmbedding,
        _ => {}
    }
    const PARTS: &[(&str, Role)] = &[
        ("attn_qkv.weight", Role::AttnV),
        ("attn_kv_b.weight", Role::AttnV),
        ("attn_v.weight", Role::AttnV),
        ("attn_k.weight", Role::AttnK),
        ("attn_q.weight", Role::AttnQ),
        ("attn_output.weight", Role::AttnOutput),
        ("ffn_up", Role::FfnUp),
        ("ffn_gate", Role::FfnGate),
        ("ffn_down", Role::FfnDown),
    ];
    PARTS.iter().find(|(part, _)| name.contains(part)).map_or(Role::Other, |(_, role)| *role)
}

/// Parts of a name that mark a tensor as too small or too delicate to quantize: norms, routers,
/// convolutions, position tables, and the small matrices of other model families.
const NEVER_QUANTIZED: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// Returns true for a weight of two or more dimensions that no rule of the reference spares.
pub(super) fn is_quantizable(tensor: &Input, leave_output: bool) -> bool {
    let n_dims = tensor.shape.iter().skip_while(|&&d| d == 1).count();
    n_dims >= 2
        && tensor.name.ends_with("weight")
        && !(leave_output && tensor.name == "output.weight")
        && !matches!(tensor.name, "position_embd.weight" | "token_types.weight")
        && !NEVER_QUANTIZED.iter().any(|part| tensor.name.contains(part))
}

/// Compares by block number (none comes first), then by name.
pub(super) fn output_order(a: &str, b: &str) -> std::cmp::Ordering {
    (block_number(a), a).cmp(&(block_number(b), b))
}

/// Returns N of a name that starts with `blk.N`.
fn block_number(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("blk.")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

/// Returns the block number of a name, which must be below `n_layers`.
pub(super) fn named_layer(name: &str, n_layers: usize) -> Result<usize, Error> {
    match block_number(name) {
        Some(layer) if layer < n_layers => Ok(layer),
        found => Err(Error::BadLayer { tensor: name.to_owned(), found, n_layers }),
    }
}
