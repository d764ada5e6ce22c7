//! The scale search of Q3_K without importance: coordinate descent over the levels, one sub-block per lane.
//!
//! Most sub-blocks keep the levels they start with, and a vector is only done when all its lanes are. So all
//! sub-blocks are first tested for a move, which has no long chain of dependent operations; those that
//! have one are gathered and only they descend.

use super::symmetric::{EPS, SUB_LEN, level, level_of_small, signed_max};
use crate::kernel::simd::Simd;

/// Passes over the levels at most.
const MAX_PASSES: usize = 5;
const MAX_LANES: usize = 16;

/// Sums of w x l and of w l l over a sub-block's levels l; the best scale for them is xl / ll.
#[derive(Clone, Copy)]
struct Sums<S: Simd> {
    xl: S::F32,
    ll: S::F32,
}

/// What one step makes of a level.
struct Step<S: Simd> {
    level: S::F32,
    sums: Sums<S>,
    moved: S::Mask,
}

/// Sub-blocks with levels of -nmax ..= nmax - 1 and weights w = x^2.
#[derive(Clone, Copy)]
struct Descent<S: Simd> {
    x: [S::F32; SUB_LEN],
    w: [S::F32; SUB_LEN],
    /// w * x
    wx: [S::F32; SUB_LEN],
    levels: [S::F32; SUB_LEN],
    sums: Sums<S>,
    /// Lanes that do not reach [`EPS`].
    negligible: S::Mask,
    nmax: i32,
}

impl<S: Simd> Descent<S> {
    #[inline(always)]
    fn zeros(s: S, nmax: i32) -> Descent<S> {
        let zero = s.splat(0.0);
        let (zeros, sums) = ([zero; SUB_LEN], Sums { xl: zero, ll: zero });
        Descent { x: zeros, w: zeros, wx: zeros, levels: zeros, sums, negligible: s.eq(zero, zero), nmax }
    }

    /// Starts over with sub-blocks that lie one after the other, at the levels of scale max / -nmax.
    #[inline(always)]
    fn start(&mut self, s: S, x: &[f32]) {
        s.transpose(x, SUB_LEN, &mut self.x);
        let max = signed_max(s, &self.x);
        self.negligible = s.lt(s.abs(max), s.splat(EPS)); // its levels and sums become 0
        let inverse = s.splat(-self.nmax as f32) / s.select(self.negligible, s.splat(1.0), max);
        let (mut xl, mut ll) = (s.splat(0.0), s.splat(0.0));
        for i in 0..SUB_LEN {
            let x = self.x[i];
            let (w, l) = (x * x, level_of_small(s, inverse * x, self.nmax));
            let wx = w * x;
            (self.w[i], self.wx[i], self.levels[i]) = (w, wx, l);
            xl = xl + wx * l;
            ll = ll + w * l * l;
        }
        self.sums = Sums { xl, ll };
    }

    /// Moves level `i` to the best for the fit of the others, where that improves the fit.
    #[inline(always)]
    fn step(&self, s: S, i: usize, sums: Sums<S>) -> Step<S> {
        let (w, wx, old) = (self.w[i], self.wx[i], self.levels[i]);
        let without_xl = sums.xl - wx * old;
        let without_ll = sums.ll - w * old * old;
        let new = level(s, self.x[i] * without_ll / without_xl, self.nmax);
        let (xl, ll) = (without_xl + wx * new, without_ll + w * new * new);
        let zero = s.splat(0.0);
        let moved = s.gt(without_xl, zero)
            & !s.eq(new, old)
            & s.gt(ll, zero)
            & s.gt(xl * xl * sums.ll, sums.xl * sums.xl * ll);
        let sums = Sums { xl: s.select(moved, xl, sums.xl), ll: s.select(moved, ll, sums.ll) };
        Step { level: s.select(moved, new, old), sums, moved }
    }

    /// Returns the lanes in which some level would move.
    #[inline(always)]
    fn unsettled(&self, s: S) -> S::Mask {
        let mut moved = self.step(s, 0, self.sums).moved;
        for i in 1..SUB_LEN {
            moved = moved | self.step(s, i, self.sums).moved;
        }
        moved
    }

    /// Returns every lane's scale.
    #[inline(always)]
    fn scale(&self, s: S) -> S::F32 {
        let zero = s.splat(0.0);
        s.select(s.gt(self.sums.ll, zero), self.sums.xl / self.sums.ll, zero)
    }
}

