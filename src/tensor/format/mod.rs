//! Block formats: how a row of weights lies in memory. One file each; [`REGISTRY`] is the list.

mod affine;
mod affine_blocks;
mod block32;
mod blocks;
#[cfg(test)]
mod conformance;
mod descent;
mod iq4;
mod iq4_nl;
mod iq4_xs;
pub(crate) mod nf4;
mod opaque;
#[cfg(test)]
mod oracle_affine;
#[cfg(test)]
mod oracle_symmetric;
mod plain;
mod q2_k;
mod q3_k;
mod q4_k;
mod q5_k;
mod q6_k;
mod symmetric;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use iq4::LEVELS as IQ4_LEVELS;
pub use nf4::Nf4;
pub use plain::{BF16, F16, F32};

use crate::kernel::Isa;

/// One way to store weights: `block_len` weights in `block_bytes` bytes, blocks never crossing rows.
///
/// Layouts: the GGUF specification and ggml's block structs; values are little-endian.
pub trait BlockFormat: Send + Sync {
    /// Returns the canonical name, e.g. `Q4_K`, `F16`, `F8_E4M3`.
    fn name(&self) -> &'static str;

    /// Returns the type id in a GGUF tensor header, if GGUF has the type.
    fn ggml_id(&self) -> Option<u32> {
        None
    }

    /// Returns the dtype name in a safetensors header, if safetensors has the type.
    fn safetensors_name(&self) -> Option<&'static str> {
        None
    }

    /// Returns weights per block; 1 for plain types.
    fn block_len(&self) -> usize;

    /// Returns bytes per block.
    fn block_bytes(&self) -> usize;

    /// Returns true if [`BlockFormat::decode`] is implemented. Types we can only name and measure
    /// (so that `inspect` can list them) return false.
    fn can_decode(&self) -> bool {
        true
    }

    /// Returns true if [`BlockFormat::encode`] is implemented.
    fn can_encode(&self) -> bool;

    /// Decodes whole blocks: `bytes.len() / block_bytes() * block_len() == out.len()`.
    ///
    /// The same bits on every `isa`.
    ///
    /// # Panics
    /// If the lengths disagree, or `can_decode()` is false (both are caller bugs).
    fn decode(&self, isa: Isa, bytes: &[u8], out: &mut [f32]);

    /// Encodes whole rows; `rows.len() % row_len == 0 && row_len % block_len() == 0`, and
    /// `out.len() == rows.len() / block_len() * block_bytes()`.
    ///
    /// `importance`, when given, has `row_len` weights, used for every row (its values are finite and >= 0).
    /// All values of `rows` are finite: the caller checks. The same bytes on every `isa`, and
    /// the reference's bytes (llama.cpp's `quantize_*`; no fused multiply-add).
    ///
    /// # Panics
    /// If the lengths disagree, or `can_encode()` is false (both are caller bugs).
    fn encode(&self, isa: Isa, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]);
}

/// Every format that files have. Adding one is one file and one line here. [`Nf4`] is of memory alone.
pub static REGISTRY: &[&dyn BlockFormat] = &[
    &plain::F32,
    &plain::F16,
    &plain::BF16,
    &plain::F64,
    &plain::F8_E4M3,
    &plain::F8_E5M2,
    &plain::I8,
    &plain::I16,
    &plain::I32,
    &plain::I64,
    &plain::U8,
    &plain::U16,
    &plain::U32,
    &plain::U64,
    &plain::BOOL,
    &q2_k::Q2K,
    &q3_k::Q3K,
    &q4_k::Q4K,
    &q5_k::Q5K,
    &q6_k::Q6K,
    &iq4_nl::Iq4Nl,
    &iq4_xs::Iq4Xs,
    &block32::Q8_0,
    &block32::Q4_0,
    &block32::Q4_1,
    &block32::Q5_0,
    &block32::Q5_1,
    &block32::MXFP4,
    &opaque::Q8_1,
    &opaque::Q8_K,
    &opaque::IQ1_S,
    &opaque::IQ1_M,
    &opaque::IQ2_XXS,
    &opaque::IQ2_XS,
    &opaque::IQ2_S,
    &opaque::IQ3_XXS,
    &opaque::IQ3_S,
    &opaque::TQ1_0,
    &opaque::TQ2_0,
    &opaque::NVFP4,
    &opaque::Q1_0,
    &opaque::Q2_0,
];

/// Returns the format of that canonical name, case ignored.
pub fn by_name(name: &str) -> Option<super::Dtype> {
    REGISTRY.iter().find(|f| f.name().eq_ignore_ascii_case(name)).map(|f| super::Dtype(*f))
}

/// Returns the format of a GGUF type id.
pub fn by_ggml_id(id: u32) -> Option<super::Dtype> {
    REGISTRY.iter().find(|f| f.ggml_id() == Some(id)).map(|f| super::Dtype(*f))
}

/// Returns the format of a safetensors dtype name (exact case).
pub fn by_safetensors_name(name: &str) -> Option<super::Dtype> {
    REGISTRY.iter().find(|f| f.safetensors_name() == Some(name)).map(|f| super::Dtype(*f))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_ids_are_unique() {
        let names: HashSet<_> = REGISTRY.iter().map(|f| f.name().to_ascii_uppercase()).collect();
        assert_eq!(names.len(), REGISTRY.len());
        let ids: Vec<_> = REGISTRY.iter().filter_map(|f| f.ggml_id()).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        assert!(REGISTRY.iter().all(|f| f.can_decode() || !f.can_encode()));
    }

    #[test]
    fn lookups_agree_with_the_registry() {
        for format in REGISTRY {
            assert_eq!(by_name(&format.name().to_ascii_lowercase()).unwrap().name(), format.name());
            if let Some(id) = format.ggml_id() {
                assert_eq!(by_ggml_id(id).unwrap().name(), format.name());
            }
        }
        assert!(by_name("Q4_2").is_none());
        assert!(by_ggml_id(4).is_none());
    }
}
