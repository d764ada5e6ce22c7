//! IQ4_XS: 256 weights in 136 bytes, 8 sub-blocks of 32 with a 6-bit scale each, weight = d * (scale - 32) * level[q]
//! with the codebook of [`super::iq4`].
//!
//! Block: d as f16, the scales' high two bits in a u16, their low nibbles in 4 bytes, 128 bytes of indices as in IQ4_NL.

use half::f16;

use super::BlockFormat;
use super::blocks::{Rows, check_lengths, half_scale, sums_of_squares};
use super::iq4::{INDEX_BYTES, SUB_LEN, Sigma2, decode, inverse_of, search_scales, store_indices};
use super::symmetric::signed_max_of;
use crate::kernel::Isa;
use crate::kernel::simd::{Kernel, Simd, dispatch, nearest_int};

const BLOCK_LEN: usize = 256;
const BLOCK_BYTES: usize = 136;
const N_SUB: usize = BLOCK_LEN / SUB_LEN;
/// Sub-block scales run from -SCALE_MAX to SCALE_MAX - 1 times d.
const SCALE_MAX: i32 = 32;

/// The IQ4_XS format.
pub struct Iq4Xs;

impl BlockFormat for Iq4Xs {
    fn name(&self) -> &'static str {
        "IQ4_XS"
    }

    fn ggml_id(&self) -> Option<u32> {
        Some(23)
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

/// Super-blocks whose sums of squares are taken together.
const BATCH: usize = 16;

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, out) in self.out.chunks_mut(BATCH * BLOCK_BYTES).enumerate() {
            encode_batch(s, &self.rows, i * BATCH * BLOCK_LEN, out);
        }
    }
}

/// Encodes the super-blocks from weight `start` that `out` has room for, at most [`BATCH`].
#[inline(always)]
fn encode_batch<S: Simd>(s: S, rows: &Rows, start: usize, out: &mut [u8]) {
    let n_blocks = out.len() / BLOCK_BYTES;
    let mut sigma2 = [0.0f32; BATCH];
    if rows.has_importance() {
        let x = &rows.weights()[start..start + n_blocks * BLOCK_LEN];
        sums_of_squares(s, x, BLOCK_LEN, &mut sigma2[..n_blocks]);
    }
    let per_tile = S::LANES / N_SUB;
    let tile_len = per_tile * BLOCK_LEN;
    for (i, out) in out.chunks_mut(per_tile * BLOCK_BYTES).enumerate() {
        let start = start + i * tile_len;
        let (mut x, mut importance) = ([0.0; 2 * BLOCK_LEN], [0.0; 2 * BLOCK_LEN]);
        let x = rows.weights_tile(start, &mut x[..tile_len]);
        let importance = rows.importance_tile(start, &mut importance[..tile_len]);
        let mut lanes = [0.0f32; 16];
        for (j, lane) in lanes[..S::LANES].iter_mut().enumerate() {
            *lane = sigma2[i * per_tile + j / N_SUB] * (2.0 / BLOCK_LEN as f32);
        }
        let sigma2 = Sigma2::Given(s.load(&lanes));
        s.store(search_scales(s, x, importance, sigma2), &mut lanes);
        let blocks = x.chunks_exact(BLOCK_LEN).zip(out.chunks_exact_mut(BLOCK_BYTES));
        for ((x, out), scales) in blocks.zip(lanes.chunks_exact(N_SUB)) {
            store_block(s, x, scales, out);
        }
    }
}

/// Writes one super-block for its sub-blocks' scales.
#[inline(always)]
fn store_block<S: Simd>(s: S, x: &[f32], scales: &[f32], out: &mut [u8]) {
    let d = -signed_max_of(scales) / SCALE_MAX as f32;
    let inverse = inverse_of(d);
    let (header, indices) = out.split_at_mut(8);
    header[..2].copy_from_slice(&half_scale(d).to_le_bytes());
    header[2..].fill(0);
    for (j, scale) in scales.iter().enumerate() {
        let code = nearest_int(inverse * scale).clamp(-SCALE_MAX, SCALE_MAX - 1);
        let x = &x[j * SUB_LEN..][..SUB_LEN];
        // the reference fits indices to d before its rounding to f16
        store_indices(s, x, inverse_of(d * code as f32), &mut indices[j * INDEX_BYTES..][..INDEX_BYTES]);
        let code = (code + SCALE_MAX) as u8;
        header[2 + j / 4] |= (code >> 4) << (2 * (j % 4));
        header[4 + j / 2] |= (code & 15) << (4 * (j % 2));
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
            let (header, indices) = block.split_at(8);
            let d = f16::from_le_bytes([header[0], header[1]]).to_f32();
            let subs = indices.chunks_exact(INDEX_BYTES).zip(out.chunks_exact_mut(SUB_LEN));
            for (j, (indices, out)) in subs.enumerate() {
                let high = header[2 + j / 4] >> (2 * (j % 4)) & 3;
                let low = header[4 + j / 2] >> (4 * (j % 2)) & 15;
                let code = i32::from(high << 4 | low) - SCALE_MAX;
                decode(s, indices, d * code as f32, out);
            }
        }
    }
}

#[cfg(test)]
mod oracle {
    use super::super::iq4::LEVELS;
    use super::super::iq4::oracle::{pack, search_scale, sigma2};
    use super::super::oracle_symmetric::{nearest_int, signed_max};
    use half::f16;

    /// Encodes one super-block the slow way.
    pub fn encode_block(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        let sigma2 = sigma2(x);
        let scales: Vec<f32> = (0..8)
            .map(|j| search_scale(&x[32 * j..][..32], importance.map(|w| &w[32 * j..][..32]), sigma2))
            .collect();
        let d = -signed_max(&scales) / 32.0;
        let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
        out.fill(0);
        out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        for (j, scale) in scales.iter().enumerate() {
            let code = nearest_int(inverse * scale).clamp(-32, 31);
            let fine = d * code as f32;
            pack(
                &x[32 * j..][..32],
                if fine != 0.0 { 1.0 / fine } else { 0.0 },
                &mut out[8 + 16 * j..][..16],
            );
            let bits = (code + 32) as u8;
            out[4 + j / 2] |= (bits & 15) << (4 * (j % 2));
            out[2 + j / 4] |= (bits >> 4) << (2 * (j % 4));
        }
    }

    /// Decodes one super-block the slow way.
    pub fn decode_block(block: &[u8], out: &mut [f32]) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let high_bits = u16::from_le_bytes([block[2], block[3]]);
        for (i, out) in out.iter_mut().enumerate() {
            let j = i / 32;
            let code = (block[4 + j / 2] >> (4 * (j % 2)) & 15) | ((high_bits >> (2 * j) & 3) << 4) as u8;
            let index = block[8 + 16 * j + i % 16] >> (4 * (i % 32 / 16)) & 15;
            *out = d * (f32::from(code) - 32.0) * f32::from(LEVELS[usize::from(index)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{check_decode, check_encode};
    use super::*;

    #[test]
    fn encoder_gives_the_oracles_bytes() {
        check_encode(&Iq4Xs, oracle::encode_block);
    }

    #[test]
    fn decoder_gives_the_oracles_bits() {
        check_decode(&Iq4Xs, &[0], oracle::decode_block);
    }
}
