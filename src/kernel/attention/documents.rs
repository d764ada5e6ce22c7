//! Attention within documents that lie one after another, without a cache.

use super::block::Tile;
use super::split::{self, Results, Spans};
use super::{AttentionShape, Span};
use crate::kernel::aligned::AlignedF32;
use crate::kernel::disjoint::DisjointMut;
use crate::kernel::kv_cache::PAGE;
use crate::kernel::simd::{Kernel, Simd, dispatch};
use crate::kernel::{Compute, SequenceId};

/// Queries `[T, n_heads, head_dim]`, keys and values `[T, n_kv_heads, head_dim]` of documents one after another.
#[derive(Clone, Copy)]
pub struct DocumentRows<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    /// Where documents begin, ascending from 0, and T: one more than there are documents.
    pub cu: &'a [usize],
}

impl DocumentRows<'_> {
    /// Returns T.
    ///
    /// # Panics
    /// If the lengths disagree.
    pub(super) fn check(&self, shape: &AttentionShape) -> usize {
        assert!(shape.n_heads.is_multiple_of(shape.n_kv_heads));
        assert!(self.cu.first() == Some(&0) && self.cu.is_sorted());
        let n = self.cu[self.cu.len() - 1];
        assert_eq!(self.q.len(), n * shape.n_heads * shape.head_dim);
        assert_eq!(self.k.len(), n * shape.n_kv_heads * shape.head_dim);
        assert_eq!(self.v.len(), self.k.len());
        n
    }
}

/// Writes the attention of every document's rows over their own document to out, `[T, n_heads, head_dim]`, and the
/// logarithm of every row's sum of exponentials, `m + ln(sum)`, to lse, `[T, n_heads]`.
///
/// The values are those of [`super::attention`], to the bit, of each document as a sequence of its own.
///
/// # Panics
/// If the lengths disagree.
pub fn document_attention(
    compute: &Compute,
    shape: &AttentionShape,
    rows: &DocumentRows<'_>,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let n = rows.check(shape);
    assert!(out.len() == rows.q.len() && lse.len() == n * shape.n_heads);
    let packed = Packed::new(compute, shape, rows);
    let document = |(i, ends): (usize, &[usize])| Span {
        sequence: SequenceId(i),
        start: 0,
        first_row: ends[0],
        n_rows: ends[1] - ends[0],
    };
    let spans: Vec<Span> = rows.cu.windows(2).enumerate().map(document).filter(|s| s.n_rows > 0).collect();
    let tiles = |span: &Span, kv_head: usize, pages: std::ops::Range<usize>| {
        pages.map(|page| packed.tile(span.sequence.0, kv_head, page)).collect()
    };
    let spans = Spans { shape, q: rows.q, spans: &spans, tiles };
    split::attention(compute, &spans, Results { out, lse: Some(lse) });
}

/// Keys and values as tiles: per document, KV head and page.
struct Packed {
    tiles: AlignedF32,
    n_kv_heads: usize,
    head_dim: usize,
    /// First tile of each document, and how many pages it has.
    documents: Vec<(usize, usize)>,
}

impl Packed {
    fn new(compute: &Compute, shape: &AttentionShape, rows: &DocumentRows<'_>) -> Self {
        let &AttentionShape { n_kv_heads, head_dim, .. } = shape;
        let (mut documents, mut pages, mut n_tiles) = (Vec::new(), Vec::new(), 0);
        for ends in rows.cu.windows(2) {
            let n_pages = (ends[1] - ends[0]).div_ceil(PAGE);
            documents.push((n_tiles, n_pages));
            pages.extend((0..n_kv_heads * n_pages).map(|i| {
                let (kv_head, page) = (i / n_pages, i % n_pages);
                let first = ends[0] + page * PAGE;
                (kv_head, first..ends[1].min(first + PAGE))
            }));
            n_tiles += n_kv_heads * n_pages;
        }
        let tile_len = tile_len(head_dim);
        let mut tiles = AlignedF32::zeros(n_tiles * tile_len);
        let shared = DisjointMut::new(&mut tiles);
        compute.team.run(pages.len(), |i| {
            let (kv_head, rows_of_page) = &pages[i];
            // SAFETY: every task has its own tile.
            let tile = unsafe { shared.part(i * tile_len..(i + 1) * tile_len) };
            let (keys, values) = tile.split_at_mut(head_dim * PAGE);
            let stride = n_kv_heads * head_dim;
            let source = Strided { first: kv_head * head_dim, stride, len: head_dim };
            dispatch(
                compute.isa,
                Transposed { source, rows: rows_of_page.clone(), from: rows.k, tile: keys },
            );
            for (row, to) in rows_of_page.clone().zip(values.chunks_exact_mut(head_dim.next_multiple_of(16)))
            {
                to[..head_dim].copy_from_slice(source.row(rows.v, row));
            }
        });
        Packed { tiles, n_kv_heads, head_dim, documents }
    }

    fn tile(&self, document: usize, kv_head: usize, page: usize) -> Tile<'_> {
        let (first, n_pages) = self.documents[document];
        debug_assert!(kv_head < self.n_kv_heads && page < n_pages);
        let tile_len = tile_len(self.head_dim);
        let tile = &self.tiles[(first + kv_head * n_pages + page) * tile_len..][..tile_len];
        tile.split_at(self.head_dim * PAGE)
    }
}

/// Values of a page of one head: keys `[head_dim][PAGE]`, then values `[PAGE][head_dim rounded up to 16]`.
fn tile_len(head_dim: usize) -> usize {
    (head_dim + head_dim.next_multiple_of(16)) * PAGE
}

/// One head's part of rows.
#[derive(Clone, Copy)]
pub(super) struct Strided {
    pub first: usize,
    pub stride: usize,
    pub len: usize,
}

impl Strided {
    #[inline(always)]
    pub fn row<'a>(&self, from: &'a [f32], row: usize) -> &'a [f32] {
        &from[row * self.stride + self.first..][..self.len]
    }
}

/// Writes at most [`PAGE`] rows as columns: `tile[d * PAGE + i]` is value d of the i-th row.
pub(super) struct Transposed<'a> {
    pub source: Strided,
    pub rows: std::ops::Range<usize>,
    pub from: &'a [f32],
    pub tile: &'a mut [f32],
}

impl Kernel for Transposed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Transposed { source, rows, from, tile } = self;
        let body = if rows.len() == PAGE { source.len / S::LANES * S::LANES } else { 0 };
        let mut columns = [s.splat(0.0); 16];
        for d in (0..body).step_by(S::LANES) {
            for slot in (0..PAGE).step_by(S::LANES) {
                let values = &from[(rows.start + slot) * source.stride + source.first + d..];
                s.transpose(values, source.stride, &mut columns[..S::LANES]);
                for i in 0..S::LANES {
                    s.store(columns[i], &mut tile[(d + i) * PAGE + slot..]);
                }
            }
        }
        for slot in 0..rows.len() {
            let row = source.row(from, rows.start + slot);
            for d in body..source.len {
                tile[d * PAGE + slot] = row[d];
            }
        }
    }
}
