//! Low-rank adapters (arXiv:2106.09685): a PEFT directory or a GGUF adapter, onto a decoder's linear layers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};
use serde_json::Value as Json;

use super::Error;
use super::arch::{self, Arch, Role, Transform};
use super::config::ModelConfig;
use super::map::f32_dtype;
use super::mapper::source_shape;
use super::names::{GgufNames, Kind, Patterns};
use super::weights::{FeedForward, Linear, Weights};
use crate::kernel::{Arithmetic, Compute, Isa, Matrix};
use crate::nn;
use crate::tensor::gguf::{Gguf, Value};
use crate::tensor::safetensors::SafeTensors;
use crate::tensor::{Opened, RowMap, TensorInfo, TensorSource};

/// `scale * (x A^T) B^T`, added to a linear's output.
pub(super) struct LowRank {
    /// `[r, in]`
    a: Matrix,
    /// `[out, r]`
    b: Matrix,
    scale: f32,
}

impl LowRank {
    /// Returns the pair of `a` `[r, in]` and `b` `[out, r]`.
    pub fn new(a: Matrix, b: Matrix, scale: f32) -> Self {
        LowRank { a, b, scale }
    }

    /// Returns both matrices.
    pub fn matrices(&mut self) -> [&mut Matrix; 2] {
        [&mut self.a, &mut self.b]
    }

    /// Returns `y + scale * (x A^T) B^T`, in f32.
    pub fn add_to(&self, compute: &Arc<Compute>, y: &Tensor, x: &Tensor) -> TensorResult<Tensor> {
        let product = |weight: &Matrix, x: &Tensor| {
            let product = nn::Product { weight: weight.clone(), bias: None, arithmetic: Arithmetic::F32 };
            nn::products(compute, x, vec![product])
        };
        let low = product(&self.a, x)?; // [.., r]
        let high = product(&self.b, &low[0])?; // [.., out]
        nn::add_scaled(compute, y, &high[0], self.scale)
    }
}

/// Applies the adapter at `path` to the weights of a model of `config`.
///
/// Errors on a setting the decoder does not apply, on a tensor that is no linear layer of this model, on a shape
/// the model does not have, and on half a pair.
pub(super) fn apply(path: &Path, config: &ModelConfig, weights: &mut Weights, isa: Isa) -> Result<(), Error> {
    let updates = match path.join("adapter_config.json").is_file() {
        true => peft(path, config, isa)?,
        false => match crate::tensor::open(path)? {
            Opened::Gguf(gguf) => of_gguf(&gguf, config, isa)?,
            Opened::SafeTensors(_) => {
                let key = "adapter_config.json".to_owned();
                return Err(Error::MissingKey { path: path.to_path_buf(), key });
            }
        },
    };
    for update in updates {
        update.put(config, weights);
    }
    Ok(())
}

/// A pair of matrices, and where it goes.
struct Update {
    role: Role,
    layer: usize,
    expert: usize,
    /// `[r, in]`
    a: Vec<f32>,
    /// `[out, r]`, rows in the order of transformers
    b: Vec<f32>,
    rank: usize,
    scale: f32,
}

impl Update {
    /// Puts the pair into its linear layer; of a fused one, each part gets its rows of B.
    fn put(&self, config: &ModelConfig, weights: &mut Weights) {
        let mut first_row = 0;
        for linear in self.linears(weights) {
            let n_rows = linear.weight.rows();
            let b = &self.b[first_row * self.rank..(first_row + n_rows) * self.rank];
            let matrix = |values: &[f32], rows: usize| {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let cols = values.len() / rows;
                Matrix::new(Arc::new(bytes), 0, f32_dtype(), rows, cols, RowMap::Identity)
            };
            let (a, b) = (matrix(&self.a, self.rank), matrix(b, n_rows));
            linear.low_rank = Some(Arc::new(LowRank { a, b, scale: self.scale }));
            first_row += n_rows;
        }
        debug_assert_eq!(first_row * self.rank, self.b.len(), "shapes were checked ({})", config.arch);
    }

