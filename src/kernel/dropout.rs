//! Dropout by counters (arXiv:1207.0580): a value's fate depends on its address alone, so that it is drawn again in the
//! backward, and is the same however documents are packed and steps are cut.

use super::Compute;
use super::disjoint::for_row_blocks;
use super::philox::{Philox, Purpose};
use super::simd::{Kernel, Simd, dispatch};

/// Which step and which module of a model values are dropped in, and where their rows stand.
#[derive(Clone, Copy, Debug)]
pub struct MaskKey<'a> {
    pub seed: u64,
    pub step: u32,
    /// Index of the module among all that drop.
    pub module: u32,
    /// One per row.
    pub rows: &'a [RowPlace],
}

/// Where a row stands in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPlace {
    /// Index of the document within the step.
    pub document: u32,
    /// Position in the document.
    pub position: u32,
}

/// Replaces every value of x, `[R, row_len]`, by 0 with probability `rate`, else by `x * (1 / (1 - rate))`.
///
/// Column c of a row is kept iff word `c % 64 / 16` of block `c / 64 * 16 + c % 16` is at least `rate * 2^32`; blocks are
/// those of step `position` in the stream of (step, `module * 2^32 + document`) of `Philox::new(seed, Dropout)`.
///
/// # Panics
/// Unless `0 <= rate < 1` and x has as many rows as the key.
pub fn dropout(compute: &Compute, x: &mut [f32], row_len: usize, rate: f32, key: &MaskKey<'_>) {
    assert!((0.0..1.0).contains(&rate));
    assert_eq!(x.len(), row_len * key.rows.len());
    if rate == 0.0 {
        return;
    }
    let seeded = Philox::new(key.seed, Purpose::Dropout);
    // below 2^32, since a rate is at most 1 - 2^-24
    let threshold = (f64::from(rate) * 4_294_967_296.0) as u32;
    let factor = 1.0 / (1.0 - rate);
    for_row_blocks(&compute.team, x, row_len, |first_row, x| {
        for (x, row) in x.chunks_exact_mut(row_len).zip(&key.rows[first_row..]) {
            let index = u64::from(key.module) << 32 | u64::from(row.document);
            let stream = seeded.stream(key.step, index);
            dispatch(compute.isa, Drop { x, stream, position: row.position, threshold, factor });
        }
    });
}

struct Drop<'a> {
    x: &'a mut [f32],
    stream: Philox,
    position: u32,
    threshold: u32,
    factor: f32,
}

impl Kernel for Drop<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let mut index = 0;
        for x in self.x.chunks_mut(64) {
            let words = self.stream.blocks(self.position, index);
            for (x, word) in x.iter_mut().zip(words.as_flattened()) {
                *x = if *word >= self.threshold { *x * self.factor } else { 0.0 };
            }
            index += 16;
        }
    }
}
