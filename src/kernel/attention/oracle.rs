//! The slow, obvious form of attention: the definition that the fast kernels must equal to the bit.

use super::{AttentionShape, Span};
use crate::kernel::kv_cache::{KvCache, PAGE, SequencePages};
use crate::kernel::lane_sum::tree;
use crate::kernel::{Compute, math};

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
    let (head_dim, group) = (shape.head_dim, shape.n_heads / shape.n_kv_heads);
    for span in spans {
        let pages = cache.pages(span.sequence);
        for row in 0..span.n_rows {
            let position = span.start + row;
            for head in 0..shape.n_heads {
                let at = ((span.first_row + row) * shape.n_heads + head) * head_dim;
                let head_pages = Head { pages, layer, kv_head: head / group };
                attend(
                    compute,
                    shape,
                    &q[at..][..head_dim],
                    head_pages,
                    position,
                    &mut out[at..][..head_dim],
                );
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Head<'a> {
    pages: SequencePages<'a>,
    layer: usize,
    kv_head: usize,
}

fn attend(
    compute: &Compute,
    shape: &AttentionShape,
    q: &[f32],
    head: Head,
    position: usize,
    out: &mut [f32],
) {
    let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let mut scores: Vec<f32> = Vec::new();
    for j in first..=position {
        let (keys, _) = head.pages.tile(head.layer, head.kv_head, j / PAGE);
        let dot =
            q.iter().enumerate().fold(0.0, |sum: f32, (d, q)| q.mul_add(keys[d * PAGE + j % PAGE], sum));
        scores.push(dot * shape.scale);
    }
    if let Some(cap) = shape.softcap {
        crate::kernel::activation::soft_cap(compute, &mut scores, cap);
    }
    let max = scores.iter().fold(f32::NEG_INFINITY, |max, s| if *s > max { *s } else { max });
    scores.iter_mut().for_each(|s| *s -= max);
    math::exp(compute.isa, &mut scores);
    let mut lanes = [0.0; PAGE];
    for (j, p) in (first..).zip(&scores) {
        lanes[j % PAGE] += p;
    }
    let sum = tree(&mut lanes);
    for (d, out) in out.iter_mut().enumerate() {
        let chain = (first..).zip(&scores).fold(0.0, |a, (j, p)| {
            let (_, values) = head.pages.tile(head.layer, head.kv_head, j / PAGE);
            p.mul_add(values[j % PAGE * shape.head_dim.next_multiple_of(16) + d], a)
        });
        *out = chain / sum;
    }
}