    fn linears<'w>(&self, weights: &'w mut Weights) -> Vec<&'w mut Linear> {
        if self.role == Role::Output {
            return vec![&mut weights.output];
        }
        let layer = &mut weights.layers[self.layer];
        match (self.role, &mut layer.ffn) {
            (Role::QProj, _) => vec![&mut layer.q],
            (Role::KProj, _) => vec![&mut layer.k],
            (Role::VProj, _) => vec![&mut layer.v],
            (Role::QkvProj, _) => vec![&mut layer.q, &mut layer.k, &mut layer.v],
            (Role::OProj, _) => vec![&mut layer.o],
            (Role::GateProj, FeedForward::Dense(mlp)) => vec![&mut mlp.gate],
            (Role::UpProj, FeedForward::Dense(mlp)) => vec![&mut mlp.up],
            (Role::DownProj, FeedForward::Dense(mlp)) => vec![&mut mlp.down],
            (Role::GateUpProj, FeedForward::Dense(mlp)) => vec![&mut mlp.gate, &mut mlp.up],
            (Role::Router, FeedForward::Experts { router, .. }) => vec![router],
            (Role::GateExperts, FeedForward::Experts { experts, .. }) => vec![&mut experts[self.expert].gate],
            (Role::UpExperts, FeedForward::Experts { experts, .. }) => vec![&mut experts[self.expert].up],
            (Role::DownExperts, FeedForward::Experts { experts, .. }) => vec![&mut experts[self.expert].down],
            // `is_linear` let no other role in, and the mapper no dense role beside experts
            _ => Vec::new(),
        }
    }
}

fn is_linear(role: Role, config: &ModelConfig) -> bool {
    match role {
        Role::Output | Role::QProj | Role::KProj | Role::VProj | Role::QkvProj | Role::OProj => true,
        Role::GateProj | Role::UpProj | Role::DownProj | Role::GateUpProj => config.experts.is_none(),
        Role::Router | Role::GateExperts | Role::UpExperts | Role::DownExperts => config.experts.is_some(),
        _ => false,
    }
}

/// The settings of PEFT's LoraConfig that change what an adapter computes, and that are not applied.
const UNAPPLIED: &[&str] = &[
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "alora_invocation_tokens",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
];

/// adapter_config.json of PEFT (0.21).
struct PeftConfig<'a> {
    json: Json,
    path: &'a Path,
}

impl<'a> PeftConfig<'a> {
    fn read(path: &'a Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        let json = serde_json::from_slice(&bytes)
            .map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
        let config = PeftConfig { json, path };
        if config.json.get("peft_type").and_then(Json::as_str) != Some("LORA") {
            return Err(config.bad("peft_type", "\"LORA\""));
        }
        let is_off = |value: &Json| match value {
            Json::Null | Json::Bool(false) => true,
            Json::Array(list) => list.is_empty(),
            Json::Object(map) => map.is_empty(),
            _ => false,
        };
        for key in UNAPPLIED {
            if config.json.get(key).is_some_and(|value| !is_off(value)) {
                return Err(config.bad(key, "left out: this kind of adapter is not applied"));
            }
        }
        if config.json.get("bias").is_some_and(|bias| bias.as_str() != Some("none")) {
            return Err(config.bad("bias", "\"none\""));
        }
        Ok(config)
    }

    fn bad(&self, key: &str, expected: &'static str) -> Error {
        let mut found = self.json.get(key).map_or_else(|| "missing".to_owned(), Json::to_string);
        if found.len() > 60 {
            found = found.chars().take(57).collect::<String>() + "...";
        }
        Error::BadValue { path: self.path.to_path_buf(), key: key.to_owned(), found, expected }
    }

    /// Returns the setting of a module: of the first pattern that fits its name, or of all.
    fn of_module(&self, patterns: &str, all: &str, module: &str) -> Result<f64, Error> {
        let rules = self.json.get(patterns).and_then(Json::as_object);
        for (pattern, value) in rules.into_iter().flatten() {
            let whole = regex::Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
            let whole = whole.map_err(|_| self.bad(patterns, "regular expressions of module names"))?;
            if whole.is_match(module) {
                return value.as_f64().ok_or_else(|| self.bad(patterns, "numbers"));
            }
        }
        self.json.get(all).and_then(Json::as_f64).ok_or_else(|| self.bad(all, "a number"))
    }

    /// Returns rank and scale of a module.
    fn rank_and_scale(&self, module: &str) -> Result<(usize, f32), Error> {
        let rank = self.of_module("rank_pattern", "r", module)?;
        let alpha = self.of_module("alpha_pattern", "lora_alpha", module)?;
        if rank < 1.0 || rank.fract() != 0.0 || rank > f64::from(u16::MAX) {
            return Err(self.bad("r", "a rank of 1 or more"));
        }
        let root = self.json.get("use_rslora").and_then(Json::as_bool) == Some(true);
        let by = if root { rank.sqrt() } else { rank };
        Ok((rank as usize, (alpha / by) as f32))
    }
}

