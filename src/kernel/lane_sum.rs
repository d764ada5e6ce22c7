//! Sums of f32 in one fixed order, whatever the vector width.
//!
//! Value i of a chunk of 4096 is added to virtual lane i % 64, ascending; the lanes of a chunk by a tree (64 lanes
//! to 32, lane l and l + 32, and so on); the chunks one after another. Short chains keep the rounding error small: some
//! 1e-7 of the sum of magnitudes for any length met here.

use super::simd::SimdFma;

const LANES: usize = 64;
const CHUNK: usize = 4096;

/// How a value enters its lane.
pub(crate) trait LaneSum {
    fn add<S: SimdFma>(&self, s: S, sum: S::F32, x: S::F32) -> S::F32;
}

/// Returns the sum of all values, each as `term` adds it, from +0.
#[inline(always)]
pub(crate) fn sum<S: SimdFma>(s: S, values: &[f32], term: &impl LaneSum) -> f32 {
    let mut total = 0.0;
    for chunk in values.chunks(CHUNK) {
        total += chunk_sum(s, chunk, term);
    }
    total
}

#[inline(always)]
fn chunk_sum<S: SimdFma>(s: S, chunk: &[f32], term: &impl LaneSum) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut blocks = chunk.chunks_exact(LANES);
    // at most 8 vectors of 8 lanes; those beyond LANES / S::LANES stay unused
    let mut sums = [s.splat(0.0); 8];
    for block in &mut blocks {
        for i in 0..LANES / S::LANES {
            sums[i] = term.add(s, sums[i], s.load(&block[i * S::LANES..]));
        }
    }
    for i in 0..LANES / S::LANES {
        s.store(sums[i], &mut lanes[i * S::LANES..]);
    }
    let rest = blocks.remainder();
    if !rest.is_empty() {
        let mut padded = [0.0; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        let mut with_rest = [0.0; LANES];
        for at in (0..LANES).step_by(S::LANES) {
            let added = term.add(s, s.load(&lanes[at..]), s.load(&padded[at..]));
            s.store(added, &mut with_rest[at..]);
        }
        lanes[..rest.len()].copy_from_slice(&with_rest[..rest.len()]);
    }
    tree(&mut lanes)
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
