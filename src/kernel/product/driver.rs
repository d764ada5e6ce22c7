//! How a product is cut into tasks, whatever its arithmetic.
//!
//! x is packed once into the arithmetic's own form. Then y is cut into tiles, each of some rows of x and
//! some rows of w over all of k, and the team computes them in any order: no element's value depends on the cut.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Arithmetic, Compute, Matrix, scratch};

/// An arithmetic on an instruction set, as the driver sees it.
pub trait Product: Sync {
    /// Returns how many rows of x are packed together: groups and tiles begin at multiples of it.
    fn x_group(&self) -> usize;

    /// Returns how many rows of w are best computed together: tiles begin at multiples of it.
    fn w_group(&self) -> usize;

    /// Returns the bytes of a packed row of x of `k` values (the driver rounds them up to 64).
    fn x_row_bytes(&self, k: usize) -> usize;

    /// Returns true if rows of x may also be taken as they lie, in f32 without padding.
    fn takes_plain_rows(&self) -> bool {
        false
    }

    /// Packs a group of `x.len() / k` rows of x, row-major, at most [`Product::x_group`], into all of `out`,
    /// which is 64-aligned and has `rows * x_row_bytes(k).next_multiple_of(64)` bytes of unspecified content.
    fn pack_x(&self, x: &[f32], k: usize, out: &mut [u8]);

    /// Writes every element of the tile of y.
    fn tile(&self, tile: &mut Tile<'_>);
}

/// A task: the products of rows of x with rows of w.
pub struct Tile<'a> {
    x: &'a [u8],
    x_group: usize,
    x_row_bytes: usize,
    /// Rows of the whole x.
    m: usize,
    pub w: &'a Matrix,
    /// Rows of x (of y); begins at a multiple of the x group, ends at one or at the last row.
    pub rows: Range<usize>,
    /// Rows of w (columns of y); begins at a multiple of the w group.
    pub cols: Range<usize>,
    /// See [`Job::add_scaled`].
    pub add_scaled: Option<f32>,
    y: *mut f32,
}