/// Halves of pairs, by the name of what they adapt.
type Pairs<'a> = BTreeMap<String, [Option<&'a TensorInfo>; 2]>;

/// Sorts tensors into pairs by what follows their name; `strip` is what precedes it.
fn pairs<'a>(source: &'a dyn TensorSource, suffixes: [&str; 2], strip: &str) -> Result<Pairs<'a>, Error> {
    let mut pairs = Pairs::new();
    for info in source.tensors() {
        let half = suffixes.iter().position(|suffix| info.name.ends_with(suffix));
        let Some(half) = half else { return Err(unfit(source, &info.name)) };
        let name = &info.name[..info.name.len() - suffixes[half].len()];
        let name = name.strip_prefix(strip).unwrap_or(name).to_owned();
        pairs.entry(name).or_default()[half] = Some(info);
    }
    Ok(pairs)
}

fn unfit(source: &dyn TensorSource, name: &str) -> Error {
    Error::AdapterTarget { path: source.path().to_path_buf(), name: name.to_owned() }
}

fn both<'a>(
    source: &dyn TensorSource,
    name: &str,
    pair: [Option<&'a TensorInfo>; 2],
) -> Result<[&'a TensorInfo; 2], Error> {
    match pair {
        [Some(a), Some(b)] => Ok([a, b]),
        _ => Err(Error::MissingTensor {
            path: source.path().to_path_buf(),
            name: name.to_owned(),
            detail: format!(" its {} half", if pair[0].is_none() { "A" } else { "B" }),
        }),
    }
}

fn peft(dir: &Path, config: &ModelConfig, isa: Isa) -> Result<Vec<Update>, Error> {
    let config_path = dir.join("adapter_config.json");
    let settings = PeftConfig::read(&config_path)?;
    let source = SafeTensors::open_file(&dir.join("adapter_model.safetensors"))?;
    let arch = arch::by_gguf_name(config.arch, dir)?;
    let patterns = Patterns::new(arch);
    let mut updates = Vec::new();
    for (module, pair) in pairs(&source, [".lora_A.weight", ".lora_B.weight"], "base_model.model.")? {
        let [a, b] = both(&source, &module, pair)?;
        let weight = format!("{module}.weight");
        let (role, part, layer, expert) = match patterns.classify(&weight) {
            Kind::Weight { targets: [(row, target)], layer, expert } => {
                (arch.rows[*row].role, target.part, layer, expert)
            }
            _ => return Err(unfit(&source, &a.name)),
        };
        check_place(&source, &a.name, (role, layer, expert), config)?;
        let (rank, scale) = settings.rank_and_scale(&module)?;
        let shape = source_shape(&shape_of(arch, role, config), part);
        if shape.len() != 2 {
            return Err(unfit(&source, &a.name));
        }
        check_shape(&source, a, &[rank, shape[1]])?;
        check_shape(&source, b, &[shape[0], rank])?;
        let (a, b) = (read(&source, a, isa)?, read(&source, b, isa)?);
        updates.push(Update { role, layer, expert, a, b, rank, scale });
    }
    not_empty(updates, &source)
}

fn of_gguf(gguf: &Gguf, config: &ModelConfig, isa: Isa) -> Result<Vec<Update>, Error> {
    let arch = arch::by_gguf_name(config.arch, gguf.path())?;
    let names = GgufNames::new(arch);
    let alpha = gguf_alpha(gguf, config)?;
    let mut updates = Vec::new();
    for (name, pair) in pairs(gguf, [".lora_a", ".lora_b"], "")? {
        let [a, b] = both(gguf, &name, pair)?;
        let (row, layer) = names.find(&name).ok_or_else(|| unfit(gguf, &a.name))?;
        check_place(gguf, &a.name, (row.role, layer, 0), config)?;
        let shape = row.shape(config);
        let (stack, rows, cols) = match shape[..] {
            [rows, cols] => (1, rows, cols),
            [stack, rows, cols] => (stack, rows, cols),
            _ => return Err(unfit(gguf, &a.name)),
        };
        let rank = a.shape.iter().rev().nth(1).copied().unwrap_or(0);
        let stacked = |inner: [usize; 2]| {
            if shape.len() == 3 { [&[stack], &inner[..]].concat() } else { inner.to_vec() }
        };
        check_shape(gguf, a, &stacked([rank.max(1), cols]))?;
        check_shape(gguf, b, &stacked([rows, rank]))?;
        let scale = if alpha == 0.0 { 1.0 } else { alpha / rank as f32 };
        let (all_a, all_b) = (read(gguf, a, isa)?, read(gguf, b, isa)?);
        let map = match row.transform {
            Transform::InterleaveQ | Transform::InterleaveK => {
                RowMap::Deinterleave { head_dim: config.head_dim }
            }
            _ => RowMap::Identity,
        };
        let halves = all_a.chunks_exact(rank * cols).zip(all_b.chunks_exact(rows * rank));
        for (expert, (a, b)) in halves.enumerate() {
            let row_of = |row: usize| &b[map.source_of(row) * rank..][..rank];
            let b = (0..rows).flat_map(row_of).copied().collect();
            updates.push(Update { role: row.role, layer, expert, a: a.to_vec(), b, rank, scale });
        }
    }
    not_empty(updates, gguf)
}

