//! Causal attention over the pages of a KV cache.
//!
//! Definition, to the bit, for a query at position i and a head; j runs over the visible positions alone (masked ones
//! are absent, whatever their slots hold):
//!
//! - `s[j] = dot(q, k[j]) * scale`, the dot one chain of fused multiply-adds over ascending d from +0; with a
//!   soft cap then `s[j] = cap * tanh(s[j] / cap)`;
//! - `m = max s[j]`, `p[j] = exp(s[j] - m)`;
//! - `sum`: p\[j\] added to virtual lane j % 16, ascending j from +0, then the lanes by a tree (8 to 8, 4 to 4, ...);
//! - `out[d] = a[d] / sum`, a\[d\] one chain of fused multiply-adds of `p[j] * v[j][d]` over ascending j from +0.
//!
//! So a row of the result depends on its query and on the visible keys and values: not on how rows are split into
//! spans, nor on what else is in the batch or the cache.

use super::Compute;
use super::kv_cache::{KvCache, SequenceId};

mod backward;
mod block;
mod documents;
#[cfg(test)]
mod oracle;
mod split;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use backward::{DocumentGradients, Saved, document_attention_backward};
pub use documents::{DocumentRows, document_attention};
use split::{Results, Spans};

/// The sizes and rules of one layer's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    /// Factor of the scores, usually 1 / sqrt(head_dim).
    pub scale: f32,
    /// `s` becomes `cap * tanh(s / cap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// Query i sees key j iff 0 <= i - j < window (Mistral, arXiv:2310.06825); `None`: iff j <= i.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Returns the first position that the query at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Rows of queries that follow one another in one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub sequence: SequenceId,
    /// Position of the first row.
    pub start: usize,
    /// Index of the first row in q and in the result.
    pub first_row: usize,
    pub n_rows: usize,
}

/// Writes the attention of every span's rows; q and out are `[T, n_heads, head_dim]`, and head h reads KV head
/// `h / (n_heads / n_kv_heads)`. Rows in no span stay as they are.
///
/// The keys and values of all visible positions, the rows' own included, must have been written to `cache`.
///
/// # Panics
/// If the shapes disagree with each other or with the cache, a span leaves q or its sequence, or two spans share a row.
pub fn attention(
    compute: &Compute,
    shape: &AttentionShape,
    q: &[f32],
    cache: &KvCache,
    layer: usize,
    spans: &[Span],
    out: &mut [f32],
) {
    let kv = cache.shape();
    assert!(shape.n_kv_heads == kv.n_kv_heads && shape.head_dim == kv.head_dim && layer < kv.n_layers);
    assert!(shape.n_heads.is_multiple_of(shape.n_kv_heads));
    let row_len = shape.n_heads * shape.head_dim;
    assert!(q.len() == out.len() && q.len().is_multiple_of(row_len));
    let mut rows: Vec<_> = spans.iter().map(|span| span.first_row..span.first_row + span.n_rows).collect();
    rows.sort_by_key(|rows| (rows.start, rows.end));
    assert!(rows.last().is_none_or(|last| last.end <= q.len() / row_len), "a span leaves q");
    assert!(rows.windows(2).all(|pair| pair[0].end <= pair[1].start), "two spans share a row");
    for span in spans {
        assert!(span.start + span.n_rows <= cache.len(span.sequence), "a span leaves its sequence");
    }
    let tiles = |span: &Span, kv_head: usize, pages: Range<usize>| {
        let sequence = cache.pages(span.sequence);
        pages.map(|page| sequence.tile(layer, kv_head, page)).collect()
    };
    split::attention(compute, &Spans { shape, q, spans, tiles }, Results { out, lse: None });
}
