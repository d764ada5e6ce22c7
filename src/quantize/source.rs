//! What is quantized: a checkpoint or a GGUF model, as output tensors whose rows can be read.

use std::path::Path;

use super::recipe::known;
use super::{Error, Recipe};
use crate::model::{Checkpoint, Mapped, TargetTensor, map_checkpoint, map_gguf};
use crate::tensor::gguf::{Gguf, Metadata, Value};
use crate::tensor::safetensors::SafeTensors;
use crate::tensor::{Dtype, Opened, TensorSource, open};
use crate::text::{VocabRequest, gguf_vocab};

/// What a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// safetensors in the Hugging Face layout.
    Checkpoint,
    Gguf,
}

/// A model to quantize, headers read.
pub struct Source {
    pub kind: Kind,
    pub tensors: Box<dyn TensorSource>,
    /// GGUF architecture name.
    pub arch: String,
    /// All keys, the tokenizer's included.
    pub metadata: Metadata,
    /// In the reference converter's order; file order for a GGUF.
    pub targets: Vec<TargetTensor>,
    /// What the user should know, one sentence each.
    pub notices: Vec<String>,
}

impl Source {
    /// Opens a checkpoint's directory, a .safetensors file in one, or a GGUF model (the first shard if split).
    ///
    /// `recipe` says which float type a checkpoint's keys speak of, if it is one; `pre` forces the pre-tokenizer's name, which only a checkpoint can need.
    pub fn open(path: &Path, recipe: &Recipe, pre: Option<&str>) -> Result<Self, Error> {
        match open(path)? {
            Opened::Gguf(gguf) => match pre {
                Some(_) => Err(Error::PreOfGguf { path: path.to_owned() }),
                None => Self::from_gguf(gguf),
            },
            Opened::SafeTensors(tensors) => {
                let float_type = if recipe.is_float() { recipe.base() } else { known("BF16") };
                Self::from_checkpoint(path, tensors, float_type, pre)
            }
        }
    }

    /// Returns the type a tensor has when no quantizer touches it.
    pub fn stored_dtype(&self, target: &TargetTensor) -> Dtype {
        match self.kind {
            Kind::Gguf => target.source_dtype,
            Kind::Checkpoint => target.fixed_dtype.unwrap_or(match target.source_dtype.name() {
                "F16" | "BF16" => target.source_dtype,
                "F32" | "F64" => known("F32"),
                _ => known("BF16"),
            }),
        }
    }

    fn from_gguf(gguf: Gguf) -> Result<Self, Error> {
        let key = "general.architecture";
        if gguf.metadata().get(key).and_then(Value::as_str).is_none() {
            return Err(Error::NoArchitecture { path: gguf.path().to_owned() });
        }
        let mapped = map_gguf(&gguf);
        Ok(Self::joined(Kind::Gguf, Box::new(gguf), mapped, Metadata::new()))
    }

    fn from_checkpoint(
        path: &Path,
        tensors: SafeTensors,
        float_type: Dtype,
        pre: Option<&str>,
    ) -> Result<Self, Error> {
        let checkpoint = open_checkpoint(path, tensors)?;
        let config = checkpoint.model_config()?;
        let mut mapped = map_checkpoint(&checkpoint, float_type)?;
        let embedding = mapped.tensors.iter().find(|target| target.name == "token_embd.weight");
        let vocab = gguf_vocab(&VocabRequest {
            dir: &checkpoint.dir,
            config: &checkpoint.config,
            arch: &mapped.arch,
            vocab_size: Some(config.vocab_size),
            embedding_rows: embedding.and_then(|target| target.shape.first().copied()),
            pre,
        })?;
        let model = vocab.metadata.get("tokenizer.ggml.model").and_then(Value::as_str).unwrap_or_default();
        if pre.is_some() && model != "gpt2" {
            return Err(Error::PreOfTokenizer { path: checkpoint.dir, model: model.to_owned() });
        }
        mapped.notices.extend(vocab.notes);
        Ok(Self::joined(Kind::Checkpoint, checkpoint.source, mapped, vocab.metadata))
    }

    fn joined(kind: Kind, tensors: Box<dyn TensorSource>, mapped: Mapped, tokenizer: Metadata) -> Self {
        let mut metadata = mapped.metadata;
        metadata.extend(tokenizer);
        metadata.extend(mapped.metadata_after);
        Source {
            kind,
            tensors,
            arch: mapped.arch,
            metadata,
            targets: mapped.tensors,
            notices: mapped.notices,
        }
    }
}

/// Returns the checkpoint that safetensors opened at `path` belong to: config.json is in that directory,
/// or beside that file.
fn open_checkpoint(path: &Path, tensors: SafeTensors) -> Result<Checkpoint, Error> {
    if path.is_dir() {
        return Ok(Checkpoint::open(path)?);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(Checkpoint { source: Box::new(tensors), ..Checkpoint::open(dir)? })
}
