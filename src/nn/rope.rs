//! Rotary position embedding.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{rows_of, values};
use crate::kernel::Compute;
use crate::kernel::rope::{RopeTable, rope as kernel};

/// Where rows stand in their sequences, and the frequencies they turn with.
#[derive(Clone)]
pub struct Turns {
    pub positions: Arc<[u32]>,
    /// Numbers of rows that share a table, in order; they add up to the positions.
    pub tables: Vec<(usize, Arc<RopeTable>)>,
}

/// Returns `x` `[T, H * D]` with every head turned by its row's position (arXiv:2104.09864): dimension i
/// with i + n, for n the table's pairs; what lies beyond 2n is as it was.
///
/// Errors if there are not as many positions as rows.
pub fn rope(compute: &Arc<Compute>, x: &Tensor, head_dim: usize, turns: &Turns) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Rope { compute: compute.clone(), head_dim, turns: turns.clone() })
}

struct Rope {
    compute: Arc<Compute>,
    head_dim: usize,
    turns: Turns,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = values(storage, layout)?.to_vec();
        let (n_rows, len) = rows_of(layout);
        let Turns { positions, tables } = &self.turns;
        if n_rows != positions.len() {
            candle_core::bail!("{} positions for a tensor of shape {:?}", positions.len(), layout.shape());
        }
        let mut first = 0;
        for (n, table) in tables {
            let rows = first..first + n;
            let x = &mut y[rows.start * len..rows.end * len];
            kernel(&self.compute, x, self.head_dim, &positions[rows], table);
            first += n;
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}
