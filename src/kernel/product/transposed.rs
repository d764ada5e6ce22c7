//! Products with the transposes of matrices, for gradients: `y[m][k] = sum over n of x[m][n] * w[n][k]`.
//!
//! An element of y is one chain of the arithmetic's steps over ascending n, of several matrices one after another: for
//! [`Arithmetic::F32`] fused multiply-adds, for [`Arithmetic::Bf16`] pairs `(2i, 2i + 1)` of n, the odd product first, an odd
//! last n of a matrix paired with a zero. It depends on its row of every x and its column of every w alone.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::driver::{self, Shared, TASKS_PER_THREAD};
use super::float::{self, FloatProduct, MAX_TRANSPOSED_COLS};
use super::{Arithmetic, Compute, Matrix, scratch};
use crate::kernel::disjoint::for_row_blocks;

/// What the sum runs over the rows of.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    Matrix(&'a Matrix),
    /// Row-major, `[.., cols]`.
    Values {
        values: &'a [f32],
        cols: usize,
    },
}

impl Operand<'_> {
    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Operand::Matrix(w) => w.rows(),
            Operand::Values { values, cols } => values.len().checked_div(*cols).unwrap_or(0),
        }
    }

    fn cols(&self) -> usize {
        match self {
            Operand::Matrix(w) => w.cols(),
            Operand::Values { cols, .. } => *cols,
        }
    }

    /// Returns the columns of a tile: they begin and end with whole blocks.
    fn tile_cols(&self) -> usize {
        /// Panels of every micro-kernel are whole.
        const COLS: usize = 144;
        match self {
            Operand::Matrix(w) if w.dtype().block_len() > 1 => MAX_TRANSPOSED_COLS,
            _ => COLS,
        }
    }

    /// Returns whether rows have to be decoded.
    fn is_in_blocks(&self) -> bool {
        matches!(self, Operand::Matrix(w) if w.dtype().block_len() > 1)
    }
}

/// A task: sums over all rows of one operand for some rows and columns of y.
pub struct Tile<'a> {
    x: &'a [u8],
    x_group: usize,
    x_row_bytes: usize,
    /// Rows and columns of y.
    shape: [usize; 2],
    pub w: Operand<'a>,
    /// Rows of x and y; begins at a multiple of the x group, ends at one or at the last row.
    pub rows: Range<usize>,
    /// Columns of w and y.
    pub cols: Range<usize>,
    /// Sums begin at +0, not at what y holds.
    pub begins: bool,
    y: *mut f32,
}

