//! Models with what was learned added to their weights.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Value as Json, json};

use super::Error;
use crate::kernel::Isa;
use crate::model::arch;
use crate::model::config::ModelConfig;
use crate::model::error::Error as ModelError;
use crate::model::peft::{Adapter, Pair, Values};
use crate::model::train::{LowRankSpec, ParameterInfo};
use crate::tensor::safetensors::{SafeTensors, SafeTensorsWriter};
use crate::tensor::{Dtype, RowMap, StagedDir, TensorDecl, TensorInfo, TensorSource, format};

/// What becomes of weights, by the names of their tensors in a checkpoint.
pub struct Changes {
    by_name: HashMap<String, Change>,
    /// For messages: where they are from.
    origin: PathBuf,
    /// Whether embedding and output, where they are one matrix, become two if one changes: an adapter's do, as in PEFT.
    parts_embedding: bool,
}

/// What becomes of a tensor.
pub(super) enum Change {
    Replaced { shape: Vec<usize>, values: Vec<f32> },
    Added(Pair),
}

impl Changes {
    /// Returns new values of weights.
    pub fn of_weights(parameters: &[ParameterInfo], params: &[f32]) -> Changes {
        let replaced = |info: &ParameterInfo| {
            let (shape, values) = (info.shape.clone(), params[info.range.clone()].to_vec());
            (info.name.clone(), Change::Replaced { shape, values })
        };
        let by_name = parameters.iter().map(replaced).collect();
        Changes { by_name, origin: "the trained weights".into(), parts_embedding: false }
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
            by_name.insert(format!("{module}.weight"), Change::Added(pair));
        }
        Ok(Changes { by_name, origin, parts_embedding: true })
    }

    /// Returns the changes by name.
    pub(super) fn sorted(&self) -> Vec<(&str, &Change)> {
        let mut all: Vec<_> = self.by_name.iter().map(|(name, change)| (name.as_str(), change)).collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all
    }

    /// Returns whether embedding and output become two where they are one and one changes.
    pub(super) fn parts_embedding(&self) -> bool {
        self.parts_embedding
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

    pub(super) fn check_finite(&self, name: &str, values: &[f32]) -> Result<(), Error> {
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(()),
            false => {
                let why = format!("`{name}` merged is not finite");
                Err(Error::BadConfig { path: self.origin.clone(), why })
            }
        }
    }

    /// Errors if a change fits no tensor of the base; `parted` is one that the base does not have.
    fn check(&self, base: &SafeTensors, parted: Option<&TensorInfo>) -> Result<(), Error> {
        for (name, change) in self.sorted() {
            let own = parted.filter(|_| name == HEAD);
            let info = base.find(name).or(own).ok_or_else(|| self.no_such(name, base.path()))?;
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
    /// Errors if the architecture's output is its embedding always.
    fn parted<'s>(&self, base: &'s SafeTensors, config: &Path) -> Result<Option<&'s TensorInfo>, Error> {
        let changed = |name: &str| self.by_name.contains_key(name);
        if !self.parts_embedding || (!changed(HEAD) && !changed(EMBEDDING)) {
            return Ok(None);
        }
        let class = arch::class_of(&json(config)?, config)?;
        if !ModelConfig::from_hf(&json(config)?, config)?.tied_embeddings {
            return Ok(None);
        }
        if class.arch.flags.drops_output {
            return Err(Error::AlwaysTied { path: config.to_owned(), class: class.name });
        }
        base.find(EMBEDDING).map(Some).ok_or_else(|| self.no_such(EMBEDDING, base.path()))
    }
}

/// Names of the matrices that tied models share.
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn json(path: &Path) -> Result<Json, Error> {
    let text = fs::read(path).map_err(Error::io(path, "read"))?;
    let bad = |error: serde_json::Error| Error::BadConfig { path: path.to_owned(), why: error.to_string() };
    serde_json::from_slice(&text).map_err(bad)
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype.name(), "F32" | "F16" | "BF16")
}

/// Writes the checkpoint of `base` with the changes into a new directory, whole or not at all; one that is there is replaced.
///
/// A weight is decoded, the change added in f32, and the sum rounded once to the type it had. Everything else, tokenizer,
/// templates and settings included, is copied as it is; if a tied model's output was trained apart from the embedding, it
/// becomes a tensor of its own, and config.json says so. A base without weights (of random initialisation) gets all of
/// them, in the type that its config.json names as `dtype` or `torch_dtype`, F32 if it names none.
///
/// Errors if the base is no checkpoint of safetensors, if a change fits no tensor of it, and if something cannot be
/// read or written.
pub fn write_merged(path: &Path, base: &Path, changes: &Changes, isa: Isa) -> Result<(), Error> {
    if !base.join("config.json").is_file() {
        return Err(Error::NotACheckpoint { path: base.to_owned() });
    }
    let staged = StagedDir::create(path).map_err(Error::io(path, "write"))?;
    let has_weights = files_in(base)?.iter().any(|file| file.extension().is_some_and(|e| e == "safetensors"));
    copy_others(&staged, base)?;
    match has_weights {
        true => {
            let source = SafeTensors::open_dir(base)?;
            let parted = changes.parted(&source, &base.join("config.json"))?;
            changes.check(&source, parted)?;
            for shard in 0..source.files().len() {
                write_shard(&staged, &source, shard, changes, parted, isa)?;
            }
            if let Some(embedding) = parted {
                part_settings(&staged, &source, embedding)?;
            }
        }
        false => write_new(&staged, base, changes, isa)?,
    }
    staged.commit().map_err(Error::io(path, "write"))
}

