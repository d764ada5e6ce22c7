//! Low-rank adapters (arXiv:2106.09685): a PEFT directory or a GGUF adapter, onto a decoder's linear layers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};
use rayon::prelude::*;

use super::arch::{self, Arch, Part, Role, Transform};
use super::config::ModelConfig;
use super::names::{GgufNames, Kind, Patterns};
use super::peft::{self, values};
use super::weights::{FeedForward, Linear, Vector, Weights};
use super::{Error, dora};
use crate::kernel::product::Values;
use crate::kernel::{Arithmetic, Compute, Isa, Matrix};
use crate::nn;
use crate::tensor::gguf::{Gguf, Value};
use crate::tensor::{Opened, RowMap, TensorInfo, TensorSource};

/// `scale * (x A^T) B^T`, added to a linear's output; of DoRA (arXiv:2402.09353) the sum is scaled row by row.
pub(super) struct LowRank {
    /// `[r, in]`
    a: Matrix,
    /// `[out, r]`
    b: Matrix,
    scale: f32,
    /// What each output without its bias is multiplied by: `[out]`
    gains: Option<Vector>,
}

impl LowRank {
    /// Returns the pair of `a` `[r, in]` and `b` `[out, r]`, of DoRA with what outputs are multiplied by.
    pub fn new(a: Matrix, b: Matrix, scale: f32, gains: Option<Vector>) -> Self {
        LowRank { a, b, scale, gains }
    }

    /// Returns true if outputs are multiplied, so that the bias comes behind.
    pub fn is_scaled(&self) -> bool {
        self.gains.is_some()
    }

    /// Returns A and B.
    #[cfg(gpu)]
    pub fn pair(&self) -> (&Matrix, &Matrix) {
        (&self.a, &self.b)
    }

    #[cfg(gpu)]
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Returns what each output without its bias is multiplied by, if it is.
    #[cfg(gpu)]
    pub fn gains(&self) -> Option<&Vector> {
        self.gains.as_ref()
    }

    /// Returns both matrices.
    pub fn matrices(&mut self) -> [&mut Matrix; 2] {
        [&mut self.a, &mut self.b]
    }

    /// Returns `y + scale * (x A^T) B^T` in f32, where `y` is the output with its bias; if outputs are multiplied,
    /// `gains (y + scale * (x A^T) B^T) + bias`, where it is without.
    pub fn add_to(
        &self,
        compute: &Arc<Compute>,
        y: &Tensor,
        x: &Tensor,
        bias: Option<&Vector>,
    ) -> TensorResult<Tensor> {
        let product = |weight: &Matrix, x: &Tensor| {
            let product = nn::Product { weight: weight.clone(), bias: None, arithmetic: Arithmetic::F32 };
            nn::products(compute, x, vec![product])
        };
        let low = product(&self.a, x)?; // [.., r]
        let high = product(&self.b, &low[0])?; // [.., out]
        let sum = nn::add_scaled(compute, y, &high[0], self.scale)?;
        let Some(gains) = &self.gains else { return Ok(sum) };
        let scaled = dora::scale_columns(&sum, gains)?;
        bias.map_or(Ok(scaled.clone()), |bias| dora::add_to_rows(&scaled, bias))
    }
}

/// Applies the adapter at `path` to the weights of a model of `config`.
///
/// Errors on a setting the decoder does not apply, on a tensor that is no linear layer of this model, on a shape
/// the model does not have, and on half a pair.
pub(super) fn apply(
    path: &Path,
    config: &ModelConfig,
    weights: &mut Weights,
    compute: &Arc<Compute>,
) -> Result<(), Error> {
    if path.join("adapter_config.json").is_file() {
        return Applied { config, weights, compute }.peft(path);
    }
    match crate::tensor::open(path)? {
        Opened::Gguf(gguf) => {
            let updates = of_gguf(&gguf, config, compute.isa)?;
            let mut applied = Applied { config, weights, compute };
            updates.iter().try_for_each(|(place, pair)| applied.put(*place, pair))
        }
        Opened::SafeTensors(_) => {
            let key = "adapter_config.json".to_owned();
            Err(Error::MissingKey { path: path.to_path_buf(), key })
        }
    }
}

/// Where something goes.
#[derive(Clone, Copy)]
struct Place {
    role: Role,
    layer: usize,
    expert: usize,
}

/// A pair of matrices.
struct Pair {
    /// `[r, in]`
    a: Vec<f32>,
    /// `[out, r]`, rows in the order of transformers
    b: Vec<f32>,
    rank: usize,
    scale: f32,
    magnitude: Option<Vec<f32>>,
}

/// Weights that an adapter is applied to.
struct Applied<'a> {
    config: &'a ModelConfig,
    weights: &'a mut Weights,
    compute: &'a Arc<Compute>,
}

