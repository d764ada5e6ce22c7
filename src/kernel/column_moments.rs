//! Running sums of a matrix's columns: of the values, and of their squares.
//!
//! Each sum is one chain of f64 additions over ascending rows, whatever the threads and the width of vectors. The square of an
//! f32 is exact in f64, so a sum of n values has a relative error below `n * 2^-53`.

use super::Compute;
use super::disjoint::DisjointMut;
use super::simd::{Kernel, Simd, dispatch};

/// Columns of a task: their running sums, 16 bytes each, stay in the first cache while the rows pass.
const COLUMNS: usize = 256;

/// Values below which one thread is quicker.
const GRAIN: usize = 16 * 1024;

/// Adds the rows of x, `[T, columns]`, to the running sums of their columns: `sums[c] += x[t][c]` and `squares[c] += x[t][c]^2`,
/// t ascending.
///
/// # Panics
/// If the sums are not of one length, or x is no whole rows of it.
pub fn add_column_moments(compute: &Compute, x: &[f32], sums: &mut [f64], squares: &mut [f64]) {
    let columns = sums.len();
    assert_eq!(columns, squares.len());
    assert!(x.len().is_multiple_of(columns.max(1)));
    let (sums, squares) = (DisjointMut::new(sums), DisjointMut::new(squares));
    let work = |from: usize, to: usize| {
        // SAFETY: every task has its own columns.
        let (sums, squares) = unsafe { (sums.part(from..to), squares.part(from..to)) };
        dispatch(compute.isa, Moments { x, columns, from, sums, squares });
    };
    match x.len() < GRAIN {
        true => work(0, columns),
        false => compute.team.run(columns.div_ceil(COLUMNS), |task| {
            work(task * COLUMNS, columns.min((task + 1) * COLUMNS));
        }),
    }
}

struct Moments<'a> {
    x: &'a [f32],
    columns: usize,
    from: usize,
    sums: &'a mut [f64],
    squares: &'a mut [f64],
}

impl Kernel for Moments<'_> {
    type Output = ();

    // The vocabulary has no f64. Columns are independent, so the compiler may use vectors of any width without changing a bit.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Moments { x, columns, from, sums, squares } = self;
        for row in x.chunks_exact(columns.max(1)) {
            let row = &row[from..from + sums.len()];
            for ((sum, square), x) in sums.iter_mut().zip(squares.iter_mut()).zip(row) {
                let x = f64::from(*x);
                *sum += x;
                *square += x * x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Isa;

    #[test]
    fn every_level_and_team_gives_the_chain_over_rows() {
        for (rows, columns) in [(1, 1), (3, 7), (0, 5), (70, 300), (129, 517)] {
            // spread over many magnitudes, so that another order shows
            let value = |i: usize| ((i * 7919 % 1013) as f32 - 506.0) * 2f32.powi((i * 31 % 40) as i32 - 20);
            let x: Vec<f32> = (0..rows * columns).map(value).collect();
            let mut expected = (vec![0.5; columns], vec![0.25; columns]);
            for (i, x) in x.iter().enumerate() {
                expected.0[i % columns] += f64::from(*x);
                expected.1[i % columns] += f64::from(*x) * f64::from(*x);
            }
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let compute = Compute::new(isa, threads).unwrap();
                    let (mut sums, mut squares) = (vec![0.5; columns], vec![0.25; columns]);
                    // a cut between rows changes nothing
                    let (head, tail) = x.split_at(rows / 2 * columns);
                    add_column_moments(&compute, head, &mut sums, &mut squares);
                    add_column_moments(&compute, tail, &mut sums, &mut squares);
                    assert_eq!((&sums, &squares), (&expected.0, &expected.1), "{isa:?} {threads} {rows}");
                }
            }
        }
    }
}
