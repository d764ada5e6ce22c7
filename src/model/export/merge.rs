//! Models with what was learned added to their weights.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::Error;
use crate::kernel::Isa;
use crate::model::error::Error as ModelError;
use crate::model::train::{LowRankSpec, ParameterInfo};
use crate::tensor::safetensors::{SafeTensors, SafeTensorsWriter};
use crate::tensor::{Dtype, StagedDir, TensorDecl, TensorInfo, TensorSource, format};

/// What becomes of weights, by the names of their tensors in a checkpoint.
#[derive(Default)]
pub struct Changes {
    by_name: HashMap<String, Change>,
    /// For messages: where they are from.
    origin: PathBuf,
}

enum Change {
    Replaced { shape: Vec<usize>, values: Vec<f32> },
    Added(Pair),
}

/// A pair of low rank.
#[derive(Default)]
struct Pair {
    /// `[r, in]`
    a: Vec<f32>,
    /// `[out, r]`
    b: Vec<f32>,
    rank: usize,
    scale: f32,
    /// Norms of the rows of the sum (arXiv:2402.09353).
    magnitude: Option<Vec<f32>>,
}

/// What PEFT puts before a module's name.
pub(super) const PREFIX: &str = "base_model.model.";

impl Changes {
    /// Returns new values of weights.
    pub fn of_weights(parameters: &[ParameterInfo], params: &[f32]) -> Changes {
        let replaced = |info: &ParameterInfo| {
            let (shape, values) = (info.shape.clone(), params[info.range.clone()].to_vec());
            (info.name.clone(), Change::Replaced { shape, values })
        };
        Changes { by_name: parameters.iter().map(replaced).collect(), origin: "the trained weights".into() }
    }

    /// Returns what an adapter in memory adds.
    ///
    /// # Panics
    /// If the parameters are not those of an adapter of that specification.
    pub fn of_adapter(spec: &LowRankSpec, parameters: &[ParameterInfo], params: &[f32]) -> Changes {
        let tensors = parameters
            .iter()
            .map(|info| (info.name.clone(), info.shape.clone(), params[info.range.clone()].to_vec()));
        Changes::of_tensors(spec, tensors, "the adapter".into()).expect("a spec that parameters were made of")
    }

    /// Reads an adapter directory of PEFT.
    ///
    /// Errors if it cannot be read, or is of a kind that is not merged.
    pub fn open(dir: &Path, isa: Isa) -> Result<Changes, Error> {
        let spec = super::peft::read_spec(dir)?;
        let path = dir.join("adapter_model.safetensors");
        let source = SafeTensors::open_file(&path)?;
        let mut tensors = Vec::new();
        for info in source.tensors() {
            tensors.push((info.name.clone(), info.shape.clone(), read(&source, info, isa)?));
        }
        Changes::of_tensors(&spec, tensors.into_iter(), path)
    }

    fn of_tensors(
        spec: &LowRankSpec,
        tensors: impl Iterator<Item = (String, Vec<usize>, Vec<f32>)>,
        origin: PathBuf,
    ) -> Result<Changes, Error> {
        let mut pairs: HashMap<String, Pair> = HashMap::new();
        let mut by_name = HashMap::new();
        for (full, shape, values) in tensors {
            let name = full.strip_prefix(PREFIX).unwrap_or(&full);
            if let Some(module) = name.strip_suffix(".lora_A.weight") {
                entry(&mut pairs, module, spec)?.a = values;
            } else if let Some(module) = name.strip_suffix(".lora_B.weight") {
                entry(&mut pairs, module, spec)?.b = values;
            } else if let Some(module) = magnitude_of(name) {
                entry(&mut pairs, module, spec)?.magnitude = Some(values);
            } else {
                by_name.insert(name.to_owned(), Change::Replaced { shape, values });
            }
        }
        for (module, pair) in pairs {
            if pair.a.is_empty() || pair.b.is_empty() {
                let half = if pair.a.is_empty() { "lora_A" } else { "lora_B" };
                let why = format!("`{module}` lacks its {half}");
                return Err(Error::BadConfig { path: origin, why });
            }
            by_name.insert(format!("{module}.weight"), Change::Added(pair));
        }
        Ok(Changes { by_name, origin })
    }

    fn shape(&self, name: &str, path: &Path, found: &[usize], expected: &[usize]) -> Error {
        Error::Shape {
            path: self.origin.clone(),
            name: name.to_owned(),
            base: path.to_owned(),
            found: found.to_vec(),
            expected: expected.to_vec(),
        }
    }

    /// Errors if a change fits no tensor of the base.
    fn check(&self, base: &dyn TensorSource) -> Result<(), Error> {
        let known: HashMap<&str, &TensorInfo> =
            base.tensors().iter().map(|info| (info.name.as_str(), info)).collect();
        let mut names: Vec<&String> = self.by_name.keys().collect();
        names.sort_unstable();
        for name in names {
            let Some(info) = known.get(name.as_str()) else {
                let (path, base) = (self.origin.clone(), base.path().to_owned());
                return Err(Error::NoSuchTensor { path, name: name.clone(), base });
            };
            if !info.dtype.can_decode() || !info.dtype.can_encode() || !is_float(info.dtype) {
                let (path, dtype) = (base.path().to_owned(), info.dtype.name().to_owned());
                return Err(Error::Dtype { path, name: name.clone(), dtype });
            }
            let found = match &self.by_name[name] {
                Change::Replaced { shape, .. } => shape.clone(),
                Change::Added(pair) => vec![pair.b.len() / pair.rank, pair.a.len() / pair.rank],
            };
            if found != info.shape {
                return Err(self.shape(name, base.path(), &found, &info.shape));
            }
        }
        Ok(())
    }
}

