//! Sums of f32 in one fixed order, whatever the vector width.
//!
//! Value i of a chunk of 4096 is added to virtual lane i % 64, ascending; the lanes of a chunk by a tree (64 lanes
//! to 32, lane l and l + 32, and so on); the chunks one after another. Short chains keep the rounding error small: some
//! 1e-7 of the sum of magnitudes for any length met here.

#![allow(clippy::needless_range_loop, reason = "iterator adaptors would leave the instruction set")]

use super::Isa;
use super::simd::{FmaKernel, SimdFma, dispatch_fma};

const LANES: usize = 64;
const CHUNK: usize = 4096;

/// How the i-th values of N slices enter their lane.
pub(crate) trait LaneSum<const N: usize> {
    fn add<S: SimdFma>(&self, s: S, sum: S::F32, x: [S::F32; N]) -> S::F32;
}

/// Adds products, each fused.
pub(crate) struct Dot;

impl LaneSum<2> for Dot {
    #[inline(always)]
    fn add<S: SimdFma>(&self, s: S, sum: S::F32, [x, y]: [S::F32; 2]) -> S::F32 {
        s.mul_add(x, y, sum)
    }
}

/// Returns the sum over i of what `term` makes of the i-th values, from +0; all slices are as long as the first.
#[inline(always)]
pub(crate) fn sum<S: SimdFma, const N: usize>(s: S, slices: [&[f32]; N], term: &impl LaneSum<N>) -> f32 {
    let len = slices[0].len();
    let mut total = 0.0;
    let mut start = 0;
    while start < len {
        let end = len.min(start + CHUNK);
        let mut chunks: [&[f32]; N] = [&[]; N];
        for n in 0..N {
            chunks[n] = &slices[n][start..end];
        }
        total += chunk_sum(s, chunks, term);
        start = end;
    }
    total
}

#[inline(always)]
fn chunk_sum<S: SimdFma, const N: usize>(s: S, chunks: [&[f32]; N], term: &impl LaneSum<N>) -> f32 {
    let len = chunks[0].len();
    let mut lanes = [0.0; LANES];
    // at most 8 vectors of 8 lanes; those beyond LANES / S::LANES stay unused
    let mut sums = [s.splat(0.0); 8];
    let mut start = 0;
    while start + LANES <= len {
        for i in 0..LANES / S::LANES {
            let mut x = [sums[i]; N];
            for n in 0..N {
                x[n] = s.load(&chunks[n][start + i * S::LANES..start + LANES]);
            }
            sums[i] = term.add(s, sums[i], x);
        }
        start += LANES;
    }
    for i in 0..LANES / S::LANES {
        s.store(sums[i], &mut lanes[i * S::LANES..]);
    }
    let n_rest = len - start;
    if n_rest > 0 {
        let mut padded = [[0.0; LANES]; N];
        for n in 0..N {
            padded[n][..n_rest].copy_from_slice(&chunks[n][start..]);
        }
        let mut with_rest = [0.0; LANES];
        for at in (0..LANES).step_by(S::LANES) {
            let mut x = [s.splat(0.0); N];
            for n in 0..N {
                x[n] = s.load(&padded[n][at..]);
            }
            s.store(term.add(s, s.load(&lanes[at..]), x), &mut with_rest[at..]);
        }
        lanes[..n_rest].copy_from_slice(&with_rest[..n_rest]);
    }
    tree(&mut lanes)
}

/// Returns the dot of x and y.
///
/// # Panics
/// If y is shorter.
pub(crate) fn dot(isa: Isa, x: &[f32], y: &[f32]) -> f32 {
    dispatch_fma(isa, DotOf(x, y))
}

struct DotOf<'a>(&'a [f32], &'a [f32]);

impl FmaKernel for DotOf<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) -> f32 {
        sum(s, [self.0, self.1], &Dot)
    }
}

/// Adds the upper half to the lower one until one lane is left; the length is a power of two.
#[inline(always)]
pub(crate) fn tree(lanes: &mut [f32]) -> f32 {
    let mut width = lanes.len() / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}
