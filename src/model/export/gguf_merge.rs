//! GGUF models with what was learned added to their weights.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::changes::{Change, Changes};
use super::finite::check_finite;
use super::{Error, merge};
use crate::kernel::Isa;
use crate::model::arch::{self, Arch, Part, Row, Transform};
use crate::model::config::ModelConfig;
use crate::model::gguf_config;
use crate::model::mapper::is_integer;
use crate::model::names::{Kind, Patterns};
use crate::tensor::gguf::{Gguf, GgufWriter, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, WriteOptions};
use crate::tensor::{Dtype, RowMap, TensorDecl, TensorInfo, TensorSource, check_interrupted};

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";

/// The type of what is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// That of the tensor in the base: the sum is rounded once to it.
    Own,
    /// F32: nothing is rounded, for what is quantized next.
    F32,
}

/// What becomes of a tensor.
struct Target<'a> {
    row: &'static Row,
    /// By expert; one for a tensor that is no stack.
    changes: Vec<(usize, &'a Change)>,
}

/// Writes the model of the GGUF at `base` (of a split one the first shard) with the changes as one file; a file that is there is
/// replaced.
///
/// A tensor that changes is decoded, the change added in f32, and the sum rounded once. Everything else, tokenizer and
/// template included, is copied as it is. An output layer that was trained apart from the embedding it was becomes a tensor of its
/// own.
///
/// Errors if a change fits no tensor, if a tensor's type can be decoded or encoded by no one, if a sum is not finite in its
/// type, or a tensor that does not change is not finite, if an architecture's output is its embedding always and one of them
/// changed, and if something cannot be read or written.
pub fn write_merged_gguf(
    path: &Path,
    base: &Path,
    changes: &Changes,
    stored: Stored,
    isa: Isa,
) -> Result<(), Error> {
    merged_with(base, changes, stored, isa, |merged, outputs| merged.write(path, outputs))
}

/// Errors as [`write_merged_gguf`] where names, shapes and types suffice to know.
pub(super) fn check_merged_gguf(base: &Path, changes: &Changes, stored: Stored) -> Result<(), Error> {
    merged_with(base, changes, stored, Isa::Portable, |_, _| Ok(()))
}

/// Does something with a model being merged, and its tensors with those they are made of, once these are checked.
fn merged_with(
    base: &Path,
    changes: &Changes,
    stored: Stored,
    isa: Isa,
    then: impl FnOnce(&Merged<'_>, &[(&str, &TensorInfo)]) -> Result<(), Error>,
) -> Result<(), Error> {
    let gguf = match crate::tensor::open(base)? {
        crate::tensor::Opened::Gguf(gguf) => gguf,
        crate::tensor::Opened::SafeTensors(_) => return Err(Error::NotAGguf { path: base.to_owned() }),
    };
    let config = gguf_config::with_factors(&gguf)?;
    let arch = arch::by_gguf_name(config.arch, base)?;
    if config.tied_embeddings && arch.flags.drops_output && changes.part_tied() {
        return Err(Error::AlwaysTied { path: base.to_owned(), class: arch.name });
    }
    let targets = targets(changes, arch, &gguf)?;
    // where the output was the embedding, and only one of them changed: [`OUTPUT`] is made of the embedding
    let is_parted = config.tied_embeddings
        && (targets.contains_key(OUTPUT) || (changes.parts_embedding() && targets.contains_key(EMBEDDING)));
    let merged = Merged { gguf: &gguf, config: &config, changes, targets, stored, isa };
    let mut outputs: Vec<(&str, &TensorInfo)> =
        gguf.tensors().iter().map(|info| (info.name.as_str(), info)).collect();
    if is_parted {
        let embedding = gguf.find(EMBEDDING).ok_or_else(|| changes.no_such(EMBEDDING, base))?;
        outputs.push((OUTPUT, embedding));
    }
    merged.check(&outputs)?;
    then(&merged, &outputs)
}

/// Sorts changes by the tensor they are of.
fn targets<'a>(
    changes: &'a Changes,
    arch: &'static Arch,
    gguf: &Gguf,
) -> Result<BTreeMap<String, Target<'a>>, Error> {
    let patterns = Patterns::new(arch);
    let mut targets: BTreeMap<String, Target<'a>> = BTreeMap::new();
    for (name, change) in changes.sorted() {
        let (row, layer, expert) = match patterns.classify(name) {
            Kind::Weight { targets: [(row, source)], layer, expert }
                if arch.rows[*row].shape.len() < 3 || source.part == Part::Expert =>
            {
                (&arch.rows[*row], layer, expert)
            }
            _ => return Err(changes.no_such(name, gguf.path())),
        };
        let target = targets.entry(row.gguf_name(layer));
        target.or_insert(Target { row, changes: Vec::new() }).changes.push((expert, change));
    }
    Ok(targets)
}

