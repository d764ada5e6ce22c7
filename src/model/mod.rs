//! Architectures as declarative tables, and what a checkpoint becomes as GGUF.

mod adapter;
pub mod arch;
mod batch;
mod checkpoint;
mod config;
mod decode;
mod decoder;
#[cfg(gpu)]
pub mod device;
mod dora;
mod error;
pub mod export;
mod general;
mod gguf_config;
mod hparams;
mod keys;
mod map;
mod mapper;
mod moe;
mod name;
mod names;
pub mod observe;
mod peft;
mod residence;
mod rope_scaling;
mod rows;
mod scale;
pub mod train;
mod unmap;
mod weights;

use std::ops::Range;

use crate::kernel::Isa;
use crate::tensor::gguf::Metadata;
use crate::tensor::{Dtype, TensorSource};

pub use checkpoint::Checkpoint;
pub use config::{Attention, Experts, ModelConfig, Rope, RopeScaling};
pub use decode::{Scored, Segment, SequenceId, Wanted};
pub use decoder::{Decoder, LoadOptions};
pub use error::Error;
pub use general::directory_name;
pub use map::{expected_checkpoint_tensors, expected_tensors, map_checkpoint, map_gguf, targets_from_names};
pub use residence::{Residence, free_memory};
pub use rope_scaling::{Frequencies, LongRope, Yarn, frequencies, local_frequencies};
pub use rows::ValueMap;

pub use crate::nn::Activation;
pub use crate::tensor::RowMap;
pub use unmap::unmap_gguf;

/// What a checkpoint, or an existing GGUF, becomes: metadata without the tokenizer, and tensors
/// in the order the reference converter writes them (file order for a GGUF).
pub struct Mapped {
    /// GGUF architecture name, e.g. `llama`.
    pub arch: String,
    /// Keys before the tokenizer's, `general.architecture` first.
    pub metadata: Metadata,
    /// Keys behind the tokenizer's; empty for every architecture so far, and for a GGUF, whose
    /// own keys (tokenizer included) are all in `metadata`.
    pub metadata_after: Metadata,
    pub tensors: Vec<TargetTensor>,
    /// What the user should know: tensors left out, for example. One sentence each.
    pub notices: Vec<String>,
}

/// One tensor of the GGUF to be written, and how its rows come out of the source.
pub struct TargetTensor {
    /// GGUF name, e.g. `blk.0.attn_q.weight`.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Type of the stored source weights (for display, and to copy blocks unchanged).
    pub source_dtype: Dtype,
    /// The type the tensor has when no quantizer touches it, if it does not follow the output's
    /// float type: F32 for norms, biases and routers.
    pub fixed_dtype: Option<Dtype>,
    pub rows: Box<dyn Rows>,
}

/// Rows of an output tensor, made on demand from one or many source tensors.
pub trait Rows: Send + Sync {
    /// Fills `out` (`rows.len() * row_len` values) with rows `rows` of the output tensor as f32,
    /// transforms applied. `scratch` is a reusable buffer. Thread-safe; reads by pread.
    fn read(
        &self,
        source: &dyn TensorSource,
        isa: Isa,
        rows: Range<usize>,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<(), crate::tensor::Error>;

    /// Fills `out` with the stored bytes of `rows`, if they need no change of value (the
    /// rows may be permuted or stacked); returns false and leaves `out` alone otherwise.
    fn read_stored(
        &self,
        source: &dyn TensorSource,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<bool, crate::tensor::Error>;
}
