//! The loops over panels and blocks of k around the micro-kernels.

use std::marker::PhantomData;
use std::ops::Range;

use super::lanes::{Lanes, Rows};
use super::micro::{Operands, Part, multiply, stream};
use super::pack::{Columns, Flushed, Whole, WidenedBf16, WidenedF16, pack, pack_strip};
use super::step::Step;
use crate::kernel::Isa;
use crate::kernel::product::Matrix;
use crate::kernel::product::driver::Tile;
use crate::kernel::product::matrix::{Panels, Stored};
use crate::kernel::product::panels::PANEL_ROWS;
use crate::tensor::format::{BF16, BlockFormat, F16, F32};

/// Values of k in a panel: a multiple of every format's block.
const DEPTH: usize = 512;

pub const fn x_group<S: Step>() -> usize {
    S::L::ROWS
}

pub const fn w_group<S: Step>() -> usize {
    S::L::LANES * S::L::VECTORS
}

/// Lanes of a row of `k` values.
const fn depth<S: Step>(k: usize) -> usize {
    k.div_ceil(S::DEPTH)
}

/// Rows of packed x are an odd number of cache lines, so that those of a micro-kernel lie in different sets.
pub const fn x_row_bytes<S: Step>(k: usize) -> usize {
    (4 * depth::<S>(k)).div_ceil(64) / 2 * 128 + 64
}

/// Packs rows of x, each on its own.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub unsafe fn pack_x<S: Step>(x: &[f32], k: usize, out: &mut [u8]) {
    for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(x_row_bytes::<S>(k))) {
        if S::DEPTH == 1 {
            // SAFETY: `out` is 64-aligned, as rows are whole cache lines; any bits are integers.
            let (_, lanes, _) = unsafe { out.align_to_mut::<u32>() };
            let lanes = &mut lanes[..k];
            for t in 0..k {
                lanes[t] = x[t].to_bits();
            }
        } else {
            // SAFETY: as above; the even k of a lane is its lower half, which lies first.
            let (_, halves, _) = unsafe { out.align_to_mut::<u16>() };
            let halves = &mut halves[..k.next_multiple_of(2)];
            for t in 0..k {
                halves[t] = bf16_operand(x[t]) as u16;
            }
            if k % 2 == 1 {
                halves[k] = 0;
            }
        }
    }
}

/// Returns the bits of `x` as a bf16 product takes it: [`f32_to_bf16_bits`] without branches, so that loops are vectors.
#[inline(always)]
pub fn bf16_operand(x: f32) -> u32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    let quiet = bits >> 16 | 0x40;
    let bf16 = if magnitude > 0x7f80_0000 { quiet } else { rounded };
    if magnitude < super::BF16_TINY.to_bits() { 0 } else { bf16 }
}

/// Replaces values by the bits of [`bf16_operand`], in the first half of their room.
#[inline(always)]
pub fn to_bf16_operands(values: &mut [f32]) {
    /// Values that are read before any of theirs is overwritten: loops over them are vectors.
    const CHUNK: usize = 32;
    let n = values.len();
    for first in (0..n).step_by(CHUNK) {
        let len = CHUNK.min(n - first);
        let mut operands = [0u16; CHUNK];
        for (operand, value) in operands.iter_mut().zip(&values[first..first + len]) {
            *operand = bf16_operand(*value) as u16;
        }
        // SAFETY: halves up to `first + len` lie among the first `first + len` values, of which those from `first` on were read.
        unsafe {
            let to = values.as_mut_ptr().cast::<u16>().add(first);
            to.copy_from_nonoverlapping(operands.as_ptr(), len);
        }
    }
}

/// How a format's rows get into a panel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Source {
    F32,
    F16,
    Bf16,
    /// Decoded to f32 first.
    Decoded,
}

impl Source {
    pub fn of<S: Step>(w: &Matrix) -> Source {
        let name = w.dtype().name();
        if name == BF16.name() {
            Source::Bf16
        } else if S::DEPTH == 1 && name == F32.name() {
            Source::F32
        } else if S::DEPTH == 1 && name == F16.name() {
            Source::F16
        } else {
            Source::Decoded
        }
    }
}

/// The most rows of x that panels pass over at once: their sums, and a block of them, stay in the second cache.
const ROWS_AT_ONCE: usize = 512;

