//! Q3_K: 256 weights in 110 bytes, 16 sub-blocks of 16 with a 6-bit scale each, weight = d * (scale - 32) * (q - 4).
//!
//! Block: `hmask` 32 bytes (high bits), `qs` 64 bytes (low two bits), 12 bytes of scales, d as f16.

use half::f16;

use super::BlockFormat;
use super::blocks::{Rows, check_lengths, half_scale, sums_of_squares};
use super::descent::{search_levels, search_scales};
use super::symmetric::{
    SUB_LEN, level, search_scale, signed_max_of, store_levels, store_search_levels, sub_block_weights,
};
use crate::kernel::Isa;
use crate::kernel::simd::{Kernel, Simd, dispatch, nearest_int};

const BLOCK_LEN: usize = 256;
const BLOCK_BYTES: usize = 110;
const N_SUB: usize = BLOCK_LEN / SUB_LEN;
/// Levels run from -NMAX to NMAX - 1.
const NMAX: i32 = 4;
/// Sub-block scales run from -SCALE_MAX to SCALE_MAX - 1 times d.
const SCALE_MAX: i32 = 32;

/// The Q3_K format.
pub struct Q3K;

impl BlockFormat for Q3K {
    fn name(&self) -> &'static str {
        "Q3_K"
    }

    fn ggml_id(&self) -> Option<u32> {
        Some(11)
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
        if importance.is_some() {
            dispatch(isa, EncodeWeighted { rows, out });
        } else {
            dispatch(isa, EncodePlain { x: rows.weights(), out });
        }
    }
}

struct EncodePlain<'a> {
    x: &'a [f32],
    out: &'a mut [u8],
}

/// Super-blocks whose sub-block scales are searched together.
const PLAIN_BATCH: usize = 32;

impl Kernel for EncodePlain<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x = self.x.chunks(PLAIN_BATCH * BLOCK_LEN);
        for (x, out) in x.zip(self.out.chunks_mut(PLAIN_BATCH * BLOCK_BYTES)) {
            let mut scales = [0.0f32; PLAIN_BATCH * N_SUB];
            let scales = &mut scales[..x.len() / SUB_LEN];
            search_scales(s, x, NMAX, scales);
            let blocks = x.chunks_exact(BLOCK_LEN).zip(out.chunks_exact_mut(BLOCK_BYTES));
            for ((x, out), scales) in blocks.zip(scales.chunks_exact(N_SUB)) {
                store_plain(s, x, scales, out);
            }
        }
    }
}

/// Writes one super-block for its sub-blocks' scales.
#[inline(always)]
fn store_plain<S: Simd>(s: S, x: &[f32], scales: &[f32], out: &mut [u8]) {
    let (d, codes) = scale_codes(scales);
    let mut levels = [0u8; BLOCK_LEN];
    if codes.iter().any(|code| sub_scale(d, *code) == 0.0) {
        search_levels(s, x, NMAX, &mut levels);
    }
    for ((x, levels), code) in x.chunks_exact(SUB_LEN).zip(levels.chunks_exact_mut(SUB_LEN)).zip(codes) {
        let scale = sub_scale(d, code);
        if scale != 0.0 {
            store_levels(s, x, scale, NMAX, levels);
        }
    }
    pack(&levels, &codes, d, out);
}

/// Returns d and every sub-block scale's 6-bit code, set by the largest scale.
#[inline(always)]
fn scale_codes(scales: &[f32]) -> (f16, [u8; N_SUB]) {
    let mut codes = [0; N_SUB];
    let max = signed_max_of(scales);
    if max == 0.0 {
        return (f16::ZERO, codes);
    }
    let inverse = -SCALE_MAX as f32 / max;
    for (code, scale) in codes.iter_mut().zip(scales) {
        let rounded = nearest_int(inverse * scale) as i8; // wraps, as the reference's does
        *code = (i32::from(rounded).clamp(-SCALE_MAX, SCALE_MAX - 1) + SCALE_MAX) as u8;
    }
    (half_scale(1.0 / inverse), codes)
}

#[inline(always)]
fn sub_scale(d: f16, code: u8) -> f32 {
    d.to_f32() * (i32::from(code) - SCALE_MAX) as f32
}

struct EncodeWeighted<'a> {
    rows: Rows<'a>,
    out: &'a mut [u8],
}

/// Per super-block results of the first search, for as many super-blocks as there are lanes (up to 16).
struct Batch {
    scales: [f32; 16 * N_SUB],
    inverses: [f32; 16 * N_SUB],
    /// Summed weights, which are the scales' weights in the second search.
    weights: [f32; 16 * N_SUB],
}

