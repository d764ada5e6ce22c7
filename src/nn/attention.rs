//! Attention over what a cache holds.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::values;
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
