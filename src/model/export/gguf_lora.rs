//! Adapters as llama.cpp reads them (`--lora`): a GGUF of pairs under the names of the tensors they adapt.

use std::collections::BTreeMap;
use std::path::Path;

use super::Error;
use super::gguf_merge::to_gguf;
use super::merge::f32_dtype;
use crate::model::arch::{self, Row};
use crate::model::config::ModelConfig;
use crate::model::names::{Kind, Patterns};
use crate::model::peft::PREFIX;
use crate::model::train::{LowRankSpec, ParameterInfo};
use crate::tensor::TensorDecl;
use crate::tensor::gguf::{GgufWriter, Metadata, Value, WriteOptions};

/// A pair of one expert, or of the whole tensor.
pub(super) struct Half<'a> {
    expert: usize,
    rank: usize,
    scale: f32,
    a: &'a [f32],
    b: &'a [f32],
}

/// Writes an adapter of a model of `config` as a GGUF; nothing appears before it is complete.
///
/// llama.cpp scales every pair by `alpha / rank` of its own rank; where PEFT's scale is another (rsLoRA, `alpha_pattern`),
/// B is multiplied by their ratio.
///
/// Errors on what such a file cannot hold: modules trained whole, magnitudes, halves of fused experts.
pub fn write_gguf_adapter(
    path: &Path,
    config: &ModelConfig,
    spec: &LowRankSpec,
    parameters: &[ParameterInfo],
    params: &[f32],
) -> Result<(), Error> {
    let pairs = pairs(config, spec, parameters, params)?;
    let mut metadata = Metadata::new();
    let mut text = |key: &str, value: &str| metadata.insert(key.to_owned(), Value::String(value.to_owned()));
    text("general.architecture", config.arch);
    text("general.type", "adapter");
    text("adapter.type", "lora");
    let alpha = spec.lora_alpha as f32;
    metadata.insert("adapter.lora.alpha".to_owned(), Value::F32(alpha));
    let mut decls = Vec::new();
    for (name, (_, halves)) in &pairs {
        let rank = halves[0].rank;
        let stack = if halves.len() > 1 { vec![halves.len()] } else { Vec::new() };
        for (end, rows, columns) in
            [("lora_a", rank, halves[0].a.len() / rank), ("lora_b", halves[0].b.len() / rank, rank)]
        {
            let shape = [&stack[..], &[rows, columns]].concat();
            decls.push(TensorDecl { name: format!("{name}.{end}"), shape, dtype: f32_dtype() });
        }
    }
    let mut writer = GgufWriter::create(
        path,
        &metadata,
        &decls,
        &WriteOptions { sha256: false, ..WriteOptions::default() },
    )?;
    for (row, halves) in pairs.values() {
        let bytes =
            |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
        for half in halves {
            writer.write(&bytes(half.a))?;
        }
        for half in halves {
            writer.write(&bytes(&rows_of_b(row, config, half, alpha)))?;
        }
    }
    writer.finish()?;
    Ok(())
}

pub(super) type Pairs<'a> = BTreeMap<String, (&'static Row, Vec<Half<'a>>)>;

pub(super) fn pairs<'a>(
    config: &ModelConfig,
    spec: &LowRankSpec,
    parameters: &[ParameterInfo],
    params: &'a [f32],
) -> Result<Pairs<'a>, Error> {
    let arch = arch::by_gguf_name(config.arch, Path::new(config.arch))?;
    let patterns = Patterns::new(arch);
    let mut pairs = Pairs::new();
    let not_for = |name: &str| Error::NotForGguf { name: name.to_owned() };
    for info in parameters {
        let name = info.name.strip_prefix(PREFIX).unwrap_or(&info.name);
        if name.ends_with(".lora_B.weight") {
            continue;
        }
        let module = name.strip_suffix(".lora_A.weight").ok_or_else(|| not_for(name))?;
        let other = format!("{}{module}.lora_B.weight", PREFIX);
        let b = parameters.iter().find(|info| info.name == other).ok_or_else(|| not_for(name))?;
        let weight = format!("{module}.weight");
        let (row, layer, expert) = match patterns.classify(&weight) {
            Kind::Weight { targets: [(row, target)], layer, expert } => match target.part {
                arch::Part::Half(_) => return Err(not_for(name)),
                _ => (&arch.rows[*row], layer, expert),
            },
            _ => return Err(not_for(name)),
        };
        let (rank, scale) = spec.rank_and_scale(module)?;
        let (a, b) = (&params[info.range.clone()], &params[b.range.clone()]);
        let target = row.gguf.replacen("{}", &layer.to_string(), 1);
        pairs.entry(target).or_insert((row, Vec::new())).1.push(Half { expert, rank, scale, a, b });
    }
    for (name, (_, halves)) in &mut pairs {
        halves.sort_by_key(|half| half.expert);
        let n_experts = config.experts.as_ref().map_or(1, |experts| experts.n);
        // a stack has every expert, of one rank
        let is_stack = halves.len() == n_experts && halves.iter().all(|half| half.rank == halves[0].rank);
        if halves.len() > 1 && !is_stack {
            return Err(not_for(name));
        }
    }
    Ok(pairs)
}

/// Returns B scaled, its rows in the order of the GGUF.
fn rows_of_b(row: &Row, config: &ModelConfig, half: &Half<'_>, alpha: f32) -> Vec<f32> {
    let ratio = match alpha / half.rank as f32 {
        own if own == half.scale => 1.0,
        own => half.scale / own,
    };
    let map = to_gguf(row, config);
    let n_rows = half.b.len() / half.rank;
    let row_of = |row: usize| &half.b[map.source_of(row) * half.rank..][..half.rank];
    (0..n_rows).flat_map(row_of).map(|value| value * ratio).collect()
}
