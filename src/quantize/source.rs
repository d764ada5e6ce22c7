//! What is quantized: a checkpoint or a GGUF model, as output tensors whose rows can be read.

use std::ops::Range;
use std::path::Path;

use super::Error;
use super::recipe::known;
use crate::kernel::Isa;
use crate::model::{Rows, TargetTensor};
use crate::tensor::gguf::{Gguf, Metadata};
use crate::tensor::{Dtype, Opened, TensorInfo, TensorSource, open};

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
    /// `pre` forces the pre-tokenizer's name, which only a checkpoint can need.
    pub fn open(path: &Path, pre: Option<&str>) -> Result<Self, Error> {
        match open(path)? {
            Opened::Gguf(gguf) => match pre {
                Some(_) => Err(Error::PreOfGguf { path: path.to_owned() }),
                None => Self::from_gguf(gguf),
            },
            Opened::SafeTensors(tensors) => Self::from_checkpoint(path, tensors, pre),
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
        let metadata = gguf.metadata().clone();
        let key = "general.architecture";
        let arch = metadata.get(key).and_then(|value| value.as_str()).map(str::to_owned);
        let arch = arch.ok_or_else(|| Error::MissingKey { key: key.to_owned(), what: "the architecture's name" })?;
        let targets = gguf.tensors().iter().map(target_of).collect();
        Ok(Source { kind: Kind::Gguf, tensors: Box::new(gguf), arch, metadata, targets, notices: Vec::new() })
    }
}

fn target_of(info: &TensorInfo) -> TargetTensor {
    TargetTensor {
        name: info.name.clone(),
        shape: info.shape.clone(),
        source_dtype: info.dtype,
        fixed_dtype: None,
        rows: Box::new(StoredRows(info.clone())),
    }
}

/// A tensor's own rows, unchanged.
struct StoredRows(TensorInfo);

impl Rows for StoredRows {
    fn read(
        &self,
        source: &dyn TensorSource,
        isa: Isa,
        rows: Range<usize>,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<(), crate::tensor::Error> {
        let n_bytes = rows.len() * self.0.row_bytes();
        scratch.resize(n_bytes.max(scratch.len()), 0);
        let bytes = &mut scratch[..n_bytes];
        source.read_at(&self.0, rows.start as u64 * self.0.row_bytes() as u64, bytes)?;
        self.0.dtype.decode(isa, bytes, out);
        Ok(())
    }

    fn read_stored(
        &self,
        source: &dyn TensorSource,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<bool, crate::tensor::Error> {
        source.read_at(&self.0, rows.start as u64 * self.0.row_bytes() as u64, out)?;
        Ok(true)
    }
}
impl Source {
    fn from_checkpoint(path: &Path, _t: crate::tensor::safetensors::SafeTensors, _pre: Option<&str>) -> Result<Self, Error> {
        Err(Error::PreOfGguf { path: path.into() })
    }
}
