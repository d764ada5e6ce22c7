//! The inner loop: a few rows of x times the columns of some rows of w.

use std::ops::Range;

use super::lanes::{BLOCK, Lanes, Rows};
use super::pack::{AHEAD, Columns, pack};
use super::step::{Step, V};

/// Part of y: rows `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Part {
    pub y: *mut f32,
    pub stride: usize,
    /// Columns of y; there may be fewer than the panel has.
    pub cols: usize,
}

/// Packed x and w over the same lanes of k.
#[derive(Clone, Copy)]
pub struct Operands {
    pub lanes: usize,
    /// Rows of `lanes`, `x_stride` apart.
    pub x: *const u32,
    pub x_stride: usize,
    /// `[lanes][VECTORS * LANES]`.
    pub panel: *const u32,
    /// The sums begin at zero, not at what y has.
    pub first: bool,
}

/// The most rows of any micro-kernel.
const MOST_ROWS: usize = 8;
/// The most columns of any micro-kernel.
const MOST_COLS: usize = 48;

/// Continues the sums of `M` rows of `part`.
///
/// # Safety
/// As [`Lanes`]; the lanes and rows are there, `part.cols <= VECTORS * LANES`.
#[inline(always)]
pub unsafe fn multiply<S: Step, const M: usize>(operands: Operands, part: Part) {
    let mut edge = [0.0f32; MOST_ROWS * MOST_COLS];
    // SAFETY: the caller's.
    unsafe {
        let (mut y, mut stride) = (part.y, part.stride);
        let is_edge = part.cols < S::L::VECTORS * S::L::LANES;
        if is_edge {
            (y, stride) = (edge.as_mut_ptr(), MOST_COLS);
            for i in 0..M {
                std::ptr::copy_nonoverlapping(part.y.add(i * part.stride), y.add(i * stride), part.cols);
            }
        }
        if S::L::VECTORS == 3 {
            sums::<S, M, 3>(operands, y, stride);
        } else {
            sums::<S, M, 2>(operands, y, stride);
        }
        if is_edge {
            for i in 0..M {
                std::ptr::copy_nonoverlapping(y.add(i * stride), part.y.add(i * part.stride), part.cols);
            }
        }
    }
}

#[inline(always)]
unsafe fn sums<S: Step, const M: usize, const N: usize>(operands: Operands, y: *mut f32, stride: usize) {
    let Operands { lanes, x, x_stride, mut panel, first } = operands;
    // SAFETY: the caller's.
    unsafe {
        let mut sum = [[S::L::zero(); N]; M];
        if !first {
            for i in 0..M {
                for j in 0..N {
                    sum[i][j] = S::L::load(y.add(i * stride + j * S::L::LANES).cast());
                }
            }
        }
        for t in 0..lanes {
            let mut w = [S::L::zero(); N];
            for j in 0..N {
                w[j] = S::L::load(panel.add(j * S::L::LANES));
            }
            for i in 0..M {
                let x = S::L::splat(x.add(i * x_stride + t));
                for j in 0..N {
                    sum[i][j] = S::step(sum[i][j], x, w[j]);
                }
            }
            panel = panel.add(N * S::L::LANES);
        }
        for i in 0..M {
            for j in 0..N {
                S::L::store(S::L::canonical(sum[i][j]), y.add(i * stride + j * S::L::LANES).cast());
            }
        }
    }
}

/// Returns the products of a row of x with `L::LANES * G` rows of w over all of k, without storing a panel.
///
/// `rows` has the addresses of G groups of rows of `bytes`, `next` of those that come after them.
///
/// # Safety
/// As [`Lanes`]; the rows and the lanes of x are there.
#[inline(always)]
pub unsafe fn stream<S: Step, C: Columns<S::L>, const G: usize>(
    x: *const u32,
    rows: &[Rows; G],
    next: &[Rows; G],
    bytes: usize,
) -> [V<S>; G] {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = [S::L::zero(); G];
        let head = to_cache_line(rows[0][0], bytes);
        let whole = bytes - (bytes - head) % BLOCK;
        if head > 0 {
            add_end::<S, C, G>(&mut sum, rows, 0..head, x);
        }
        let mut offset = head;
        while offset < whole {
            let ahead = offset + AHEAD;
            let (soon, at) = if ahead < bytes { (rows, ahead) } else { (next, ahead - bytes) };
            let x = x.byte_add(offset * C::OUT);
            for g in 0..G {
                for j in 0..S::L::LANES {
                    S::L::prefetch(soon[g][j].wrapping_add(at));
                }
                let v = S::L::columns(&rows[g], offset);
                for t in 0..16 {
                    for part in 0..C::OUT {
                        sum[g] = S::step(sum[g], S::L::splat(x.add(t * C::OUT + part)), C::part(v[t], part));
                    }
                }
            }
            offset += BLOCK;
        }
        if whole < bytes {
            add_end::<S, C, G>(&mut sum, rows, whole..bytes, x);
        }
        for g in 0..G {
            sum[g] = S::L::canonical(sum[g]);
        }
        sum
    }
}

/// Returns how many bytes after `row` a cache line begins, if that is so for all rows of as many bytes.
#[inline(always)]
fn to_cache_line(row: *const u8, bytes: usize) -> usize {
    let head = (row as usize).wrapping_neg() % BLOCK;
    // Blocks begin with a whole lane.
    if bytes.is_multiple_of(BLOCK) && head.is_multiple_of(4) { head } else { 0 }
}

/// Adds the products of `bytes` of the rows, less than a block.
#[inline(always)]
unsafe fn add_end<S: Step, C: Columns<S::L>, const G: usize>(
    sum: &mut [V<S>; G],
    rows: &[Rows; G],
    bytes: Range<usize>,
    x: *const u32,
) {
    // Two parts of a stored lane are a 16-bit value each; else a lane is a stored one, perhaps only half of it there.
    let n = if C::OUT == 2 { bytes.len() / 2 } else { bytes.len().div_ceil(4) };
    let mut lanes = [0; 16 * 32];
    // SAFETY: the caller's; a block becomes at most 32 times LANES lanes.
    unsafe {
        let x = x.byte_add(bytes.start * C::OUT);
        for g in 0..G {
            pack::<S::L, C>(&rows[g], bytes.clone(), lanes.as_mut_ptr(), S::L::LANES);
            for t in 0..n {
                let w = S::L::load(lanes.as_ptr().add(t * S::L::LANES));
                sum[g] = S::step(sum[g], S::L::splat(x.add(t)), w);
            }
        }
    }
}