/// Bytes that [`run`] works in: a panel, rows decoded for it, and sums.
pub fn scratch_bytes<S: Step>(tile: &Tile<'_>) -> usize {
    4 * DEPTH * (w_group::<S>() + S::L::LANES) + Running::<S>::bytes(tile.rows.len().min(ROWS_AT_ONCE), 1)
}

/// The sums of a tile between two blocks of their chain, those of a micro-kernel one after another: rows of y are far
/// apart, often by a power of two, so that no cache would hold them.
pub struct Running<S> {
    at: *mut f32,
    /// Groups of rows.
    n_groups: usize,
    step: PhantomData<S>,
}

/// Which of the blocks of a chain is added.
#[derive(Clone, Copy)]
pub struct Turn {
    /// Sums begin at +0.
    pub begins: bool,
    pub is_first: bool,
    pub is_last: bool,
}

impl<S: Step> Running<S> {
    /// Returns the bytes that the sums of `rows` rows and `col_groups` groups of columns take.
    pub fn bytes(rows: usize, col_groups: usize) -> usize {
        4 * rows.next_multiple_of(S::L::ROWS) * col_groups * w_group::<S>()
    }

    /// Sums of `rows` rows in `buffer`.
    #[inline(always)]
    pub fn new(buffer: &mut [u8], rows: usize) -> Self {
        Running { at: buffer.as_mut_ptr().cast(), n_groups: rows.div_ceil(S::L::ROWS), step: PhantomData }
    }

    /// Returns where the sums of a group of rows and one of columns go on from, and where they go: y has `cols` of them at `y`, rows
    /// `stride` apart.
    ///
    /// # Safety
    /// The buffer has room for the groups.
    #[inline(always)]
    pub unsafe fn part(
        &self,
        (group, col_group): (usize, usize),
        turn: Turn,
        (y, stride): (*mut f32, usize),
        cols: usize,
    ) -> Part {
        let size = S::L::ROWS * w_group::<S>();
        // SAFETY: the caller's.
        let kept = unsafe { self.at.add((col_group * self.n_groups + group) * size) };
        let (from, from_stride) = match (turn.is_first, turn.begins) {
            (true, true) => (std::ptr::null_mut(), 0),
            (true, false) => (y, stride),
            (false, _) => (kept, w_group::<S>()),
        };
        let (to, to_stride) = if turn.is_last { (y, stride) } else { (kept, w_group::<S>()) };
        Part { from, from_stride, to, to_stride, cols, add_scaled: None }
    }
}

/// Returns the addresses of rows `first..first + LANES` of w; of the row before `end` for those that are not there.
#[inline(always)]
fn addresses<L: Lanes>(w: &Matrix, first: usize, end: usize) -> Rows {
    let mut rows = [std::ptr::null(); 16];
    for j in 0..L::LANES {
        rows[j] = w.mapped_row((first + j).min(end - 1)).as_ptr();
    }
    rows
}

/// Writes every element of the tile.
///
/// # Safety
/// As [`Lanes`]; `buffer` has [`scratch_bytes`].
#[inline(always)]
pub unsafe fn run<S: Step>(isa: Isa, tile: &mut Tile<'_>, buffer: &mut [u8]) {
    let source = Source::of::<S>(tile.w);
    // SAFETY: the caller's.
    unsafe {
        let is_streamed = tile.rows.len() == 1 && tile.add_scaled.is_none();
        match (tile.w.stored(), source) {
            (Stored::Panels(w), Source::F32) if is_streamed => streamed::<S, Whole>(tile, w),
            (Stored::Panels(w), Source::F16) if is_streamed => streamed::<S, WidenedF16>(tile, w),
            (Stored::Panels(w), Source::Bf16) if is_streamed && S::DEPTH == 1 => {
                streamed::<S, WidenedBf16>(tile, w);
            }
            (Stored::Panels(w), Source::Bf16) if is_streamed => streamed::<S, Flushed>(tile, w),
            _ => {
                let rows = tile.rows.clone();
                for start in rows.clone().step_by(ROWS_AT_ONCE) {
                    tile.rows = start..rows.end.min(start + ROWS_AT_ONCE);
                    panels::<S>(isa, tile, source, buffer);
                }
            }
        }
    }
}

/// Strips that are streamed together, so that the chains of sums hide behind one another.
const STRIPS: usize = 4;

