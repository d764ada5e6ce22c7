//! The slow, obvious form of the gradients: the definition that the fast pass must equal to the bit.

use super::{DocumentGradients, Saved};
use crate::kernel::attention::AttentionShape;
use crate::kernel::attention::documents::DocumentRows;
use crate::kernel::lane_sum::tree;
use crate::kernel::{Compute, math};

/// See [`super::document_attention_backward`].
pub fn backward(
    compute: &Compute,
    shape: &AttentionShape,
    rows: &DocumentRows<'_>,
    saved: &Saved<'_>,
    gradients: DocumentGradients<'_>,
) {
    let DocumentGradients { dq, dk, dv } = gradients;
    dk.fill(0.0);
    dv.fill(0.0);
    let (head_dim, group) = (shape.head_dim, shape.n_heads / shape.n_kv_heads);
    for ends in rows.cu.windows(2) {
        for position in 0..ends[1] - ends[0] {
            for head in 0..shape.n_heads {
                let at = (ends[0] + position) * shape.n_heads + head;
                let query = Query {
                    q: &rows.q[at * head_dim..][..head_dim],
                    out: &saved.out[at * head_dim..][..head_dim],
                    dout: &saved.dout[at * head_dim..][..head_dim],
                    lse: saved.lse[at],
                };
                let seen: Vec<usize> = (shape.first_seen(position)..=position)
                    .map(|j| ((ends[0] + j) * shape.n_kv_heads + head / group) * head_dim)
                    .collect();
                query.run(compute, shape, rows, &seen, &mut dq[at * head_dim..][..head_dim], dk, dv);
            }
        }
    }
    dk.iter_mut().chain(dq).for_each(|value| *value *= shape.scale);
}

struct Query<'a> {
    q: &'a [f32],
    out: &'a [f32],
    dout: &'a [f32],
    lse: f32,
}

fn chain(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| a.mul_add(*b, sum))
}

fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = factor.mul_add(*from, *to));
}

impl Query<'_> {
    /// Adds to the sums; `seen` has where the visible positions' keys and values begin.
    #[allow(clippy::too_many_arguments, reason = "the operands, then the three results")]
    fn run(
        &self,
        compute: &Compute,
        shape: &AttentionShape,
        rows: &DocumentRows<'_>,
        seen: &[usize],
        dq: &mut [f32],
        dk: &mut [f32],
        dv: &mut [f32],
    ) {
        let n = shape.head_dim;
        let mut lanes = [0.0; 64];
        for (d, (dout, out)) in self.dout.iter().zip(self.out).enumerate() {
            lanes[d % 64] = dout.mul_add(*out, lanes[d % 64]);
        }
        let delta = tree(&mut lanes);
        dq.fill(0.0);
        for at in seen {
            let range = *at..at + n;
            let (k, v) = (&rows.k[range.clone()], &rows.v[range.clone()]);
            let x = chain(self.q, k) * shape.scale;
            let mut t = [0.0];
            let s = shape.softcap.map_or(x, |cap| {
                t = [x / cap];
                math::tanh(compute.isa, &mut t);
                cap * t[0]
            });
            let mut p = [s - self.lse];
            math::exp(compute.isa, &mut p);
            let mut ds = p[0] * (chain(self.dout, v) - delta);
            if shape.softcap.is_some() {
                ds *= (-t[0]).mul_add(t[0], 1.0);
            }
            add_scaled(dq, ds, k);
            add_scaled(&mut dk[range.clone()], ds, self.q);
            add_scaled(&mut dv[range], p[0], self.dout);
        }
    }
}
