//! Attention as tasks: each a few rows of one span that read the same KV head.

use std::cell::RefCell;
use std::ops::Range;

use super::block::{Block, MAX_ROWS, Row, Tile, max_rows};
use super::{AttentionShape, Span};
use crate::kernel::aligned::AlignedF32;
use crate::kernel::disjoint::DisjointMut;
use crate::kernel::kv_cache::PAGE;
use crate::kernel::simd::dispatch_fma;
use crate::kernel::{Compute, Isa};

thread_local! {
    /// Queries and scores of a block; grows to the longest context met.
    static SCRATCH: RefCell<AlignedF32> = RefCell::default();
}

/// Rows `first .. end` of one span and KV head; row r is query head `r % group` of the head's group, at the span's
/// row `r / group`.
struct Task {
    span: Span,
    kv_head: usize,
    first: usize,
    end: usize,
}

/// Fused multiply-adds of the scores (the values take as many) below which waking the team costs more than it saves.
const MIN_PARALLEL_WORK: usize = 1 << 18;
/// Fused multiply-adds of a task's scores: tens of microseconds.
const TASK_WORK: usize = 1 << 20;

/// Queries, and what they attend to.
pub struct Spans<'a, F> {
    pub shape: &'a AttentionShape,
    pub q: &'a [f32],
    pub spans: &'a [Span],
    /// The tiles of a span's sequence: of a KV head, in a range of pages.
    pub tiles: F,
}

/// Where results go.
pub struct Results<'a> {
    /// `[T, n_heads, head_dim]`
    pub out: &'a mut [f32],
    /// Logarithm of the sum of exponentials of every row's scores, `[T, n_heads]`.
    pub lse: Option<&'a mut [f32]>,
}

/// See [`super::attention`]; no two spans share a row.
pub fn attention<'a, F>(compute: &Compute, spans: &Spans<'_, F>, results: Results<'_>)
where
    F: Fn(&Span, usize, Range<usize>) -> Vec<Tile<'a>> + Sync,
{
    let shape = spans.shape;
    let block_rows = block_rows(compute, shape, spans.spans);
    let (tasks, work) = tasks(shape, spans.spans, block_rows);
    let head_dim = shape.head_dim;
    let wants_lse = results.lse.is_some();
    let (out, lse) = (DisjointMut::new(results.out), DisjointMut::new(results.lse.unwrap_or_default()));
    let run_task = |task: &Task| {
        attend(compute.isa, spans, task, (block_rows, wants_lse), |row, head, values, row_lse| {
            let at = row * shape.n_heads + head;
            // SAFETY: a row's head belongs to one task, as no two spans share a row.
            unsafe { out.part(at * head_dim..(at + 1) * head_dim) }.copy_from_slice(values);
            if let Some(value) = row_lse {
                // SAFETY: as above.
                unsafe { lse.part(at..at + 1) }.copy_from_slice(&[value]);
            }
        });
    };
    if compute.team.threads() == 1 || tasks.len() == 1 || work < MIN_PARALLEL_WORK {
        tasks.iter().for_each(run_task);
    } else {
        compute.team.run(tasks.len(), |i| run_task(&tasks[i]));
    }
}

/// Returns how many rows a block has: as many as registers hold, fewer where threads would have nothing to do.
fn block_rows(compute: &Compute, shape: &AttentionShape, spans: &[Span]) -> usize {
    let group = shape.n_heads / shape.n_kv_heads;
    let n_blocks = |rows: usize| -> usize {
        spans.iter().map(|span| (span.n_rows * group).div_ceil(rows) * shape.n_kv_heads).sum()
    };
    let mut rows = max_rows(compute.isa);
    while rows > 1 && n_blocks(rows) < compute.team.threads() {
        rows /= 2;
    }
    rows
}

/// Returns the tasks, the longest last rows first, and the fused multiply-adds of all scores.
fn tasks(shape: &AttentionShape, spans: &[Span], block_rows: usize) -> (Vec<Task>, usize) {
    let group = shape.n_heads / shape.n_kv_heads;
    let (mut tasks, mut work) = (Vec::new(), 0);
    for span in spans {
        let n_keys = (span.start + span.n_rows).min(shape.window.unwrap_or(usize::MAX));
        let n_rows = span.n_rows * group;
        work += n_rows * shape.n_kv_heads * n_keys * shape.head_dim;
        let rows_per_task =
            (TASK_WORK / (n_keys * shape.head_dim).max(1)).max(1).next_multiple_of(block_rows);
        for kv_head in 0..shape.n_kv_heads {
            for first in (0..n_rows).step_by(rows_per_task).rev() {
                let end = n_rows.min(first + rows_per_task);
                tasks.push(Task { span: *span, kv_head, first, end });
            }
        }
    }
    (tasks, work)
}

/// Calls `store(row, head, values, lse)` with the attention of every row of a task.
fn attend<'a, F>(
    isa: Isa,
    spans: &Spans<'_, F>,
    task: &Task,
    (block_rows, wants_lse): (usize, bool),
    store: impl Fn(usize, usize, &[f32], Option<f32>),
) where
    F: Fn(&Span, usize, Range<usize>) -> Vec<Tile<'a>>,
{
    let Spans { shape, q, .. } = spans;
    let (span, head_dim) = (&task.span, shape.head_dim);
    let group = shape.n_heads / shape.n_kv_heads;
    let place = |row: usize| (row / group, task.kv_head * group + row % group);
    let first_page = shape.first_seen(span.start + task.first / group) / PAGE;
    let end_page = (span.start + (task.end - 1) / group) / PAGE + 1;
    let tiles = (spans.tiles)(span, task.kv_head, first_page..end_page);
    let mut out = [0.0; MAX_ROWS * 256];
    let mut long_out = Vec::new();
    let out = if head_dim <= 256 {
        &mut out[..]
    } else {
        long_out.resize(MAX_ROWS * head_dim, 0.0);
        &mut long_out[..]
    };
    SCRATCH.with_borrow_mut(|scratch| {
        let n_scratch = Block::scratch_len(head_dim, tiles.len());
        if scratch.len() < n_scratch {
            *scratch = AlignedF32::zeros(n_scratch.next_power_of_two());
        }
        for first in (task.first..task.end).step_by(block_rows) {
            let n_rows = block_rows.min(task.end - first);
            let mut rows = [Row { q: &[], first: 0, end: 0 }; MAX_ROWS];
            for (i, out_row) in rows[..n_rows].iter_mut().enumerate() {
                let (row, head) = place(first + i);
                let at = ((span.first_row + row) * shape.n_heads + head) * head_dim;
                let position = span.start + row;
                *out_row =
                    Row { q: &q[at..][..head_dim], first: shape.first_seen(position), end: position + 1 };
            }
            let rows = &rows[..n_rows];
            let (from, to) = (rows[0].first / PAGE, (rows[n_rows - 1].end - 1) / PAGE + 1);
            let mut lse = [0.0; MAX_ROWS];
            dispatch_fma(
                isa,
                Block {
                    shape,
                    rows,
                    tiles: &tiles[from - first_page..to - first_page],
                    first_page: from,
                    scratch,
                    out: &mut out[..n_rows * head_dim],
                    lse: wants_lse.then_some(&mut lse),
                },
            );
            for i in 0..n_rows {
                let (row, head) = place(first + i);
                let values = &out[i * head_dim..][..head_dim];
                store(span.first_row + row, head, values, wants_lse.then_some(lse[i]));
            }
        }
    });
}