/// A tile of one row of x and packed weights.
#[inline(always)]
unsafe fn streamed<S: Step, C: Columns<S::L>>(tile: &mut Tile<'_>, w: &Panels) {
    let Some((row, _, x)) = tile.x_groups().next() else { return };
    let (cols, lanes) = (tile.cols.clone(), S::L::LANES);
    let last = (cols.end - 1) / lanes * lanes;
    for first in cols.clone().step_by(STRIPS * lanes) {
        let mut strips = [std::ptr::null(); STRIPS];
        for g in 0..STRIPS {
            strips[g] = strip(w, (first + g * lanes).min(last));
        }
        let mut out = [0f32; STRIPS * 16];
        // SAFETY: the caller's; strips and x have the lanes of a row, `out` has room for STRIPS * LANES.
        unsafe {
            let sums = stream::<S, C, STRIPS>(x.as_ptr().cast(), &strips, depth::<S>(tile.w.cols()));
            for g in 0..STRIPS {
                S::L::store(sums[g], out.as_mut_ptr().add(g * lanes).cast());
            }
        }
        let n = (STRIPS * lanes).min(cols.end - first);
        tile.write(row, first, &out[..n]);
    }
}

/// Returns where the strip begins whose first row is `row`.
#[inline(always)]
fn strip(w: &Panels, row: usize) -> *const u8 {
    let panel = row / PANEL_ROWS;
    let first = row % PANEL_ROWS * w.layout.element();
    w.panels(panel..panel + 1).as_ptr().wrapping_add(first)
}

/// A tile of any rows of x: the weights pass through panels.
#[inline(always)]
unsafe fn panels<S: Step>(isa: Isa, tile: &mut Tile<'_>, source: Source, buffer: &mut [u8]) {
    let k = tile.w.cols();
    let (panel, rest) = buffer.split_at_mut(4 * DEPTH * w_group::<S>());
    let (decoded, sums) = rest.split_at_mut(4 * DEPTH * S::L::LANES);
    let sums = Running::<S>::new(sums, tile.rows.len());
    let cols = tile.cols.clone();
    for first_col in cols.clone().step_by(w_group::<S>()) {
        let n = w_group::<S>().min(cols.end - first_col);
        for start in (0..k).step_by(DEPTH) {
            let block = start..k.min(start + DEPTH);
            // SAFETY: the caller's; panel has room for DEPTH * w_group lanes, x and y have the group's rows.
            unsafe {
                for v in 0..n.div_ceil(S::L::LANES) {
                    let rows = first_col + v * S::L::LANES..cols.end;
                    let to = panel.as_mut_ptr().cast::<u32>().add(v * S::L::LANES);
                    pack_rows::<S>(isa, tile.w, source, rows, &block, decoded, to);
                }
                let turn = Turn { begins: true, is_first: start == 0, is_last: block.end == k };
                for (group, (row, rows, x)) in tile.x_groups().enumerate() {
                    let (y, stride) = tile.y_address(row);
                    let part = sums.part((group, 0), turn, (y.add(first_col - cols.start), stride), n);
                    let part = Part { add_scaled: tile.add_scaled.filter(|_| turn.is_last), ..part };
                    let operands = Operands {
                        lanes: depth::<S>(block.len()),
                        x: x.as_ptr().cast::<u32>().add(depth::<S>(start)),
                        x_stride: tile.x_row_bytes() / 4,
                        panel: panel.as_ptr().cast(),
                        last: turn.is_last,
                    };
                    multiply_rows::<S>(rows, operands, part);
                }
            }
        }
    }
}

/// Packs `block` of k of at most LANES of the `rows` of w.
#[inline(always)]
unsafe fn pack_rows<S: Step>(
    isa: Isa,
    w: &Matrix,
    source: Source,
    rows: Range<usize>,
    block: &Range<usize>,
    decoded: &mut [u8],
    to: *mut u32,
) {
    let stride = w_group::<S>();
    if let (Stored::Panels(w), false) = (w.stored(), source == Source::Decoded) {
        // SAFETY: the caller's; the strip has these lanes.
        return unsafe { pack_panel_rows::<S>(w, source, rows.start, block, to) };
    }
    let bytes = |size: usize| block.start * size..block.end * size;
    // SAFETY: the caller's; the rows have these bytes.
    unsafe {
        let from = match source {
            Source::Decoded => decode_rows::<S>(isa, w, rows, block, decoded),
            _ => addresses::<S::L>(w, rows.start, rows.end),
        };
        match (source, S::DEPTH) {
            (Source::F32, _) => pack::<S::L, Whole>(&from, bytes(4), to, stride),
            (Source::F16, _) => pack::<S::L, WidenedF16>(&from, bytes(2), to, stride),
            (Source::Bf16, 1) => pack::<S::L, WidenedBf16>(&from, bytes(2), to, stride),
            (Source::Bf16, _) => pack::<S::L, Flushed>(&from, bytes(2), to, stride),
            (Source::Decoded, depth) => pack::<S::L, Whole>(&from, 0..block.len() * 4 / depth, to, stride),
        }
    }
}

