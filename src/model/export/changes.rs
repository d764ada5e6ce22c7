//! What becomes of a model's weights: an adapter's products added, or new values.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::Error;
use super::finite::check_finite;
use crate::kernel::Isa;
use crate::model::arch;
use crate::model::config::ModelConfig;
use crate::model::names::plain_name;
use crate::model::peft::{Adapter, Pair, Values};
use crate::model::train::{LowRankSpec, ParameterInfo};
use crate::read::read_regular;
use crate::tensor::safetensors::SafeTensors;
use crate::tensor::{Dtype, RowMap, TensorInfo, TensorSource};

/// What becomes of weights, by the names of their tensors in a checkpoint.
pub struct Changes {
    pub(super) by_name: HashMap<String, Change>,
    /// For messages: where they are from.
    origin: PathBuf,
    /// An adapter's; otherwise all weights of a model.
    ///
    /// Where embedding and output are one matrix, an adapter's change of either makes two of it, as in PEFT.
    pub(super) is_adapter: bool,
}

impl Changes {
    /// Returns new values of weights.
    pub fn of_weights(parameters: &[ParameterInfo], params: &[f32]) -> Changes {
        let replaced = |info: &ParameterInfo| {
            let (shape, values) = (info.shape.clone(), params[info.range.clone()].to_vec());
            (info.name.clone(), Change::Replaced { shape, values })
        };
        let by_name = parameters.iter().map(replaced).collect();
        Changes { by_name, origin: "the trained weights".into(), is_adapter: false }
    }

    /// Returns what an adapter in memory adds.
    ///
    /// Errors if the parameters are not those of an adapter of that specification.
    pub fn of_adapter(
        spec: &LowRankSpec,
        parameters: &[ParameterInfo],
        params: &[f32],
    ) -> Result<Changes, Error> {
        let values = |info: &ParameterInfo| Values {
            name: info.name.clone(),
            shape: info.shape.clone(),
            values: params[info.range.clone()].to_vec(),
        };
        let tensors = parameters.iter().map(values).collect();
        Changes::new(Adapter::new(spec, tensors, "the adapter".into())?)
    }

    /// Reads an adapter directory of PEFT.
    ///
    /// Errors if it cannot be read, or is of a kind that is not merged.
    pub fn open(dir: &Path, isa: Isa) -> Result<Changes, Error> {
        Changes::new(Adapter::open(dir, isa)?)
    }

    fn new(adapter: Adapter) -> Result<Changes, Error> {
        let Adapter { path: origin, pairs, whole } = adapter;
        let mut by_name = HashMap::new();
        for (name, Values { shape, values, .. }) in whole {
            by_name.insert(name, Change::Replaced { shape, values });
        }
        for (module, pair) in pairs {
            let shapes = (&pair.a.shape[..], &pair.b.shape[..]);
            let ranks = (pair.a.shape.first(), pair.b.shape.get(1));
            if shapes.0.len() != 2 || shapes.1.len() != 2 || ranks != (Some(&pair.rank), Some(&pair.rank)) {
                let why = format!(
                    "`{module}` has pairs of shape {:?} and {:?}, and its rank is {}",
                    shapes.0, shapes.1, pair.rank
                );
                return Err(Error::BadConfig { path: origin, why });
            }
            if let Some(magnitude) = pair.magnitude.as_ref().filter(|m| m.shape != [pair.b.shape[0]]) {
                let why = format!("`{}` has shape {:?}", magnitude.name, magnitude.shape);
                return Err(Error::BadConfig { path: origin, why });
            }
            let name = format!("{module}.weight");
            let pair = pair.into_linear();
            let base = match by_name.remove(&name) {
                Some(Change::Replaced { shape, values }) => {
                    if shape != [pair.b.shape[0], pair.a.shape[1]] {
                        let why = format!(
                            "`{module}` has pairs for another shape than {shape:?}, which it has itself"
                        );
                        return Err(Error::BadConfig { path: origin, why });
                    }
                    Some(values)
                }
                _ => None,
            };
            by_name.insert(name, Change::Added { pair: Box::new(pair), base });
        }
        Ok(Changes { by_name, origin, is_adapter: true })
    }

    /// Returns the changes by name.
    pub(super) fn sorted(&self) -> Vec<(&str, &Change)> {
        let mut all: Vec<_> = self.by_name.iter().map(|(name, change)| (name.as_str(), change)).collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all
    }

    /// Returns whether embedding and output become two where they are one and one changes.
    pub(super) fn parts_embedding(&self) -> bool {
        self.is_adapter
    }

    /// Returns whether a tied model's output would no longer be its embedding.
    pub(super) fn part_tied(&self) -> bool {
        let names = || self.by_name.keys().map(String::as_str);
        self.is_adapter && names().any(|name| [EMBEDDING, HEAD].iter().any(|tied| name.ends_with(tied)))
    }

    pub(super) fn no_such(&self, name: &str, base: &Path) -> Error {
        Error::NoSuchTensor { path: self.origin.clone(), name: name.to_owned(), base: base.to_owned() }
    }