/// Writes a file of tensors; the output behind the embedding that it is made of, if it was none of its own.
fn write_shard(
    staged: &StagedDir,
    source: &SafeTensors,
    shard: usize,
    changes: &Changes,
    parted: Option<&TensorInfo>,
    isa: Isa,
) -> Result<(), Error> {
    let name = file_name(source, shard);
    let own = source.tensors().iter().filter(|info| info.shard == shard);
    let mut outputs: Vec<(&str, &TensorInfo)> = own.map(|info| (info.name.as_str(), info)).collect();
    let added = parted.filter(|embedding| embedding.shard == shard && source.find(HEAD).is_none());
    outputs.extend(added.map(|embedding| (HEAD, embedding)));
    let decl = |(name, info): &(&str, &TensorInfo)| TensorDecl {
        name: (*name).to_owned(),
        shape: info.shape.clone(),
        dtype: info.dtype,
    };
    let decls: Vec<TensorDecl> = outputs.iter().map(decl).collect();
    let metadata = source.metadata(shard).iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let mut writer = SafeTensorsWriter::create(&staged.file(&name), metadata, &decls, false)?;
    for (name, info) in outputs {
        match changes.by_name.get(name) {
            None => writer.write(source.bytes(info)?)?,
            Some(change) => {
                let mut values = read(source, info, isa)?;
                change.apply(&mut values, RowMap::Identity);
                changes.check_finite(name, &values)?;
                writer.write(&encode(isa, info.dtype, &values, values.len()))?;
            }
        }
    }
    writer.finish()?;
    Ok(())
}

/// Says in what was copied that the output is no longer the embedding: in config.json, and in the shards' index if there is one.
fn part_settings(staged: &StagedDir, source: &SafeTensors, embedding: &TensorInfo) -> Result<(), Error> {
    let rewrite = |name: &str, change: &dyn Fn(&mut Json)| -> Result<(), Error> {
        let path = staged.file(name);
        if path.is_file() {
            let mut value = json(&path)?;
            change(&mut value);
            fs::write(&path, format!("{value:#}\n")).map_err(Error::io(&path, "write"))?;
        }
        Ok(())
    };
    rewrite("config.json", &|config| {
        config["tie_word_embeddings"] = json!(false);
        if let Some(text) = config.get_mut("text_config").filter(|text| text.is_object()) {
            text["tie_word_embeddings"] = json!(false);
        }
    })?;
    rewrite("model.safetensors.index.json", &|index| {
        let is_new = index["weight_map"].get(HEAD).is_none();
        index["weight_map"][HEAD] = json!(file_name(source, embedding.shard));
        if let Some(total) = index["metadata"]["total_size"].as_u64().filter(|_| is_new) {
            index["metadata"]["total_size"] = json!(total + embedding.n_bytes);
        }
    })
}

