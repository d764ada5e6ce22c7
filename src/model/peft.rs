//! Adapter directories of PEFT (0.21), read: adapter_config.json and adapter_model.safetensors.

mod reach;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value as Json;

use super::Error;
use super::mapper::is_integer;
use super::train::LowRankSpec;
use crate::kernel::Isa;
use crate::tensor::safetensors::SafeTensors;
use crate::tensor::{RowMap, TensorInfo, TensorSource};

use reach::Reach;

/// What PEFT puts before a module's name.
pub(super) const PREFIX: &str = "base_model.model.";

/// Settings of PEFT's LoraConfig that change what an adapter computes, and that are not known here.
const UNKNOWN: [&str; 13] = [
    "lora_bias",
    "fan_in_fan_out",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "ensure_weight_tying",
];

/// Ends of names of what is not trained whole: halves of pairs, of linear layers and of embeddings, magnitudes, and what
/// a pair lies beside, which PEFT saves with pairs of embeddings and outputs.
const ENDS: [(&str, Part); 7] = [
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_embedding_A", Part::EmbeddingA),
    (".lora_embedding_B", Part::EmbeddingB),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (BASE, Part::Base),
];

const BASE: &str = ".base_layer.weight";

/// What embeddings are called; all other modules with pairs are linear layers.
const EMBEDDING: &str = "embed_tokens";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    A,
    B,
    EmbeddingA,
    EmbeddingB,
    Magnitude,
    Base,
}

/// A tensor of an adapter.
pub(super) struct Values {
    /// In the adapter's file.
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Values {
    /// Returns a matrix as its transpose.
    fn transposed(self) -> Values {
        let Values { name, shape, values } = self;
        let [rows, cols] = shape[..] else { return Values { name, shape, values } };
        let column = |col: usize| values.iter().skip(col).step_by(cols).copied();
        let transposed = (0..cols).flat_map(column).collect();
        Values { name, shape: vec![cols, rows], values: transposed }
    }
}

/// A pair of low rank beside a module.
pub(super) struct Pair {
    /// `[rank, in]`, if its shape is right; of an embedding `[rank, vocabulary]`
    pub a: Values,
    /// `[out, rank]`; of an embedding `[width, rank]`
    pub b: Values,
    /// What is added to is an embedding, the transpose of a linear layer's weight.
    pub is_embedding: bool,
    /// Norms of the rows of the sum (DoRA, arXiv:2402.09353): `[out]`
    pub magnitude: Option<Values>,
    pub rank: usize,
    pub scale: f32,
}

impl Pair {
    /// Returns the pair as that of a linear layer whose weight is the embedding, if it is an embedding's.
    pub fn into_linear(self) -> Pair {
        match self.is_embedding {
            true => {
                let (a, b) = (self.b.transposed(), self.a.transposed());
                Pair { a, b, is_embedding: false, ..self }
            }
            false => self,
        }
    }

    /// Adds `scale * B A` to a weight `[out, in]`, whose rows lie in some order, and gives its rows the norms of DoRA.
    ///
    /// # Panics
    /// If the pair's shapes are not those of a linear layer's, or the weight has rows beyond them.
    pub fn add_to(&self, weight: &mut [f32], order: RowMap) {
        let columns = self.a.shape[1];
        weight.par_chunks_mut(columns.max(1)).enumerate().for_each(|(row, weight)| {
            let row = order.source_of(row);
            let mut delta = vec![0.0f32; columns];
            let b = &self.b.values[row * self.rank..][..self.rank];
            for (b, a) in b.iter().zip(self.a.values.chunks_exact(columns)) {
                delta.iter_mut().zip(a).for_each(|(delta, a)| *delta = b.mul_add(*a, *delta));
            }
            weight.iter_mut().zip(&delta).for_each(|(weight, delta)| *weight += self.scale * delta);
            if let Some(magnitude) = &self.magnitude {
                let norm = weight.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
                let gain = (f64::from(magnitude.values[row]) / norm) as f32;
                weight.iter_mut().for_each(|value| *value *= gain);
            }
        });
    }
}

/// What an adapter does to a model, by the names of the model's modules.
pub(super) struct Adapter {
    /// Where it is from.
    pub path: PathBuf,
    pub pairs: BTreeMap<String, Pair>,
    /// Tensors trained whole, and those saved with the pairs beside them, by their names in a checkpoint.
    pub whole: BTreeMap<String, Values>,
}

impl Adapter {
    /// Reads a directory.
    ///
    /// Errors if it cannot be read, asks for what is not known here, lacks a part of a pair, or holds what its
    /// adapter_config.json leaves out.
    pub fn open(dir: &Path, isa: Isa) -> Result<Adapter, Error> {
        let (spec, reach) = read_config(dir)?;
        let path = dir.join("adapter_model.safetensors");
        let source = SafeTensors::open_file(&path)?;
        let tensors = source.tensors().iter().map(|info| values(&source, info, isa));
        let tensors = tensors.collect::<Result<Vec<_>, Error>>()?;
        let adapter = Adapter::new(&spec, tensors, path)?;
        reach.check(&adapter)?;
        Ok(adapter)
    }

