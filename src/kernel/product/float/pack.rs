//! Rows of weights turned into the columns that micro-kernels take, one k (or pair of k) after another.

use std::ops::Range;

use super::lanes::{BLOCK, Lanes, Rows};
use crate::kernel::product::panels::PANEL_ROWS;

/// What the 32-bit lanes of stored rows are, and what becomes of them.
pub trait Columns<L: Lanes>: Copy {
    /// Lanes for the micro-kernel per stored lane.
    const OUT: usize;

    /// Returns lane `part < OUT` of the stored lanes `v`.
    unsafe fn part(v: L::V, part: usize) -> L::V;

    /// Returns lane `part < OUT` of stored lane `t` of a strip, the rows of a panel (see
    /// [`crate::kernel::product::panels`]) that begin at `strip`.
    #[inline(always)]
    unsafe fn of_strip(strip: *const u8, t: usize, part: usize) -> L::V {
        // SAFETY: the caller's.
        unsafe { Self::part(L::load(strip.add(4 * PANEL_ROWS * t).cast()), part) }
    }
}

/// Lanes as they are: f32, or pairs of bf16 already flushed.
#[derive(Clone, Copy)]
pub struct Whole;

impl<L: Lanes> Columns<L> for Whole {
    const OUT: usize = 1;

    #[inline(always)]
    unsafe fn part(v: L::V, _part: usize) -> L::V {
        v
    }
}

/// Pairs of bf16 to be flushed.
#[derive(Clone, Copy)]
pub struct Flushed;

impl<L: Lanes> Columns<L> for Flushed {
    const OUT: usize = 1;

    #[inline(always)]
    unsafe fn part(v: L::V, _part: usize) -> L::V {
        // SAFETY: the caller's.
        unsafe { L::flush_bf16(v) }
    }
}

/// Pairs of f16 to be widened.
#[derive(Clone, Copy)]
pub struct WidenedF16;

impl<L: Lanes> Columns<L> for WidenedF16 {
    const OUT: usize = 2;

    #[inline(always)]
    unsafe fn part(v: L::V, part: usize) -> L::V {
        // SAFETY: the caller's.
        unsafe { if part == 0 { L::low_f16(v) } else { L::high_f16(v) } }
    }

    #[inline(always)]
    unsafe fn of_strip(strip: *const u8, t: usize, part: usize) -> L::V {
        // SAFETY: the caller's; panels of F16 have its halves in rows of their own.
        unsafe { L::load_f16(strip.add(2 * PANEL_ROWS * (2 * t + part)).cast()) }
    }
}

/// Pairs of bf16 to be widened.
#[derive(Clone, Copy)]
pub struct WidenedBf16;

impl<L: Lanes> Columns<L> for WidenedBf16 {
    const OUT: usize = 2;

    #[inline(always)]
    unsafe fn part(v: L::V, part: usize) -> L::V {
        // SAFETY: the caller's.
        unsafe { if part == 0 { L::low_bf16(v) } else { L::high_bf16(v) } }
    }
}

/// Bytes of a row that are asked for ahead of their use.
const AHEAD: usize = 512;

/// Writes `lanes` lanes of a strip from stored lane `first` on to `panel`, the lanes of the next k `stride` further on.
///
/// # Safety
/// The strip has them; `panel` has room for `lanes` times `stride` lanes.
#[inline(always)]
pub unsafe fn pack_strip<L: Lanes, C: Columns<L>>(
    strip: *const u8,
    first: usize,
    lanes: usize,
    panel: *mut u32,
    stride: usize,
) {
    for t in 0..lanes.div_ceil(C::OUT) {
        for part in 0..C::OUT.min(lanes - t * C::OUT) {
            // SAFETY: the caller's.
            unsafe { L::store(C::of_strip(strip, first + t, part), panel.add((t * C::OUT + part) * stride)) };
        }
    }
}

/// Writes the lanes of `bytes` of `L::LANES` rows to `panel`, the lanes of the next k `stride` further on.
///
/// # Safety
/// Every row has `bytes`; `panel` has room for `bytes.len().next_multiple_of(BLOCK) / 4 * OUT` times `stride` lanes.
#[inline(always)]
pub unsafe fn pack<L: Lanes, C: Columns<L>>(
    rows: &Rows,
    bytes: Range<usize>,
    panel: *mut u32,
    stride: usize,
) {
    let mut panel = panel;
    let mut offset = bytes.start;
    let mut rest = [[0; BLOCK]; 16];
    // SAFETY: the caller's; a block ends within the rows, or is copied.
    unsafe {
        while offset < bytes.end {
            let v = if offset + BLOCK <= bytes.end {
                for j in 0..L::LANES {
                    L::prefetch(rows[j].wrapping_add(offset + AHEAD));
                }
                L::columns(rows, offset)
            } else {
                L::columns(&copied::<L>(rows, offset..bytes.end, &mut rest), 0)
            };
            for t in 0..16 {
                for part in 0..C::OUT {
                    L::store(C::part(v[t], part), panel.add((t * C::OUT + part) * stride));
                }
            }
            panel = panel.add(BLOCK / 4 * C::OUT * stride);
            offset += BLOCK;
        }
    }
}

/// Copies less than a block, `bytes` of the first `L::LANES` rows, into `rest`, which is zero; returns its rows.
#[inline(always)]
unsafe fn copied<L: Lanes>(rows: &Rows, bytes: Range<usize>, rest: &mut [[u8; BLOCK]; 16]) -> Rows {
    let mut copies = *rows;
    for j in 0..L::LANES {
        // SAFETY: the caller's.
        let row = unsafe { std::slice::from_raw_parts(rows[j].add(bytes.start), bytes.len()) };
        rest[j][..bytes.len()].copy_from_slice(row);
        copies[j] = rest[j].as_ptr();
    }
    copies
}