impl Applied<'_> {
    fn peft(&mut self, dir: &Path) -> Result<(), Error> {
        let adapter = peft::Adapter::open(dir, self.compute.isa)?;
        let arch = arch::by_gguf_name(self.config.arch, dir)?;
        let patterns = Patterns::new(arch);
        // magnitudes are of sums with what was trained whole
        for (name, values) in adapter.whole {
            let unfit = || unfit(&adapter.path, &values.name);
            let (place, adds_one) = self.place(arch, &patterns, &name).ok_or_else(unfit)?;
            check_place(&adapter.path, &values.name, place, self.config)?;
            self.replace(&adapter.path, place, adds_one, values)?;
        }
        for (module, pair) in adapter.pairs {
            let unfit = || unfit(&adapter.path, &pair.a.name);
            let (place, _) = self.place(arch, &patterns, &format!("{module}.weight")).ok_or_else(unfit)?;
            check_place(&adapter.path, &pair.a.name, place, self.config)?;
            if pair.is_embedding != (place.role == Role::TokenEmbedding) {
                return Err(unfit());
            }
            if pair.is_embedding {
                self.embed(&adapter.path, pair)?;
                continue;
            }
            if !is_linear(place.role, self.config) {
                return Err(unfit());
            }
            let linears = linears(self.weights, place);
            let cols = linears.first().map_or(0, |linear| linear.weight.cols());
            let rows = linears.iter().map(|linear| linear.weight.rows()).sum();
            check_shape(&adapter.path, &pair.a, &[pair.rank, cols])?;
            check_shape(&adapter.path, &pair.b, &[rows, pair.rank])?;
            if let Some(magnitude) = &pair.magnitude {
                check_shape(&adapter.path, magnitude, &[rows])?;
            }
            let peft::Pair { a, b, magnitude, rank, scale, .. } = pair;
            let magnitude = magnitude.map(|magnitude| magnitude.values);
            self.put(place, &Pair { a: a.values, b: b.values, rank, scale, magnitude })?;
        }
        Ok(())
    }

    /// Returns where the tensor of that name in a checkpoint goes, and whether it is stored less one.
    fn place(&self, arch: &Arch, patterns: &Patterns, name: &str) -> Option<(Place, bool)> {
        if name == "lm_head.weight" {
            // also where the architecture's output is the embedding: an adapter has its own then
            return Some((Place { role: Role::Output, layer: 0, expert: 0 }, false));
        }
        match patterns.classify(name) {
            Kind::Weight { targets: [(row, source)], layer, expert } => {
                let row = &arch.rows[*row];
                // of a stack, each expert by itself
                let is_alone = row.shape.len() < 3 || source.part == Part::Expert;
                let place = Place { role: row.role, layer, expert };
                is_alone.then_some((place, row.transform == Transform::AddOne))
            }
            _ => None,
        }
    }

    /// Puts what was trained whole in the place of the base's.
    fn replace(&mut self, path: &Path, place: Place, adds_one: bool, new: peft::Values) -> Result<(), Error> {
        let matrix = |values: &[f32], cols: usize| {
            Matrix::of_values(Arc::new(Values(values.to_vec())), 0, values.len() / cols, cols)
        };
        if place.role == Role::TokenEmbedding {
            let table = &mut self.weights.token_embedding;
            check_shape(path, &new, &[table.rows(), table.cols()])?;
            *table = matrix(&new.values, table.cols());
            return Ok(());
        }
        if let Some(vector) = vector(self.weights, place) {
            check_shape(path, &new, &[vector.len()])?;
            let offset = if adds_one { 1.0 } else { 0.0 };
            *vector = new.values.iter().map(|value| value + offset).collect();
            return Ok(());
        }
        if let Some(bias) = bias(self.weights, place) {
            check_shape(path, &new, &[bias.len()])?;
            *bias = new.values.into();
            return Ok(());
        }
        let mut linears = linears(self.weights, place);
        let cols = linears.first().map_or(0, |linear| linear.weight.cols());
        if cols == 0 {
            return Err(unfit(path, &new.name));
        }
        check_shape(path, &new, &[linears.iter().map(|linear| linear.weight.rows()).sum(), cols])?;
        let mut rest = &new.values[..];
        for linear in &mut linears {
            let (own, behind) = rest.split_at(linear.weight.rows() * cols);
            linear.weight = matrix(own, cols);
            rest = behind;
        }
        Ok(())
    }

    /// Adds a pair to the embedding, which lies in f32 from then on.
    fn embed(&mut self, path: &Path, pair: peft::Pair) -> Result<(), Error> {
        let table = &mut self.weights.token_embedding;
        let (rows, cols) = (table.rows(), table.cols());
        check_shape(path, &pair.a, &[pair.rank, rows])?;
        check_shape(path, &pair.b, &[cols, pair.rank])?;
        let mut values = vec![0.0; rows * cols];
        let isa = self.compute.isa;
        let decode = |(row, out): (usize, &mut [f32])| table.decode_row(isa, row, out);
        values.par_chunks_mut(cols).enumerate().for_each(decode);
        pair.into_linear().add_to(&mut values, RowMap::Identity);
        *table = Matrix::of_values(Arc::new(Values(values)), 0, rows, cols);
        Ok(())
    }

    /// Puts a pair into its linear layer; of a fused one, each part gets its rows of B.
    fn put(&mut self, place: Place, pair: &Pair) -> Result<(), Error> {
        let gains = match &pair.magnitude {
            Some(magnitude) => self.gains(place, pair, magnitude)?,
            None => Arc::from([]),
        };
        let mut first = 0;
        for linear in linears(self.weights, place) {
            let (n_rows, cols) = (linear.weight.rows(), linear.weight.cols());
            let rows = first..first + n_rows;
            let b = pair.b[rows.start * pair.rank..rows.end * pair.rank].to_vec();
            let a = Matrix::of_values(Arc::new(Values(pair.a.clone())), 0, pair.rank, cols);
            let b = Matrix::of_values(Arc::new(Values(b)), 0, n_rows, pair.rank);
            let own = pair.magnitude.is_some().then(|| gains[rows].into());
            linear.low_rank = Some(Arc::new(LowRank::new(a, b, pair.scale, own)));
            first += n_rows;
        }
        debug_assert_eq!(first * pair.rank, pair.b.len(), "shapes were checked ({})", self.config.arch);
        Ok(())
    }

    /// Returns what outputs are multiplied by.
    fn gains(&mut self, place: Place, pair: &Pair, magnitude: &[f32]) -> Result<Vector, Error> {
        let linears = linears(self.weights, place);
        let squares = dora::squares(self.compute, linears.iter().map(|linear| &linear.weight));
        let base = |linear: &&mut Linear| nn::Product {
            weight: linear.weight.clone(),
            bias: None,
            arithmetic: Arithmetic::F32,
        };
        let bases = linears.iter().map(base).collect();
        let own = dora::Pair { a: &pair.a, b: &pair.b, rank: pair.rank, scale: pair.scale };
        Ok(dora::gains(magnitude, &dora::norms(self.compute, bases, &squares, &own)?))
    }
}

