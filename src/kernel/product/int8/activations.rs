//! Activations as integer products take them: 32 values share one f32 scale.
//!
//! Several rows are packed together, block by block, so that a kernel that holds a block of weights in
//! registers walks on through memory: `[block][row]` of 32 codes, then of scales, then of sums.

use crate::kernel::Isa;
use crate::kernel::simd::{Kernel, Simd, dispatch};

/// Values that share a scale.
pub const BLOCK: usize = 32;
/// Values whose codes are summed together, for minima and offsets of weights.
pub const SUM_LEN: usize = 16;
/// Blocks below this magnitude count as zero, so that 127 / amax is finite and the scale is normal.
pub const TINY: f32 = 7.888_609e-31; // 2^-100
const SUMS: usize = BLOCK / SUM_LEN;
/// Bytes of a packed block: its codes, its scale, its sums.
const BLOCK_BYTES: usize = BLOCK + size_of::<f32>() + SUMS * size_of::<i16>();

/// Returns the bytes of a packed row of `k` values.
pub fn row_bytes(k: usize) -> usize {
    k / BLOCK * BLOCK_BYTES
}

/// Rows of activations packed together, all parts `[block][row]`.
#[derive(Clone, Copy)]
pub struct Activations<'a> {
    pub rows: usize,
    /// Codes in -127..=127.
    pub codes: &'a [[u8; BLOCK]],
    /// value = scale * code; NaN if a value of the block is not finite.
    pub scales: &'a [f32],
    /// Sums of each 16 codes.
    pub sums: &'a [[i16; SUMS]],
}

impl<'a> Activations<'a> {
    /// Returns the parts of `rows` rows of `k` values in bytes that [`pack`] filled.
    ///
    /// # Panics
    /// If `bytes` are too few or not 4-aligned.
    pub fn new(bytes: &'a [u8], rows: usize, k: usize) -> Self {
        let n_blocks = rows * k / BLOCK;
        let (codes, scales, sums) = parts(n_blocks);
        assert!(bytes.len() >= sums.end && (bytes.as_ptr() as usize).is_multiple_of(align_of::<f32>()));
        // SAFETY: the ranges lie in `bytes`, are aligned (the codes are 32 bytes each), and any bits are values.
        unsafe {
            Activations {
                rows,
                codes: std::slice::from_raw_parts(bytes[codes].as_ptr().cast(), n_blocks),
                scales: std::slice::from_raw_parts(bytes[scales].as_ptr().cast(), n_blocks),
                sums: std::slice::from_raw_parts(bytes[sums].as_ptr().cast(), n_blocks),
            }
        }
    }
}

/// Returns where codes, scales and sums of `n_blocks` blocks lie.
fn parts(n_blocks: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>, std::ops::Range<usize>) {
    let (scales, sums) = (n_blocks * BLOCK, n_blocks * (BLOCK + 4));
    (0..scales, scales..sums, sums..n_blocks * BLOCK_BYTES)
}

/// Packs rows of `k` values, row-major; the same bytes on every `isa`.
///
/// Per block: amax is the largest magnitude; the scale is amax / 127, a code is value * (127 / amax), all in
/// f32, rounded half to even. Below [`TINY`], scale and codes are 0. A block with an infinity or a NaN has
/// the scale NaN, which makes every product with it NaN, and codes 0.
///
/// # Panics
/// If `k` is no multiple of 32 or `out` is shorter than the rows' [`row_bytes`].
pub fn pack(isa: Isa, x: &[f32], k: usize, out: &mut [u8]) {
    assert!(k.is_multiple_of(BLOCK) && x.len().is_multiple_of(k));
    let (codes, scales, sums) = parts(x.len() / BLOCK);
    let (codes, rest) = out[..sums.end].split_at_mut(codes.end);
    let (scales, sums) = rest.split_at_mut(scales.len());
    dispatch(isa, Pack { x, k, codes, scales, sums });
}

struct Pack<'a> {
    x: &'a [f32],
    k: usize,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    sums: &'a mut [u8],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let x = self.x;
        let rows = x.len() / self.k;
        let mut padded = [0.0; 16 * BLOCK];
        for (row, x) in x.chunks_exact(self.k).enumerate() {
            for (tile, x) in x.chunks(S::LANES * BLOCK).enumerate() {
                let first = tile * S::LANES * rows + row;
                let n_blocks = x.len() / BLOCK;
                if n_blocks == S::LANES {
                    self.blocks(s, x, first, rows, n_blocks);
                } else {
                    padded[..x.len()].copy_from_slice(x);
                    self.blocks(s, &padded[..S::LANES * BLOCK], first, rows, n_blocks);
                }
            }
        }
    }
}

impl Pack<'_> {
    /// Packs a block per lane, the first `n_blocks` of them: blocks `first`, `first + stride`, ...
    #[inline(always)]
    fn blocks<S: Simd>(&mut self, s: S, x: &[f32], first: usize, stride: usize, n_blocks: usize) {
        let mut values = [s.splat(0.0); BLOCK];
        s.transpose(x, BLOCK, &mut values);
        let mut largest = s.splat_i32(0);
        for value in values {
            largest = s.max_i32(largest, s.to_bits(s.abs(value)));
        }
        let amax = s.from_bits(largest);
        // as integers, magnitudes keep their order, and infinities and NaN lie above all numbers
        let is_finite = !s.gt_i32(largest, s.splat_i32(f32::MAX.to_bits() as i32));
        let counts = is_finite & s.ge(amax, s.splat(TINY));
        let inverse = s.select(counts, s.splat(127.0) / amax, s.splat(0.0));
        let scale = s.select(counts, amax / s.splat(127.0), s.splat(0.0));
        let mut scales = [0.0; 16];
        s.store(s.select(is_finite, scale, s.splat(f32::NAN)), &mut scales);

        let mut codes = [s.splat_i32(0); BLOCK];
        let mut sums = [[0; 16]; SUMS];
        for (half, sums) in sums.iter_mut().enumerate() {
            let mut sum = s.splat_i32(0);
            for i in half * SUM_LEN..(half + 1) * SUM_LEN {
                codes[i] = s.nearest_int(values[i] * inverse);
                // a NaN or infinity times 0 is NaN: 0 is meant
                sum = sum + codes[i];
            }
            s.store_i32(sum, sums);
        }
        let mut bytes = [0; 16 * BLOCK];
        s.store_bytes_by_lane(&codes, &mut bytes, BLOCK);
        for lane in 0..n_blocks {
            let at = first + lane * stride;
            self.codes[at * BLOCK..][..BLOCK].copy_from_slice(&bytes[lane * BLOCK..][..BLOCK]);
            self.scales[4 * at..][..4].copy_from_slice(&scales[lane].to_ne_bytes());
            for (half, sums) in sums.iter().enumerate() {
                self.sums[4 * at + 2 * half..][..2].copy_from_slice(&(sums[lane] as i16).to_ne_bytes());
            }
        }
    }
}