/// Packs `block` of k of the LANES rows of packed w from `row` on.
#[inline(always)]
unsafe fn pack_panel_rows<S: Step>(
    w: &Panels,
    source: Source,
    row: usize,
    block: &Range<usize>,
    to: *mut u32,
) {
    let (stride, strip, lanes) = (w_group::<S>(), strip(w, row), depth::<S>(block.len()));
    // SAFETY: the caller's.
    unsafe {
        match (source, S::DEPTH) {
            (Source::F16, _) => pack_strip::<S::L, WidenedF16>(strip, block.start / 2, lanes, to, stride),
            (Source::Bf16, 1) => pack_strip::<S::L, WidenedBf16>(strip, block.start / 2, lanes, to, stride),
            (Source::Bf16, _) => pack_strip::<S::L, Flushed>(strip, block.start / 2, lanes, to, stride),
            _ => pack_strip::<S::L, Whole>(strip, block.start, lanes, to, stride),
        }
    }
}

/// Decodes `block` of k of at most LANES of the `rows` of w into `decoded`, `[LANES][DEPTH]` values of the step's kind.
#[inline(always)]
unsafe fn decode_rows<S: Step>(
    isa: Isa,
    w: &Matrix,
    rows: Range<usize>,
    block: &Range<usize>,
    decoded: &mut [u8],
) -> Rows {
    let mut from = [std::ptr::null(); 16];
    let (step, last) = (w_group::<S>(), rows.end);
    for (j, row) in rows.take(S::L::LANES).enumerate() {
        // rows lie far apart: ask for those that a later strip decodes
        let (later, cols) = match row + S::L::LANES {
            next if next % step >= S::L::LANES => (next, block.clone()),
            next if block.end < w.cols() => (next - step, block.end..w.cols().min(block.end + DEPTH)),
            next => (next, 0..DEPTH.min(w.cols())),
        };
        if later < last {
            // SAFETY: the caller's.
            unsafe { prefetch::<S::L>(w.stored_cols(later, cols)) };
        }
        let out = &mut decoded[j * DEPTH * 4..][..block.len() * 4];
        from[j] = out.as_ptr();
        // SAFETY: the buffer is 64-aligned, and any bits are an f32.
        let values = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<f32>(), block.len()) };
        w.decode_cols(isa, row, block.clone(), values);
        if S::DEPTH == 2 {
            to_bf16_operands(values);
        }
    }
    for j in 1..S::L::LANES {
        if from[j].is_null() {
            from[j] = from[j - 1];
        }
    }
    from
}

/// Asks for the lines that bytes lie in.
#[inline(always)]
pub unsafe fn prefetch<L: Lanes>(bytes: Option<&[u8]>) {
    const LINE: usize = 64;
    let Some(bytes) = bytes else { return };
    for offset in (0..bytes.len() + LINE - 1).step_by(LINE) {
        // SAFETY: the caller's.
        unsafe { L::prefetch(bytes.as_ptr().wrapping_add(offset)) };
    }
}

/// Continues the sums of `rows` rows, at most ROWS, in micro-kernels of a power of two of them.
#[inline(always)]
pub unsafe fn multiply_rows<S: Step>(rows: usize, operands: Operands, part: Part) {
    let mut done = 0;
    while done < rows {
        // SAFETY: the caller's.
        unsafe {
            let operands = Operands { x: operands.x.add(done * operands.x_stride), ..operands };
            let part = Part {
                from: part.from.wrapping_add(done * part.from_stride),
                to: part.to.add(done * part.to_stride),
                ..part
            };
            done += match rows - done {
                8.. if S::L::ROWS == 8 => {
                    multiply::<S, 8>(operands, part);
                    8
                }
                4.. => {
                    multiply::<S, 4>(operands, part);
                    4
                }
                2.. => {
                    multiply::<S, 2>(operands, part);
                    2
                }
                _ => {
                    multiply::<S, 1>(operands, part);
                    1
                }
            };
        }
    }
}