impl Kernel for EncodeWeighted<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x = self.rows.weights().chunks(S::LANES * BLOCK_LEN);
        let outs = self.out.chunks_mut(S::LANES * BLOCK_BYTES);
        for (i, (x, out)) in x.zip(outs).enumerate() {
            let mut sums = [0.0f32; 16];
            let n_blocks = x.len() / BLOCK_LEN;
            sums_of_squares(s, x, BLOCK_LEN, &mut sums[..n_blocks]);
            let zeros = [0.0f32; 16 * N_SUB];
            let mut batch = Batch { scales: zeros, inverses: zeros, weights: zeros };
            for (b, x) in x.chunks_exact(BLOCK_LEN).enumerate() {
                let start = (i * S::LANES + b) * BLOCK_LEN;
                if let Some(importance) = self.rows.importance(start, BLOCK_LEN) {
                    search_block(s, x, importance, 2.0 * sums[b] / 256.0, b, &mut batch);
                }
            }
            finish_batch(s, x, &batch, out);
        }
    }
}

/// Fits the sub-blocks of super-block `b`, weights importance * sqrt(sigma2 + x^2).
#[inline(always)]
fn search_block<S: Simd>(s: S, x: &[f32], importance: &[f32], sigma2: f32, b: usize, batch: &mut Batch) {
    let sigma2 = s.splat(sigma2);
    for first in (0..N_SUB).step_by(S::LANES) {
        let lanes = first * SUB_LEN..(first + S::LANES) * SUB_LEN;
        let x = sub_block_weights(s, &x[lanes.clone()]);
        let mut w = sub_block_weights(s, &importance[lanes]);
        let mut sum = s.splat(0.0);
        for i in 0..SUB_LEN {
            w[i] = w[i] * s.sqrt(sigma2 + x[i] * x[i]);
            sum = sum + w[i];
        }
        let fit = search_scale::<S, true, SUB_LEN>(s, &x, &w, NMAX);
        let at = b * N_SUB + first;
        s.store(fit.scale, &mut batch.scales[at..]);
        s.store(fit.inverse, &mut batch.inverses[at..]);
        s.store(sum, &mut batch.weights[at..]);
    }
}

/// Fits d and the codes to the sub-block scales, one super-block per lane, and writes the blocks.
#[inline(always)]
fn finish_batch<S: Simd>(s: S, x: &[f32], batch: &Batch, out: &mut [u8]) {
    let scales = sub_block_weights(s, &batch.scales);
    let weights = sub_block_weights(s, &batch.weights);
    // huge weights make infinite scales
    let fit = search_scale::<S, false, SUB_LEN>(s, &scales, &weights, SCALE_MAX);
    let mut ds = [0.0f32; 16];
    s.store(fit.scale, &mut ds);
    let negligible = !s.eq(fit.inverse, fit.inverse); // NaN
    let mut codes = [[0u8; 16]; N_SUB];
    for (code, scale) in codes.iter_mut().zip(scales) {
        let v = level(s, fit.inverse * scale, SCALE_MAX) + s.splat(SCALE_MAX as f32);
        s.store_u8(s.trunc_i32(s.select(negligible, s.splat(0.0), v)), code);
    }
    for (b, (x, out)) in x.chunks_exact(BLOCK_LEN).zip(out.chunks_exact_mut(BLOCK_BYTES)).enumerate() {
        let d = half_scale(ds[b]);
        let mut block_codes = [0u8; N_SUB];
        let mut levels = [0u8; BLOCK_LEN];
        for j in 0..N_SUB {
            block_codes[j] = codes[j][b];
            let scale = sub_scale(d, codes[j][b]);
            let (x, out) = (&x[j * SUB_LEN..][..SUB_LEN], &mut levels[j * SUB_LEN..][..SUB_LEN]);
            if scale != 0.0 {
                store_levels(s, x, scale, NMAX, out);
            } else {
                store_search_levels(s, x, batch.inverses[b * N_SUB + j], NMAX, out);
            }
        }
        pack(&levels, &block_codes, d, out);
    }
}

/// Spreads levels over `hmask` and `qs`, scale codes over 12 bytes.
#[inline(always)]
fn pack(levels: &[u8; BLOCK_LEN], codes: &[u8; N_SUB], d: f16, out: &mut [u8]) {
    let (hmask, rest) = out.split_at_mut(32);
    let (qs, rest) = rest.split_at_mut(64);
    for i in 0..32 {
        let mut bits = 0;
        for run in 0..8 {
            bits |= (levels[32 * run + i] >> 2) << run;
        }
        hmask[i] = bits;
    }
    for half in 0..2 {
        let l = &levels[128 * half..][..128];
        for i in 0..32 {
            qs[32 * half + i] =
                (l[i] & 3) | ((l[32 + i] & 3) << 2) | ((l[64 + i] & 3) << 4) | ((l[96 + i] & 3) << 6);
        }
    }
    for j in 0..8 {
        rest[j] = (codes[j] & 15) | (codes[8 + j] << 4);
    }
    for j in 0..4 {
        rest[8 + j] = (codes[j] >> 4)
            | ((codes[4 + j] >> 4) << 2)
            | ((codes[8 + j] >> 4) << 4)
            | ((codes[12 + j] >> 4) << 6);
    }
    rest[12..].copy_from_slice(&d.to_le_bytes());
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
            let codes = unpack(block, &mut levels);
            let d = f16::from_le_bytes([block[108], block[109]]);
            for (code, at) in codes.into_iter().zip((0..BLOCK_LEN).step_by(SUB_LEN)) {
                let scale = s.splat(sub_scale(d, code));
                for i in (at..at + SUB_LEN).step_by(S::LANES) {
                    let level = s.load_u8(&levels[i..]) - s.splat_i32(NMAX);
                    s.store(scale * s.to_f32(level), &mut out[i..]);
                }
            }
        }
    }
}