impl<'a> Tile<'a> {
    /// Returns the packed groups of the tile's rows: the row of x that each begins with, the rows in it, and its bytes.
    #[inline]
    pub fn x_groups(&self) -> impl Iterator<Item = (usize, usize, &'a [u8])> + use<'a> {
        let (x, group, row_bytes, m) = (self.x, self.x_group, self.x_row_bytes, self.m);
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

    /// Writes `values` to the elements of `y[row]` from column `col` of w on.
    ///
    /// # Panics
    /// If they are not all in the tile.
    #[inline]
    pub fn write(&mut self, row: usize, col: usize, values: &[f32]) {
        assert!(self.cols.start <= col && col + values.len() <= self.cols.end);
        let (y, _) = self.y_address(row);
        // SAFETY: the columns are in the tile, whose elements nobody else has.
        unsafe { y.add(col - self.cols.start).copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    }

    /// Returns the address of `y[row][cols.start]`, and how many elements apart rows are.
    ///
    /// # Panics
    /// If `row` is not in `rows`.
    #[inline]
    pub fn y_address(&mut self, row: usize) -> (*mut f32, usize) {
        assert!(self.rows.contains(&row));
        let n = self.w.rows();
        // SAFETY: y has m * w.rows() elements, row < m and cols.end <= w.rows(); tiles of a product are disjoint.
        (unsafe { self.y.add(row * n + self.cols.start) }, n)
    }
}

/// The address of a result that tasks write, each its own part.
#[derive(Clone, Copy)]
pub struct Shared<T>(*mut T);

// SAFETY: tasks write disjoint elements through it, and the driver holds the exclusive borrow while they run.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Returns the address as one that tasks share.
    pub fn new(address: *mut T) -> Self {
        Shared(address)
    }

    /// Returns the address of element `i`; a method, so that closures capture the whole.
    pub fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

/// One of the products on an x: `y[m][n] = x[m] . w[n]`.
pub struct Job<'a> {
    /// Jobs of one arithmetic share the packed x.
    pub arithmetic: Arithmetic,
    pub product: &'static dyn Product,
    pub w: &'a Matrix,
    /// Every element is written.
    pub y: &'a mut [MaybeUninit<f32>],
    /// Add so many times the products to y, which is initialised then.
    pub add_scaled: Option<f32>,
}

/// Returns initialised memory as one that need not be.
pub fn overwritten(y: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the same layout; jobs only ever write numbers.
    unsafe { std::slice::from_raw_parts_mut(y.as_mut_ptr().cast(), y.len()) }
}

/// x below this many values is packed by the caller alone.
const PARALLEL_PACK: usize = 1 << 15;
/// Tasks per thread, so that a thread that was held up is not waited for long.
pub const TASKS_PER_THREAD: usize = 8;
/// The least rows of x in a tile: with fewer, packing w again costs more than a balanced load gains.
const LEAST_ROWS: usize = 64;
/// With so many rows of x a tile of one group of w's rows is work enough, and threads that go over neighbouring ones end together.
const MANY_ROWS: usize = 128;

/// Returns into how many tiles m rows are cut where their columns are cut into `col_tiles`, for about `wanted` tasks. w is packed
/// again for each, so rows are cut only where columns leave threads idle.
pub fn row_tiles(wanted: usize, col_tiles: usize, m: usize) -> usize {
    let nearest = (wanted + col_tiles / 2) / col_tiles;
    nearest.min(m.div_ceil(LEAST_ROWS)).max(1)
}

/// With no more rows of w than this, x is taken as it lies where it can be: packing would read and write as much as the
/// product reads.
pub const NARROW: usize = 64;

/// Computes products on the same `x`, `[m, k]` row-major, tiles of all of them in one parallel region.
pub fn run(compute: &Compute, x: &[f32], k: usize, jobs: &mut [Job<'_>]) {
    let m = x.len() / k;
    let mut forms: Vec<Form> = Vec::new();
    let mut bytes = 0;
    for job in jobs.iter() {
        let is_plain = job.product.takes_plain_rows() && job.w.rows() <= NARROW;
        if forms.iter().any(|form| form.fits(job.arithmetic, is_plain)) {
            continue;
        }
        let (row_bytes, start) = match is_plain {
            true => (4 * k, None),
            false => (job.product.x_row_bytes(k).next_multiple_of(64), Some(bytes)),
        };
        forms.push(Form { arithmetic: job.arithmetic, product: job.product, row_bytes, start });
        bytes += if is_plain { 0 } else { m * row_bytes };
    }
    scratch::with(bytes, |packed| {
        for form in &forms {
            let Some(start) = form.start else { continue };
            let out = &mut packed[start..][..m * form.row_bytes];
            pack(compute, x, k, form.product, form.row_bytes, out);
        }
        multiply(compute, m, &forms, (plain(x), packed), jobs);
    });
}

/// x in the form of an arithmetic.
struct Form {
    arithmetic: Arithmetic,
    product: &'static dyn Product,
    row_bytes: usize,
    /// Where it begins in the packed bytes; `None`: x as it lies.
    start: Option<usize>,
}

impl Form {
    fn fits(&self, arithmetic: Arithmetic, is_plain: bool) -> bool {
        self.arithmetic == arithmetic && self.start.is_none() == is_plain
    }
}

/// Returns the bytes of x as it lies.
pub fn plain(x: &[f32]) -> &[u8] {
    // SAFETY: every f32 is four bytes without padding.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}

/// Packs `x`, `[m, k]` row-major, into `out`, rows `row_bytes` apart.
pub fn pack(compute: &Compute, x: &[f32], k: usize, product: &dyn Product, row_bytes: usize, out: &mut [u8]) {
    let group = product.x_group();
    let (x_group, out_group) = (group * k, group * row_bytes);
    if x.len() < PARALLEL_PACK {
        for (x, out) in x.chunks(x_group).zip(out.chunks_mut(out_group)) {
            product.pack_x(x, k, out);
        }
        return;
    }
    let out_len = out.len();
    let out = Shared(out.as_mut_ptr());
    compute.team.run(x.len().div_ceil(x_group), |i| {
        let x = &x[i * x_group..x.len().min((i + 1) * x_group)];
        let range = i * out_group..out_len.min((i + 1) * out_group);
        // SAFETY: the range lies in `out`, which is borrowed exclusively; the ranges of tasks are disjoint.
        let out = unsafe { std::slice::from_raw_parts_mut(out.at(range.start), range.len()) };
        product.pack_x(x, k, out);
    });
}

/// How a job is cut: its tiles are the task numbers from `first_task`, columns fastest.
struct Cut<'a> {
    product: &'static dyn Product,
    w: &'a Matrix,
    y: Shared<f32>,
    add_scaled: Option<f32>,
    x: &'a [u8],
    row_bytes: usize,
    first_task: usize,
    tile_rows: usize,
    tile_cols: usize,
    col_tiles: usize,
}

fn multiply(
    compute: &Compute,
    m: usize,
    forms: &[Form],
    (plain, packed): (&[u8], &[u8]),
    jobs: &mut [Job<'_>],
) {
    let n_all: usize = jobs.iter().map(|job| job.w.rows()).sum();
    let wanted = compute.team.threads() * TASKS_PER_THREAD;
    let cols_wanted = if m < MANY_ROWS { n_all.div_ceil(wanted) } else { 1 };
    let mut n_tasks = 0;
    let mut cuts = Vec::with_capacity(jobs.len());
    for job in jobs {
        // Every job's arithmetic has a form: `run` made them from the same jobs.
        let is_plain = job.product.takes_plain_rows() && job.w.rows() <= NARROW;
        let Some(form) = forms.iter().find(|form| form.fits(job.arithmetic, is_plain)) else { continue };
        let n = job.w.rows();
        let (x_group, w_group) = (job.product.x_group(), job.product.w_group());
        let tile_cols = cols_wanted.next_multiple_of(w_group);
        let col_tiles = n.div_ceil(tile_cols);
        let row_tiles = row_tiles((wanted * n).div_ceil(n_all), col_tiles, m);
        let tile_rows = m.div_ceil(row_tiles).next_multiple_of(x_group);
        cuts.push(Cut {
            product: job.product,
            w: job.w,
            y: Shared(job.y.as_mut_ptr().cast()),
            add_scaled: job.add_scaled,
            x: form.start.map_or(plain, |start| &packed[start..][..m * form.row_bytes]),
            row_bytes: form.row_bytes,
            first_task: n_tasks,
            tile_rows,
            tile_cols,
            col_tiles,
        });
        n_tasks += col_tiles * m.div_ceil(tile_rows);
    }
    compute.team.run(n_tasks, |task| {
        let cut = &cuts[cuts.partition_point(|cut| cut.first_task <= task) - 1];
        let at = task - cut.first_task;
        let (row, col) = (at / cut.col_tiles * cut.tile_rows, at % cut.col_tiles * cut.tile_cols);
        cut.product.tile(&mut Tile {
            x: cut.x,
            x_group: cut.product.x_group(),
            x_row_bytes: cut.row_bytes,
            m,
            w: cut.w,
            rows: row..m.min(row + cut.tile_rows),
            cols: col..cut.w.rows().min(col + cut.tile_cols),
            add_scaled: cut.add_scaled,
            y: cut.y.at(0),
        });
    });
}

#[cfg(test)]
mod tests {
    use super::row_tiles;

    #[test]
    fn rows_are_cut_where_columns_are_too_few() {
        let cut = |wanted, col_tiles| row_tiles(wanted, col_tiles, 512);
        assert_eq!([cut(16, 1), cut(16, 3), cut(16, 8), cut(16, 11), cut(16, 117)], [8, 5, 2, 1, 1]);
        assert_eq!([row_tiles(16, 1, 1), row_tiles(16, 1, 65), row_tiles(0, 1, 512)], [1, 2, 1]);
    }
}
