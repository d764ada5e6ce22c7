//! Attention over what a cache holds, and within documents.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use super::{same_shape, tensor, values, with_values};
use crate::kernel::attention::{self as documents, DocumentGradients, DocumentRows, Saved};
use crate::kernel::attention::{AttentionShape, Span, attention as kernel};
use crate::kernel::{Compute, KvCache};

/// Which rows of the queries attend to which sequence, in which layer of the cache.
pub struct AttendingRows<'a> {
    pub cache: &'a KvCache,
    pub layer: usize,
    pub spans: &'a [Span],
}

/// Returns causal attention of the queries `q` `[T, H * D]` over the cache: `[T, H * D]`.
///
/// Query at position i sees key j iff `0 <= i - j < window` (Mistral, arXiv:2310.06825).
pub fn attention(
    compute: &Arc<Compute>,
    shape: AttentionShape,
    q: &Tensor,
    rows: AttendingRows<'_>,
) -> Result<Tensor> {
    q.apply_op1_no_bwd(&Attention { compute: compute.clone(), shape, rows })
}

/// Returns the causal attention of documents that lie one after another, each over itself, `[T, H * D]`, and every row's
/// log-sum-exp of scores, `[T, H]`. q is `[T, H * D]`, k and v `[T, K * D]`; `cu` has where documents begin, and T.
///
/// The values are those of [`attention`] of each document as a sequence of its own, to the bit.
///
/// Errors if the shapes disagree or `cu` does not ascend from 0 to T.
pub fn document_attention(
    compute: &Compute,
    shape: AttentionShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu: &[usize],
) -> Result<(Tensor, Tensor)> {
    let n = check_documents(&shape, q, k, v, cu)?;
    let (mut out, mut lse) = (vec![0.0; q.elem_count()], vec![0.0; n * shape.n_heads]);
    with_rows(q, k, v, cu, |rows| documents::document_attention(compute, &shape, rows, &mut out, &mut lse))?;
    Ok((tensor(out, q)?, Tensor::from_vec(lse, (n, shape.n_heads), &Device::Cpu)?))
}

/// Returns the gradients of q, k and v of [`document_attention`], given its results and the gradient of the first.
///
/// Memory beyond these is linear in the longest document: scores are computed again, block by block
/// (arXiv:2205.14135). The order of every sum is in `kernel::attention`.
///
/// Errors as [`document_attention`].
#[allow(clippy::too_many_arguments, reason = "the forward's operands and results, and a gradient")]
pub fn document_attention_backward(
    compute: &Compute,
    shape: AttentionShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    cu: &[usize],
) -> Result<(Tensor, Tensor, Tensor)> {
    let n = check_documents(&shape, q, k, v, cu)?;
    same_shape("attention", q, out)?;
    same_shape("an attention's gradient", q, dout)?;
    if lse.elem_count() != n * shape.n_heads {
        candle_core::bail!("{} sums for {n} rows of {} heads", lse.elem_count(), shape.n_heads);
    }
    let zeros = |like: &Tensor| vec![0.0; like.elem_count()];
    let (mut dq, mut dk, mut dv) = (zeros(q), zeros(k), zeros(v));
    let gradients = DocumentGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    with_values(out, |out| {
        with_values(lse, |lse| {
            with_values(dout, |dout| {
                with_rows(q, k, v, cu, |rows| {
                    let saved = Saved { out, lse, dout };
                    documents::document_attention_backward(compute, &shape, rows, &saved, gradients);
                })
            })
        })
    })????;
    Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
}

/// Returns T.
fn check_documents(
    shape: &AttentionShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu: &[usize],
) -> Result<usize> {
    let (n, q_len) = q.dims2()?;
    let (n_keys, k_len) = k.dims2()?;
    same_shape("values", k, v)?;
    if !shape.n_heads.is_multiple_of(shape.n_kv_heads.max(1)) {
        candle_core::bail!("{} heads for {} KV heads", shape.n_heads, shape.n_kv_heads);
    }
    if n_keys != n || (q_len, k_len) != (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim) {
        candle_core::bail!("queries and keys of shapes {:?} and {:?} for {shape:?}", q.shape(), k.shape());
    }
    if cu.first() != Some(&0) || cu.last() != Some(&n) || !cu.is_sorted() {
        candle_core::bail!("{n} rows for documents that begin at {cu:?}");
    }
    Ok(n)
}

/// Calls `run` with the values of rows.
fn with_rows(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu: &[usize],
    run: impl FnOnce(&DocumentRows<'_>),
) -> Result<()> {
    with_values(q, |q| with_values(k, |k| with_values(v, |v| run(&DocumentRows { q, k, v, cu }))))??
}

struct Attention<'a> {
    compute: Arc<Compute>,
    shape: AttentionShape,
    rows: AttendingRows<'a>,
}

impl CustomOp1 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let q = values(storage, layout)?;
        let mut out = vec![0.0; q.len()];
        let AttendingRows { cache, layer, spans } = self.rows;
        kernel(&self.compute, &self.shape, q, cache, layer, spans, &mut out);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}
