//! A checkpoint's directory: config.json, tensors, and what both say about how weights are stored.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::{Error, ModelConfig};
use crate::tensor::{TensorInfo, TensorSource};

/// A Hugging Face checkpoint: tensors (headers only) and its config.json.
pub struct Checkpoint {
    pub dir: PathBuf,
    pub config: Json,
    pub source: Box<dyn TensorSource>,
}

impl Checkpoint {
    /// Opens a directory with config.json and safetensors files; reads headers only.
    ///
    /// Errors on a file that is missing or broken; whether the model is known is [`map_checkpoint`]'s to say.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("config.json");
        let bytes =
            crate::read::read_regular(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let config = serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
        Ok(Checkpoint { dir: dir.to_path_buf(), config, source: crate::tensor::open(dir)?.into_source() })
    }

    /// Returns the sizes and settings in config.json.
    pub fn model_config(&self) -> Result<ModelConfig, Error> {
        ModelConfig::from_hf(&self.config, &self.dir.join("config.json"))
    }
}

/// Returns the tensors as the reference meets them: files by name, then tensors by name.
pub(super) fn in_reference_order(source: &dyn TensorSource) -> Vec<&TensorInfo> {
    let files = source.files();
    let mut tensors: Vec<&TensorInfo> = source.tensors().iter().collect();
    tensors.sort_by(|a, b| {
        let file = |info: &TensorInfo| files.get(info.shard).and_then(|path| path.file_name());
        file(a).cmp(&file(b)).then_with(|| a.name.cmp(&b.name))
    });
    tensors
}

/// Errors if config.json says the weights are quantized in a way that lctl does not undo.
pub(super) fn refuse_quantized(config: &Json, path: &Path) -> Result<(), Error> {
    let refuse = |method: String| Error::Quantized { path: path.to_path_buf(), method };
    let bits = |config: &Json| config.get("bits").and_then(Json::as_u64);
    let section = config.get("quantization_config").filter(|section| !section.is_null());
    if let (Some(mlx), true) =
        (config.get("quantization").and_then(bits), section.and_then(|s| s.get("quant_method")).is_none())
    {
        return Err(refuse(format!("MLX, {mlx} bits")));
    }
    let Some(section) = section else { return Ok(()) };
    let format = section.get("format").and_then(Json::as_str).unwrap_or("");
    match (section.get("quant_method").and_then(Json::as_str), format) {
        (Some("fp8"), _) | (Some("compressed-tensors"), "float-quantized" | "naive-quantized") => Ok(()),
        (Some("modelopt"), _) if section.get("quant_algo").and_then(Json::as_str) == Some("FP8") => Ok(()),
        (Some(method), "") => Err(refuse(method.to_owned())),
        (Some(method), format) => Err(refuse(format!("{method}, {format}"))),
        (None, _) => Err(refuse("quantization_config without quant_method".to_owned())),
    }
}

/// Returns the rows and columns one FP8 scale covers, if config.json says so.
pub(super) fn block_size(config: &Json) -> Option<[usize; 2]> {
    let section = config.get("quantization_config")?;
    let of_groups = || {
        let groups = section.get("config_groups")?.as_object()?;
        groups.values().next()?.get("weights")?.get("block_structure")
    };
    let block = section.get("weight_block_size").filter(|block| !block.is_null()).or_else(of_groups)?;
    let size = |i: usize| block.get(i)?.as_u64().and_then(|size| usize::try_from(size).ok());
    Some([size(0)?, size(1)?])
}

/// Returns how many embedding rows the tokenizer can address.
///
/// As the reference counts: a SentencePiece vocabulary is padded to `vocab_size`; a tokenizer.json has
/// its vocabulary and its added tokens (which may repeat some, hence at most `vocab_size` here).
pub(super) fn vocab_in_use(dir: &Path, vocab_size: usize) -> Result<usize, Error> {
    #[derive(serde::Deserialize)]
    struct Tokenizer {
        model: Model,
        #[serde(default)]
        added_tokens: Vec<serde::de::IgnoredAny>,
    }
    #[derive(serde::Deserialize)]
    struct Model {
        vocab: Vocab,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Vocab {
        Bpe(HashMap<String, serde::de::IgnoredAny>),
        Unigram(Vec<serde::de::IgnoredAny>),
    }
    let path: PathBuf = dir.join("tokenizer.json");
    if dir.join("tokenizer.model").is_file() {
        return Ok(vocab_size);
    }
    let read = crate::read::read_present(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    let Some(bytes) = read else { return Ok(vocab_size) };
    let tokenizer: Tokenizer =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
    let n_base = match tokenizer.model.vocab {
        Vocab::Bpe(tokens) => tokens.len(),
        Vocab::Unigram(tokens) => tokens.len(),
    };
    Ok((n_base + tokenizer.added_tokens.len()).min(vocab_size))
}
