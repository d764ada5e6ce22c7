//! Q6_K: 256 weights in 210 bytes, 16 sub-blocks of 16 with an 8-bit scale each, weight = d * scale * (q - 32).
//!
//! Block: `ql` 128 bytes (low nibbles), `qh` 64 bytes (high two bits), 16 signed scales, d as f16.

use half::f16;

use super::BlockFormat;
use super::blocks::{Rows, check_lengths, half_scale};
use super::symmetric::{
    EPS, SUB_LEN, products, search_scale, signed_max_of, store_levels, store_search_levels, sub_block_weights,
};
use crate::kernel::Isa;
use crate::kernel::simd::{Kernel, Simd, dispatch, nearest_int};

const BLOCK_LEN: usize = 256;
const BLOCK_BYTES: usize = 210;
const N_SUB: usize = BLOCK_LEN / SUB_LEN;
/// Levels run from -NMAX to NMAX - 1.
const NMAX: i32 = 32;

/// The Q6_K format.
pub struct Q6K;

impl BlockFormat for Q6K {
    fn name(&self) -> &'static str {
        "Q6_K"
    }

    fn ggml_id(&self) -> Option<u32> {
        Some(14)
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
        let blocks = self.rows.weights().chunks_exact(BLOCK_LEN);
        for (b, (x, out)) in blocks.zip(self.out.chunks_exact_mut(BLOCK_BYTES)).enumerate() {
            encode_block(s, x, self.rows.importance(b * BLOCK_LEN, BLOCK_LEN), out);
        }
    }
}

#[inline(always)]
fn encode_block<S: Simd>(s: S, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let (mut scales, mut inverses) = ([0.0f32; N_SUB], [0.0f32; N_SUB]);
    for first in (0..N_SUB).step_by(S::LANES) {
        let lanes = first * SUB_LEN..(first + S::LANES) * SUB_LEN;
        let x = sub_block_weights(s, &x[lanes.clone()]);
        let w = match importance {
            Some(importance) => sub_block_weights(s, &importance[lanes]),
            None => products(s, &x, &x),
        };
        let fit = search_scale::<S, true, SUB_LEN>(s, &x, &w, NMAX);
        s.store(fit.scale, &mut scales[first..]);
        s.store(fit.inverse, &mut inverses[first..]);
    }
    let max_scale = signed_max_of(&scales);
    if max_scale.abs() < EPS {
        out.fill(0);
        return;
    }
    let inverse = -128.0 / max_scale;
    let d = half_scale(1.0 / inverse);
    let mut levels = [0u8; BLOCK_LEN];
    for j in 0..N_SUB {
        let code = nearest_int(inverse * scales[j]).min(127) as i8;
        out[192 + j] = code as u8;
        let at = j * SUB_LEN..(j + 1) * SUB_LEN;
        let scale = d.to_f32() * f32::from(code);
        if scale != 0.0 {
            store_levels(s, &x[at.clone()], scale, NMAX, &mut levels[at]);
        } else {
            store_search_levels(s, &x[at.clone()], inverses[j], NMAX, &mut levels[at]);
        }
    }
    out[208..].copy_from_slice(&d.to_le_bytes());
    pack(&levels, out);
}

/// Spreads levels over `ql` and `qh`; each half of the block is four runs of 32.
#[inline(always)]
fn pack(levels: &[u8; BLOCK_LEN], out: &mut [u8]) {
    let (ql, rest) = out.split_at_mut(128);
    for half in 0..2 {
        let l = &levels[128 * half..][..128];
        let (ql, qh) = (&mut ql[64 * half..][..64], &mut rest[32 * half..][..32]);
        for i in 0..64 {
            ql[i] = (l[i] & 15) | (l[64 + i] << 4);
        }
        for i in 0..32 {
            qh[i] = (l[i] >> 4) | ((l[32 + i] >> 4) << 2) | ((l[64 + i] >> 4) << 4) | ((l[96 + i] >> 4) << 6);
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
            let mut levels = [0u8; BLOCK_LEN];
            unpack(block, &mut levels);
            let d = f16::from_le_bytes([block[208], block[209]]).to_f32();
            for j in 0..N_SUB {
                let scale = s.splat(d * f32::from(block[192 + j] as i8));
                for i in (j * SUB_LEN..(j + 1) * SUB_LEN).step_by(S::LANES) {
                    let level = s.load_u8(&levels[i..]) - s.splat_i32(NMAX);
                    s.store(scale * s.to_f32(level), &mut out[i..]);
                }
            }
        }
    }
}

/// Undoes [`pack`].
#[inline(always)]
fn unpack(block: &[u8], levels: &mut [u8; BLOCK_LEN]) {
    for half in 0..2 {
        let l = &mut levels[128 * half..][..128];
        let (ql, qh) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
        for i in 0..32 {
            l[i] = (ql[i] & 15) | ((qh[i] & 3) << 4);
            l[32 + i] = (ql[32 + i] & 15) | ((qh[i] >> 2 & 3) << 4);
            l[64 + i] = (ql[i] >> 4) | ((qh[i] >> 4 & 3) << 4);
            l[96 + i] = (ql[32 + i] >> 4) | ((qh[i] >> 6) << 4);
        }
    }
}

#[cfg(test)]
mod oracle {
    use super::super::oracle_symmetric::{nearest_int, relevel, search_scale, signed_max};
    use half::f16;

    /// Encodes one super-block the slow way.
    pub fn encode_block(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        let mut scales = [0.0f32; 16];
        let mut level = Vec::new();
        for (j, xs) in x.chunks(16).enumerate() {
            let w = match importance {
                Some(importance) => importance[16 * j..][..16].to_vec(),
                None => xs.iter().map(|v| v * v).collect(),
            };
            let (scale, levels) = search_scale(xs, &w, 32);
            scales[j] = scale;
            level.extend(levels);
        }
        let max_scale = signed_max(&scales);
        out.fill(0);
        if max_scale.abs() < 1e-15 {
            return;
        }
        let inverse = -128.0 / max_scale;
        let d = f16::from_f32(1.0 / inverse);
        out[208..].copy_from_slice(&d.to_le_bytes());
        for j in 0..16 {
            let code = nearest_int(inverse * scales[j]).min(127) as i8;
            out[192 + j] = code as u8;
            relevel(&x[16 * j..][..16], d.to_f32() * code as f32, 32, &mut level[16 * j..][..16]);
        }
        for (i, &l) in level.iter().enumerate() {
            let (half, r) = (i / 128, i % 128); // r: place in the half, in four runs of 32
            out[64 * half + r % 64] |= (l & 15) << (4 * (r / 64));
            out[128 + 32 * half + r % 32] |= (l >> 4) << (2 * (r / 32));
        }
    }

    /// Decodes one super-block the slow way.
    pub fn decode_block(block: &[u8], out: &mut [f32]) {
        let d = f16::from_le_bytes([block[208], block[209]]).to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let (half, r) = (i / 128, i % 128);
            let low = block[64 * half + r % 64] >> (4 * (r / 64)) & 15;
            let high = block[128 + 32 * half + r % 32] >> (2 * (r / 32)) & 3;
            let level = f32::from(low | high << 4) - 32.0;
            *out = d * f32::from(block[192 + i / 16] as i8) * level;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{check_decode, check_encode};
    use super::*;

    #[test]
    fn encoder_gives_the_oracles_bytes() {
        check_encode(&Q6K, oracle::encode_block);
    }

    #[test]
    fn decoder_gives_the_oracles_bits() {
        check_decode(&Q6K, &[208], oracle::decode_block);
    }
}
