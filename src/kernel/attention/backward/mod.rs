//! Gradients of attention within documents.
//!
//! Definition, to the bit, for the query at position i of a document and one head, over the positions j it sees; the
//! scores are computed again, as the forward defines them:
//!
//! - `x = dot(q, k[j]) * scale`, `t = tanh(x / cap)` and `s = cap * t` with a soft cap, else `s = x`;
//! - `p[j] = exp(s - lse)`, `dp[j] = dot(dout, v[j])`, one chain of fused multiply-adds over ascending d from +0;
//! - `delta = dot(dout, out)` over the virtual lanes of `lane_sum`;
//! - `ds[j] = p[j] * (dp[j] - delta)`, with a soft cap times `1 - t * t`, which is fused;
//! - `dq[d] = c * scale`, c one chain of fused multiply-adds of `ds[j] * k[j][d]` over ascending j from +0.
//!
//! Over the queries that see position j, ascending, and for each the heads of the KV head's group, ascending:
//!
//! - `dk[j][d] = c * scale`, c one chain of fused multiply-adds of `ds[j] * q[d]` from +0;
//! - `dv[j][d]`: one chain of fused multiply-adds of `p[j] * dout[d]` from +0.
//!
//! Memory beyond operands and results is linear in the longest document (arXiv:2205.14135).

mod gemm;
#[cfg(test)]
mod oracle;
mod pass;
mod scores;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use super::AttentionShape;
use super::documents::DocumentRows;
use crate::kernel::Compute;
use crate::kernel::aligned::AlignedF32;
use crate::kernel::disjoint::DisjointMut;
use crate::kernel::kv_cache::PAGE;
use crate::kernel::simd::dispatch_fma;
use pass::{Pass, Scratch};

/// What the forward left and what comes back.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// The forward's results: `[T, n_heads, head_dim]` and `[T, n_heads]`.
    pub out: &'a [f32],
    pub lse: &'a [f32],
    /// Gradient of `out`.
    pub dout: &'a [f32],
}

/// Gradients of queries, keys and values, of their shapes; overwritten.
pub struct DocumentGradients<'a> {
    pub dq: &'a mut [f32],
    pub dk: &'a mut [f32],
    pub dv: &'a mut [f32],
}

/// Writes the gradients of [`super::document_attention`].
///
/// # Panics
/// If the lengths disagree.
pub fn document_attention_backward(
    compute: &Compute,
    shape: &AttentionShape,
    rows: &DocumentRows<'_>,
    saved: &Saved<'_>,
    gradients: DocumentGradients<'_>,
) {
    let n = rows.check(shape);
    assert!(saved.out.len() == rows.q.len() && saved.dout.len() == rows.q.len());
    assert_eq!(saved.lse.len(), n * shape.n_heads);
    assert_eq!(gradients.dq.len(), rows.q.len());
    assert!(gradients.dk.len() == rows.k.len() && gradients.dv.len() == rows.v.len());
    let work: usize = rows.cu.windows(2).map(|ends| pairs(shape, ends[1] - ends[0])).sum();
    let is_small = work * shape.n_heads * shape.head_dim < MIN_PARALLEL_WORK;
    let tasks = tasks(shape, rows.cu, if is_small { 1 } else { compute.team.threads() });
    let shared = Shared {
        dq: DisjointMut::new(gradients.dq),
        dk: DisjointMut::new(gradients.dk),
        dv: DisjointMut::new(gradients.dv),
    };
    let run_task = |task: &Task| {
        let n_keys = task.keys.end - task.keys.start / PAGE * PAGE;
        SCRATCH.with_borrow_mut(|buffer| {
            let n_scratch = Scratch::len(shape, n_keys);
            if buffer.len() < n_scratch {
                *buffer = AlignedF32::zeros(n_scratch.next_multiple_of(1 << 16));
            }
            let scratch = Scratch::new(shape, n_keys, buffer);
            dispatch_fma(compute.isa, Pass { shape, rows, saved, task, scratch, gradients: &shared });
        });
    };
    if is_small {
        tasks.iter().for_each(run_task);
    } else {
        compute.team.run(tasks.len(), |i| run_task(&tasks[i]));
    }
}

thread_local! {
    /// What a pass works in; grows to the longest document met.
    static SCRATCH: RefCell<AlignedF32> = RefCell::default();
}

/// Gradients as tasks see them; each writes its own rows.
struct Shared<'a> {
    dq: DisjointMut<'a, f32>,
    dk: DisjointMut<'a, f32>,
    dv: DisjointMut<'a, f32>,
}

