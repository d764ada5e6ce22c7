//! Weighted sums of rows: `target[t] += sum over s of weight[t][s] * source[s]`, each value one chain of fused
//! multiply-adds over ascending s.

#![allow(clippy::needless_range_loop, reason = "iterator adaptors would leave the instruction set")]

use crate::kernel::kv_cache::PAGE;
use crate::kernel::simd::SimdFma;

/// Targets that are summed at once.
const TARGETS: usize = 4;

/// The sources `first .. end` that a target takes.
pub type Sources = (usize, usize);

/// Rows to be weighted.
#[derive(Clone, Copy)]
pub struct Weighted<'a> {
    /// Weight of source s in target t: `[t * target_stride + s * source_stride]`.
    pub weights: &'a [f32],
    pub target_stride: usize,
    pub source_stride: usize,
    /// `[.., width]`
    pub sources: &'a [f32],
    /// Values of a row: a multiple of 16.
    pub width: usize,
}

impl Weighted<'_> {
    /// Adds to every target its sources; targets are `[ranges.len(), width]`.
    #[inline(always)]
    pub fn add_to<S: SimdFma>(&self, s: S, ranges: &[Sources], targets: &mut [f32]) {
        let mut first = 0;
        while first + TARGETS <= ranges.len() {
            let group =
                Group::new([ranges[first], ranges[first + 1], ranges[first + 2], ranges[first + 3]], first);
            self.add_group(s, &group, targets);
            first += TARGETS;
        }
        while first < ranges.len() {
            self.add_group(s, &Group::new([ranges[first]], first), targets);
            first += 1;
        }
    }

    #[inline(always)]
    fn add_group<S: SimdFma, const J: usize>(&self, s: S, group: &Group<J>, targets: &mut [f32]) {
        let mut column = 0;
        if S::LANES == PAGE {
            // of 32 registers, 16 are sums
            while column + 4 * S::LANES <= self.width {
                self.add_columns::<S, J, 4>(s, group, column, targets);
                column += 4 * S::LANES;
            }
        }
        while column + 2 * S::LANES <= self.width {
            self.add_columns::<S, J, 2>(s, group, column, targets);
            column += 2 * S::LANES;
        }
        if column < self.width {
            self.add_columns::<S, J, 1>(s, group, column, targets);
        }
    }

    #[inline(always)]
    fn add_columns<S: SimdFma, const J: usize, const V: usize>(
        &self,
        s: S,
        group: &Group<J>,
        column: usize,
        targets: &mut [f32],
    ) {
        let mut sums = [[s.splat(0.0); V]; J];
        for j in 0..J {
            let row = &targets[(group.first + j) * self.width + column..][..V * S::LANES];
            for i in 0..V {
                sums[j][i] = s.load(&row[i * S::LANES..]);
            }
        }
        let (common, common_end) = group.common;
        for j in 0..J {
            let (from, to) = group.ranges[j];
            sums[j] = self.add_alone(s, sums[j], group.first + j, (from, to.min(common)), column);
        }
        for source in common..common_end {
            let row = &self.sources[source * self.width + column..][..V * S::LANES];
            let mut v = [s.splat(0.0); V];
            for i in 0..V {
                v[i] = s.load(&row[i * S::LANES..]);
            }
            let weights = &self.weights[source * self.source_stride + group.first * self.target_stride..];
            for j in 0..J {
                let weight = s.splat(weights[j * self.target_stride]);
                for i in 0..V {
                    sums[j][i] = s.mul_add(weight, v[i], sums[j][i]);
                }
            }
        }
        for j in 0..J {
            let (from, to) = group.ranges[j];
            sums[j] = self.add_alone(s, sums[j], group.first + j, (from.max(common_end), to), column);
        }
        for j in 0..J {
            let row = &mut targets[(group.first + j) * self.width + column..][..V * S::LANES];
            for i in 0..V {
                s.store(sums[j][i], &mut row[i * S::LANES..]);
            }
        }
    }

    /// Adds sources that not every target of a group takes to one target.
    #[inline(always)]
    fn add_alone<S: SimdFma, const V: usize>(
        &self,
        s: S,
        mut sums: [S::F32; V],
        target: usize,
        (from, to): Sources,
        column: usize,
    ) -> [S::F32; V] {
        for source in from..to {
            let row = &self.sources[source * self.width + column..][..V * S::LANES];
            let weight = self.weights[target * self.target_stride + source * self.source_stride];
            for i in 0..V {
                sums[i] = s.mul_add(s.splat(weight), s.load(&row[i * S::LANES..]), sums[i]);
            }
        }
        sums
    }
}

/// Neighbouring targets, and the sources that all of them take.
struct Group<const J: usize> {
    ranges: [Sources; J],
    common: Sources,
    first: usize,
}

impl<const J: usize> Group<J> {
    #[inline(always)]
    fn new(ranges: [Sources; J], first: usize) -> Self {
        let (mut from, mut to) = ranges[0];
        for j in 1..J {
            from = from.max(ranges[j].0);
            to = to.min(ranges[j].1);
        }
        // an empty range ends where some target's begins, so that nothing is taken twice
        Group { ranges, common: (from, to.max(from)), first }
    }
}
