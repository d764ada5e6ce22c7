//! Models with what was learned added to their weights.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Value as Json, json};

use super::changes::{Change, Changes, HEAD, is_float, json};
use super::finite::check_finite;
use super::{Error, Stored};
use crate::kernel::Isa;
use crate::model::error::Error as ModelError;
use crate::tensor::safetensors::{SafeTensors, SafeTensorsWriter};
use crate::tensor::{
    Dtype, RowMap, StagedDir, TensorDecl, TensorInfo, TensorSource, check_interrupted, format,
};

/// Returns whether a checkpoint's directory has weights: if it has none, a model of it begins with random ones.
pub(super) fn has_weights(base: &Path) -> Result<bool, Error> {
    Ok(files_in(base)?.iter().any(|file| file.extension().is_some_and(|e| e == "safetensors")))
}

/// Errors if an adapter cannot be added to what is in a directory: it is no checkpoint's, or has no weights.
pub fn check_base(base: &Path) -> Result<(), Error> {
    let has_weights = weights_of(base)?;
    has_weights.then_some(()).ok_or_else(|| Error::NoWeights { path: base.to_owned() })
}

/// Returns whether a checkpoint's directory has weights; errors if it is none.
fn weights_of(base: &Path) -> Result<bool, Error> {
    match base.join("config.json").is_file() {
        true => has_weights(base),
        false => Err(Error::NotACheckpoint { path: base.to_owned() }),
    }
}

/// Writes the checkpoint of `base` with the changes into a new directory, whole or not at all; one that is there is replaced.
///
/// A weight is decoded, the change added in f32, and the sum rounded once to the type it had, or not at all ([`Stored`]).
/// Everything else, tokenizer, templates, settings, card and licence included, is copied as it is; if a tied model's output
/// was trained apart from the embedding, it becomes a tensor of its own, and config.json says so. A base without weights (of
/// random initialisation) gets all of them, in the type that its config.json names as `dtype` or `torch_dtype`, F32 if it
/// names none.
///
/// Errors if the base is no checkpoint of safetensors, if it has no weights for an adapter, if a change fits no tensor of
/// it, if a sum is not finite in its type, or a tensor that does not change is not finite, if a file to be copied is none, or a
/// link out of the directory, and if something cannot be read or written.
pub fn write_merged(
    path: &Path,
    base: &Path,
    changes: &Changes,
    stored: Stored,
    isa: Isa,
) -> Result<(), Error> {
    let (config, has_weights) = (base.join("config.json"), weights_of(base)?);
    if !has_weights && changes.is_adapter {
        return Err(Error::NoWeights { path: base.to_owned() });
    }
    let staged = StagedDir::create_output(path).map_err(Error::io(path, "write"))?;
    let write = || match has_weights {
        true => {
            let source = SafeTensors::open_dir(base)?;
            let parted = changes.parted(&source, &config)?;
            changes.check(&source, parted)?;
            copy_others(&staged, base)?;
            Merged { source: &source, changes, parted, stored, isa }.write(&staged)
        }
        false => {
            copy_others(&staged, base)?;
            write_new(&staged, base, changes, stored, isa)
        }
    };
    let written = write().and_then(|()| staged.commit().map_err(Error::io(path, "write")));
    // an interrupt takes the directory away from under what is written into it
    written.map_err(|error| check_interrupted(path).err().map_or(error, Error::from))
}

/// A checkpoint being merged.
struct Merged<'a> {
    source: &'a SafeTensors,
    changes: &'a Changes,
    /// The embedding that the output is made of, if the two become two.
    parted: Option<&'a TensorInfo>,
    stored: Stored,
    isa: Isa,
}

/// A tensor of the result.
struct Output<'a> {
    name: &'a str,
    /// What it is made of.
    info: &'a TensorInfo,
    dtype: Dtype,
}

impl Output<'_> {
    fn n_bytes(&self) -> u64 {
        (self.info.n_elements() / self.dtype.block_len() * self.dtype.block_bytes()) as u64
    }
}

impl<'a> Merged<'a> {
    fn write(&self, staged: &StagedDir) -> Result<(), Error> {
        for shard in 0..self.source.files().len() {
            self.write_shard(staged, shard)?;
        }
        self.write_settings(staged)
    }

