//! The loops around the micro-kernels where the sum runs over the rows of w: `y[m][k] = sum over n of x[m][n] * w[n][k]`.
//!
//! A row of w is a row of a panel as it lies, so f32 weights are copied and pairs of bf16 rows put together; formats of
//! blocks are decoded some rows at a time, over all columns of the tile.

use std::ops::Range;

use super::lanes::{BLOCK, Lanes};
use super::micro::Operands;
use super::step::{Step, V};
use super::tile::{Running, Source, Turn, multiply_rows, prefetch, to_bf16_operands, w_group};
use crate::kernel::Isa;
use crate::kernel::product::matrix::Stored;
use crate::kernel::product::transposed::{Operand, Tile};

/// The most rows of w in a panel.
const DEPTH: usize = 512;
/// The most columns of a tile: a multiple of every format's block.
pub const MAX_COLS: usize = 256;
/// Bytes from one decoded row to the next: an odd number of cache lines.
const DECODED_STRIDE: usize = 4 * MAX_COLS + 64;

/// The most rows of x that a block of w is used for at once.
const ROWS_AT_ONCE: usize = 1024;

/// The most panels that are packed at once, row of w by row: rows lie far apart, and each is fetched once so.
const PANELS_AT_ONCE: usize = 4;
/// Rows of w that are asked for ahead of their packing.
const AHEAD: usize = 16;

/// Bytes that [`run`] works in: panels, rows decoded for them, and sums.
pub fn scratch_bytes<S: Step>(tile: &Tile<'_>) -> usize {
    let col_groups = tile.cols.len().div_ceil(w_group::<S>());
    let sums = match tile.w.rows() <= depth::<S>(tile.w) {
        true => 0,
        false => Running::<S>::bytes(tile.rows.len().min(ROWS_AT_ONCE), col_groups),
    };
    DEPTH * (4 * PANELS_AT_ONCE * w_group::<S>() + DECODED_STRIDE) + sums
}

/// Some rows of w from the tile's first column on.
struct Block {
    rows: [*const u8; DEPTH],
    len: usize,
    source: Source,
}

/// Continues (or begins) the sums of the tile by all rows of w.
///
/// # Safety
/// As [`Lanes`]; `buffer` has [`scratch_bytes`], the tile at most [`MAX_COLS`] columns that begin and end with whole blocks.
#[inline(always)]
pub unsafe fn run<S: Step>(isa: Isa, tile: &mut Tile<'_>, buffer: &mut [u8]) {
    let rows = tile.rows.clone();
    for start in rows.clone().step_by(ROWS_AT_ONCE) {
        tile.rows = start..rows.end.min(start + ROWS_AT_ONCE);
        // SAFETY: the caller's.
        unsafe { some_rows::<S>(isa, tile, buffer) };
    }
}

/// [`run`] for no more rows than [`ROWS_AT_ONCE`].
#[inline(always)]
unsafe fn some_rows<S: Step>(isa: Isa, tile: &mut Tile<'_>, buffer: &mut [u8]) {
    let (panels, rest) = buffer.split_at_mut(4 * DEPTH * PANELS_AT_ONCE * w_group::<S>());
    let (decoded, sums) = rest.split_at_mut(DEPTH * DECODED_STRIDE);
    let panels = panels.as_mut_ptr().cast::<u32>();
    let (n, width) = (tile.w.rows(), tile.cols.len());
    let sums = Running::<S>::new(sums, tile.rows.len());
    let together = PANELS_AT_ONCE * w_group::<S>();
    let depth = depth::<S>(tile.w);
    for start in (0..n).step_by(depth) {
        let rows = start..n.min(start + depth);
        let turn = Turn { begins: tile.begins, is_first: start == 0, is_last: rows.end == n };
        // SAFETY: the caller's; each panel has room for DEPTH * w_group lanes, x and y have the group's rows.
        unsafe {
            let block = block::<S>(isa, tile, rows, decoded);
            for first in (0..width).step_by(w_group::<S>()) {
                if first % together == 0 {
                    pack::<S>(&block, first..width.min(first + together), panels);
                }
                let cols = w_group::<S>().min(width - first);
                for (group, (row, rows, x)) in tile.x_groups().enumerate() {
                    let (y, stride) = tile.y_address(row);
                    let at = (group, first / w_group::<S>());
                    let operands = Operands {
                        lanes: block.len.div_ceil(S::DEPTH),
                        x: x.as_ptr().cast::<u32>().add(start / S::DEPTH),
                        x_stride: tile.x_row_bytes() / 4,
                        panel: panel::<S>(panels, first % together),
                        last: turn.is_last,
                    };
                    multiply_rows::<S>(rows, operands, sums.part(at, turn, (y.add(first), stride), cols));
                }
            }
        }
    }
}

/// Returns where column `col` of the packed ones begins.
#[inline(always)]
unsafe fn panel<S: Step>(panels: *mut u32, col: usize) -> *mut u32 {
    let (panel, col) = (col / w_group::<S>(), col % w_group::<S>());
    // SAFETY: the caller's: there are so many panels.
    unsafe { panels.add(panel * DEPTH * w_group::<S>() + col) }
}

