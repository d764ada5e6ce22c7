//! Q2_K: 256 weights in 84 bytes, 16 sub-blocks of 16, weight = d * code * level - dmin * min_code.
//!
//! Block: 16 bytes with the scale's code in the low nibble and the min's in the high one, 64 bytes of levels (byte 32 h + l has
//! levels 128 h + l, + 32, + 64 and + 96, two bits each from the low end), d and dmin as f16.

use half::f16;

use super::BlockFormat;
use super::affine::{Scan, Search};
use super::affine_blocks::{AffineBlock, BLOCK_LEN, Decode, Encode, Scales, WEIGHTED_SCAN};
use super::blocks::{Rows, check_lengths};
use crate::kernel::Isa;
use crate::kernel::simd::{Simd, dispatch};

const BLOCK_BYTES: usize = 84;

/// The Q2_K format.
pub struct Q2K;

impl BlockFormat for Q2K {
    fn name(&self) -> &'static str {
        "Q2_K"
    }

    fn ggml_id(&self) -> Option<u32> {
        Some(10)
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
        dispatch(isa, Decode::<Q2K>::new(bytes, out));
    }

    fn encode(&self, isa: Isa, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        let rows = Rows::new(self, rows, row_len, importance, out.len());
        dispatch(isa, Encode::<Q2K>::new(rows, out));
    }
}

impl AffineBlock for Q2K {
    const SUB_LEN: usize = 16;
    const BLOCK_BYTES: usize = BLOCK_BYTES;
    const PLAIN: Search =
        Search { nmax: 3, scan: Scan { start: -0.5, step: 0.1, last: 15 }, saturates: false, absolute: true };
    const WEIGHTED: Search = Search { nmax: 3, scan: WEIGHTED_SCAN, saturates: true, absolute: false };
    const CODE_MAX: i32 = 15;
    const CODE_LIMITS: (u8, u8) = (255, 255);
    const SIGMA_FACTOR: f32 = 1.0;

    #[inline(always)]
    fn plain_weights<S: Simd>(s: S, x: &[S::F32], w: &mut [S::F32]) {
        for (x, w) in x.iter().zip(w) {
            *w = s.abs(*x);
        }
    }

    #[inline(always)]
    fn write_scales(block: &mut [u8], scales: &Scales) {
        for (byte, (code, min_code)) in block.iter_mut().zip(scales.codes.iter().zip(scales.min_codes)) {
            *byte = code | min_code << 4;
        }
        block[80..82].copy_from_slice(&scales.d.to_le_bytes());
        block[82..84].copy_from_slice(&scales.dmin.to_le_bytes());
    }

    #[inline(always)]
    fn read_factors(block: &[u8]) -> (f16, f16) {
        (f16::from_le_bytes([block[80], block[81]]), f16::from_le_bytes([block[82], block[83]]))
    }

    #[inline(always)]
    fn read_codes(block: &[u8], j: usize) -> (u8, u8) {
        (block[j] & 15, block[j] >> 4)
    }

    #[inline(always)]
    fn write_levels(block: &mut [u8], levels: &[u8; BLOCK_LEN]) {
        for (out, half) in block[16..80].chunks_exact_mut(32).zip(levels.chunks_exact(128)) {
            for l in 0..32 {
                out[l] = half[l] | half[l + 32] << 2 | half[l + 64] << 4 | half[l + 96] << 6;
            }
        }
    }

    #[inline(always)]
    fn read_levels(block: &[u8], levels: &mut [u8; BLOCK_LEN]) {
        for (bytes, half) in block[16..80].chunks_exact(32).zip(levels.chunks_exact_mut(128)) {
            for l in 0..32 {
                half[l] = bytes[l] & 3;
                half[l + 32] = bytes[l] >> 2 & 3;
                half[l + 64] = bytes[l] >> 4 & 3;
                half[l + 96] = bytes[l] >> 6;
            }
        }
    }
}

#[cfg(test)]
mod oracle {
    use super::super::oracle_affine::{fit_block, relevel};
    use super::*;

    /// Encodes one super-block the slow way.
    pub fn encode_block(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        let fitted = fit_block::<Q2K>(x, importance, |x| x.iter().map(|v| v.abs()).collect());
        out.fill(0);
        let mut levels = fitted.levels;
        for j in 0..16 {
            out[j] = fitted.codes[j] | fitted.min_codes[j] << 4;
            let scale = fitted.d.to_f32() * f32::from(out[j] % 16);
            let min = fitted.dmin.to_f32() * f32::from(out[j] / 16);
            relevel(&x[16 * j..][..16], (scale, min), 3, &mut levels[16 * j..][..16]);
        }
        for (i, level) in levels.iter().enumerate() {
            out[16 + i / 128 * 32 + i % 32] |= level << (i / 32 % 4 * 2);
        }
        out[80..82].copy_from_slice(&fitted.d.to_le_bytes());
        out[82..84].copy_from_slice(&fitted.dmin.to_le_bytes());
    }

    /// Decodes one super-block the slow way.
    pub fn decode_block(block: &[u8], out: &mut [f32]) {
        let half_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let code = block[i / 16];
            let level = block[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
            *out = half_at(80) * f32::from(code % 16) * f32::from(level) - half_at(82) * f32::from(code / 16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{check_decode, check_encode};
    use super::*;

    #[test]
    fn encoder_gives_the_oracles_bytes() {
        check_encode(&Q2K, oracle::encode_block);
    }

    #[test]
    fn decoder_gives_the_oracles_bits() {
        check_decode(&Q2K, &[80, 82], oracle::decode_block);
    }
}
