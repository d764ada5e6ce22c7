//! One task: blocks of rows, and for each the blocks of keys it sees.

#![allow(clippy::needless_range_loop, reason = "iterator adaptors would leave the instruction set")]

use std::ops::Range;

use super::gemm::Weighted;
use super::scores::{BLOCK_KEYS, BLOCK_ROWS, Rows, Scores, Tiles, score};
use super::{Saved, Shared, Task, Wanted};
use crate::kernel::attention::AttentionShape;
use crate::kernel::attention::documents::{DocumentRows, Strided, Transposed};
use crate::kernel::kv_cache::PAGE;
use crate::kernel::lane_sum::{self, Dot};
use crate::kernel::simd::{FmaKernel, Kernel, SimdFma};

/// A task at work.
pub struct Pass<'a> {
    pub shape: &'a AttentionShape,
    pub rows: &'a DocumentRows<'a>,
    pub saved: &'a Saved<'a>,
    pub task: &'a Task,
    pub scratch: Scratch<'a>,
    pub gradients: &'a Shared<'a>,
}

/// What a pass works in: keys from the page of the first one on, and one block of rows. A row of values has `width` of
/// them, `head_dim` rounded up to 16, the last ones zero.
pub struct Scratch<'a> {
    /// `[page][head_dim][PAGE]`
    key_tiles: &'a mut [f32],
    value_tiles: &'a mut [f32],
    /// `[key][width]`
    keys: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// `[BLOCK_ROWS][width]`
    q: &'a mut [f32],
    dout: &'a mut [f32],
    dq: &'a mut [f32],
    /// `[BLOCK_ROWS][BLOCK_KEYS]`
    p: &'a mut [f32],
    ds: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn lens(shape: &AttentionShape, n_keys: usize) -> [usize; 10] {
        let n_keys = n_keys.next_multiple_of(PAGE);
        let width = shape.head_dim.next_multiple_of(16);
        let (tiles, keys) = (n_keys * shape.head_dim, n_keys * width);
        let (rows, scores) = (BLOCK_ROWS * width, BLOCK_ROWS * BLOCK_KEYS);
        [tiles, tiles, keys, keys, keys, rows, rows, rows, scores, scores]
    }

    /// Returns how many values a pass over `n_keys` positions needs, from the first one's page on.
    pub fn len(shape: &AttentionShape, n_keys: usize) -> usize {
        Self::lens(shape, n_keys).iter().sum()
    }

    /// Divides a buffer of [`Scratch::len`] values or more.
    pub fn new(shape: &AttentionShape, n_keys: usize, buffer: &'a mut [f32]) -> Self {
        let mut rest = buffer;
        let mut take = |len: usize| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
            rest = behind;
            part
        };
        let [key_tiles, value_tiles, keys, dk, dv, q, dout, dq, p, ds] =
            Self::lens(shape, n_keys).map(&mut take);
        Scratch { key_tiles, value_tiles, keys, dk, dv, q, dout, dq, p, ds }
    }
}

/// A block of rows: what is known of each.
struct Known {
    lse: [f32; BLOCK_ROWS],
    delta: [f32; BLOCK_ROWS],
    seen: [(usize, usize); BLOCK_ROWS],
}

impl FmaKernel for Pass<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: SimdFma>(mut self, s: S) {
        self.pack_keys(s);
        if self.task.wanted != Wanted::Queries {
            self.scratch.dk.fill(0.0);
            self.scratch.dv.fill(0.0);
        }
        let rows = self.task.rows.clone();
        let mut first = rows.start;
        while first < rows.end {
            let end = rows.end.min(first + BLOCK_ROWS);
            self.run_rows(s, first..end);
            first = end;
        }
        if self.task.wanted != Wanted::Queries {
            self.store_keys();
        }
    }
}

