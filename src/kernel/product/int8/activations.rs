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
        // rows whose codes of a block fill cache lines
        const TOGETHER: usize = 4;
        let (x, k) = (self.x, self.k);
        let rows = x.len() / k;
        for first in (0..rows).step_by(TOGETHER) {
            for block in 0..k / BLOCK {
                for row in first..rows.min(first + TOGETHER) {
                    self.block(s, &x[row * k + block * BLOCK..][..BLOCK], block * rows + row);
                }
            }
        }
    }
}

impl Pack<'_> {
    /// Packs a block as number `at`.
    #[inline(always)]
    fn block<S: Simd>(&mut self, s: S, x: &[f32], at: usize) {
        let mut largest = s.splat_i32(0);
        for x in x.chunks_exact(S::LANES) {
            largest = s.max_i32(largest, s.to_bits(s.abs(s.load(x))));
        }
        // as integers, magnitudes keep their order, and infinities and NaN lie above all numbers
        let bits = reduce(s, largest, i32::max);
        let amax = f32::from_bits(bits as u32);
        let is_finite = bits <= f32::MAX.to_bits() as i32;
        let counts = is_finite && amax >= TINY;
        let (scale, inverse) = if counts { (amax / 127.0, 127.0 / amax) } else { (0.0, 0.0) };
        let scale = if is_finite { scale } else { f32::NAN };
        self.scales[4 * at..][..4].copy_from_slice(&scale.to_ne_bytes());

        let codes = &mut self.codes[at * BLOCK..][..BLOCK];
        let inverse = s.splat(inverse);
        for half in 0..SUMS {
            let mut sum = s.splat_i32(0);
            for i in (half * SUM_LEN..(half + 1) * SUM_LEN).step_by(S::LANES) {
                // a value that is not finite is NaN after the product with 0, and its code 0
                let code = s.nearest_int(s.load(&x[i..]) * inverse);
                s.store_u8(code, &mut codes[i..]);
                sum = sum + code;
            }
            let sum = reduce(s, sum, |a, b| a + b) as i16;
            self.sums[4 * at + 2 * half..][..2].copy_from_slice(&sum.to_ne_bytes());
        }
    }
}

/// Returns what `both` makes of all lanes, in any order.
#[inline(always)]
fn reduce<S: Simd>(s: S, v: S::I32, both: impl Fn(i32, i32) -> i32) -> i32 {
    let mut lanes = [0; 16];
    s.store_i32(v, &mut lanes);
    let mut n = S::LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            lanes[i] = both(lanes[i], lanes[i + n]);
        }
    }
    lanes[0]
}
