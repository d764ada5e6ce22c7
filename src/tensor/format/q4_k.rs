//! Q4_K: 256 weights in 144 bytes, 8 sub-blocks of 32, weight = d * code * level - dmin * min_code.
//!
//! Block: d and dmin as f16, 12 bytes of 6-bit codes, then 128 bytes of levels: byte 32 k + l has sub-block 2 k's level l in its
//! low nibble and sub-block 2 k + 1's in its high one.

use half::f16;

use super::BlockFormat;
use super::affine::{Scan, Search};
use super::affine_blocks::{AffineBlock, BLOCK_LEN, Decode, Encode, Scales, WEIGHTED_SCAN, six_bit};
use super::blocks::{Rows, check_lengths};
use crate::kernel::Isa;
use crate::kernel::simd::{Simd, dispatch};

const BLOCK_BYTES: usize = 144;

/// The Q4_K format.
pub struct Q4K;

impl BlockFormat for Q4K {
    fn name(&self) -> &'static str {
        "Q4_K"
    }

    fn ggml_id(&self) -> Option<u32> {
        Some(12)
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
        dispatch(isa, Decode::<Q4K>::new(bytes, out));
    }

    fn encode(&self, isa: Isa, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        let rows = Rows::new(self, rows, row_len, importance, out.len());
        dispatch(isa, Encode::<Q4K>::new(rows, out));
    }
}

impl AffineBlock for Q4K {
    const SUB_LEN: usize = 32;
    const BLOCK_BYTES: usize = BLOCK_BYTES;
    const PLAIN: Search = Search {
        nmax: 15,
        scan: Scan { start: -1.0, step: 0.1, last: 20 },
        saturates: false,
        absolute: false,
    };
    const WEIGHTED: Search = Search { nmax: 15, scan: WEIGHTED_SCAN, saturates: true, absolute: false };
    const CODE_MAX: i32 = 63;
    const CODE_LIMITS: (u8, u8) = (63, 255);
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
        for (out, pair) in block[16..].chunks_exact_mut(32).zip(levels.chunks_exact(64)) {
            for l in 0..32 {
                out[l] = pair[l] | pair[l + 32] << 4;
            }
        }
    }

    #[inline(always)]
    fn read_levels(block: &[u8], levels: &mut [u8; BLOCK_LEN]) {
        for (bytes, pair) in block[16..].chunks_exact(32).zip(levels.chunks_exact_mut(64)) {
            for l in 0..32 {
                pair[l] = bytes[l] & 15;
                pair[l + 32] = bytes[l] >> 4;
            }
        }
    }
}

/// Writes weights sqrt(mean(x^2)) + |x|, the mean over the sub-block.
#[inline(always)]
pub(super) fn rms_plus_magnitude<S: Simd>(s: S, x: &[S::F32], w: &mut [S::F32]) {
    let mut sum = s.splat(0.0);
    for x in x {
        sum = sum + *x * *x;
    }
    let rms = s.sqrt(sum / s.splat(x.len() as f32));
    for (x, w) in x.iter().zip(w) {
        *w = rms + s.abs(*x);
    }
}

#[cfg(test)]
pub(super) mod oracle {
    use super::super::oracle_affine::{FittedBlock, fit_block, relevel};
    use super::*;

    fn plain_weights(x: &[f32]) -> Vec<f32> {
        let sum = x.iter().fold(0.0f32, |sum, v| sum + v * v);
        let rms = (sum / 32.0).sqrt();
        x.iter().map(|v| rms + v.abs()).collect()
    }

    /// Returns (d, dmin), the 12 bytes of codes and the levels of a super-block with 6-bit codes.
    pub fn fit_six_bit<F: AffineBlock>(
        x: &[f32],
        importance: Option<&[f32]>,
    ) -> (FittedBlock, [u8; 12], Vec<u8>) {
        let fitted = fit_block::<F>(x, importance, plain_weights);
        let mut codes = [0u8; 12];
        for j in 0..8 {
            let (code, min_code) = (fitted.codes[j], fitted.min_codes[j]);
            if j < 4 {
                codes[j] = code;
                codes[j + 4] = min_code;
            } else {
                codes[j + 4] = (code & 15) | ((min_code & 15) << 4);
                codes[j - 4] |= (code >> 4) << 6;
                codes[j] |= (min_code >> 4) << 6;
            }
        }
        let mut levels = fitted.levels.clone();
        for j in 0..8 {
            let (code, min_code) = code_pair(&codes, j);
            relevel(
                &x[32 * j..][..32],
                (fitted.d.to_f32() * f32::from(code), fitted.dmin.to_f32() * f32::from(min_code)),
                F::PLAIN.nmax,
                &mut levels[32 * j..][..32],
            );
        }
        (fitted, codes, levels)
    }

    /// Unpacks the codes of sub-block j.
    pub fn code_pair(codes: &[u8], j: usize) -> (u8, u8) {
        match j {
            0..4 => (codes[j] % 64, codes[j + 4] % 64),
            _ => (codes[j + 4] % 16 + codes[j - 4] / 64 * 16, codes[j + 4] / 16 + codes[j] / 64 * 16),
        }
    }

    /// Encodes one super-block the slow way.
    pub fn encode_block(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        let (fitted, codes, levels) = fit_six_bit::<Q4K>(x, importance);
        out.fill(0);
        out[..2].copy_from_slice(&fitted.d.to_le_bytes());
        out[2..4].copy_from_slice(&fitted.dmin.to_le_bytes());
        out[4..16].copy_from_slice(&codes);
        for (i, level) in levels.iter().enumerate() {
            out[16 + i / 64 * 32 + i % 32] |= level << (i / 32 % 2 * 4);
        }
    }

    /// Decodes one super-block the slow way.
    pub fn decode_block(block: &[u8], out: &mut [f32]) {
        let half_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let (code, min_code) = code_pair(&block[4..16], i / 32);
            let level = block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
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
        check_encode(&Q4K, oracle::encode_block);
    }

    #[test]
    fn decoder_gives_the_oracles_bits() {
        check_decode(&Q4K, &[0, 2], oracle::decode_block);
    }
}