/// Undoes [`pack`]: fills the levels and returns the scale codes.
#[inline(always)]
fn unpack(block: &[u8], levels: &mut [u8; BLOCK_LEN]) -> [u8; N_SUB] {
    let (hmask, rest) = block.split_at(32);
    let (qs, scales) = rest.split_at(64);
    for run in 0..8 {
        let qs = &qs[32 * (run / 4)..][..32];
        for i in 0..32 {
            let low = qs[i] >> (2 * (run % 4)) & 3;
            levels[32 * run + i] = low | ((hmask[i] >> run & 1) << 2);
        }
    }
    let mut codes = [0u8; N_SUB];
    for j in 0..N_SUB {
        let low = scales[j % 8] >> (4 * (j / 8)) & 15;
        codes[j] = low | ((scales[8 + j % 4] >> (2 * (j / 4)) & 3) << 4);
    }
    codes
}

#[cfg(test)]
mod oracle {
    use super::super::oracle_symmetric::{descend_levels, nearest_int, relevel, search_scale, signed_max};
    use half::f16;

    /// Returns d as the block stores it and the 6-bit codes of the sub-block scales.
    fn scale_codes(scales: &[f32], weights: Option<&[f32]>) -> (f16, Vec<u8>) {
        if let Some(weights) = weights {
            let (d, codes) = search_scale(scales, weights, 32);
            return (f16::from_f32(d), codes);
        }
        let max = signed_max(scales);
        if max == 0.0 {
            return (f16::ZERO, vec![0; 16]);
        }
        let inverse = -32.0 / max;
        let code = |s: &f32| ((nearest_int(inverse * s) as i8).clamp(-32, 31) + 32) as u8;
        (f16::from_f32(1.0 / inverse), scales.iter().map(code).collect())
    }

    /// Encodes one super-block the slow way.
    pub fn encode_block(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        let mut sum_x2 = 0.0f32;
        for v in x {
            sum_x2 += v * v;
        }
        let sigma2 = 2.0 * sum_x2 / 256.0;
        let (mut scales, mut weights, mut level) = (Vec::new(), Vec::new(), Vec::new());
        for (j, xs) in x.chunks(16).enumerate() {
            let (scale, levels) = match importance {
                Some(importance) => {
                    let pairs = importance[16 * j..].iter().zip(xs);
                    let w: Vec<f32> = pairs.map(|(im, v)| im * (sigma2 + v * v).sqrt()).collect();
                    weights.push(w.iter().fold(0.0f32, |sum, w| sum + w));
                    search_scale(xs, &w, 4)
                }
                None => descend_levels(xs, 4),
            };
            scales.push(scale);
            level.extend(levels);
        }
        let (d, codes) = scale_codes(&scales, importance.map(|_| &weights[..]));
        out.fill(0);
        out[108..].copy_from_slice(&d.to_le_bytes());
        for (j, code) in codes.into_iter().enumerate() {
            out[96 + j % 8] |= (code & 15) << (4 * (j / 8));
            out[104 + j % 4] |= (code >> 4) << (2 * (j / 4));
            let scale = d.to_f32() * (f32::from(code) - 32.0);
            relevel(&x[16 * j..][..16], scale, 4, &mut level[16 * j..][..16]);
        }
        for (i, &l) in level.iter().enumerate() {
            out[i % 32] |= (l >> 2) << (i / 32);
            out[32 + 32 * (i / 128) + i % 32] |= (l & 3) << (2 * (i % 128 / 32));
        }
    }

    /// Decodes one super-block the slow way.
    pub fn decode_block(block: &[u8], out: &mut [f32]) {
        let d = f16::from_le_bytes([block[108], block[109]]).to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let j = i / 16;
            let code =
                (block[96 + j % 8] >> (4 * (j / 8)) & 15) | (block[104 + j % 4] >> (2 * (j / 4)) & 3) << 4;
            let low = block[32 + 32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32)) & 3;
            let high = block[i % 32] >> (i / 32) & 1;
            let level = f32::from(low | high << 2) - 4.0;
            *out = d * (f32::from(code) - 32.0) * level;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{check_decode, check_encode};
    use super::*;

    #[test]
    fn encoder_gives_the_oracles_bytes() {
        check_encode(&Q3K, oracle::encode_block);
    }

    #[test]
    fn decoder_gives_the_oracles_bits() {
        check_decode(&Q3K, &[108], oracle::decode_block);
    }
}
