//! Super-blocks of 256 weights whose sub-blocks are `d * code * level - dmin * min_code`: Q2_K, Q4_K, Q5_K.
//!
//! A batch has as many super-blocks as there are lanes. Its sub-blocks are fitted one per lane, then the scales and
//! mins of all its super-blocks are quantized one super-block per lane, then levels are rounded to the
//! quantized scales in the order of the weights.

use std::marker::PhantomData;

use half::f16;

use super::affine::{Fit, LevelRule, MAX_SUB_LEN, Scan, Search, levels_by_rule, search, search_positive};
use super::blocks::{Rows, sums_of_squares};
use crate::kernel::simd::{Kernel, Simd, nearest_int};

pub(super) const BLOCK_LEN: usize = 256;
const MAX_LANES: usize = 16;
const MAX_SUBS: usize = 16;

/// The scan of every format when importance is given.
pub(super) const WEIGHTED_SCAN: Scan = Scan { start: -0.9, step: 0.05, last: 36 };

/// What the formats differ in.
pub(super) trait AffineBlock: Send + Sync + 'static {
    /// Weights per sub-block: 16 or 32.
    const SUB_LEN: usize;
    const BLOCK_BYTES: usize;
    const PLAIN: Search;
    const WEIGHTED: Search;
    /// Scales and mins are stored as 0..=CODE_MAX.
    const CODE_MAX: i32;
    /// Codes above are clamped, (plain, with importance); 255 where negative ones keep their low byte.
    const CODE_LIMITS: (u8, u8);
    /// Weights of the search with importance are `importance * sqrt(SIGMA_FACTOR * mean(x^2) + x^2)`.
    const SIGMA_FACTOR: f32;

    /// Writes the weights of the plain search for sub-blocks `x`.
    fn plain_weights<S: Simd>(s: S, x: &[S::F32], w: &mut [S::F32]);

    /// Writes all but the levels.
    fn write_scales(block: &mut [u8], scales: &Scales);

    /// Returns d, dmin.
    fn read_factors(block: &[u8]) -> (f16, f16);

    /// Returns the codes of the scale and the min of sub-block `j`.
    fn read_codes(block: &[u8], j: usize) -> (u8, u8);

    /// Packs levels 0..=NMAX.
    fn write_levels(block: &mut [u8], levels: &[u8; BLOCK_LEN]);

    /// Unpacks levels.
    fn read_levels(block: &[u8], levels: &mut [u8; BLOCK_LEN]);
}

/// The stored scales of a super-block; as many codes count as it has sub-blocks.
pub(super) struct Scales {
    pub d: f16,
    pub dmin: f16,
    pub codes: [u8; MAX_SUBS],
    pub min_codes: [u8; MAX_SUBS],
}

/// Encodes rows.
pub(super) struct Encode<'a, F> {
    rows: Rows<'a>,
    out: &'a mut [u8],
    format: PhantomData<F>,
}

impl<'a, F: AffineBlock> Encode<'a, F> {
    pub(super) fn new(rows: Rows<'a>, out: &'a mut [u8]) -> Self {
        Encode { rows, out, format: PhantomData }
    }
}

impl<F: AffineBlock> Kernel for Encode<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut fits = Fits::default();
        for (batch, out) in self.out.chunks_mut(S::LANES * F::BLOCK_BYTES).enumerate() {
            let start = batch * S::LANES * BLOCK_LEN;
            let n_blocks = out.len() / F::BLOCK_BYTES;
            let x = &self.rows.weights()[start..][..n_blocks * BLOCK_LEN];
            if self.rows.has_importance() {
                fits.search_weighted::<S, F>(s, &self.rows, start, n_blocks);
                fits.write_weighted_scales::<S, F>(s, out);
            } else {
                fits.search_plain::<S, F>(s, &self.rows, start, n_blocks);
                fits.write_plain_scales::<F>(out);
            }
            for (b, block) in out.chunks_exact_mut(F::BLOCK_BYTES).enumerate() {
                let mut levels = [0; BLOCK_LEN];
                fits.levels::<S, F>(s, b, &x[b * BLOCK_LEN..][..BLOCK_LEN], block, &mut levels);
                F::write_levels(block, &levels);
            }
        }
    }
}

