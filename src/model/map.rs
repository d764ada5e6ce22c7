//! From a checkpoint's names, shapes and config to the tensors and keys of a GGUF. Reads headers only.

use std::path::Path;

use serde_json::Value as Json;

use super::arch::{self, Part, Row};
use super::checkpoint::{block_size, in_reference_order, refuse_quantized, vocab_in_use};
use super::config::ModelConfig;
use super::general::{ParameterCount, general_keys};
use super::hparams::Hparams;
use super::keys::{Facts, generated, unwritten_rope};
use super::mapper::{Mapper, source_shape};
use super::rows::{GeneratedRow, SourceRows};
use super::{Checkpoint, Error, Mapped, TargetTensor};
use crate::tensor::format::by_name;
use crate::tensor::gguf::{Gguf, Metadata, Value};
use crate::tensor::{Dtype, TensorInfo, TensorSource};

/// Returns the GGUF that a checkpoint becomes when its weights are stored as `float_type` (F32, F16 or BF16).
///
/// Keys and tensors are those of llama.cpp's converter (b11434), in its order. Errors name the
/// tensor or key: unknown architecture, missing or unexpected tensors, shapes that config.json
/// does not imply, weights already quantized.
pub fn map_checkpoint(checkpoint: &Checkpoint, float_type: Dtype) -> Result<Mapped, Error> {
    let path = checkpoint.dir.join("config.json");
    refuse_quantized(&checkpoint.config, &path)?;
    let class = arch::class_of(&checkpoint.config, &path)?;
    let hparams = Hparams::new(&checkpoint.config, class, &path)?;
    let config = ModelConfig::from_hparams(&hparams, class)?;
    let facts = Facts { config: &config, hparams: &hparams, file_type: file_type(float_type)? };

    let mut mapper = Mapper::new(class.arch, &config, checkpoint.source.path());
    mapper.block = block_size(&checkpoint.config);
    mapper.scaled_fp8 =
        checkpoint.config.get("quantization_config").is_some_and(|section| !section.is_null());
    if class.arch.flags.drops_unused_vocab {
        mapper.n_vocab = vocab_in_use(&checkpoint.dir, config.vocab_size)?;
    }
    let (tensors, mut notices) = mapper.map(in_reference_order(checkpoint.source.as_ref()))?;
    notices.extend(unwritten_rope(&facts)?);
    let (made, made_keys) = generated(&facts)?;
    let mut all: Vec<TargetTensor> =
        made.into_iter().map(|(name, values)| made_tensor(name, values)).collect();
    all.extend(tensors);

    let count = ParameterCount::of(all.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())));
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture".to_owned(), class.arch.name.into());
    metadata.extend(made_keys);
    metadata.extend(general_keys(&checkpoint.dir, &checkpoint.config, &count, &mut notices)?);
    for key in class.arch.keys {
        key.write(&facts, &mut metadata)?;
    }
    metadata.insert("general.quantization_version".to_owned(), Value::U32(2));
    Ok(Mapped {
        arch: class.arch.name.to_owned(),
        metadata,
        metadata_after: Metadata::new(),
        tensors: all,
        notices,
    })
}

/// Returns a GGUF as it is: its keys and its tensors in file order, rows unchanged.
///
/// Works for every architecture, known or not: nothing is renamed.
pub fn map_gguf(gguf: &Gguf) -> Mapped {
    let arch = gguf.metadata().get("general.architecture").and_then(Value::as_str).unwrap_or_default();
    let tensors = gguf.tensors().iter().map(|info| TargetTensor {
        name: info.name.clone(),
        shape: info.shape.clone(),
        source_dtype: info.dtype,
        fixed_dtype: fixed_dtype(&info.name, &info.shape),
        rows: Box::new(SourceRows::identity(info)),
    });
    Mapped {
        arch: arch.to_owned(),
        metadata: gguf.metadata().clone(),
        metadata_after: Metadata::new(),
        tensors: tensors.collect(),
        notices: Vec::new(),
    }
}

