//! A model's modules by the names they have in transformers.

use crate::model::arch::{Arch, Part, Role, Row};
use crate::model::config::ModelConfig;

/// A layer with weights: a linear one, a norm, the embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub role: Role,
    pub layer: usize,
    pub expert: usize,
}

impl Module {
    /// Returns true if adapters of low rank can be put beside it.
    pub fn is_linear(&self) -> bool {
        !is_vector(self.role) && self.role != Role::TokenEmbedding
    }
}

pub(super) fn is_vector(role: Role) -> bool {
    use Role::*;
    matches!(role, OutputNorm | AttnNorm | QNorm | KNorm | PostAttnNorm | FfnNorm | PostFfnNorm)
}

fn is_bias(role: Role) -> bool {
    use Role::*;
    matches!(role, QBias | KBias | VBias | OBias | GateBias | UpBias | DownBias)
}

/// Returns the modules in the order a token passes them.
///
/// A tied model's output layer is among them: it can be trained apart from the embedding. An expert of a mixture is a
/// module of its own, under the name of a checkpoint with one tensor per expert.
pub(super) fn modules(arch: &'static Arch, config: &ModelConfig) -> Vec<Module> {
    let (mut all, mut last) = (Vec::new(), Vec::new());
    let rows = || arch.rows.iter().filter(|row| !is_bias(row.role));
    for row in rows().filter(|row| !row.per_layer() && row.role != Role::Output) {
        let to = if row.role == Role::TokenEmbedding { &mut all } else { &mut last };
        to.push(Module { name: name_of(row, 0, 0), role: row.role, layer: 0, expert: 0 });
    }
    for layer in 0..config.n_layers {
        for row in rows().filter(|row| row.per_layer() && is_there(row, config)) {
            let n_experts = match row.role {
                Role::GateExperts | Role::UpExperts | Role::DownExperts => {
                    config.experts.as_ref().map_or(0, |experts| experts.n)
                }
                _ => 1,
            };
            all.extend((0..n_experts).map(|expert| {
                let name = name_of(row, layer, expert);
                Module { name, role: row.role, layer, expert }
            }));
        }
    }
    all.append(&mut last);
    all.push(Module { name: "lm_head".to_owned(), role: Role::Output, layer: 0, expert: 0 });
    all
}

fn is_there(row: &Row, config: &ModelConfig) -> bool {
    use crate::model::arch::Presence;
    match row.presence {
        Presence::Moe => config.experts.is_some(),
        Presence::Dense => config.experts.is_none(),
        _ => true,
    }
}

/// Returns the name of a row's tensor in checkpoints, less `.weight`: of experts, where each has its own.
fn name_of(row: &Row, layer: usize, expert: usize) -> String {
    let own = row.sources.iter().find(|source| source.part == Part::Expert);
    let name = own.or(row.sources.first()).map_or(row.gguf, |source| source.hf);
    let name = name.replacen("{}", &layer.to_string(), 1).replacen("{}", &expert.to_string(), 1);
    name.strip_suffix(".weight").unwrap_or(&name).to_owned()
}
