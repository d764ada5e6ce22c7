//! Attention as tasks: each a few rows of one span that read the same KV head.

use std::cell::RefCell;

use super::block::{Block, MAX_ROWS, Row, Tile, max_rows};
use super::{AttentionShape, Span};
use crate::kernel::aligned::AlignedF32;
use crate::kernel::disjoint::DisjointMut;
use crate::kernel::kv_cache::{KvCache, PAGE};
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

/// See [`super::attention`].
pub fn attention(
    compute: &Compute,
    shape: &AttentionShape,
    q: &[f32],
    cache: &KvCache,
    layer: usize,
    spans: &[Span],
    out: &mut [f32],
) {
    let block_rows = block_rows(compute, shape, spans);
    let (tasks, work) = tasks(shape, spans, block_rows);
    let head_dim = shape.head_dim;
    let out = DisjointMut::new(out);
    let run_task = |task: &Task| {
        attend(compute.isa, shape, q, cache, layer, task, block_rows, |row, head, values| {
            let at = (row * shape.n_heads + head) * head_dim;
            // SAFETY: a row's head belongs to one task (spans that share a row would be the caller's bug, and
            // `super::attention` refuses them).
            unsafe { out.part(at..at + head_dim) }.copy_from_slice(values);
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

/// Calls `store(row, head, values)` with the attention of every row of a task.
#[allow(clippy::too_many_arguments, reason = "what the tasks share, then the task")]
fn attend(
    isa: Isa,
    shape: &AttentionShape,
    q: &[f32],
    cache: &KvCache,
    layer: usize,
    task: &Task,
    block_rows: usize,
    store: impl Fn(usize, usize, &[f32]),
) {
    let (span, head_dim) = (&task.span, shape.head_dim);
    let group = shape.n_heads / shape.n_kv_heads;
    let place = |row: usize| (row / group, task.kv_head * group + row % group);
    let first_seen = |position: usize| shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let first_page = first_seen(span.start + task.first / group) / PAGE;
    let end_page = (span.start + (task.end - 1) / group) / PAGE + 1;
    let pages = cache.pages(span.sequence);
    let tiles: Vec<Tile> = (first_page..end_page).map(|page| pages.tile(layer, task.kv_head, page)).collect();
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
                *out_row = Row { q: &q[at..][..head_dim], first: first_seen(position), end: position + 1 };
            }
            let rows = &rows[..n_rows];
            let (from, to) = (rows[0].first / PAGE, (rows[n_rows - 1].end - 1) / PAGE + 1);
            dispatch_fma(
                isa,
                Block {
                    shape,
                    rows,
                    tiles: &tiles[from - first_page..to - first_page],
                    first_page: from,
                    scratch,
                    out: &mut out[..n_rows * head_dim],
                },
            );
            for i in 0..n_rows {
                let (row, head) = place(first + i);
                store(span.first_row + row, head, &out[i * head_dim..][..head_dim]);
            }
        }
    });
}