/// Returns how rows of w get into panels.
fn source<S: Step>(w: Operand<'_>) -> Source {
    match w {
        Operand::Values { .. } if S::DEPTH == 1 => Source::F32,
        Operand::Values { .. } => Source::Decoded,
        Operand::Matrix(w) if matches!(w.stored(), Stored::Panels(_)) => Source::Decoded,
        Operand::Matrix(w) => Source::of::<S>(w),
    }
}

/// Returns how many rows of w are packed at once.
fn depth<S: Step>(w: Operand<'_>) -> usize {
    // decoded rows are in the second cache, too
    if source::<S>(w) == Source::Decoded { DEPTH / 2 } else { DEPTH }
}

/// Returns where `rows` of w lie, decoded if need be.
#[inline(always)]
unsafe fn block<S: Step>(isa: Isa, tile: &Tile<'_>, rows: Range<usize>, decoded: &mut [u8]) -> Block {
    let source = source::<S>(tile.w);
    let mut block = Block { rows: [std::ptr::null(); DEPTH], len: rows.len(), source };
    let cols = tile.cols.clone();
    for (i, row) in rows.enumerate() {
        block.rows[i] = match (tile.w, source) {
            (Operand::Matrix(w), Source::Decoded) => {
                if row + AHEAD < w.rows() {
                    // SAFETY: the caller's.
                    unsafe { prefetch::<S::L>(w.stored_cols(row + AHEAD, cols.clone())) };
                }
                let out = &mut decoded[DECODED_STRIDE * i..][..4 * cols.len()];
                // SAFETY: the caller's.
                unsafe { decode::<S>(|values| w.decode_cols(isa, row, cols.clone(), values), out) }
            }
            (Operand::Values { values, cols: k }, Source::Decoded) => {
                let row = &values[row * k..][cols.clone()];
                let out = &mut decoded[DECODED_STRIDE * i..][..4 * cols.len()];
                // SAFETY: the caller's.
                unsafe { decode::<S>(|values| values.copy_from_slice(row), out) }
            }
            (Operand::Matrix(w), _) => w.mapped_row(row)[cols.start * w.dtype().block_bytes()..].as_ptr(),
            (Operand::Values { values, cols: k }, _) => values[row * k + cols.start..].as_ptr().cast(),
        };
    }
    block
}

/// Writes a row as operands of the step (f32; bf16 in half the room) and returns where they begin.
#[inline(always)]
unsafe fn decode<S: Step>(write: impl FnOnce(&mut [f32]), out: &mut [u8]) -> *const u8 {
    // SAFETY: rows of the 64-aligned buffer begin at multiples of 64, and any bits are an f32.
    let values = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<f32>(), out.len() / 4) };
    write(values);
    if S::DEPTH == 2 {
        to_bf16_operands(values);
    }
    out.as_ptr()
}

/// Writes columns `cols` of the block's rows to the panels, the first of them at the first panel's begin.
#[inline(always)]
unsafe fn pack<S: Step>(block: &Block, cols: Range<usize>, panels: *mut u32) {
    // SAFETY: the caller's.
    unsafe {
        match (block.source, S::DEPTH) {
            (Source::F16, _) => {
                pack_rows::<S, 2>(block, cols, panels, |from| S::L::load_f16(from.cast()));
            }
            (Source::Bf16, 1) => {
                pack_rows::<S, 2>(block, cols, panels, |from| S::L::low_bf16(S::L::load_halves(from.cast())));
            }
            (_, 1) => pack_rows::<S, 4>(block, cols, panels, |from| S::L::load(from.cast())),
            _ => pack_rows::<S, 2>(block, cols, panels, |from| S::L::load_halves(from.cast())),
        }
    }
}

/// Packs rows of elements of `SIZE` bytes that `load` makes lanes of.
#[inline(always)]
unsafe fn pack_rows<S: Step, const SIZE: usize>(
    block: &Block,
    cols: Range<usize>,
    panels: *mut u32,
    load: impl Fn(*const u8) -> V<S>,
) {
    let mut rest = [0u8; BLOCK];
    // SAFETY: the caller's; a row that ends within the vector is copied.
    unsafe {
        let mut row = |i: usize, col: usize| {
            if i >= block.len {
                return S::L::zero(); // the last row has no other to pair with
            }
            let from = block.rows[i].add(SIZE * col);
            let left = cols.end - col;
            if left >= S::L::LANES {
                return load(from);
            }
            std::ptr::copy_nonoverlapping(from, rest.as_mut_ptr(), SIZE * left);
            load(rest.as_ptr())
        };
        for t in 0..block.len.div_ceil(S::DEPTH) {
            for i in t * S::DEPTH + AHEAD..block.len.min((t + 1) * S::DEPTH + AHEAD) {
                for line in (SIZE * cols.start..SIZE * cols.end).step_by(64) {
                    S::L::prefetch(block.rows[i].wrapping_add(line));
                }
            }
            for col in cols.clone().step_by(S::L::LANES) {
                let lanes = match (S::DEPTH, block.source) {
                    (1, _) => row(t, col),
                    (_, Source::Bf16) => S::L::flush_bf16(S::L::pairs(row(2 * t, col), row(2 * t + 1, col))),
                    _ => S::L::pairs(row(2 * t, col), row(2 * t + 1, col)),
                };
                let to = panel::<S>(panels, col - cols.start);
                S::L::store(lanes, to.add(t * w_group::<S>()));
            }
        }
    }
}