impl<'a> Tile<'a> {
    /// Returns the packed groups of the tile's rows: the row that each begins with, the rows in it, and its bytes.
    #[inline]
    pub fn x_groups(&self) -> impl Iterator<Item = (usize, usize, &'a [u8])> + use<'a> {
        let (x, group, row_bytes, m) = (self.x, self.x_group, self.x_row_bytes, self.shape[0]);
        self.rows.clone().step_by(group).map(move |first| {
            let rows = group.min(m - first);
            (first, rows, &x[first * row_bytes..(first + rows) * row_bytes])
        })
    }

    /// Returns how many bytes apart packed rows of x are.
    #[inline]
    pub fn x_row_bytes(&self) -> usize {
        self.x_row_bytes
    }

    /// Returns the address of `y[row][cols.start]`, and how many elements apart rows are.
    ///
    /// # Panics
    /// If `row` is not in `rows`.
    #[inline]
    pub fn y_address(&mut self, row: usize) -> (*mut f32, usize) {
        assert!(self.rows.contains(&row));
        let k = self.shape[1];
        // SAFETY: y has shape[0] * k elements, row < shape[0] and cols.end <= k; tiles of a product are disjoint.
        (unsafe { self.y.add(row * k + self.cols.start) }, k)
    }
}

/// Writes `y[m] = sum over i of x_i[m] W_i`: x_i is `[m, w_i.rows()]`, y `[m, k]`, row-major, k the columns of every w.
///
/// # Panics
/// If the lengths disagree, there is no matrix, or an arithmetic is [`Arithmetic::Int8`].
pub fn matmul_transposed(compute: &Compute, xs: &[&[f32]], ws: &[(Operand<'_>, Arithmetic)], y: &mut [f32]) {
    write(compute, xs, ws, driver::overwritten(y));
}

/// Returns what [`matmul_transposed`] writes for `m` rows.
///
/// # Panics
/// As [`matmul_transposed`].
pub fn transposed_products(
    compute: &Compute,
    xs: &[&[f32]],
    ws: &[(Operand<'_>, Arithmetic)],
    m: usize,
) -> Vec<f32> {
    let n = ws.first().map_or(0, |(w, _)| m * w.cols());
    let mut y = Vec::with_capacity(n);
    write(compute, xs, ws, &mut y.spare_capacity_mut()[..n]);
    // SAFETY: every element is written: a tile's sums begin with its first operand, which has rows.
    unsafe { y.set_len(n) };
    y
}

fn write(compute: &Compute, xs: &[&[f32]], ws: &[(Operand<'_>, Arithmetic)], y: &mut [MaybeUninit<f32>]) {
    assert!(xs.len() == ws.len() && !ws.is_empty());
    let k = ws[0].0.cols();
    let m = y.len().checked_div(k).unwrap_or(0);
    assert_eq!(y.len(), m * k);
    let parts: Vec<Part<'_>> = xs
        .iter()
        .zip(ws)
        .map(|(x, (w, arithmetic))| {
            assert!(
                w.cols() == k && w.rows() > 0 && x.len() == m * w.rows(),
                "shapes of a transposed product"
            );
            Part::new(compute, x, *w, *arithmetic)
        })
        .collect();
    run(compute, &parts, m, k, true, y);
}

/// Continues `y[n][k]`, `[N, K]`, by the chain of `a[t][n] * b[t][k]` over ascending t, in f32; a is `[T, N]`, b `[T, K]`.
///
/// # Panics
/// If the lengths disagree.
pub fn accumulate_outer(compute: &Compute, a: &[f32], n: usize, b: &[f32], k: usize, y: &mut [f32]) {
    /// With fewer columns than this the vectors run along the rows instead: products commute, so the bits are the same.
    const NARROW: usize = 32;
    assert_eq!(y.len(), n * k);
    let t = a.len().checked_div(n).unwrap_or(0);
    assert!(a.len() == t * n && b.len() == t * k, "shapes of an outer product");
    if t == 0 || y.is_empty() {
        return;
    }
    if k < NARROW && n > k {
        let mut flipped = transposed(compute, y, k);
        accumulate_outer(compute, b, k, a, n, &mut flipped);
        y.copy_from_slice(&transposed(compute, &flipped, n));
        return;
    }
    let columns = transposed(compute, a, n); // [N, T]
    let part = Part::new(compute, &columns, Operand::Values { values: b, cols: k }, Arithmetic::F32);
    run(compute, &[part], n, k, false, driver::overwritten(y));
}

/// Returns the transpose of x, `[.., cols]`.
fn transposed(compute: &Compute, x: &[f32], cols: usize) -> Vec<f32> {
    /// Rows whose values are gathered together: a cache line of each column.
    const TOGETHER: usize = 16;
    let rows = x.len() / cols;
    let mut out = vec![0.0; x.len()];
    for_row_blocks(&compute.team, &mut out, rows, |first, out| {
        let n = out.len() / rows;
        for start in (0..rows).step_by(TOGETHER) {
            for col in 0..n {
                for row in start..rows.min(start + TOGETHER) {
                    out[col * rows + row] = x[row * cols + first + col];
                }
            }
        }
    });
    out
}

/// An x in the form of its arithmetic, and what it is multiplied by.
struct Part<'a> {
    product: &'static dyn FloatProduct,
    x: &'a [f32],
    x_row_bytes: usize,
    /// x is taken as it lies.
    is_plain: bool,
    w: Operand<'a>,
}

impl<'a> Part<'a> {
    fn new(compute: &Compute, x: &'a [f32], w: Operand<'a>, arithmetic: Arithmetic) -> Self {
        assert!(arithmetic != Arithmetic::Int8, "gradients have no integer codes");
        let product = float::product(compute.isa, arithmetic);
        let is_plain = product.takes_plain_rows() && w.cols() <= driver::NARROW;
        let packed = product.x_row_bytes(w.rows()).next_multiple_of(64);
        Part { product, x, x_row_bytes: if is_plain { 4 * w.rows() } else { packed }, is_plain, w }
    }
}

/// Writes y, or, unless it `begins`, continues what is there.
fn run(compute: &Compute, parts: &[Part<'_>], m: usize, k: usize, begins: bool, y: &mut [MaybeUninit<f32>]) {
    /// The same of w that is decoded, which costs more than to read it.
    const DECODING_TASKS_PER_THREAD: usize = TASKS_PER_THREAD / 2;
    if m == 0 || k == 0 {
        return;
    }
    let bytes = |part: &Part<'_>| if part.is_plain { 0 } else { m * part.x_row_bytes };
    scratch::with(parts.iter().map(bytes).sum(), |packed| {
        let mut rest = &mut *packed;
        let mut xs: Vec<&[u8]> = Vec::with_capacity(parts.len());
        for part in parts {
            if part.is_plain {
                xs.push(driver::plain(part.x));
                continue;
            }
            let (out, behind) = rest.split_at_mut(m * part.x_row_bytes);
            driver::pack(compute, part.x, part.w.rows(), part.product, part.x_row_bytes, out);
            xs.push(out);
            rest = behind;
        }
        let tile_cols = parts.iter().map(|part| part.w.tile_cols()).max().unwrap_or(k);
        let col_tiles = k.div_ceil(tile_cols);
        let each = match parts.iter().any(|part| part.w.is_in_blocks()) {
            true => DECODING_TASKS_PER_THREAD,
            false => TASKS_PER_THREAD,
        };
        let row_tiles = driver::row_tiles(compute.team.threads() * each, col_tiles, m);
        let group = parts.iter().map(|part| part.product.x_group()).max().unwrap_or(1);
        let tile_rows = m.div_ceil(row_tiles).next_multiple_of(group);
        let row_tiles = m.div_ceil(tile_rows);
        let y = Shared::new(y.as_mut_ptr().cast());
        compute.team.run(col_tiles * row_tiles, |task| {
            let (row, col) = (task % row_tiles * tile_rows, task / row_tiles * tile_cols);
            for (i, (part, x)) in parts.iter().zip(&xs).enumerate() {
                part.product.transposed(&mut Tile {
                    x,
                    x_group: part.product.x_group(),
                    x_row_bytes: part.x_row_bytes,
                    shape: [m, k],
                    w: part.w,
                    rows: row..m.min(row + tile_rows),
                    cols: col..k.min(col + tile_cols),
                    begins: begins && i == 0,
                    y: y.at(0),
                });
            }
        });
    });
}