    /// Returns the shard that the output lies in, if it is parted: its own if a tied model stores one, that nobody used.
    fn head_shard(&self) -> Option<usize> {
        let embedding = self.parted?;
        Some(self.source.find(HEAD).unwrap_or(embedding).shard)
    }

    /// Returns the tensors of a file; the output behind all others if it was none of its own.
    fn outputs(&self, shard: usize) -> Vec<Output<'a>> {
        let output = |name: &'a str, info: &'a TensorInfo| {
            let is_changed = self.changes.by_name.contains_key(name);
            let dtype = if is_changed && self.stored == Stored::F32 { f32_dtype() } else { info.dtype };
            Output { name, info, dtype }
        };
        let own = self.source.tensors().iter().filter(|info| info.shard == shard);
        let mut outputs: Vec<Output<'a>> = own
            .map(|info| match self.parted {
                Some(embedding) if info.name == HEAD => output(HEAD, embedding),
                _ => output(&info.name, info),
            })
            .collect();
        if let Some(embedding) = self.parted.filter(|_| self.head_shard() == Some(shard))
            && self.source.find(HEAD).is_none()
        {
            outputs.push(output(HEAD, embedding));
        }
        outputs
    }

    fn write_shard(&self, staged: &StagedDir, shard: usize) -> Result<(), Error> {
        let (source, isa) = (self.source, self.isa);
        let outputs = self.outputs(shard);
        let decl = |output: &Output<'_>| TensorDecl {
            name: output.name.to_owned(),
            shape: output.info.shape.clone(),
            dtype: output.dtype,
        };
        let decls: Vec<TensorDecl> = outputs.iter().map(decl).collect();
        let metadata = source.metadata(shard).iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let path = staged.file(&file_name(source, shard));
        let mut writer = SafeTensorsWriter::create(&path, metadata, &decls, false)?;
        for Output { name, info, dtype } in outputs {
            check_interrupted(&path)?;
            match self.changes.by_name.get(name) {
                None => {
                    check_finite(source, info, isa)?;
                    writer.write(source.bytes(info)?)?;
                }
                Some(change) => {
                    let mut values = read(source, info, isa)?;
                    change.apply(&mut values, RowMap::Identity);
                    let columns = info.shape.last().copied().unwrap_or(1);
                    let bytes = encode_finite(isa, dtype, &values, columns);
                    let why = || self.changes.sum_not_finite(name, dtype, source, info, isa);
                    writer.write(&bytes.ok_or_else(why)?)?;
                }
            }
        }
        writer.finish()?;
        Ok(())
    }

    /// Says in what was copied what is no longer as it was: in config.json that the output is not the embedding, in the shards'
    /// index, if there is one, where it lies and how many bytes there are.
    fn write_settings(&self, staged: &StagedDir) -> Result<(), Error> {
        let rewrite = |name: &str, change: &dyn Fn(&mut Json)| -> Result<(), Error> {
            let path = staged.file(name);
            if path.is_file() {
                let mut value = json(&path)?;
                change(&mut value);
                fs::write(&path, format!("{value:#}\n")).map_err(Error::io(&path, "write"))?;
            }
            Ok(())
        };
        if self.parted.is_some() {
            rewrite("config.json", &|config| {
                config["tie_word_embeddings"] = json!(false);
                if let Some(text) = config.get_mut("text_config").filter(|text| text.is_object()) {
                    text["tie_word_embeddings"] = json!(false);
                }
            })?;
        }
        let before: u64 = self.source.tensors().iter().map(|info| info.n_bytes).sum();
        let shards = 0..self.source.files().len();
        let after: u64 = shards.flat_map(|shard| self.outputs(shard)).map(|output| output.n_bytes()).sum();
        if before == after && self.parted.is_none() {
            return Ok(());
        }
        rewrite("model.safetensors.index.json", &|index| {
            if let Some(shard) = self.head_shard() {
                index["weight_map"][HEAD] = json!(file_name(self.source, shard));
            }
            if let Some(total) = index["metadata"]["total_size"].as_u64() {
                index["metadata"]["total_size"] = json!((total + after).saturating_sub(before));
            }
        })
    }
}