    pub(super) fn shape(&self, name: &str, base: &Path, found: &[usize], expected: &[usize]) -> Error {
        Error::Shape {
            path: self.origin.clone(),
            name: name.to_owned(),
            base: base.to_owned(),
            found: found.to_vec(),
            expected: expected.to_vec(),
        }
    }

    /// Returns why a sum of `changes` with the tensor `info` of the base is not finite as `name` in `dtype`: the tensor is not,
    /// or else the sum.
    pub(super) fn sum_not_finite(
        &self,
        name: &str,
        dtype: Dtype,
        base: &dyn TensorSource,
        info: &TensorInfo,
        isa: Isa,
    ) -> Error {
        check_finite(base, info, isa).err().unwrap_or_else(|| self.not_finite(name, dtype))
    }

    pub(super) fn not_finite(&self, name: &str, dtype: Dtype) -> Error {
        let (path, dtype) = (self.origin.clone(), dtype.name().to_owned());
        Error::NotFinite { path, name: name.to_owned(), dtype }
    }

    /// Errors if a change fits no tensor of the base; `parted` is what the output is made of if it was tied.
    pub(super) fn check(&self, base: &SafeTensors, parted: Option<&TensorInfo>) -> Result<(), Error> {
        for (name, change) in self.sorted() {
            let head = parted.filter(|_| name == HEAD);
            let info = head.or_else(|| base.find(name)).ok_or_else(|| self.no_such(name, base.path()))?;
            if !info.dtype.can_decode() || !info.dtype.can_encode() || !is_float(info.dtype) {
                let (path, dtype) = (base.path().to_owned(), info.dtype.name().to_owned());
                return Err(Error::Dtype { path, name: name.to_owned(), dtype });
            }
            let found = change.shape();
            if found != info.shape {
                return Err(self.shape(name, base.path(), &found, &info.shape));
            }
        }
        Ok(())
    }

    /// Returns the embedding that a tied model's output is made of, if the two have to become two.
    ///
    /// Errors if the architecture's output is its embedding always, or the two have other names than a language model's.
    pub(super) fn parted<'s>(
        &self,
        base: &'s SafeTensors,
        config: &Path,
    ) -> Result<Option<&'s TensorInfo>, Error> {
        let mut names: Vec<&String> = self.by_name.keys().collect();
        names.retain(|name| [EMBEDDING, HEAD].contains(&plain_name(name).as_str()));
        if !self.is_adapter || names.is_empty() {
            return Ok(None);
        }
        let class = arch::class_of(&json(config)?, config)?;
        if !ModelConfig::from_hf(&json(config)?, config)?.tied_embeddings {
            return Ok(None);
        }
        if class.arch.flags.drops_output {
            return Err(Error::AlwaysTied { path: config.to_owned(), class: class.name });
        }
        // a multimodal or headless checkpoint's
        if let Some(name) = names.into_iter().find(|name| ![EMBEDDING, HEAD].contains(&name.as_str())) {
            return Err(Error::TiedElsewhere { path: config.to_owned(), name: name.clone() });
        }
        base.find(EMBEDDING).map(Some).ok_or_else(|| self.no_such(EMBEDDING, base.path()))
    }
}

/// Names of the matrices that tied models share.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const HEAD: &str = "lm_head.weight";

pub(super) fn json(path: &Path) -> Result<Json, Error> {
    let text = read_regular(path).map_err(Error::io(path, "read"))?;
    let bad = |error: serde_json::Error| Error::BadConfig { path: path.to_owned(), why: error.to_string() };
    serde_json::from_slice(&text).map_err(bad)
}

pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype.name(), "F32" | "F16" | "BF16")
}

/// What becomes of a tensor.
pub(super) enum Change {
    Replaced {
        shape: Vec<usize>,
        values: Vec<f32>,
    },
    /// A pair, to what is there or to what the adapter brings with it.
    Added {
        pair: Box<Pair>,
        base: Option<Vec<f32>>,
    },
}

impl Change {
    /// Returns the shape of the tensor it is of.
    pub(super) fn shape(&self) -> Vec<usize> {
        match self {
            Change::Replaced { shape, .. } => shape.clone(),
            Change::Added { pair, .. } => vec![pair.b.shape[0], pair.a.shape[1]],
        }
    }

    /// Changes a tensor that has its rows in another order than a checkpoint.
    pub(super) fn apply(&self, weight: &mut [f32], order: RowMap) {
        let replaced = match self {
            Change::Replaced { values, .. } => Some(values),
            Change::Added { base, .. } => base.as_ref(),
        };
        if let Some(values) = replaced {
            let columns = self.shape().get(1).copied().unwrap_or(1);
            for (row, weight) in weight.chunks_exact_mut(columns.max(1)).enumerate() {
                weight.copy_from_slice(&values[order.source_of(row) * columns..][..columns]);
            }
        }
        if let Change::Added { pair, .. } = self {
            pair.add_to(weight, order);
        }
    }
}