fn entry<'p>(
    pairs: &'p mut HashMap<String, Pair>,
    module: &str,
    spec: &LowRankSpec,
) -> Result<&'p mut Pair, Error> {
    let pair = pairs.entry(module.to_owned()).or_default();
    (pair.rank, pair.scale) = spec.rank_and_scale(module)?;
    Ok(pair)
}

fn magnitude_of(name: &str) -> Option<&str> {
    name.strip_suffix(".lora_magnitude_vector").or_else(|| name.strip_suffix(".lora_magnitude_vector.weight"))
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype.name(), "F32" | "F16" | "BF16")
}

/// Writes the checkpoint of `base` with the changes into a new directory, whole or not at all; one that is there is replaced.
///
/// A weight is decoded, the change added in f32, and the sum rounded once to the type it had. Everything else, tokenizer,
/// templates and settings included, is copied as it is. A base without weights (of random initialisation) gets all of them, in
/// F32.
///
/// Errors if the base is no checkpoint of safetensors, if a change fits no tensor of it, and if something cannot be
/// read or written.
pub fn write_merged(path: &Path, base: &Path, changes: &Changes, isa: Isa) -> Result<(), Error> {
    if !base.join("config.json").is_file() {
        return Err(Error::NotACheckpoint { path: base.to_owned() });
    }
    let staged = StagedDir::create(path).map_err(Error::io(path, "write"))?;
    let has_weights = files_in(base)?.iter().any(|file| file.extension().is_some_and(|e| e == "safetensors"));
    match has_weights {
        true => {
            let source = SafeTensors::open_dir(base)?;
            changes.check(&source)?;
            for shard in 0..source.files().len() {
                write_shard(&staged, &source, shard, changes, isa)?;
            }
        }
        false => write_new(&staged, changes).map_err(Error::io(path, "write"))?,
    }
    copy_others(&staged, base)?;
    staged.commit().map_err(Error::io(path, "write"))
}

fn write_shard(
    staged: &StagedDir,
    source: &SafeTensors,
    shard: usize,
    changes: &Changes,
    isa: Isa,
) -> Result<(), Error> {
    let file = source.files()[shard].clone();
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let own: Vec<&TensorInfo> = source.tensors().iter().filter(|info| info.shard == shard).collect();
    let decls: Vec<TensorDecl> = own
        .iter()
        .map(|info| TensorDecl { name: info.name.clone(), shape: info.shape.clone(), dtype: info.dtype })
        .collect();
    let metadata = source.metadata(shard).iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let mut writer = SafeTensorsWriter::create(&staged.file(&name), metadata, &decls, false)?;
    for info in own {
        match changes.by_name.get(&info.name) {
            None => writer.write(source.bytes(info)?)?,
            Some(change) => {
                let mut values = read(source, info, isa)?;
                change.apply(&mut values);
                if values.iter().any(|value| !value.is_finite()) {
                    let why = format!("`{}` merged is not finite", info.name);
                    return Err(Error::BadConfig { path: changes.origin.clone(), why });
                }
                let mut bytes = vec![0; source.bytes(info)?.len()];
                info.dtype.encode(isa, &values, values.len().max(1), None, &mut bytes);
                writer.write(&bytes)?;
            }
        }
    }
    writer.finish()?;
    Ok(())
}

impl Change {
    fn apply(&self, weight: &mut [f32]) {
        let pair = match self {
            Change::Replaced { values, .. } => return weight.copy_from_slice(values),
            Change::Added(pair) => pair,
        };
        let columns = pair.a.len() / pair.rank;
        weight.par_chunks_mut(columns).enumerate().for_each(|(row, weight)| {
            let mut delta = vec![0.0f32; columns];
            for (b, a) in pair.b[row * pair.rank..][..pair.rank].iter().zip(pair.a.chunks_exact(columns)) {
                delta.iter_mut().zip(a).for_each(|(delta, a)| *delta = b.mul_add(*a, *delta));
            }
            weight.iter_mut().zip(&delta).for_each(|(weight, delta)| *weight += pair.scale * delta);
            if let Some(magnitude) = &pair.magnitude {
                let norm = weight.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
                let gain = (f64::from(magnitude[row]) / norm) as f32;
                weight.iter_mut().for_each(|value| *value *= gain);
            }
        });
    }
}

/// Writes all values as a model of their own.
fn write_new(staged: &StagedDir, changes: &Changes) -> std::io::Result<()> {
    let mut names: Vec<&String> = changes.by_name.keys().collect();
    names.sort_unstable();
    let tensors = names.into_iter().filter_map(|name| match &changes.by_name[name] {
        Change::Replaced { shape, values } => Some((name.as_str(), &shape[..], &values[..])),
        Change::Added(_) => None,
    });
    staged.write_tensors("model.safetensors", tensors).map(|_| ())
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
