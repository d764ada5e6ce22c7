//! The inner loop: a few rows of x times the columns of some rows of w.

use std::mem::MaybeUninit;

use super::lanes::Lanes;
use super::pack::Columns;
use super::step::{Step, V};

/// Sums of some rows and columns: where they go on from, and where they are put.
#[derive(Clone, Copy)]
pub struct Part {
    /// Null: they begin at +0.
    pub from: *const f32,
    pub from_stride: usize,
    pub to: *mut f32,
    /// Elements that rows are apart.
    pub to_stride: usize,
    /// Columns; there may be fewer than the panel has.
    pub cols: usize,
    /// Add so many times the sums to what is there, not put them there.
    pub add_scaled: Option<f32>,
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
    /// The sums end here: a NaN gets its one form.
    pub last: bool,
}

/// The most rows of any micro-kernel.
const MOST_ROWS: usize = 8;
/// The most columns of any micro-kernel.
const MOST_COLS: usize = 48;
/// What turns a fused multiply-add into a sum and into a product.
const ONE: [f32; 2] = [1.0, -0.0];

/// Continues the sums of `M` rows of `part`.
///
/// # Safety
/// As [`Lanes`]; the lanes and rows are there, `part.cols <= VECTORS * LANES`.
#[inline(always)]
pub unsafe fn multiply<S: Step, const M: usize>(operands: Operands, part: Part) {
    let mut edge = MaybeUninit::<[f32; MOST_ROWS * MOST_COLS]>::uninit();
    // SAFETY: the caller's.
    unsafe {
        let mut whole = part;
        let is_edge = part.cols < S::L::VECTORS * S::L::LANES && part.cols != S::L::LANES;
        if is_edge {
            whole.add_scaled = None;
            let edge = edge.write([0.0; MOST_ROWS * MOST_COLS]).as_mut_ptr();
            (whole.to, whole.to_stride) = (edge, MOST_COLS);
            if !part.from.is_null() {
                for i in 0..M {
                    let (from, to) = (part.from.add(i * part.from_stride), edge.add(i * MOST_COLS));
                    std::ptr::copy_nonoverlapping(from, to, part.cols);
                }
                (whole.from, whole.from_stride) = (edge, MOST_COLS);
            }
        }
        match (S::L::VECTORS, part.cols <= S::L::LANES) {
            (3, true) => sums::<S, M, 1, 3>(operands, whole),
            (3, false) => sums::<S, M, 3, 3>(operands, whole),
            (_, true) => sums::<S, M, 1, 2>(operands, whole),
            (_, false) => sums::<S, M, 2, 2>(operands, whole),
        }
        if is_edge {
            for i in 0..M {
                let (from, to) = (whole.to.add(i * MOST_COLS), part.to.add(i * part.to_stride));
                match part.add_scaled {
                    None => std::ptr::copy_nonoverlapping(from, to, part.cols),
                    Some(scale) => (0..part.cols).for_each(|j| *to.add(j) += scale * *from.add(j)),
                }
            }
        }
    }
}

/// Continues the sums of M rows and the first N of the panel's P vectors of columns.
#[inline(always)]
unsafe fn sums<S: Step, const M: usize, const N: usize, const P: usize>(operands: Operands, part: Part) {
    let Operands { lanes, x, x_stride, mut panel, last } = operands;
    let Part { from, from_stride, to, to_stride, add_scaled, .. } = part;
    // SAFETY: the caller's.
    unsafe {
        let mut sum = [[S::L::zero(); N]; M];
        if !from.is_null() {
            for i in 0..M {
                for j in 0..N {
                    sum[i][j] = S::L::load(from.add(i * from_stride + j * S::L::LANES).cast());
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
        if last {
            for i in 0..M {
                for j in 0..N {
                    sum[i][j] = S::L::canonical(sum[i][j]);
                }
            }
        }
        if let Some(scale) = add_scaled {
            let (scale, one) = (S::L::splat((&raw const scale).cast()), S::L::splat(ONE.as_ptr().cast()));
            let minus_zero = S::L::splat(ONE.as_ptr().add(1).cast());
            for i in 0..M {
                for j in 0..N {
                    // a product and a sum, each rounded
                    let scaled = S::L::fma(scale, sum[i][j], minus_zero);
                    let there = S::L::load(to.add(i * to_stride + j * S::L::LANES).cast());
                    sum[i][j] = S::L::fma(there, one, scaled);
                }
            }
        }
        for i in 0..M {
            for j in 0..N {
                S::L::store(sum[i][j], to.add(i * to_stride + j * S::L::LANES).cast());
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
