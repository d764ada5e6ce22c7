//! A micro-batch on a device.

use std::sync::Arc;

use super::super::sheet::Sheet;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::attention::Documents;
use crate::cuda::op::elementwise::{DropoutRows, RopeRows};
use crate::cuda::{CudaError, Device};
use crate::kernel::rope::RopeTable;
use crate::model::config::{Attention, ModelConfig};
use crate::nn::Turns;

/// What the kernels need of a [`Sheet`].
pub(super) struct Batch<'a> {
    pub sheet: &'a Sheet,
    full: Layer,
    /// Where layers of sliding attention differ.
    sliding: Option<Layer>,
    /// Rows that a target is predicted from.
    pub scored: Buffer<u32>,
    pub targets: Buffer<u32>,
    places: DropoutRows,
    scored_places: DropoutRows,
}

/// What layers of one kind of attention share.
pub(super) struct Layer {
    pub documents: Documents,
    angles: Angles,
}

/// Cosines and sines, and which row of them each row of the batch turns by.
struct Angles {
    table: Buffer<f32>,
    dim: usize,
    indexes: Buffer<u32>,
}

impl<'a> Batch<'a> {
    pub fn new<T: Float>(
        device: &Device,
        config: &ModelConfig,
        sheet: &'a Sheet,
    ) -> Result<Batch<'a>, CudaError> {
        let layer = |attention: Attention, turns: &Turns| {
            Ok::<_, CudaError>(Layer {
                documents: Documents::new::<T>(device, config.attention_shape(attention), &sheet.cu)?,
                angles: Angles::new(device, turns)?,
            })
        };
        let slides = config.attention.contains(&Attention::Sliding);
        // rows and positions are below 2^32: `Sheet::new`
        let scored: Vec<u32> = sheet.scored.iter().map(|row| *row as u32).collect();
        Ok(Batch {
            sheet,
            full: layer(Attention::Full, &sheet.turns)?,
            sliding: slides.then(|| layer(Attention::Sliding, &sheet.local_turns)).transpose()?,
            scored: Buffer::of(device, &scored)?,
            targets: Buffer::of(device, &sheet.targets)?,
            places: DropoutRows::new(device, &sheet.places)?,
            scored_places: DropoutRows::new(device, &sheet.scored_places)?,
        })
    }

    pub fn n_rows(&self) -> usize {
        self.sheet.tokens.len()
    }

    pub fn layer(&self, attention: Attention) -> &Layer {
        match (attention, &self.sliding) {
            (Attention::Sliding, Some(sliding)) => sliding,
            _ => &self.full,
        }
    }

    /// Returns where all rows are, or those that a target is predicted from.
    pub fn places(&self, of_scored: bool) -> &DropoutRows {
        if of_scored { &self.scored_places } else { &self.places }
    }
}

impl Layer {
    /// Returns how rows turn; `None` if they don't.
    pub fn turns(&self) -> Option<RopeRows<'_>> {
        let Angles { table, dim, indexes } = &self.angles;
        (*dim > 0).then_some(RopeRows { table, dim: *dim, positions: indexes })
    }
}

impl Angles {
    /// Puts the rows of all tables, up to the last position, one after another.
    fn new(device: &Device, turns: &Turns) -> Result<Angles, CudaError> {
        let n_positions = turns.positions.iter().max().map_or(0, |last| last + 1);
        let mut tables: Vec<&Arc<RopeTable>> = Vec::new();
        let (mut indexes, mut first) = (Vec::with_capacity(turns.positions.len()), 0);
        for (n, table) in &turns.tables {
            let known = tables.iter().position(|known| Arc::ptr_eq(known, table));
            let index = known.unwrap_or_else(|| {
                tables.push(table);
                tables.len() - 1
            });
            let begin = index as u32 * n_positions;
            indexes.extend(turns.positions[first..first + n].iter().map(|position| begin + position));
            first += n;
        }
        let dim = tables.first().map_or(0, |table| table.dim());
        let rows: Vec<f32> = tables.iter().flat_map(|table| table.rows(n_positions)).collect();
        Ok(Angles { table: Buffer::of(device, &rows)?, dim, indexes: Buffer::of(device, &indexes)? })
    }
}