/// Returns the GGUF tensors (name, shape outermost first) that a checkpoint of these HF names and
/// shapes would become, in the reference converter's order; `path` is config.json's, for messages.
pub fn targets_from_names(
    config: &Json,
    path: &Path,
    tensors: &[(String, Vec<usize>)],
) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let class = arch::class_of(config, path)?;
    let config = ModelConfig::from_hparams(&Hparams::new(config, class, path)?, class)?;
    let mut infos: Vec<TensorInfo> = tensors
        .iter()
        .map(|(name, shape)| TensorInfo {
            name: name.clone(),
            dtype: bf16(),
            shape: shape.clone(),
            n_bytes: shape.iter().product::<usize>() as u64 * 2,
            shard: 0,
            offset: 0,
        })
        .collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    let (targets, _) = Mapper::new(class.arch, &config, path).map(infos.iter().collect())?;
    Ok(targets.into_iter().map(|target| (target.name, target.shape)).collect())
}

/// Returns the tensors (GGUF name, shape outermost first) that every model of this config has, by layer.
///
/// Optional ones (biases some checkpoints have) and generated ones (rope factors) are left out.
/// Errors if the config's architecture is unknown, which none of [`ModelConfig`]'s readers let happen.
pub fn expected_tensors(config: &ModelConfig) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let arch = arch::by_gguf_name(config.arch, Path::new(""))?;
    let required = |row: &&Row| row.presence.required(config);
    let whole = arch.rows.iter().filter(required).filter(|row| !row.per_layer());
    let mut out: Vec<_> = whole.map(|row| (row.gguf_name(0), row.shape(config))).collect();
    for layer in 0..config.n_layers {
        let rows = arch.rows.iter().filter(required).filter(|row| row.per_layer());
        out.extend(rows.map(|row| (row.gguf_name(layer), row.shape(config))));
    }
    Ok(out)
}

/// Returns the tensors (HF name in its first spelling, shape) that every checkpoint of this config has.
///
/// Errors as [`expected_tensors`] does.
pub fn expected_checkpoint_tensors(config: &ModelConfig) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let arch = arch::by_gguf_name(config.arch, Path::new(""))?;
    let mut out = Vec::new();
    for row in arch.rows.iter().filter(|row| row.presence.required(config)) {
        let source = &row.sources[0];
        let shape = source_shape(&row.shape(config), source.part);
        for layer in 0..if row.per_layer() { config.n_layers } else { 1 } {
            let name = source.hf.replacen("{}", &layer.to_string(), 1);
            match (source.part, &config.experts) {
                (Part::Expert, Some(experts)) => out.extend(
                    (0..experts.n).map(|expert| (name.replacen("{}", &expert.to_string(), 1), shape.clone())),
                ),
                _ => out.push((name, shape.clone())),
            }
        }
    }
    Ok(out)
}

/// Returns the type a tensor keeps whatever the output's float type: the converter's rules, which
/// follow from the name and the number of dimensions.
pub(super) fn fixed_dtype(name: &str, shape: &[usize]) -> Option<Dtype> {
    let is_f32 = shape.len() <= 1
        || name.ends_with("_norm.weight")
        || name.ends_with(".ffn_gate_inp.weight")
        || !name.ends_with(".weight");
    is_f32.then(f32_dtype)
}

pub(super) fn f32_dtype() -> Dtype {
    by_name("F32").expect("F32 is in the registry")
}

fn bf16() -> Dtype {
    by_name("BF16").expect("BF16 is in the registry")
}

/// Returns `general.file_type`: llama.cpp's `LLAMA_FTYPE_*` of a float file.
fn file_type(float_type: Dtype) -> Result<u32, Error> {
    match float_type.name() {
        "F32" => Ok(0),
        "F16" => Ok(1),
        "BF16" => Ok(32),
        name => Err(Error::NotAFloatType { name: name.to_owned() }),
    }
}

fn made_tensor(name: &str, values: Vec<f32>) -> TargetTensor {
    TargetTensor {
        name: name.to_owned(),
        shape: vec![values.len()],
        source_dtype: f32_dtype(),
        fixed_dtype: Some(f32_dtype()),
        rows: Box::new(GeneratedRow(values)),
    }
}
