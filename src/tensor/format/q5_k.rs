//! Q5_K: 256 weights in 176 bytes, 8 sub-blocks of 32, weight = d * code * level - dmin * min_code.
//!
//! Block: d and dmin as f16, 12 bytes of 6-bit codes, 32 bytes of high bits (bit j of byte l is the fifth
//! bit of sub-block j's level l), then the low nibbles as in Q4_K.

use half::f16;

use super::BlockFormat;
use super::affine::{Scan, Search};
use super::affine_blocks::{AffineBlock, BLOCK_LEN, Decode, Encode, Scales, WEIGHTED_SCAN, six_bit};
use super::blocks::{Rows, check_lengths};
use super::q4_k::rms_plus_magnitude;
use crate::kernel::Isa;
use crate::kernel::simd::{Simd, dispatch};

const BLOCK_BYTES: usize = 176;

/// The Q5_K format.
pub struct Q5K;

impl BlockFormat for Q5K {
    fn name(&self) -> &'static str {
        "Q5_K"
    }

    fn ggml_id(&self) -> Option<u32> {
        Some(13)
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
        dispatch(isa, Decode::<Q5K>::new(bytes, out));
    }

    fn encode(&self, isa: Isa, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        let rows = Rows::new(self, rows, row_len, importance, out.len());
        dispatch(isa, Encode::<Q5K>::new(rows, out));
    }
}

impl AffineBlock for Q5K {
    const SUB_LEN: usize = 32;
    const BLOCK_BYTES: usize = BLOCK_BYTES;
    const PLAIN: Search = Search {
        nmax: 31,
        scan: Scan { start: -0.5, step: 0.1, last: 15 },
        saturates: false,
        absolute: false,
    };
    const WEIGHTED: Search = Search { nmax: 31, scan: WEIGHTED_SCAN, saturates: true, absolute: false };
    const CODE_MAX: i32 = 63;
    const CODE_LIMITS: (u8, u8) = (63, 63);
    const SIGMA_FACTOR: f32 = 2.0;

    #[inline(always)]
    fn plain_weights<S: Simd>(s: S, x: &[S::F32], w: &mut [S::F32]) {
        rms_plus_magnitude(s, x, w);
    }

    #[inline(always)]
    fn write_scales(block: &mut [u8], scales: &Scales) {
        block[..2].copy_from_slice(&scales.d.to_le_bytes());
        block[2..4].copy_from_slice(&scales.dmin.to_le_bytes());
        six_bit::write(&mut block[4..16], &scales.codes, &scales.min_codes);
    }

    #[inline(always)]
    fn read_factors(block: &[u8]) -> (f16, f16) {
        (f16::from_le_bytes([block[0], block[1]]), f16::from_le_bytes([block[2], block[3]]))
    }

    #[inline(always)]
    fn read_codes(block: &[u8], j: usize) -> (u8, u8) {
        six_bit::read(&block[4..16], j)
    }

    #[inline(always)]
    fn write_levels(block: &mut [u8], levels: &[u8; BLOCK_LEN]) {
        let (high, low) = block[16..].split_at_mut(32);
        for l in 0..32 {
            let mut bits = 0;
            for j in 0..8 {
                bits |= levels[32 * j + l] >> 4 << j;
            }
            high[l] = bits;
        }
        for (out, pair) in low.chunks_exact_mut(32).zip(levels.chunks_exact(64)) {
            for l in 0..32 {
                out[l] = (pair[l] & 15) | pair[l + 32] << 4;
            }
        }
    }

    #[inline(always)]
    fn read_levels(block: &[u8], levels: &mut [u8; BLOCK_LEN]) {
        let (high, low) = block[16..].split_at(32);
        for (k, (bytes, pair)) in low.chunks_exact(32).zip(levels.chunks_exact_mut(64)).enumerate() {
            for l in 0..32 {
                pair[l] = (bytes[l] & 15) | (high[l] >> (2 * k) & 1) << 4;
                pair[l + 32] = (bytes[l] >> 4) | (high[l] >> (2 * k + 1) & 1) << 4;
            }
        }
    }
}

#[cfg(test)]
mod oracle {
    use super::super::q4_k::oracle::{code_pair, fit_six_bit};
    use super::*;

    /// Encodes one super-block the slow way.
    pub fn encode_block(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        let (fitted, codes, levels) = fit_six_bit::<Q5K>(x, importance);
        out.fill(0);
        out[..2].copy_from_slice(&fitted.d.to_le_bytes());
        out[2..4].copy_from_slice(&fitted.dmin.to_le_bytes());
        out[4..16].copy_from_slice(&codes);
        for (i, level) in levels.iter().enumerate() {
            out[16 + i % 32] |= (level / 16) << (i / 32);
            out[48 + i / 64 * 32 + i % 32] |= (level % 16) << (i / 32 % 2 * 4);
        }
    }

    /// Decodes one super-block the slow way.
    pub fn decode_block(block: &[u8], out: &mut [f32]) {
        let half_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let (code, min_code) = code_pair(&block[4..16], i / 32);
            let low = block[48 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            let level = low + 16 * (block[16 + i % 32] >> (i / 32) & 1);
            *out = half_at(0) * f32::from(code) * f32::from(level) - half_at(2) * f32::from(min_code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{check_decode, check_encode};
    use super::*;

    #[test]
    fn encoder_gives_the_oracles_bytes() {
        check_encode(&Q5K, oracle::encode_block);
    }

    #[test]
    fn decoder_gives_the_oracles_bits() {
        check_decode(&Q5K, &[0, 2], oracle::decode_block);
    }
}