/// Returns the linear layers at a place: several of a fused one, none where the model has none.
fn linears(weights: &mut Weights, place: Place) -> Vec<&mut Linear> {
    if place.role == Role::Output {
        return vec![&mut weights.output];
    }
    let layer = &mut weights.layers[place.layer];
    match (place.role, &mut layer.ffn) {
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
        (Role::GateExperts, FeedForward::Experts { experts, .. }) => vec![&mut experts[place.expert].gate],
        (Role::UpExperts, FeedForward::Experts { experts, .. }) => vec![&mut experts[place.expert].up],
        (Role::DownExperts, FeedForward::Experts { experts, .. }) => vec![&mut experts[place.expert].down],
        _ => Vec::new(),
    }
}

/// Returns the factors of the norm at a place, if one is there.
fn vector(weights: &mut Weights, place: Place) -> Option<&mut Vector> {
    if place.role == Role::OutputNorm {
        return Some(&mut weights.output_norm);
    }
    let layer = &mut weights.layers[place.layer];
    match place.role {
        Role::AttnNorm => Some(&mut layer.attn_norm),
        Role::FfnNorm => Some(&mut layer.ffn_norm),
        Role::QNorm => layer.q_norm.as_mut(),
        Role::KNorm => layer.k_norm.as_mut(),
        Role::PostAttnNorm => layer.post_attn_norm.as_mut(),
        Role::PostFfnNorm => layer.post_ffn_norm.as_mut(),
        _ => None,
    }
}

/// Returns the bias at a place, if one is there.
fn bias(weights: &mut Weights, place: Place) -> Option<&mut Vector> {
    let layer = &mut weights.layers[place.layer];
    let linear = match (place.role, &mut layer.ffn) {
        (Role::QBias, _) => &mut layer.q,
        (Role::KBias, _) => &mut layer.k,
        (Role::VBias, _) => &mut layer.v,
        (Role::OBias, _) => &mut layer.o,
        (Role::GateBias, FeedForward::Dense(mlp)) => &mut mlp.gate,
        (Role::UpBias, FeedForward::Dense(mlp)) => &mut mlp.up,
        (Role::DownBias, FeedForward::Dense(mlp)) => &mut mlp.down,
        _ => return None,
    };
    linear.bias.as_mut()
}

