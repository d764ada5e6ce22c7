//! The rows of one forward as the kernels need them.

use std::sync::{Arc, Mutex, PoisonError};

use super::cache::DeviceCache;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::RopeRows;
use crate::cuda::op::paged::{PagedRows, PagedSpan};
use crate::cuda::{CudaError, Device};
use crate::kernel::rope::RopeTable;
use crate::model::batch::{Batch, Ropes, wanted_spans};
use crate::model::config::Attention;

/// Tables of rotations on a device, one after another, each with the same positions: as many as were met.
pub(super) struct Angles {
    tables: Vec<Arc<RopeTable>>,
    made: Mutex<Option<Made>>,
}

#[derive(Clone)]
struct Made {
    /// Positions of each table.
    n: u32,
    values: Arc<Buffer<f32>>,
}

impl Angles {
    /// Returns those of full attention, and of sliding attention where it differs.
    pub fn of(ropes: &Ropes) -> (Angles, Option<Angles>) {
        let new = |tables| Angles { tables, made: Mutex::default() };
        let long = ropes.long.iter().map(|(_, table)| table);
        let full = std::iter::once(&ropes.full).chain(long).cloned().collect();
        (new(full), ropes.local.as_ref().map(|table| new(vec![table.clone()])))
    }

    fn dim(&self) -> usize {
        self.tables.first().map_or(0, |table| table.dim())
    }

    /// Returns tables of at least `n` positions.
    fn reaching(&self, device: &Device, n: u32) -> Result<Made, CudaError> {
        /// Positions of the first tables: more come in powers of two.
        const FEWEST: u32 = 256;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.as_ref().filter(|made| made.n >= n) {
            return Ok(made.clone());
        }
        let n = n.checked_next_power_of_two().unwrap_or(n).max(FEWEST);
        let rows: Vec<f32> = self.tables.iter().flat_map(|table| table.rows(n)).collect();
        let new = Made { n, values: Arc::new(Buffer::of(device, &rows)?) };
        Ok(made.insert(new).clone())
    }

    /// Returns where the batch's rows turn.
    fn turns(
        &self,
        device: &Device,
        batch: &Batch,
        of_table: impl Fn(&Arc<RopeTable>) -> usize,
    ) -> Result<Turns, CudaError> {
        let end = batch.positions.iter().max().map_or(0, |last| last + 1);
        let made = self.reaching(device, end)?;
        let mut indexes = Vec::with_capacity(batch.positions.len());
        for (n, table) in &batch.tables {
            let (first, begin) = (indexes.len(), of_table(table) as u32 * made.n);
            indexes.extend(batch.positions[first..first + n].iter().map(|position| begin + position));
        }
        let picked: Vec<u32> = batch.wanted.iter().map(|row| indexes[*row]).collect();
        Ok(Turns {
            values: made.values,
            dim: self.dim(),
            all: Buffer::of(device, &indexes)?,
            picked: Buffer::of(device, &picked)?,
        })
    }
}

/// Which row of the tables each row of the batch turns by.
struct Turns {
    values: Arc<Buffer<f32>>,
    dim: usize,
    all: Buffer<u32>,
    /// Of the wanted rows.
    picked: Buffer<u32>,
}

/// What the kernels need of a batch.
pub(super) struct Sheet<'c> {
    pub all: PagedRows<'c>,
    /// The wanted rows, if they are not all.
    pub picked: Option<Picked<'c>>,
    full: Turns,
    /// Where layers of sliding attention turn otherwise.
    sliding: Option<Turns>,
}

/// Rows whose output is wanted, ascending.
pub(super) struct Picked<'c> {
    pub ids: Buffer<u32>,
    pub rows: PagedRows<'c>,
}

impl<'c> Sheet<'c> {
    pub fn new<T: Float>(
        device: &Device,
        cache: &'c DeviceCache<'_>,
        (full, sliding): (&Angles, Option<&Angles>),
        head_dim: usize,
        batch: &Batch,
    ) -> Result<Sheet<'c>, CudaError> {
        let paged = |spans: &[crate::kernel::attention::Span]| {
            let spans: Vec<PagedSpan<'_>> = spans.iter().map(|span| cache.span(span)).collect();
            PagedRows::new::<T>(device, cache.pages(), head_dim, &spans)
        };
        let picked = (batch.wanted.len() < batch.tokens.len()).then(|| {
            // rows of a batch are below 2^32: its tokens are in memory four bytes each
            let ids: Vec<u32> = batch.wanted.iter().map(|row| *row as u32).collect();
            Ok::<_, CudaError>(Picked { ids: Buffer::of(device, &ids)?, rows: paged(&wanted_spans(batch))? })
        });
        let index = |table: &Arc<RopeTable>| {
            full.tables.iter().position(|known| Arc::ptr_eq(known, table)).unwrap_or(0)
        };
        Ok(Sheet {
            all: paged(&batch.spans)?,
            picked: picked.transpose()?,
            full: full.turns(device, batch, index)?,
            sliding: sliding.map(|angles| angles.turns(device, batch, |_| 0)).transpose()?,
        })
    }

    /// Returns how all rows turn, or the wanted ones; `None` if they don't.
    pub fn turns(&self, attention: Attention, of_picked: bool) -> Option<RopeRows<'_>> {
        let Turns { values, dim, all, picked } = match (attention, &self.sliding) {
            (Attention::Sliding, Some(sliding)) => sliding,
            _ => &self.full,
        };
        let positions = if of_picked { picked } else { all };
        (*dim > 0).then_some(RopeRows { table: values, dim: *dim, positions })
    }
}