/// The fits of a batch, sub-block by sub-block in order.
struct Fits {
    scale: [f32; MAX_LANES * MAX_SUBS],
    min: [f32; MAX_LANES * MAX_SUBS],
    rule: LevelRule<[f32; MAX_LANES * MAX_SUBS]>,
    /// Sum of the search's weights; only with importance.
    weight: [f32; MAX_LANES * MAX_SUBS],
}

impl Default for Fits {
    fn default() -> Fits {
        let zeros = [0.0; MAX_LANES * MAX_SUBS];
        let rule = LevelRule { inverse: zeros, offset: zeros, saturates: zeros };
        Fits { scale: zeros, min: zeros, rule, weight: zeros }
    }
}

impl Fits {
    #[inline(always)]
    fn store<S: Simd>(&mut self, s: S, first: usize, fit: Fit<S>) {
        s.store(fit.scale, &mut self.scale[first..]);
        s.store(fit.min, &mut self.min[first..]);
        s.store(fit.rule.inverse, &mut self.rule.inverse[first..]);
        s.store(fit.rule.offset, &mut self.rule.offset[first..]);
        s.store(fit.rule.saturates, &mut self.rule.saturates[first..]);
    }

    /// Fits the sub-blocks of `n_blocks` super-blocks from weight `start`.
    #[inline(always)]
    fn search_plain<S: Simd, F: AffineBlock>(&mut self, s: S, rows: &Rows, start: usize, n_blocks: usize) {
        let n_subs = n_blocks * (BLOCK_LEN / F::SUB_LEN);
        let (mut x, mut w) = ([s.splat(0.0); MAX_SUB_LEN], [s.splat(0.0); MAX_SUB_LEN]);
        let (x, w) = (&mut x[..F::SUB_LEN], &mut w[..F::SUB_LEN]);
        for first in (0..n_subs).step_by(S::LANES) {
            let mut buffer = [0.0; MAX_LANES * MAX_SUB_LEN];
            let buffer = &mut buffer[..S::LANES * F::SUB_LEN];
            s.transpose(rows.weights_tile(start + first * F::SUB_LEN, buffer), F::SUB_LEN, x);
            F::plain_weights(s, x, w);
            self.store(s, first, search(s, x, w, F::PLAIN));
        }
    }

    /// Fits the sub-blocks of `n_blocks` super-blocks from weight `start` under their importance.
    #[inline(always)]
    fn search_weighted<S: Simd, F: AffineBlock>(&mut self, s: S, rows: &Rows, start: usize, n_blocks: usize) {
        let per_block = BLOCK_LEN / F::SUB_LEN;
        let mut sigma2 = [0.0; MAX_LANES];
        let weights = &rows.weights()[start..][..n_blocks * BLOCK_LEN];
        sums_of_squares(s, weights, BLOCK_LEN, &mut sigma2[..n_blocks]);
        let (mut x, mut w) = ([s.splat(0.0); MAX_SUB_LEN], [s.splat(0.0); MAX_SUB_LEN]);
        let (x, w) = (&mut x[..F::SUB_LEN], &mut w[..F::SUB_LEN]);
        for first in (0..n_blocks * per_block).step_by(S::LANES) {
            let at = start + first * F::SUB_LEN;
            let mut buffer = [0.0; MAX_LANES * MAX_SUB_LEN];
            let buffer = &mut buffer[..S::LANES * F::SUB_LEN];
            if let Some(importance) = rows.importance_tile(at, buffer) {
                s.transpose(importance, F::SUB_LEN, w);
            }
            buffer.fill(0.0);
            s.transpose(rows.weights_tile(at, buffer), F::SUB_LEN, x);

            let mut lane_sigma2 = [0.0; MAX_LANES];
            for (lane, out) in lane_sigma2[..S::LANES].iter_mut().enumerate() {
                let block = ((first + lane) / per_block).min(MAX_LANES - 1);
                *out = F::SIGMA_FACTOR * sigma2[block] / BLOCK_LEN as f32;
            }
            let lane_sigma2 = s.load(&lane_sigma2);
            let mut sum = s.splat(0.0);
            for (x, w) in x.iter().zip(w.iter_mut()) {
                *w = *w * s.sqrt(lane_sigma2 + *x * *x);
                sum = sum + *w;
            }
            s.store(sum, &mut self.weight[first..]);
            self.store(s, first, search(s, x, w, F::WEIGHTED));
        }
    }