fn is_linear(role: Role, config: &ModelConfig) -> bool {
    match role {
        Role::Output | Role::QProj | Role::KProj | Role::VProj | Role::QkvProj | Role::OProj => true,
        Role::GateProj | Role::UpProj | Role::DownProj | Role::GateUpProj => config.experts.is_none(),
        Role::Router | Role::GateExperts | Role::UpExperts | Role::DownExperts => config.experts.is_some(),
        _ => false,
    }
}

/// Halves of pairs, by the name of what they adapt.
type Pairs<'a> = BTreeMap<String, [Option<&'a TensorInfo>; 2]>;

/// Sorts tensors into pairs by what follows their name; `strip` is what precedes it.
fn pairs<'a>(source: &'a dyn TensorSource, suffixes: [&str; 2], strip: &str) -> Result<Pairs<'a>, Error> {
    let mut pairs = Pairs::new();
    for info in source.tensors() {
        let half = suffixes.iter().position(|suffix| info.name.ends_with(suffix));
        let Some(half) = half else { return Err(unfit(source.path(), &info.name)) };
        let name = &info.name[..info.name.len() - suffixes[half].len()];
        let name = name.strip_prefix(strip).unwrap_or(name).to_owned();
        pairs.entry(name).or_default()[half] = Some(info);
    }
    Ok(pairs)
}

fn unfit(path: &Path, name: &str) -> Error {
    Error::AdapterTarget { path: path.to_path_buf(), name: name.to_owned() }
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

fn of_gguf(gguf: &Gguf, config: &ModelConfig, isa: Isa) -> Result<Vec<(Place, Pair)>, Error> {
    let arch = arch::by_gguf_name(config.arch, gguf.path())?;
    let names = GgufNames::new(arch);
    let alpha = gguf_alpha(gguf, config)?;
    let mut updates = Vec::new();
    for (name, pair) in pairs(gguf, [".lora_a", ".lora_b"], "")? {
        let [a, b] = both(gguf, &name, pair)?;
        let (row, layer) = names.find(&name).ok_or_else(|| unfit(gguf.path(), &a.name))?;
        let place = Place { role: row.role, layer, expert: 0 };
        check_place(gguf.path(), &a.name, place, config)?;
        if !is_linear(row.role, config) {
            return Err(unfit(gguf.path(), &a.name));
        }
        let shape = row.shape(config);
        let (stack, rows, cols) = match shape[..] {
            [rows, cols] => (1, rows, cols),
            [stack, rows, cols] => (stack, rows, cols),
            _ => return Err(unfit(gguf.path(), &a.name)),
        };
        let rank = a.shape.iter().rev().nth(1).copied().unwrap_or(0);
        let stacked = |inner: [usize; 2]| {
            if shape.len() == 3 { [&[stack], &inner[..]].concat() } else { inner.to_vec() }
        };
        let (all_a, all_b) = (values(gguf, a, isa)?, values(gguf, b, isa)?);
        check_shape(gguf.path(), &all_a, &stacked([rank.max(1), cols]))?;
        check_shape(gguf.path(), &all_b, &stacked([rows, rank]))?;
        let scale = if alpha == 0.0 { 1.0 } else { alpha / rank as f32 };
        let map = match row.transform {
            Transform::InterleaveQ | Transform::InterleaveK => {
                RowMap::Deinterleave { head_dim: config.head_dim }
            }
            _ => RowMap::Identity,
        };
        let halves = all_a.values.chunks_exact(rank * cols).zip(all_b.values.chunks_exact(rows * rank));
        for (expert, (a, b)) in halves.enumerate() {
            let row_of = |row: usize| &b[map.source_of(row) * rank..][..rank];
            let b = (0..rows).flat_map(row_of).copied().collect();
            updates
                .push((Place { expert, ..place }, Pair { a: a.to_vec(), b, rank, scale, magnitude: None }));
        }
    }
    if updates.is_empty() {
        let (name, detail) = ("*.lora_a".to_owned(), ": the adapter adapts nothing".to_owned());
        return Err(Error::MissingTensor { path: gguf.path().to_path_buf(), name, detail });
    }
    Ok(updates)
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

/// Errors on a layer or an expert that the model lacks.
fn check_place(path: &Path, name: &str, place: Place, config: &ModelConfig) -> Result<(), Error> {
    let n_experts = config.experts.as_ref().map_or(1, |experts| experts.n);
    for (what, index, count) in [("layer", place.layer, config.n_layers), ("expert", place.expert, n_experts)]
    {
        if index >= count {
            let (path, name) = (path.to_path_buf(), name.to_owned());
            return Err(Error::IndexOutOfRange { path, name, what, index, count });
        }
    }
    Ok(())
}

fn check_shape(path: &Path, found: &peft::Values, expected: &[usize]) -> Result<(), Error> {
    if found.shape == expected {
        return Ok(());
    }
    let (path, name) = (path.to_path_buf(), found.name.clone());
    Err(Error::AdapterShape { path, name, found: found.shape.clone(), expected: expected.to_vec() })
}
