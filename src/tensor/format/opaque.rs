//! Types of the GGUF specification that we name and measure, so that `inspect` can list them, but neither
//! read nor write. Sizes are those of ggml's block structs.

use super::BlockFormat;
use crate::kernel::Isa;

/// A type known by name, id and size only.
pub struct Opaque {
    name: &'static str,
    ggml_id: u32,
    block_len: usize,
    block_bytes: usize,
}

const fn opaque(name: &'static str, ggml_id: u32, block_len: usize, block_bytes: usize) -> Opaque {
    Opaque { name, ggml_id, block_len, block_bytes }
}

pub static Q8_1: Opaque = opaque("Q8_1", 9, 32, 36);
pub static Q8_K: Opaque = opaque("Q8_K", 15, 256, 292);
pub static IQ2_XXS: Opaque = opaque("IQ2_XXS", 16, 256, 66);
pub static IQ2_XS: Opaque = opaque("IQ2_XS", 17, 256, 74);
pub static IQ3_XXS: Opaque = opaque("IQ3_XXS", 18, 256, 98);
pub static IQ1_S: Opaque = opaque("IQ1_S", 19, 256, 50);
pub static IQ3_S: Opaque = opaque("IQ3_S", 21, 256, 110);
pub static IQ2_S: Opaque = opaque("IQ2_S", 22, 256, 82);
pub static IQ1_M: Opaque = opaque("IQ1_M", 29, 256, 56);
pub static TQ1_0: Opaque = opaque("TQ1_0", 34, 256, 54);
pub static TQ2_0: Opaque = opaque("TQ2_0", 35, 256, 66);
pub static NVFP4: Opaque = opaque("NVFP4", 40, 64, 36);
pub static Q1_0: Opaque = opaque("Q1_0", 41, 128, 18);
pub static Q2_0: Opaque = opaque("Q2_0", 42, 64, 18);

impl BlockFormat for Opaque {
    fn name(&self) -> &'static str {
        self.name
    }

    fn ggml_id(&self) -> Option<u32> {
        Some(self.ggml_id)
    }

    fn block_len(&self) -> usize {
        self.block_len
    }

    fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    fn can_decode(&self) -> bool {
        false
    }

    fn can_encode(&self) -> bool {
        false
    }

    fn decode(&self, _isa: Isa, _bytes: &[u8], _out: &mut [f32]) {
        panic!("{} has no decoder", self.name);
    }

    fn encode(
        &self,
        _isa: Isa,
        _rows: &[f32],
        _row_len: usize,
        _importance: Option<&[f32]>,
        _out: &mut [u8],
    ) {
        panic!("{} has no encoder", self.name);
    }
}