/// What one KV head of one document gives. Row r of it is query `r / group`, head `r % group` of the head's group.
#[derive(Clone, Debug, PartialEq)]
struct Task {
    /// Row of the document's first token.
    start: usize,
    kv_head: usize,
    wanted: Wanted,
    /// Rows that take part.
    rows: Range<usize>,
    /// Positions that these rows see, or whose gradients are wanted.
    keys: Range<usize>,
}

/// Which gradients a task computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Of the queries, and of keys and values: scores are computed once, five products in all.
    All,
    /// Of the queries in `rows` alone: three products.
    Queries,
    /// Of the keys and values of `keys` alone: four products.
    Keys,
}

/// Rows or positions of a part of a divided document are a multiple of this.
const PART: usize = 128;

/// Fused multiply-adds of one product below which waking the team costs more than it saves.
const MIN_PARALLEL_WORK: usize = 1 << 18;

/// Returns the tasks, the long ones first. A whole document's KV head is one task, which computes scores once; where
/// that would leave threads with nothing to do, some of the longest are divided into queries and keys.
fn tasks(shape: &AttentionShape, cu: &[usize], threads: usize) -> Vec<Task> {
    let group = shape.n_heads / shape.n_kv_heads;
    let mut documents: Vec<(usize, usize)> =
        cu.windows(2).map(|ends| (ends[0], ends[1] - ends[0])).filter(|(_, len)| *len > 0).collect();
    documents.sort_by_key(|(_, len)| std::cmp::Reverse(*len));
    let (mut units, mut work) = (Vec::new(), Vec::new());
    for (start, len) in documents {
        for kv_head in 0..shape.n_kv_heads {
            let (rows, keys) = (0..len * group, 0..len);
            units.push(Task { start, kv_head, wanted: Wanted::All, rows, keys });
            work.push(pairs(shape, len) * group);
        }
    }
    let total: usize = work.iter().sum();
    let n_large = work.iter().take_while(|work| **work > total / (2 * threads)).count();
    let n_divided = (0..=n_large).min_by_key(|n| duration(&work, *n, threads)).unwrap_or(0);
    let (divided, whole) = units.split_at(n_divided);
    let mut tasks = whole.to_vec();
    for unit in divided {
        // two parts of each kind per thread that is left over
        let n_parts = 2 * threads.div_ceil(n_divided);
        tasks.extend(divide(shape, unit, n_parts));
    }
    tasks
}

/// Returns how many pairs of a query and a key it sees a document has.
fn pairs(shape: &AttentionShape, len: usize) -> usize {
    let window = shape.window.unwrap_or(len).min(len);
    window * (window + 1) / 2 + (len - window) * window
}

/// Returns about how long the tasks take if the first `n_divided` are divided, which makes five products seven: the
/// work is descending.
fn duration(work: &[usize], n_divided: usize, threads: usize) -> usize {
    let (divided, whole) = work.split_at(n_divided);
    let mut loads = vec![0; threads];
    for work in whole {
        if let Some(load) = loads.iter_mut().min() {
            *load += 5 * work;
        }
    }
    let total = 5 * whole.iter().sum::<usize>() + 7 * divided.iter().sum::<usize>();
    loads.into_iter().max().unwrap_or(0).max(total.div_ceil(threads))
}

/// Returns a document's KV head as at most `n_parts` tasks for queries and as many for keys.
fn divide(shape: &AttentionShape, unit: &Task, n_parts: usize) -> Vec<Task> {
    let group = shape.n_heads / shape.n_kv_heads;
    let n = unit.keys.end;
    let part = n.div_ceil(n_parts).next_multiple_of(PART.div_ceil(group).next_multiple_of(PAGE));
    let mut tasks = Vec::new();
    for first in (0..n).step_by(part).rev() {
        let end = n.min(first + part);
        tasks.push(Task {
            wanted: Wanted::Queries,
            rows: first * group..end * group,
            keys: shape.first_seen(first)..end,
            ..unit.clone()
        });
    }
    for first in (0..n).step_by(part) {
        let end = n.min(first + part);
        let last_seeing = shape.window.map_or(n, |window| n.min((end - 1).saturating_add(window)));
        tasks.push(Task {
            wanted: Wanted::Keys,
            rows: first * group..last_seeing * group,
            keys: first..end,
            ..unit.clone()
        });
    }
    tasks
}
