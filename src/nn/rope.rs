//! Rotary position embedding.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{tensor, values, with_values};
use crate::kernel::Compute;
use crate::kernel::activation::copied;
use crate::kernel::rope::{RopeTable, rope as kernel, rope_backward as backward};

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

/// Returns the gradient of `x` of [`rope`], given that of its result: every head turned back.
///
/// Errors if there are not as many positions as rows.
pub fn rope_backward(compute: &Compute, dy: &Tensor, head_dim: usize, turns: &Turns) -> Result<Tensor> {
    let mut dx = with_values(dy, |dy| copied(compute, dy))?;
    turns.for_each(dy.dims(), &mut dx, |dx, positions, table| {
        backward(compute, dx, head_dim, positions, table);
    })?;
    tensor(dx, dy)
}

impl Turns {
    /// Calls `turn` with the rows of each table, their positions and the table.
    ///
    /// Errors if there are not as many positions as rows.
    fn for_each(
        &self,
        dims: &[usize],
        values: &mut [f32],
        turn: impl Fn(&mut [f32], &[u32], &RopeTable),
    ) -> Result<()> {
        let len = dims.last().copied().unwrap_or(1);
        let n_rows: usize = dims.iter().rev().skip(1).product();
        if n_rows != self.positions.len() {
            candle_core::bail!("{} positions for a tensor of shape {dims:?}", self.positions.len());
        }
        let mut first = 0;
        for (n, table) in &self.tables {
            let rows = first..first + n;
            turn(&mut values[rows.start * len..rows.end * len], &self.positions[rows], table);
            first += n;
        }
        Ok(())
    }
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
        let mut y = copied(&self.compute, values(storage, layout)?);
        self.turns.for_each(layout.dims(), &mut y, |x, positions, table| {
            kernel(&self.compute, x, self.head_dim, positions, table);
        })?;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}