fn file_name(source: &SafeTensors, shard: usize) -> String {
    source.files()[shard].file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns values in a type, rows of `columns` by rows.
pub(super) fn encode(isa: Isa, dtype: Dtype, values: &[f32], columns: usize) -> Vec<u8> {
    let row_bytes = columns / dtype.block_len() * dtype.block_bytes();
    let mut bytes = vec![0; values.len() / columns.max(1) * row_bytes];
    let rows = bytes.par_chunks_mut(row_bytes.max(1)).zip(values.par_chunks(columns.max(1)));
    rows.for_each(|(bytes, values)| dtype.encode(isa, values, columns, None, bytes));
    bytes
}

impl Change {
    /// Returns the shape of the tensor it is of.
    pub(super) fn shape(&self) -> Vec<usize> {
        match self {
            Change::Replaced { shape, .. } => shape.clone(),
            Change::Added(pair) => vec![pair.b.shape[0], pair.a.shape[1]],
        }
    }

    /// Changes a tensor that has its rows in another order than a checkpoint.
    pub(super) fn apply(&self, weight: &mut [f32], order: RowMap) {
        let pair = match self {
            Change::Replaced { shape, values } => {
                let columns = shape.get(1).copied().unwrap_or(1);
                for (row, weight) in weight.chunks_exact_mut(columns.max(1)).enumerate() {
                    weight.copy_from_slice(&values[order.source_of(row) * columns..][..columns]);
                }
                return;
            }
            Change::Added(pair) => pair,
        };
        let columns = pair.a.shape[1];
        weight.par_chunks_mut(columns.max(1)).enumerate().for_each(|(row, weight)| {
            let row = order.source_of(row);
            let mut delta = vec![0.0f32; columns];
            let b = &pair.b.values[row * pair.rank..][..pair.rank];
            for (b, a) in b.iter().zip(pair.a.values.chunks_exact(columns)) {
                delta.iter_mut().zip(a).for_each(|(delta, a)| *delta = b.mul_add(*a, *delta));
            }
            weight.iter_mut().zip(&delta).for_each(|(weight, delta)| *weight += pair.scale * delta);
            if let Some(magnitude) = &pair.magnitude {
                let norm = weight.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
                let gain = (f64::from(magnitude.values[row]) / norm) as f32;
                weight.iter_mut().for_each(|value| *value *= gain);
            }
        });
    }
}

/// Writes all values as a model of their own.
fn write_new(staged: &StagedDir, base: &Path, changes: &Changes, isa: Isa) -> Result<(), Error> {
    let dtype = named_dtype(&base.join("config.json"))?;
    let replaced = changes.by_name.iter().filter_map(|(name, change)| match change {
        Change::Replaced { shape, values } => Some((name, shape, values)),
        Change::Added(_) => None,
    });
    let mut tensors: Vec<_> = replaced.collect();
    tensors.sort_unstable_by_key(|(name, ..)| *name);
    let decls: Vec<TensorDecl> = tensors
        .iter()
        .map(|(name, shape, _)| TensorDecl { name: (*name).clone(), shape: (*shape).clone(), dtype })
        .collect();
    let path = staged.file("model.safetensors");
    let mut writer = SafeTensorsWriter::create(&path, [("format", "pt")], &decls, false)?;
    let mut decoded = Vec::new();
    for (name, _, values) in tensors {
        let mut bytes = vec![0; values.len() * dtype.block_bytes()];
        dtype.encode(isa, values, values.len().max(1), None, &mut bytes);
        decoded.resize(values.len(), 0.0);
        dtype.decode(isa, &bytes, &mut decoded);
        if decoded.iter().any(|value| !value.is_finite()) {
            let why = format!("`{name}` in {} is not finite", dtype.name());
            return Err(Error::BadConfig { path: changes.origin.clone(), why });
        }
        writer.write(&bytes)?;
    }
    writer.finish()?;
    Ok(())
}

/// Returns the type that a config.json wants weights to have.
fn named_dtype(path: &Path) -> Result<Dtype, Error> {
    let text = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let json: serde_json::Value = serde_json::from_str(&text)
        .map_err(|error| Error::BadConfig { path: path.to_owned(), why: error.to_string() })?;
    let key =
        ["dtype", "torch_dtype"].into_iter().find(|key| json.get(*key).is_some_and(|value| !value.is_null()));
    let Some(key) = key else { return Ok(f32_dtype()) };
    let dtype = match json[key].as_str() {
        Some("float32") => "F32",
        Some("float16") => "F16",
        Some("bfloat16") => "BF16",
        _ => {
            let why =
                format!("`{key}` is {}; weights are written as float32, float16 or bfloat16", json[key]);
            return Err(Error::BadConfig { path: path.to_owned(), why });
        }
    };
    Ok(format::by_name(dtype).expect("the registry has F32, F16 and BF16"))
}

/// What is copied beside the weights: names' ends.
const COPIED: [&str; 7] = [".json", ".jinja", ".model", ".txt", ".md", ".tiktoken", ".spm"];

fn copy_others(staged: &StagedDir, base: &Path) -> Result<(), Error> {
    let skipped: HashSet<&str> = ["adapter_config.json", "README.md"].into();
    for file in files_in(base)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_licence = ["LICENSE", "NOTICE", "USE_POLICY"].iter().any(|start| name.starts_with(start));
        let is_wanted = is_licence || COPIED.iter().any(|end| name.ends_with(end));
        if is_wanted && !skipped.contains(name.as_str()) && !name.ends_with(".manifest.json") {
            fs::copy(&file, staged.file(&name)).map_err(Error::io(&file, "copy"))?;
        }
    }
    Ok(())
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::io(dir, "read"))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>().map_err(Error::io(dir, "read"))?;
    // links to blobs, as a hub cache has them, are files, too
    paths.retain(|path| path.is_file());
    paths.sort();
    Ok(paths)
}

fn read(source: &dyn TensorSource, info: &TensorInfo, isa: Isa) -> Result<Vec<f32>, Error> {
    if !info.dtype.can_decode() || !is_float(info.dtype) {
        let (path, name) = (source.path().to_owned(), info.name.clone());
        return Err(ModelError::UnreadableDtype { path, name, dtype: info.dtype.name().to_owned() }.into());
    }
    let mut values = vec![0.0; info.n_elements()];
    info.dtype.decode(isa, source.bytes(info)?, &mut values);
    Ok(values)
}

/// Returns the files of tensors of a result: itself, or those in its directory.
///
/// Errors if the directory cannot be read.
pub fn tensor_files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = files_in(path)?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
    Ok(files)
}

/// The type of written adapters.
pub(super) fn f32_dtype() -> Dtype {
    format::by_name("F32").expect("the registry has F32")
}