    /// Quantizes scales and mins to their largest.
    #[inline(always)]
    fn write_plain_scales<F: AffineBlock>(&self, out: &mut [u8]) {
        let per_block = BLOCK_LEN / F::SUB_LEN;
        for (b, block) in out.chunks_exact_mut(F::BLOCK_BYTES).enumerate() {
            let (d, codes) = to_largest::<F>(&self.scale[b * per_block..][..per_block]);
            let (dmin, min_codes) = to_largest::<F>(&self.min[b * per_block..][..per_block]);
            F::write_scales(block, &Scales { d, dmin, codes, min_codes });
        }
    }

    /// Quantizes scales and mins by a search under the sub-blocks' weights, one super-block per lane.
    #[inline(always)]
    fn write_weighted_scales<S: Simd, F: AffineBlock>(&self, s: S, out: &mut [u8]) {
        let per_block = BLOCK_LEN / F::SUB_LEN;
        let w = columns(s, &self.weight, per_block);
        let (d, codes) = to_best::<S, F>(s, &columns(s, &self.scale, per_block), &w);
        let (dmin, min_codes) = to_best::<S, F>(s, &columns(s, &self.min, per_block), &w);
        for (b, block) in out.chunks_exact_mut(F::BLOCK_BYTES).enumerate() {
            let (d, dmin) = (f16::from_f32(d[b]), f16::from_f32(dmin[b]));
            F::write_scales(block, &Scales { d, dmin, codes: codes[b], min_codes: min_codes[b] });
        }
    }

    /// Writes the levels of super-block `b`, rounded to its stored scales; a
    /// sub-block whose scale is stored as 0 keeps the levels of its fit.
    #[inline(always)]
    fn levels<S: Simd, F: AffineBlock>(
        &self,
        s: S,
        b: usize,
        x: &[f32],
        block: &[u8],
        levels: &mut [u8; BLOCK_LEN],
    ) {
        let nmax = F::PLAIN.nmax;
        let (d, dmin) = F::read_factors(block);
        let (d, dmin) = (d.to_f32(), dmin.to_f32());
        for (j, (x, levels)) in
            x.chunks_exact(F::SUB_LEN).zip(levels.chunks_exact_mut(F::SUB_LEN)).enumerate()
        {
            let (code, min_code) = F::read_codes(block, j);
            let (scale, min) = (d * f32::from(code), dmin * f32::from(min_code));
            let sub = b * (BLOCK_LEN / F::SUB_LEN) + j;
            for (x, levels) in x.chunks_exact(S::LANES).zip(levels.chunks_exact_mut(S::LANES)) {
                let x = s.load(x);
                let level = if scale != 0.0 {
                    let integer = s.nearest_int((x + s.splat(min)) / s.splat(scale));
                    s.max_i32(s.min_i32(integer, s.splat_i32(nmax)), s.splat_i32(0))
                } else {
                    levels_by_rule(s, x, self.rule_of(sub), nmax)
                };
                s.store_u8(level, levels);
            }
        }
    }

    #[inline(always)]
    fn rule_of(&self, sub: usize) -> LevelRule<f32> {
        LevelRule {
            inverse: self.rule.inverse[sub],
            offset: self.rule.offset[sub],
            saturates: self.rule.saturates[sub],
        }
    }
}

/// Returns element j of every super-block in vector j.
#[inline(always)]
fn columns<S: Simd>(s: S, values: &[f32], per_block: usize) -> [S::F32; MAX_SUBS] {
    let mut out = [s.splat(0.0); MAX_SUBS];
    for (j, out) in out[..per_block].iter_mut().enumerate() {
        let mut lanes = [0.0; MAX_LANES];
        for (b, lane) in lanes[..S::LANES].iter_mut().enumerate() {
            *lane = values[b * per_block + j];
        }
        *out = s.load(&lanes);
    }
    out
}

