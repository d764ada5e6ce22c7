//! Names of tensors in checkpoints, sorted into rows of an architecture's table.

use std::collections::{BTreeMap, HashMap};

use super::arch::{Arch, Row, Source};

/// Buffers and leftovers that are no weights.
const IGNORED_SUFFIXES: &[&str] = &[
    ".rotary_emb.inv_freq",
    ".attention.masked_bias",
    ".attention.bias",
    ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached",
];

/// Scales of activations and caches, which no GGUF holds.
const ACTIVATION_SCALES: &[&str] = &[
    ".input_scale",
    ".activation_scale",
    ".input_activation_scale",
    ".output_scale",
    ".k_scale",
    ".v_scale",
];

/// Suffixes, behind a weight's own name less `.weight`, of the factors it is stored without.
const WEIGHT_SCALES: &[&str] = &[".weight_scale_inv", ".weight_scale"];

/// Parts of a name that belong to a multimodal checkpoint's other towers.
const OTHER_TOWERS: &[&str] =
    &["vision_tower.", "vision_model.", "visual.", "multi_modal_projector.", "audio_tower."];

/// What a checkpoint's tensor is to us.
pub(super) enum Kind<'a> {
    /// Rows of the table it feeds (two for fused gate and up), and where.
    Weight {
        targets: &'a [(usize, &'static Source)],
        layer: usize,
        expert: usize,
    },
    /// Factors of the weight of that (full) name.
    WeightScale(String),
    Ignored,
    /// Belongs to a part of the model that GGUF has elsewhere.
    OtherTower,
    Unknown,
}

/// The source patterns of an architecture by name, numbers written `{}`.
pub(super) struct Patterns {
    by_name: HashMap<&'static str, Vec<(usize, &'static Source)>>,
    drops_output: bool,
}

impl Patterns {
    pub fn new(arch: &'static Arch) -> Self {
        let mut by_name: HashMap<_, Vec<_>> = HashMap::new();
        for (i, row) in arch.rows.iter().enumerate() {
            for source in row.sources {
                by_name.entry(source.hf).or_default().push((i, source));
            }
        }
        Patterns { by_name, drops_output: arch.flags.drops_output }
    }

    /// Returns what the tensor of that name in a checkpoint is.
    pub fn classify(&self, name: &str) -> Kind<'_> {
        if IGNORED_SUFFIXES.iter().chain(ACTIVATION_SCALES).any(|suffix| name.ends_with(suffix)) {
            return Kind::Ignored;
        }
        if let Some(base) = WEIGHT_SCALES.iter().find_map(|suffix| name.strip_suffix(suffix)) {
            return Kind::WeightScale(format!("{base}.weight"));
        }
        let plain = plain_name(name);
        if let Some(kind) = self.weight(&plain) {
            return kind;
        }
        if OTHER_TOWERS.iter().any(|part| name.contains(part)) {
            return Kind::OtherTower;
        }
        if self.drops_output && plain == "lm_head.weight" {
            return Kind::Ignored;
        }
        // stacked experts have no `.weight` of their own: neither have their scales
        match ["_scale_inv", "_scale"].iter().find_map(|suffix| name.strip_suffix(suffix)) {
            Some(base) if self.weight(&plain_name(base)).is_some() => Kind::WeightScale(base.to_owned()),
            _ => Kind::Unknown,
        }
    }

    fn weight(&self, plain: &str) -> Option<Kind<'_>> {
        let (pattern, numbers) = pattern_of(plain);
        let targets = self.by_name.get(pattern.as_str())?;
        let at = |i: usize| numbers.get(i).copied().unwrap_or(0);
        Some(Kind::Weight { targets, layer: at(0), expert: at(1) })
    }
}

/// Returns the name a plain text-only checkpoint has for it: multimodal checkpoints put the language
/// model one level down, headless ones leave `model.` out.
pub(super) fn plain_name(name: &str) -> String {
    let name = name.replace("language_model.", "");
    let headless = ["layers.", "embed_tokens.", "norm."].iter().any(|start| name.starts_with(start));
    if headless { format!("model.{name}") } else { name }
}

/// Returns `name` with its numbers as `{}`, and the numbers.
fn pattern_of(name: &str) -> (String, Vec<usize>) {
    let mut numbers = Vec::new();
    let parts: Vec<&str> = name
        .split('.')
        .map(|part| match part.parse() {
            Ok(number) if part.bytes().all(|byte| byte.is_ascii_digit()) => {
                numbers.push(number);
                "{}"
            }
            _ => part,
        })
        .collect();
    (parts.join("."), numbers)
}

/// Rows of a table by GGUF name.
pub(super) struct GgufNames(BTreeMap<&'static str, &'static Row>);

impl GgufNames {
    pub fn new(arch: &'static Arch) -> Self {
        GgufNames(arch.rows.iter().map(|row| (row.gguf, row)).collect())
    }

    /// Returns the row of the tensor of that GGUF name, and its layer (0 where it has none).
    pub fn find(&self, name: &str) -> Option<(&'static Row, usize)> {
        let (pattern, numbers) = pattern_of(name);
        Some((*self.0.get(pattern.as_str())?, numbers.first().copied().unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_placeholders() {
        let (pattern, numbers) = pattern_of("model.layers.12.mlp.experts.3.w1.weight");
        assert_eq!(pattern, "model.layers.{}.mlp.experts.{}.w1.weight");
        assert_eq!(numbers, [12, 3]);
        assert_eq!(pattern_of("model.layers.+1.norm").0, "model.layers.+1.norm");
    }

    #[test]
    fn the_language_model_of_any_wrapper_has_plain_names() {
        let plain = "model.layers.0.mlp.up_proj.weight";
        assert_eq!(plain_name("language_model.model.layers.0.mlp.up_proj.weight"), plain);
        assert_eq!(plain_name("model.language_model.layers.0.mlp.up_proj.weight"), plain);
        assert_eq!(plain_name("layers.0.mlp.up_proj.weight"), plain);
        assert_eq!(plain_name("language_model.lm_head.weight"), "lm_head.weight");
    }
}