impl Pass<'_> {
    fn group(&self) -> usize {
        self.shape.n_heads / self.shape.n_kv_heads
    }

    fn width(&self) -> usize {
        self.shape.head_dim.next_multiple_of(16)
    }

    /// Returns the first position of the first page of keys.
    fn base(&self) -> usize {
        self.task.keys.start / PAGE * PAGE
    }

    /// Returns the token's row and the head of a row of the task.
    fn place(&self, row: usize) -> (usize, usize) {
        (self.task.start + row / self.group(), self.task.kv_head * self.group() + row % self.group())
    }

    #[inline(always)]
    fn pack_keys<S: SimdFma>(&mut self, s: S) {
        let head_dim = self.shape.head_dim;
        let stride = self.shape.n_kv_heads * head_dim;
        let source = Strided { first: self.task.kv_head * head_dim, stride, len: head_dim };
        let (base, width) = (self.base(), self.width());
        for position in (base..self.task.keys.end).step_by(PAGE) {
            let start = self.task.start;
            let rows = start + position..start + self.task.keys.end.min(position + PAGE);
            let at = (position - base) * head_dim;
            let tile = &mut self.scratch.key_tiles[at..at + head_dim * PAGE];
            Transposed { source, rows: rows.clone(), from: self.rows.k, tile }.run(s);
            let tile = &mut self.scratch.value_tiles[at..at + head_dim * PAGE];
            Transposed { source, rows, from: self.rows.v, tile }.run(s);
        }
        for position in base..self.task.keys.end {
            let row = &mut self.scratch.keys[(position - base) * width..][..width];
            row[..head_dim].copy_from_slice(source.row(self.rows.k, self.task.start + position));
            row[head_dim..].fill(0.0);
        }
    }

    /// Copies a block's queries and gradients.
    #[inline(always)]
    fn load_rows<S: SimdFma>(&mut self, s: S, block: &Range<usize>) -> Known {
        let (head_dim, width) = (self.shape.head_dim, self.width());
        let mut known =
            Known { lse: [0.0; BLOCK_ROWS], delta: [0.0; BLOCK_ROWS], seen: [(0, 0); BLOCK_ROWS] };
        for r in 0..block.len() {
            let row = block.start + r;
            let (token, head) = self.place(row);
            let at = (token * self.shape.n_heads + head) * head_dim;
            let dout = &self.saved.dout[at..at + head_dim];
            let to = r * width..(r + 1) * width;
            copy_padded(&self.rows.q[at..at + head_dim], &mut self.scratch.q[to.clone()]);
            copy_padded(dout, &mut self.scratch.dout[to]);
            known.lse[r] = self.saved.lse[token * self.shape.n_heads + head];
            known.delta[r] = lane_sum::sum(s, [dout, &self.saved.out[at..at + head_dim]], &Dot);
            let position = row / self.group();
            known.seen[r] = (self.shape.first_seen(position), position + 1);
        }
        known
    }

    #[inline(always)]
    fn run_rows<S: SimdFma>(&mut self, s: S, block: Range<usize>) {
        let known = self.load_rows(s, &block);
        self.scratch.dq.fill(0.0);
        let first = known.seen[0].0.max(self.task.keys.start);
        let end = known.seen[block.len() - 1].1.min(self.task.keys.end);
        let mut key = first;
        while key < end {
            // blocks of keys begin at pages
            let key_end = end.min(key / PAGE * PAGE + BLOCK_KEYS);
            self.run_block(s, &block, &known, key..key_end);
            key = key_end;
        }
        if self.task.wanted != Wanted::Keys {
            self.store_queries(&block);
        }
    }

    /// One block of rows and one of keys.
    #[inline(always)]
    fn run_block<S: SimdFma>(&mut self, s: S, block: &Range<usize>, known: &Known, keys: Range<usize>) {
        let (head_dim, width, n_rows) = (self.shape.head_dim, self.width(), block.len());
        let (base, group) = (self.base(), self.group());
        let first = keys.start / PAGE * PAGE;
        let end = keys.end.next_multiple_of(PAGE);
        let Scratch { key_tiles, value_tiles, keys: key_rows, dk, dv, q, dout, dq, p, ds } =
            &mut self.scratch;
        let tiles = (first - base) * head_dim..(end - base) * head_dim;
        let rows = Rows { n_rows, width, q, dout, lse: &known.lse, delta: &known.delta, seen: &known.seen };
        let tiles = Tiles { first, keys: &key_tiles[tiles.clone()], values: &value_tiles[tiles] };
        score(s, self.shape, &rows, &tiles, &mut Scores { p, ds });
        let mut ranges = [(0, 0); BLOCK_KEYS];
        if self.task.wanted != Wanted::Queries {
            let n = keys.len();
            for i in 0..n {
                let key = keys.start + i;
                let last = self.shape.window.map_or(usize::MAX, |window| key.saturating_add(window));
                let seen = (key * group, last.saturating_mul(group));
                ranges[i] = (
                    seen.0.clamp(block.start, block.end) - block.start,
                    seen.1.clamp(block.start, block.end) - block.start,
                );
            }
            let at = (keys.start - base) * width..(keys.end - base) * width;
            let weighted = |weights, sources| Weighted {
                weights,
                target_stride: 1,
                source_stride: BLOCK_KEYS,
                sources,
                width,
            };
            let slot = keys.start - first;
            weighted(&p[slot..], dout).add_to(s, &ranges[..n], &mut dv[at.clone()]);
            weighted(&ds[slot..], q).add_to(s, &ranges[..n], &mut dk[at]);
        }
        if self.task.wanted != Wanted::Keys {
            for r in 0..n_rows {
                let (from, to) = known.seen[r];
                ranges[r] =
                    (from.clamp(keys.start, keys.end) - first, to.clamp(keys.start, keys.end) - first);
            }
            let weighted = Weighted {
                weights: ds,
                target_stride: BLOCK_KEYS,
                source_stride: 1,
                sources: &key_rows[(first - base) * width..],
                width,
            };
            weighted.add_to(s, &ranges[..n_rows], dq);
        }
    }

    /// Writes the gradients of a block's queries.
    #[inline(always)]
    fn store_queries(&self, block: &Range<usize>) {
        let (head_dim, width) = (self.shape.head_dim, self.width());
        for r in 0..block.len() {
            let (token, head) = self.place(block.start + r);
            let at = (token * self.shape.n_heads + head) * head_dim;
            // SAFETY: one task wants the gradient of a query's head.
            let to = unsafe { self.gradients.dq.part(at..at + head_dim) };
            for d in 0..head_dim {
                to[d] = self.scratch.dq[r * width + d] * self.shape.scale;
            }
        }
    }

    /// Writes the gradients of the task's keys and values.
    #[inline(always)]
    fn store_keys(&self) {
        let (head_dim, width) = (self.shape.head_dim, self.width());
        for key in self.task.keys.clone() {
            let at = ((self.task.start + key) * self.shape.n_kv_heads + self.task.kv_head) * head_dim;
            let from = (key - self.base()) * width..(key - self.base()) * width + head_dim;
            // SAFETY: one task wants the gradients of a position's KV head.
            let (dk, dv) = unsafe {
                (self.gradients.dk.part(at..at + head_dim), self.gradients.dv.part(at..at + head_dim))
            };
            let sums = &self.scratch.dk[from.clone()];
            for d in 0..head_dim {
                dk[d] = sums[d] * self.shape.scale;
            }
            dv.copy_from_slice(&self.scratch.dv[from]);
        }
    }
}

/// Copies `from` and makes the rest zero.
#[inline(always)]
fn copy_padded(from: &[f32], to: &mut [f32]) {
    to[..from.len()].copy_from_slice(from);
    to[from.len()..].fill(0.0);
}
