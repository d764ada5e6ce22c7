//! IQ4_NL: 32 weights in 18 bytes, weight = d * level[q] with the codebook of [`super::iq4`].
//!
//! Block: d as f16, 16 bytes of indices (weight j low nibble, weight j + 16 high nibble).

use half::f16;

use super::BlockFormat;
use super::blocks::{Rows, check_lengths, half_scale};
use super::iq4::{SUB_LEN, Sigma2, decode, inverse_of, search_scales, store_indices};
use crate::kernel::Isa;
use crate::kernel::simd::{Kernel, Simd, dispatch};

const BLOCK_LEN: usize = SUB_LEN;
const BLOCK_BYTES: usize = 18;

/// The IQ4_NL format.
pub struct Iq4Nl;

impl BlockFormat for Iq4Nl {
    fn name(&self) -> &'static str {
        "IQ4_NL"
    }

    fn ggml_id(&self) -> Option<u32> {
        Some(20)
    }

    fn block_len(&self) -> usize {
        BLOCK_LEN
    }

    fn block_bytes(&self) -> usize {
        BLOCK_BYTES
    }

    fn can_encode(&self) -> bool {
        true
    }

    fn decode(&self, isa: Isa, bytes: &[u8], out: &mut [f32]) {
        check_lengths(self, out.len(), bytes.len());
        dispatch(isa, Decode { bytes, out });
    }

    fn encode(&self, isa: Isa, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        let rows = Rows::new(self, rows, row_len, importance, out.len());
        dispatch(isa, Encode { rows, out });
    }
}

struct Encode<'a> {
    rows: Rows<'a>,
    out: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tile_len = S::LANES * BLOCK_LEN;
        for (i, out) in self.out.chunks_mut(S::LANES * BLOCK_BYTES).enumerate() {
            let (mut x, mut importance) = ([0.0; 16 * BLOCK_LEN], [0.0; 16 * BLOCK_LEN]);
            let x = self.rows.weights_tile(i * tile_len, &mut x[..tile_len]);
            let importance = self.rows.importance_tile(i * tile_len, &mut importance[..tile_len]);
            let mut scales = [0.0f32; 16];
            s.store(search_scales(s, x, importance, Sigma2::PerSubBlock), &mut scales);
            let blocks = x.chunks_exact(BLOCK_LEN).zip(out.chunks_exact_mut(BLOCK_BYTES));
            for ((x, out), d) in blocks.zip(scales) {
                out[..2].copy_from_slice(&half_scale(d).to_le_bytes());
                store_indices(s, x, inverse_of(d), &mut out[2..]);
            }
        }
    }
}

struct Decode<'a> {
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, out) in self.bytes.chunks_exact(BLOCK_BYTES).zip(self.out.chunks_exact_mut(BLOCK_LEN)) {
            let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
            decode(s, &block[2..], d, out);
        }
    }
}

#[cfg(test)]
mod oracle {
    use super::super::iq4::LEVELS;
    use super::super::iq4::oracle::{pack, search_scale, sigma2};
    use half::f16;

    /// Encodes one block the slow way.
    pub fn encode_block(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        let d = search_scale(x, importance, sigma2(x));
        out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        pack(x, if d != 0.0 { 1.0 / d } else { 0.0 }, &mut out[2..]);
    }

    /// Decodes one block the slow way.
    pub fn decode_block(block: &[u8], out: &mut [f32]) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let index = block[2 + i % 16] >> (4 * (i / 16)) & 15;
            *out = d * f32::from(LEVELS[usize::from(index)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{check_decode, check_encode};
    use super::*;

    #[test]
    fn encoder_gives_the_oracles_bytes() {
        check_encode(&Iq4Nl, oracle::encode_block);
    }

    #[test]
    fn decoder_gives_the_oracles_bits() {
        check_decode(&Iq4Nl, &[0], oracle::decode_block);
    }
}