fn file_name(source: &SafeTensors, shard: usize) -> String {
    source.files()[shard].file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns values in a type, rows of `columns` by rows; none if a value is not finite, or is not in that type.
pub(super) fn encode_finite(isa: Isa, dtype: Dtype, values: &[f32], columns: usize) -> Option<Vec<u8>> {
    let row_bytes = columns / dtype.block_len() * dtype.block_bytes();
    let mut bytes = vec![0; values.len() / columns.max(1) * row_bytes];
    let rows = bytes.par_chunks_mut(row_bytes.max(1)).zip(values.par_chunks(columns.max(1)));
    let is_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
    let all_finite = rows.all(|(bytes, values)| {
        is_finite(values) && {
            dtype.encode(isa, values, columns, None, bytes);
            // a value, or a block's scale, may not fit into f16
            let mut decoded = vec![0.0; values.len()];
            dtype.decode(isa, bytes, &mut decoded);
            is_finite(&decoded)
        }
    });
    all_finite.then_some(bytes)
}

/// Writes all values as a model of their own.
fn write_new(
    staged: &StagedDir,
    base: &Path,
    changes: &Changes,
    stored: Stored,
    isa: Isa,
) -> Result<(), Error> {
    let dtype = match stored {
        Stored::Own => named_dtype(&base.join("config.json"))?,
        Stored::F32 => f32_dtype(),
    };
    let replaced = changes.by_name.iter().filter_map(|(name, change)| match change {
        Change::Replaced { shape, values } => Some((name, shape, values)),
        // an adapter's only, which is written into no new model
        Change::Added { .. } => None,
    });
    let mut tensors: Vec<_> = replaced.collect();
    tensors.sort_unstable_by_key(|(name, ..)| *name);
    let decls: Vec<TensorDecl> = tensors
        .iter()
        .map(|(name, shape, _)| TensorDecl { name: (*name).clone(), shape: (*shape).clone(), dtype })
        .collect();
    let path = staged.file("model.safetensors");
    let mut writer = SafeTensorsWriter::create(&path, [("format", "pt")], &decls, false)?;
    for (name, shape, values) in tensors {
        check_interrupted(&path)?;
        let columns = shape.last().copied().unwrap_or(1);
        let bytes = encode_finite(isa, dtype, values, columns);
        writer.write(&bytes.ok_or_else(|| changes.not_finite(name, dtype))?)?;
    }
    writer.finish()?;
    Ok(())
}

/// Returns the type that a config.json wants weights to have.
pub(super) fn named_dtype(path: &Path) -> Result<Dtype, Error> {
    let json = json(path)?;
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
    for path in entries_of(base)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_licence = ["LICENSE", "NOTICE", "USE_POLICY"].iter().any(|start| name.starts_with(start));
        let is_wanted = is_licence || COPIED.iter().any(|end| name.ends_with(end));
        let is_others = name == "adapter_config.json" || name.ends_with(".manifest.json");
        if is_wanted && !is_others && is_own_file(base, &path)? {
            fs::copy(&path, staged.file(&name)).map_err(Error::io(&path, "copy"))?;
        }
    }
    Ok(())
}

/// Returns whether what lies in a model's directory is a file of the model; a directory is none.
///
/// Errors on what is neither, a link to nothing included, and on a link that leads out of the directory, unless it is to a blob
/// of the hub's cache that the directory is a snapshot of: what it leads to is no part of what was given.
fn is_own_file(base: &Path, path: &Path) -> Result<bool, Error> {
    let is_link = path.symlink_metadata().map_err(Error::io(path, "read"))?.is_symlink();
    let metadata = path.metadata().map_err(Error::io(path, "read"))?;
    if metadata.is_dir() {
        return Ok(false);
    }
    if !metadata.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(Error::io(path, "copy")(error));
    }
    if is_link {
        let target = path.canonicalize().map_err(Error::io(path, "read"))?;
        let home = base.canonicalize().map_err(Error::io(base, "read"))?;
        let snapshots = home.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "snapshots"));
        let blobs = snapshots.and_then(|snapshots| snapshots.with_file_name("blobs").canonicalize().ok());
        let is_own = target.starts_with(&home) || blobs.is_some_and(|blobs| target.starts_with(blobs));
        if !is_own {
            return Err(Error::LeadsOut { path: path.to_owned(), target });
        }
    }
    Ok(true)
}

/// Returns the paths of everything in a directory, in their order.
fn entries_of(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::io(dir, "read"))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>().map_err(Error::io(dir, "read"))?;
    paths.sort();
    Ok(paths)
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut paths = entries_of(dir)?;
    // links to blobs, as a hub cache has them, are files, too
    paths.retain(|path| path.is_file());
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
