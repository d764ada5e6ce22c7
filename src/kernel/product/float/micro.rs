//! The inner loop: a few rows of x times the columns of some rows of w.

use std::mem::MaybeUninit;

use super::lanes::Lanes;
use super::pack::Columns;
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
    let mut edge = MaybeUninit::<[f32; MOST_ROWS * MOST_COLS]>::uninit();
    // SAFETY: the caller's.
    unsafe {
        let (mut y, mut stride) = (part.y, part.stride);
        let is_edge = part.cols < S::L::VECTORS * S::L::LANES && part.cols != S::L::LANES;
        if is_edge {
            (y, stride) = (edge.write([0.0; MOST_ROWS * MOST_COLS]).as_mut_ptr(), MOST_COLS);
            for i in 0..if operands.first { 0 } else { M } {
                std::ptr::copy_nonoverlapping(part.y.add(i * part.stride), y.add(i * stride), part.cols);
            }
        }
        match (S::L::VECTORS, part.cols <= S::L::LANES) {
            (3, true) => sums::<S, M, 1, 3>(operands, y, stride),
            (3, false) => sums::<S, M, 3, 3>(operands, y, stride),
            (_, true) => sums::<S, M, 1, 2>(operands, y, stride),
            (_, false) => sums::<S, M, 2, 2>(operands, y, stride),
        }
        if is_edge {
            for i in 0..M {
                std::ptr::copy_nonoverlapping(y.add(i * stride), part.y.add(i * part.stride), part.cols);
            }
        }
    }
}

/// Continues the sums of M rows and the first N of the panel's P vectors of columns.
#[inline(always)]
unsafe fn sums<S: Step, const M: usize, const N: usize, const P: usize>(
    operands: Operands,
    y: *mut f32,
    stride: usize,
) {
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
            panel = panel.add(P * S::L::LANES);
        }
        for i in 0..M {
            for j in 0..N {
                S::L::store(S::L::canonical(sum[i][j]), y.add(i * stride + j * S::L::LANES).cast());
            }
        }
    }
}

/// Returns the products of a row of x with the rows of `G` strips of w, over all of their `lanes` lanes.
///
/// # Safety
/// As [`Lanes`]; the strips and the row of x have the lanes.
#[inline(always)]
pub unsafe fn stream<S: Step, C: Columns<S::L>, const G: usize>(
    x: *const u32,
    strips: &[*const u8; G],
    lanes: usize,
) -> [V<S>; G] {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = [S::L::zero(); G];
        let whole = lanes / C::OUT;
        for t in 0..whole {
            for part in 0..C::OUT {
                let x = S::L::splat(x.add(t * C::OUT + part));
                for g in 0..G {
                    sum[g] = S::step(sum[g], x, C::of_strip(strips[g], t, part));
                }
            }
        }
        if lanes > whole * C::OUT {
            let x = S::L::splat(x.add(whole * C::OUT));
            for g in 0..G {
                sum[g] = S::step(sum[g], x, C::of_strip(strips[g], whole, 0));
            }
        }
        for g in 0..G {
            sum[g] = S::L::canonical(sum[g]);
        }
        sum
    }
}