/// Descends to the end. A lane without a move in one pass has none in the next, so lanes that are done need
/// no mask. Two vectors at a time: one step is a long chain of dependent operations.
#[inline(always)]
fn descend<S: Simd>(s: S, pair: &mut [Descent<S>; 2]) {
    let mut sums = [pair[0].sums, pair[1].sums];
    // a second copy of the levels: selecting in place compiles to masked stores, which are slow to read back
    let (mut next0, mut next1) = (pair[0].levels, pair[1].levels);
    for _pass in 0..MAX_PASSES {
        let mut moved = false;
        for (i, (first, second)) in next0.iter_mut().zip(&mut next1).enumerate() {
            let (a, b) = (pair[0].step(s, i, sums[0]), pair[1].step(s, i, sums[1]));
            (*first, *second, sums) = (a.level, b.level, [a.sums, b.sums]);
            moved |= s.any(a.moved | b.moved);
        }
        if !moved {
            break;
        }
        (pair[0].levels, pair[1].levels) = (next0, next1);
    }
    (pair[0].sums, pair[1].sums) = (sums[0], sums[1]);
}

/// Descends from two vectors of sub-blocks that lie one after the other.
#[inline(always)]
fn start_and_descend<S: Simd>(s: S, x: &[f32], pair: &mut [Descent<S>; 2]) {
    let (first, second) = x.split_at(S::LANES * SUB_LEN);
    pair[0].start(s, first);
    pair[1].start(s, second);
    descend(s, pair);
}

/// Sub-blocks that wait to descend together.
struct Queue {
    x: [f32; 3 * MAX_LANES * SUB_LEN],
    /// Which sub-block each one is.
    index: [usize; 3 * MAX_LANES],
    len: usize,
}

impl Queue {
    #[inline(always)]
    fn push(&mut self, x: &[f32], index: usize) {
        self.x[self.len * SUB_LEN..][..SUB_LEN].copy_from_slice(x);
        self.index[self.len] = index;
        self.len += 1;
    }

    /// Descends from two vectors' worth, or what there is, and writes their scales.
    #[inline(always)]
    fn flush<S: Simd>(&mut self, s: S, pair: &mut [Descent<S>; 2], scales: &mut [f32]) {
        let (lanes, done) = (2 * S::LANES, self.len.min(2 * S::LANES));
        self.x[done * SUB_LEN..lanes * SUB_LEN].fill(0.0);
        start_and_descend(s, &self.x[..lanes * SUB_LEN], pair);
        let mut found = [0.0f32; 2 * MAX_LANES];
        s.store(pair[0].scale(s), &mut found);
        s.store(pair[1].scale(s), &mut found[S::LANES..]);
        for (scale, index) in found.iter().zip(&self.index[..done]) {
            scales[*index] = *scale;
        }
        self.x.copy_within(lanes * SUB_LEN.., 0);
        self.index.copy_within(lanes.., 0);
        self.len -= done;
    }
}

/// Writes the scales of sub-blocks that lie one after the other; their number is a multiple of 16.
#[inline(always)]
pub(super) fn search_scales<S: Simd>(s: S, x: &[f32], nmax: i32, scales: &mut [f32]) {
    let mut queue = Queue { x: [0.0; 3 * MAX_LANES * SUB_LEN], index: [0; 3 * MAX_LANES], len: 0 };
    let mut start = Descent::zeros(s, nmax);
    let mut pair = [Descent::zeros(s, nmax), Descent::zeros(s, nmax)];
    let mut next = 0;
    while next < scales.len() || queue.len > 0 {
        while next < scales.len() && queue.len < 2 * S::LANES {
            let vector = &x[next * SUB_LEN..][..S::LANES * SUB_LEN];
            start.start(s, vector);
            s.store(start.scale(s), &mut scales[next..]);
            let mut unsettled = s.mask_bits(start.unsettled(s));
            while unsettled != 0 {
                let lane = unsettled.trailing_zeros() as usize;
                queue.push(&vector[lane * SUB_LEN..][..SUB_LEN], next + lane);
                unsettled &= unsettled - 1;
            }
            next += S::LANES;
        }
        queue.flush(s, &mut pair, scales);
    }
}

/// Writes the levels + nmax that the search ends with, for 16 sub-blocks; 0 where one does not reach [`EPS`].
#[inline(always)]
pub(super) fn search_levels<S: Simd>(s: S, x: &[f32], nmax: i32, out: &mut [u8]) {
    let mut padded = [0.0f32; 2 * MAX_LANES * SUB_LEN];
    padded[..x.len()].copy_from_slice(x);
    let mut pair = [Descent::zeros(s, nmax), Descent::zeros(s, nmax)];
    start_and_descend(s, &padded[..2 * S::LANES * SUB_LEN], &mut pair);
    let mut values = [0.0f32; MAX_LANES];
    for (descent, out) in pair.iter().zip(out.chunks_exact_mut(S::LANES * SUB_LEN)) {
        for (i, level) in descent.levels.iter().enumerate() {
            let stored = *level + s.splat(nmax as f32);
            s.store(s.select(descent.negligible, s.splat(0.0), stored), &mut values);
            for (out, value) in out.chunks_exact_mut(SUB_LEN).zip(values) {
                out[i] = value as u8;
            }
        }
    }
}