    /// Sorts tensors by what they are for.
    ///
    /// Errors if a part of a pair is missing, or there is nothing.
    pub fn new(spec: &LowRankSpec, tensors: Vec<Values>, path: PathBuf) -> Result<Adapter, Error> {
        let mut parts: BTreeMap<String, BTreeMap<Part, Values>> = BTreeMap::new();
        let mut whole = BTreeMap::new();
        for tensor in tensors {
            let name = tensor.name.strip_prefix(PREFIX).unwrap_or(&tensor.name).to_owned();
            match ENDS.iter().find_map(|(end, part)| Some((name.strip_suffix(end)?, *part))) {
                Some((module, part)) => {
                    drop(parts.entry(module.to_owned()).or_default().insert(part, tensor))
                }
                None => drop(whole.insert(name, tensor)),
            }
        }
        let missing = |name: String, detail: &str| {
            Err(Error::MissingTensor { path: path.clone(), name, detail: detail.to_owned() })
        };
        if parts.is_empty() && whole.is_empty() {
            return missing("*.lora_A.weight".to_owned(), ": the adapter adapts nothing");
        }
        let mut pairs = BTreeMap::new();
        for (module, mut parts) in parts {
            let mut part = |part| parts.remove(&part);
            let embedding = (part(Part::EmbeddingA), part(Part::EmbeddingB));
            let is_embedding = embedding.0.is_some() || embedding.1.is_some();
            let (a, b) = match is_embedding {
                true => embedding,
                false => (part(Part::A), part(Part::B)),
            };
            let (base, magnitude) = (part(Part::Base), part(Part::Magnitude));
            let (a, b) = match (a, b, base) {
                (Some(a), Some(b), base) => {
                    let name = format!("{module}.weight");
                    if let Some(saved) = whole.get(&name) {
                        return Err(Error::AdapterBeside { path, name: saved.name.clone() });
                    }
                    whole.extend(base.map(|base| (name, base)));
                    (a, b)
                }
                // nothing that PEFT would read
                (None, None, Some(base)) if magnitude.is_none() => {
                    whole.insert(format!("{module}{BASE}"), base);
                    continue;
                }
                (None, ..) => return missing(module, ": its `lora_A`"),
                (_, None, _) => return missing(module, ": its `lora_B`"),
            };
            // halves of another kind of pair, which nothing takes
            whole.extend(parts.into_values().map(|extra| (extra.name.clone(), extra)));
            if is_embedding != (module.rsplit('.').next() == Some(EMBEDDING)) {
                return Err(Error::AdapterTarget { path, name: a.name });
            }
            if let Some(extra) = magnitude.as_ref().filter(|_| is_embedding) {
                return Err(Error::AdapterMagnitude { path, name: extra.name.clone() });
            }
            match &magnitude {
                None if spec.use_dora => return missing(module, ": its `lora_magnitude_vector`"),
                Some(extra) if !spec.use_dora => {
                    let expected = "true: the adapter has magnitudes";
                    let (key, found) = ("use_dora".to_owned(), format!("false (`{}`)", extra.name));
                    return Err(Error::BadValue { path, key, found, expected });
                }
                _ => {}
            }
            let (rank, scale) = spec.rank_and_scale(&module).map_err(|error| Error::BadValue {
                path: path.clone(),
                key: "rank_pattern".to_owned(),
                found: error.to_string(),
                expected: "regular expressions of module names",
            })?;
            pairs.insert(module, Pair { a, b, is_embedding, magnitude, rank, scale });
        }
        Ok(Adapter { path, pairs, whole })
    }
}

/// Reads a tensor; errors if it is of no type of numbers with a fraction.
pub(super) fn values(source: &dyn TensorSource, info: &TensorInfo, isa: Isa) -> Result<Values, Error> {
    if !info.dtype.can_decode() || is_integer(info.dtype) {
        let (path, name) = (source.path().to_path_buf(), info.name.clone());
        return Err(Error::UnreadableDtype { path, name, dtype: info.dtype.name().to_owned() });
    }
    let mut values = vec![0.0; info.n_elements()];
    info.dtype.decode(isa, source.bytes(info)?, &mut values);
    Ok(Values { name: info.name.clone(), shape: info.shape.clone(), values })
}

/// Reads adapter_config.json: how pairs compute, and which modules have one.
///
/// Errors if it cannot be read, or asks for what is not known here.
fn read_config(dir: &Path) -> Result<(LowRankSpec, Reach), Error> {
    let path = dir.join("adapter_config.json");
    let text = crate::read::read_regular(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    let json = serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.clone(), source })?;
    let config = Config { json, path: &path };
    config.check()?;
    let rank = |(name, rank): (String, f64)| Ok((name, config.rank("rank_pattern", rank)?));
    let spec = LowRankSpec {
        lora_alpha: config.number("lora_alpha")?,
        rank_pattern: config.patterns("rank_pattern")?.into_iter().map(rank).collect::<Result<_, Error>>()?,
        alpha_pattern: config.patterns("alpha_pattern")?,
        use_rslora: config.flag("use_rslora"),
        use_dora: config.flag("use_dora"),
        ..LowRankSpec::new(config.rank("r", config.number("r")?)?)
    };
    Ok((spec, Reach::read(&config)?))
}