/// A model being merged.
struct Merged<'a> {
    gguf: &'a Gguf,
    config: &'a ModelConfig,
    changes: &'a Changes,
    targets: BTreeMap<String, Target<'a>>,
    stored: Stored,
    isa: Isa,
}

impl Merged<'_> {
    /// Errors if a change fits no tensor, or a tensor's type cannot hold what comes out.
    fn check(&self, outputs: &[(&str, &TensorInfo)]) -> Result<(), Error> {
        let known: HashSet<&str> = outputs.iter().map(|(name, _)| *name).collect();
        if let Some(name) = self.targets.keys().find(|name| !known.contains(name.as_str())) {
            return Err(self.changes.no_such(name, self.gguf.path()));
        }
        for (name, info) in outputs {
            let Some(target) = self.targets.get(*name) else { continue };
            let dtype = self.dtype(name, info);
            if !info.dtype.can_decode() || is_integer(info.dtype) || !dtype.can_encode() {
                let (path, dtype) = (self.gguf.path().to_owned(), info.dtype.name().to_owned());
                return Err(Error::Dtype { path, name: (*name).to_owned(), dtype });
            }
            let is_stack = target.row.shape.len() == 3;
            let (n, one) = if is_stack { (info.shape[0], &info.shape[1..]) } else { (1, &info.shape[..]) };
            for (expert, change) in &target.changes {
                let found = change.shape();
                if *expert >= n || found != one {
                    return Err(self.changes.shape(name, self.gguf.path(), &found, one));
                }
            }
        }
        Ok(())
    }

    /// Returns the type that an output is stored in.
    fn dtype(&self, name: &str, info: &TensorInfo) -> Dtype {
        match self.stored {
            Stored::F32 if self.targets.contains_key(name) => merge::f32_dtype(),
            _ => info.dtype,
        }
    }

    fn write(&self, path: &Path, outputs: &[(&str, &TensorInfo)]) -> Result<(), Error> {
        let mut metadata = self.gguf.metadata().clone();
        for key in [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS] {
            metadata.shift_remove(key);
        }
        let decl = |(name, info): &(&str, &TensorInfo)| TensorDecl {
            name: (*name).to_owned(),
            shape: info.shape.clone(),
            dtype: self.dtype(name, info),
        };
        let decls: Vec<TensorDecl> = outputs.iter().map(decl).collect();
        let options = WriteOptions { sha256: false, ..WriteOptions::default() };
        let mut writer = GgufWriter::create(path, &metadata, &decls, &options)?;
        for (name, info) in outputs {
            check_interrupted(path)?;
            match self.targets.get(*name) {
                None => {
                    check_finite(self.gguf, info, self.isa)?;
                    writer.write(self.gguf.bytes(info)?)?;
                }
                Some(target) => writer.write(&self.merged(name, info, target)?)?,
            }
        }
        writer.finish()?;
        Ok(())
    }

    /// Returns the bytes of a tensor that changes.
    fn merged(&self, name: &str, info: &TensorInfo, target: &Target<'_>) -> Result<Vec<u8>, Error> {
        let mut values = vec![0.0; info.n_elements()];
        info.dtype.decode(self.isa, self.gguf.bytes(info)?, &mut values);
        let n = if target.row.shape.len() == 3 { info.shape[0] } else { 1 };
        let len = values.len() / n.max(1);
        let order = to_gguf(target.row, self.config);
        for (expert, change) in &target.changes {
            let own = &mut values[expert * len..(expert + 1) * len];
            change.apply(own, order);
            if target.row.transform == Transform::AddOne {
                own.iter_mut().for_each(|value| *value += 1.0);
            }
        }
        let (columns, dtype) = (info.shape.last().copied().unwrap_or(1), self.dtype(name, info));
        let bytes = merge::encode_finite(self.isa, dtype, &values, columns);
        bytes.ok_or_else(|| self.changes.sum_not_finite(name, dtype, self.gguf, info, self.isa))
    }
}

/// Returns the order in which a GGUF has the rows of a checkpoint's tensor.
pub(super) fn to_gguf(row: &Row, config: &ModelConfig) -> RowMap {
    match row.transform {
        Transform::InterleaveQ | Transform::InterleaveK => {
            RowMap::Deinterleave { head_dim: config.head_dim }.inverse()
        }
        Transform::None | Transform::AddOne => RowMap::Identity,
    }
}