/// Returns the factor and codes for which factor * code is near `values`, the largest having code CODE_MAX.
#[inline(always)]
fn to_largest<F: AffineBlock>(values: &[f32]) -> (f16, [u8; MAX_SUBS]) {
    let mut max = 0.0;
    for v in values {
        max = if *v > max { *v } else { max };
    }
    let code_max = F::CODE_MAX as f32;
    let inverse = if max > 0.0 { code_max / max } else { 0.0 };
    let mut codes = [0; MAX_SUBS];
    for (code, v) in codes.iter_mut().zip(values) {
        *code = (nearest_int(inverse * v) as u8).min(F::CODE_LIMITS.0);
    }
    (f16::from_f32(max / code_max), codes)
}

/// Returns per lane the factor and codes for which factor * code fits `values` best under weights `w`.
#[inline(always)]
fn to_best<S: Simd, F: AffineBlock>(
    s: S,
    values: &[S::F32; MAX_SUBS],
    w: &[S::F32; MAX_SUBS],
) -> ([f32; MAX_LANES], [[u8; MAX_SUBS]; MAX_LANES]) {
    let n = BLOCK_LEN / F::SUB_LEN;
    let mut codes = [s.splat_i32(0); MAX_SUBS];
    let factor = search_positive(s, &values[..n], &w[..n], F::CODE_MAX, &mut codes[..n]);
    for code in &mut codes[..n] {
        *code = s.min_i32(*code, s.splat_i32(F::CODE_LIMITS.1.into()));
    }
    let mut factors = [0.0; MAX_LANES];
    s.store(factor, &mut factors);
    let mut bytes = [[0; MAX_SUBS]; MAX_LANES];
    s.store_bytes_by_lane(&codes, bytes.as_flattened_mut(), MAX_SUBS);
    (factors, bytes)
}

/// Decodes blocks.
pub(super) struct Decode<'a, F> {
    bytes: &'a [u8],
    out: &'a mut [f32],
    format: PhantomData<F>,
}

impl<'a, F: AffineBlock> Decode<'a, F> {
    pub(super) fn new(bytes: &'a [u8], out: &'a mut [f32]) -> Self {
        Decode { bytes, out, format: PhantomData }
    }
}

impl<F: AffineBlock> Kernel for Decode<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut levels = [0; BLOCK_LEN];
        for (block, out) in self.bytes.chunks_exact(F::BLOCK_BYTES).zip(self.out.chunks_exact_mut(BLOCK_LEN))
        {
            F::read_levels(block, &mut levels);
            let (d, dmin) = F::read_factors(block);
            let (d, dmin) = (d.to_f32(), dmin.to_f32());
            for (j, (out, levels)) in
                out.chunks_exact_mut(F::SUB_LEN).zip(levels.chunks_exact(F::SUB_LEN)).enumerate()
            {
                let (code, min_code) = F::read_codes(block, j);
                let scale = s.splat(d * f32::from(code));
                let min = s.splat(dmin * f32::from(min_code));
                for (out, levels) in out.chunks_exact_mut(S::LANES).zip(levels.chunks_exact(S::LANES)) {
                    s.store(scale * s.to_f32(s.load_u8(levels)) - min, out);
                }
            }
        }
    }
}

/// Codes of 6 bits in 12 bytes, for eight scales and eight mins: the low 6 bits of bytes 0..4 and 4..8 are scales and mins 0..4;
/// bytes 8..12 hold the low nibbles of scales and mins 4..8, whose high two bits lie on top of bytes 0..8.
pub(super) mod six_bit {
    /// Writes 12 bytes.
    #[inline(always)]
    pub(in super::super) fn write(out: &mut [u8], codes: &[u8], min_codes: &[u8]) {
        for j in 0..4 {
            let (high, high_min) = (codes[4 + j], min_codes[4 + j]);
            out[j] = codes[j] | (high >> 4) << 6;
            out[4 + j] = min_codes[j] | (high_min >> 4) << 6;
            out[8 + j] = (high & 15) | high_min << 4;
        }
    }

    /// Returns the scale's and the min's code of sub-block `j`.
    #[inline(always)]
    pub(in super::super) fn read(bytes: &[u8], j: usize) -> (u8, u8) {
        if j < 4 {
            return (bytes[j] & 63, bytes[4 + j] & 63);
        }
        let low = bytes[4 + j];
        ((low & 15) | (bytes[j - 4] >> 6) << 4, (low >> 4) | (bytes[j] >> 6) << 4)
    }
}
