//! What a model file holds, computed from its headers: the facts behind `lctl inspect`.

mod cross;
mod diff;
mod digest;
mod dims;
mod error;
mod memory;
mod view;

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::Value as Json;

use crate::model::ModelConfig;
use crate::read::read_regular;
use crate::tensor::gguf::Metadata;
use crate::tensor::{Dtype, Opened, TensorSource};
use crate::text::{VocabRequest, VocabSummary, gguf_vocab, summary};

pub use cross::{CrossCheck, Verdict, cross_check};
pub use diff::{Change, Diff, TensorKind, diff};
pub use digest::sha256_of_tensors;
pub use dims::Dimensions;
pub use error::Error;
pub use memory::{DEFAULT_CONTEXT, Memory};
pub use view::{KeyView, key_view};

/// config.json larger than this is not read.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A model opened for inspection.
pub struct Model {
    pub opened: Opened,
    /// config.json beside safetensors.
    pub config: Option<Json>,
    /// The directory of safetensors.
    dir: Option<PathBuf>,
    chat_template_file: Option<String>,
}

/// The facts of a model, in the order they are shown; docs/inspect.md documents the JSON form.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub path: String,
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gguf_version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment: Option<u32>,
    pub files: Vec<FileFacts>,
    /// `general.architecture`, or the first of config.json's `architectures`.
    pub architecture: Option<String>,
    pub name: Option<String>,
    pub parameters: u64,
    pub tensor_count: usize,
    pub tensor_bytes: u64,
    /// 8 * tensor_bytes / parameters; absent without tensors.
    pub bits_per_weight: Option<f64>,
    pub types: Vec<TypeRow>,
    pub keys: Vec<KeyView>,
    pub dimensions: Option<Dimensions>,
    pub tokenizer: Option<VocabSummary>,
    /// Why something that a checkpoint should have is not shown.
    pub notes: Vec<String>,
    /// The default chat template, whole.
    pub chat_template: Option<String>,
    pub memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Vec<TensorRow>>,
}

#[derive(Debug, Clone, Serialize)]
pub struct FileFacts {
    pub path: String,
    pub bytes: u64,
}

/// All tensors of one type.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TypeRow {
    #[serde(rename = "type")]
    pub dtype: String,
    pub tensors: usize,
    pub parameters: u64,
    pub bytes: u64,
    pub bits_per_weight: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorRow {
    pub name: String,
    #[serde(rename = "type")]
    pub dtype: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    pub bytes: u64,
    /// Index into `files`.
    pub file: usize,
    /// Absolute, in that file.
    pub offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// What to compute beyond the headers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    pub tensors: bool,
    /// SHA-256 of every tensor's data: reads the whole model.
    pub digests: bool,
    /// Tokens of context to estimate memory for; `None` takes the smaller of the model's and 4096.
    pub context: Option<u64>,
}

