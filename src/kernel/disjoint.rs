//! One slice written by many tasks, each its own part.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// A mutable slice whose parts are handed to tasks that run at the same time.
pub(crate) struct DisjointMut<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out parts that the callers of `part` promise not to overlap.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        DisjointMut { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// Returns the part `range`.
    ///
    /// # Panics
    /// If `range` leaves the slice.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that parts are disjoint")]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies in the slice borrowed for 'a, and the caller promises that nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Splits `values` into parts of whole rows of `row_len` and calls `work(first_row, part)` for each, on all threads
/// where there is enough to do.
pub(crate) fn for_row_blocks<T: Send>(
    team: &super::Team,
    values: &mut [T],
    row_len: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    /// Values that are worth a task: some microseconds of elementwise work.
    const GRAIN: usize = 16 * 1024;
    if row_len == 0 || values.is_empty() {
        return;
    }
    let n_rows = values.len() / row_len;
    let rows_per_task = GRAIN.div_ceil(row_len);
    let n_tasks = n_rows.div_ceil(rows_per_task);
    if n_tasks <= 1 || team.threads() == 1 {
        return work(0, values);
    }
    let shared = DisjointMut::new(values);
    team.run(n_tasks, |task| {
        let rows = task * rows_per_task..n_rows.min((task + 1) * rows_per_task);
        // SAFETY: every task has its own rows.
        let part = unsafe { shared.part(rows.start * row_len..rows.end * row_len) };
        work(rows.start, part);
    });
}

/// Returns `n` values that `work(first_row, part)` writes, cut as by [`for_row_blocks`]; a part is zero before.
///
/// A part is zeroed just before it is written, in the cache: zeros for the whole would go through memory.
///
/// # Panics
/// If `n` is no whole rows.
pub(crate) fn written_by_row_blocks(
    team: &super::Team,
    n: usize,
    row_len: usize,
    work: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    assert!(n.is_multiple_of(row_len));
    let mut values = Vec::with_capacity(n);
    let spare = &mut values.spare_capacity_mut()[..n];
    for_row_blocks(team, spare, row_len, |first_row, part: &mut [MaybeUninit<f32>]| {
        part.fill(MaybeUninit::new(0.0));
        // SAFETY: the same layout, and the values were just written.
        let part = unsafe { std::slice::from_raw_parts_mut(part.as_mut_ptr().cast::<f32>(), part.len()) };
        work(first_row, part);
    });
    // SAFETY: the parts are all of the n values (whole rows; none without a row length, which only n = 0 is a multiple of), and
    // each was filled with zeros.
    unsafe { values.set_len(n) };
    values
}

/// [`for_row_blocks`] over two slices of one length: `work(first_row, part of a, part of b)`.
pub(crate) fn for_row_block_pairs<T: Send>(
    team: &super::Team,
    a: &mut [T],
    b: &mut [T],
    row_len: usize,
    work: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) {
    assert_eq!(a.len(), b.len());
    let b = DisjointMut::new(b);
    for_row_blocks(team, a, row_len, |first_row, a| {
        let start = first_row * row_len;
        // SAFETY: the parts of b lie as those of a, which are disjoint.
        let part = unsafe { b.part(start..start + a.len()) };
        work(first_row, a, part);
    });
}