/// Returns the adapter's alpha; 0 stands for a scale of 1, as in llama.cpp.
fn gguf_alpha(gguf: &Gguf, config: &ModelConfig) -> Result<f32, Error> {
    let path = || gguf.path().to_path_buf();
    let bad = |key: &str, expected: &'static str| Error::BadValue {
        path: path(),
        key: key.to_owned(),
        found: gguf.metadata().get(key).map_or_else(|| "missing".to_owned(), |value| format!("{value:?}")),
        expected,
    };
    let text = |key: &str| gguf.metadata().get(key).and_then(Value::as_str);
    if text("general.type") != Some("adapter") {
        return Err(bad("general.type", "\"adapter\""));
    }
    if text("adapter.type") != Some("lora") {
        return Err(bad("adapter.type", "\"lora\""));
    }
    if gguf.metadata().get("adapter.alora.invocation_tokens").is_some() {
        return Err(bad(
            "adapter.alora.invocation_tokens",
            "no such key: this kind of adapter is not applied",
        ));
    }
    if text("general.architecture") != Some(config.arch) {
        let adapter = text("general.architecture").unwrap_or_default().to_owned();
        return Err(Error::AdapterArch { path: path(), adapter, base: config.arch });
    }
    match gguf.metadata().get("adapter.lora.alpha") {
        Some(Value::F32(alpha)) if alpha.is_finite() => Ok(*alpha),
        _ => Err(bad("adapter.lora.alpha", "a number")),
    }
}

fn not_empty(updates: Vec<Update>, source: &dyn TensorSource) -> Result<Vec<Update>, Error> {
    if updates.is_empty() {
        let (name, detail) = ("*.lora_A.weight".to_owned(), ": the adapter adapts nothing".to_owned());
        return Err(Error::MissingTensor { path: source.path().to_path_buf(), name, detail });
    }
    Ok(updates)
}

fn shape_of(arch: &Arch, role: Role, config: &ModelConfig) -> Vec<usize> {
    arch.rows.iter().find(|row| row.role == role).map_or_else(Vec::new, |row| row.shape(config))
}

fn check_place(
    source: &dyn TensorSource,
    name: &str,
    (role, layer, expert): (Role, usize, usize),
    config: &ModelConfig,
) -> Result<(), Error> {
    if !is_linear(role, config) {
        return Err(unfit(source, name));
    }
    let n_experts = config.experts.as_ref().map_or(1, |experts| experts.n);
    for (what, index, count) in [("layer", layer, config.n_layers), ("expert", expert, n_experts)] {
        if index >= count {
            let (path, name) = (source.path().to_path_buf(), name.to_owned());
            return Err(Error::IndexOutOfRange { path, name, what, index, count });
        }
    }
    Ok(())
}

fn check_shape(source: &dyn TensorSource, info: &TensorInfo, expected: &[usize]) -> Result<(), Error> {
    if info.shape == expected {
        return Ok(());
    }
    let (path, name) = (source.path().to_path_buf(), info.name.clone());
    Err(Error::AdapterShape { path, name, found: info.shape.clone(), expected: expected.to_vec() })
}

fn read(source: &dyn TensorSource, info: &TensorInfo, isa: Isa) -> Result<Vec<f32>, Error> {
    if !info.dtype.can_decode() || super::mapper::is_integer(info.dtype) {
        let (path, name) = (source.path().to_path_buf(), info.name.clone());
        return Err(Error::UnreadableDtype { path, name, dtype: info.dtype.name().to_owned() });
    }
    let mut values = vec![0.0; info.n_elements()];
    info.dtype.decode(isa, source.bytes(info)?, &mut values);
    Ok(values)
}