impl Model {
    /// Opens a model and its config.json, if there is one beside safetensors.
    pub fn open(path: &Path) -> Result<Model, Error> {
        let opened = crate::tensor::open(path)?;
        if let Opened::Gguf(_) = opened {
            return Ok(Model { opened, config: None, dir: None, chat_template_file: None });
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let dir = if path.is_dir() { path } else { parent.unwrap_or(Path::new(".")) };
        let config = read_config(&dir.join("config.json"))?;
        Ok(Model { opened, config, chat_template_file: read_template(dir), dir: Some(dir.to_owned()) })
    }

    pub fn source(&self) -> &dyn TensorSource {
        self.opened.as_source()
    }

    /// Returns the keys for display and comparison: GGUF metadata, or `__metadata__` and config.json's entries.
    pub fn keys(&self) -> Vec<KeyView> {
        match &self.opened {
            Opened::Gguf(gguf) => gguf.metadata().iter().map(|(key, value)| key_view(key, value)).collect(),
            Opened::SafeTensors(source) => {
                let mut keys = Vec::new();
                // Shards repeat the same pairs.
                let mut pairs: IndexMap<&str, &str> = IndexMap::new();
                for shard in 0..source.files().len() {
                    pairs.extend(
                        source.metadata(shard).iter().map(|(key, value)| (key.as_str(), value.as_str())),
                    );
                }
                keys.extend(
                    pairs
                        .into_iter()
                        .map(|(key, value)| KeyView::text(&format!("__metadata__.{key}"), value)),
                );
                let config = self.config.as_ref().and_then(Json::as_object);
                let entries = config.into_iter().flatten();
                keys.extend(entries.map(|(key, value)| KeyView::json(&format!("config.{key}"), value)));
                keys
            }
        }
    }

    fn metadata(&self) -> Option<&Metadata> {
        match &self.opened {
            Opened::Gguf(gguf) => Some(gguf.metadata()),
            Opened::SafeTensors(_) => None,
        }
    }

    fn architecture(&self) -> Option<String> {
        match self.metadata() {
            Some(metadata) => metadata.get("general.architecture")?.as_str().map(str::to_owned),
            None => {
                let config = self.config.as_ref()?;
                let named = config.get("architectures").and_then(|list| list.get(0)).and_then(Json::as_str);
                named.or_else(|| config.get("model_type")?.as_str()).map(str::to_owned)
            }
        }
    }

    fn chat_template(&self) -> Option<String> {
        match self.metadata() {
            Some(metadata) => metadata.get("tokenizer.chat_template")?.as_str().map(str::to_owned),
            None => self.chat_template_file.clone(),
        }
    }

    fn dimensions(&self) -> Option<Dimensions> {
        match self.metadata() {
            Some(metadata) => Dimensions::from_gguf(metadata),
            None => Dimensions::from_config(self.config.as_ref()?),
        }
    }

    /// Returns the tokenizer; of a checkpoint, as its GGUF would have it, or a note on why not.
    fn tokenizer(&self) -> (Option<VocabSummary>, Option<String>) {
        if let Some(metadata) = self.metadata() {
            let vocab = summary(metadata);
            return (Some(vocab).filter(|vocab| vocab.model.is_some() || vocab.n_tokens > 0), None);
        }
        let (Some(dir), Some(config)) = (&self.dir, &self.config) else { return (None, None) };
        let known = match ModelConfig::from_hf(config, &dir.join("config.json")) {
            Ok(known) => known,
            Err(error) => return (None, Some(error.to_string())),
        };
        let request = VocabRequest {
            dir,
            config,
            arch: known.arch,
            vocab_size: Some(known.vocab_size),
            embedding_rows: None,
            pre: None,
        };
        match gguf_vocab(&request) {
            Ok(vocab) => (Some(summary(&vocab.metadata)), None),
            Err(error) => (None, Some(error.to_string())),
        }
    }

    /// Returns the facts. Reads tensor data only for `wanted.digests`.
    pub fn report(&self, wanted: Wanted) -> Result<Report, Error> {
        let source = self.source();
        let infos = source.tensors();
        let parameters: u64 = infos.iter().map(|info| info.n_elements() as u64).sum();
        let tensor_bytes: u64 = infos.iter().map(|info| info.n_bytes).sum();
        let dimensions = self.dimensions();
        let memory = match (&dimensions, infos.is_empty()) {
            (Some(dimensions), false) => Some(Memory::estimate(tensor_bytes, dimensions, wanted.context)),
            _ => None,
        };
        let (gguf_version, alignment) = match &self.opened {
            Opened::Gguf(gguf) => (Some(gguf.version()), Some(gguf.alignment())),
            Opened::SafeTensors(_) => (None, None),
        };
        let (tokenizer, note) = self.tokenizer();
        Ok(Report {
            path: source.path().display().to_string(),
            format: if self.metadata().is_some() { "gguf" } else { "safetensors" },
            gguf_version,
            alignment,
            files: file_facts(source)?,
            architecture: self.architecture(),
            name: self.metadata().and_then(|m| m.get("general.name")?.as_str().map(str::to_owned)),
            parameters,
            tensor_count: infos.len(),
            tensor_bytes,
            bits_per_weight: (parameters > 0).then(|| bits_per_weight(tensor_bytes, parameters)),
            types: type_rows(source),
            keys: self.keys(),
            dimensions,
            tokenizer,
            notes: note.into_iter().collect(),
            chat_template: self.chat_template(),
            memory,
            tensors: match wanted.tensors || wanted.digests {
                true => Some(tensor_rows(source, wanted.digests)?),
                false => None,
            },
        })
    }
}

fn bits_per_weight(bytes: u64, parameters: u64) -> f64 {
    bytes as f64 * 8.0 / parameters as f64
}

fn file_facts(source: &dyn TensorSource) -> Result<Vec<FileFacts>, Error> {
    let facts = |path: &PathBuf| {
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
        Ok(FileFacts { path: path.display().to_string(), bytes: meta.len() })
    };
    source.files().iter().map(facts).collect()
}

/// Returns a row per type, the one with the most bytes first.
fn type_rows(source: &dyn TensorSource) -> Vec<TypeRow> {
    let mut totals: IndexMap<Dtype, (usize, u64, u64)> = IndexMap::new();
    for info in source.tensors() {
        let total = totals.entry(info.dtype).or_default();
        total.0 += 1;
        total.1 += info.n_elements() as u64;
        total.2 += info.n_bytes;
    }
    totals.sort_by(|_, a, _, b| b.2.cmp(&a.2));
    let row = |(dtype, (tensors, parameters, bytes)): (Dtype, (usize, u64, u64))| TypeRow {
        dtype: dtype.to_string(),
        tensors,
        parameters,
        bytes,
        bits_per_weight: dtype.block_bytes() as f64 * 8.0 / dtype.block_len() as f64,
    };
    totals.into_iter().map(row).collect()
}

fn tensor_rows(source: &dyn TensorSource, digests: bool) -> Result<Vec<TensorRow>, Error> {
    let infos: Vec<_> = source.tensors().iter().collect();
    let digests = if digests { sha256_of_tensors(source, &infos)? } else { Vec::new() };
    let mut digests = digests.into_iter();
    let row = |info: &&crate::tensor::TensorInfo| TensorRow {
        name: info.name.clone(),
        dtype: info.dtype.to_string(),
        shape: info.shape.clone(),
        bytes: info.n_bytes,
        file: info.shard,
        offset: info.offset,
        sha256: digests.next(),
    };
    Ok(infos.iter().map(row).collect())
}

fn read_config(path: &Path) -> Result<Option<Json>, Error> {
    // a link that leads nowhere is no absence
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
    if meta.len() > MAX_CONFIG_BYTES {
        return Err(Error::ConfigTooLarge {
            path: path.to_owned(),
            bytes: meta.len(),
            most: MAX_CONFIG_BYTES,
        });
    }
    let bytes = read_regular(path).map_err(|e| Error::io(path, "read", e))?;
    let config = serde_json::from_slice(&bytes);
    config.map(Some).map_err(|source| Error::BadConfig { path: path.to_owned(), source })
}

/// Returns the template of chat_template.jinja, or of tokenizer_config.json.
fn read_template(dir: &Path) -> Option<String> {
    let small = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_CONFIG_BYTES)
    };
    let file = dir.join("chat_template.jinja");
    if small(&file) {
        return std::fs::read_to_string(file).ok();
    }
    let file = Some(dir.join("tokenizer_config.json")).filter(small)?;
    let config: Json = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let template = config.get("chat_template")?;
    // A list of named templates, or one text.
    let default = |list: &Vec<Json>| {
        let entry = list.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"))?;
        entry.get("template")?.as_str().map(str::to_owned)
    };
    template.as_str().map(str::to_owned).or_else(|| template.as_array().and_then(default))
}