/// adapter_config.json.
struct Config<'a> {
    json: Json,
    path: &'a Path,
}

impl Config<'_> {
    /// Errors on a setting that is not known here and not off.
    fn check(&self) -> Result<(), Error> {
        if self.json.get("peft_type").and_then(Json::as_str) != Some("LORA") {
            return Err(self.bad("peft_type", "\"LORA\""));
        }
        let is_off = |value: &Json| match value {
            Json::Null | Json::Bool(false) => true,
            Json::Array(list) => list.is_empty(),
            Json::Object(map) => map.is_empty(),
            _ => false,
        };
        for key in UNKNOWN {
            if self.json.get(key).is_some_and(|value| !is_off(value)) {
                return Err(self.bad(key, "left out: this kind of adapter is not known"));
            }
        }
        self.check_init()?;
        match self.json.get("bias") {
            Some(bias) if bias.as_str() != Some("none") => Err(self.bad("bias", "\"none\"")),
            _ => Ok(()),
        }
    }

    /// Errors on an initialisation that takes what it puts into the pairs out of the base (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA):
    /// such a pair is right only beside the base that PEFT changed. One converted to LoRA as it was saved names none.
    fn check_init(&self) -> Result<(), Error> {
        const KEY: &str = "init_lora_weights";
        match self.json.get(KEY) {
            None | Some(Json::Null | Json::Bool(_)) => Ok(()),
            Some(Json::String(name)) if ["gaussian", "eva", "orthogonal"].contains(&name.as_str()) => Ok(()),
            Some(_) => {
                let (path, found) = (self.path.to_path_buf(), self.found(KEY));
                Err(Error::AdapterInit { path, key: KEY, found })
            }
        }
    }

    fn bad(&self, key: &str, expected: &'static str) -> Error {
        let (path, found) = (self.path.to_path_buf(), self.found(key));
        Error::BadValue { path, key: key.to_owned(), found, expected }
    }

    /// Returns a value for a message.
    fn found(&self, key: &str) -> String {
        let found = self.json.get(key).map_or_else(|| "missing".to_owned(), Json::to_string);
        match found.chars().count() > 60 {
            true => found.chars().take(57).collect::<String>() + "...",
            false => found,
        }
    }

    fn flag(&self, key: &str) -> bool {
        self.json.get(key) == Some(&Json::Bool(true))
    }

    fn number(&self, key: &str) -> Result<f64, Error> {
        self.json.get(key).and_then(Json::as_f64).ok_or_else(|| self.bad(key, "a number"))
    }

    fn rank(&self, key: &str, rank: f64) -> Result<usize, Error> {
        match (1.0..=65_535.0).contains(&rank) && rank.fract() == 0.0 {
            true => Ok(rank as usize),
            false => Err(self.bad(key, "a rank of 1 or more")),
        }
    }

    /// Returns the values of patterns, each a regular expression.
    fn patterns(&self, key: &str) -> Result<Vec<(String, f64)>, Error> {
        let entries = self.json.get(key).and_then(Json::as_object).into_iter().flatten();
        let entry = |(pattern, value): (&String, &Json)| {
            if fancy_regex::Regex::new(pattern).is_err() {
                return Err(self.bad(key, "regular expressions of module names"));
            }
            let value = value.as_f64().ok_or_else(|| self.bad(key, "numbers"))?;
            Ok((pattern.clone(), value))
        };
        entries.map(entry).collect()
    }
}
