//! How the rows of an output tensor come out of source tensors: gathered, reordered, rescaled.

use std::ops::Range;

use super::Rows;
use super::scale::Scale;
use crate::kernel::Isa;
use crate::tensor::{Error, RowMap, TensorInfo, TensorSource};

/// A change of every value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueMap {
    Identity,
    /// Adds 1 (`true`: or subtracts it), rounding as the source's type does.
    AddOne {
        subtract: bool,
        /// The source is F16, and the reference adds in its type.
        in_f16: bool,
    },
}

impl ValueMap {
    fn apply(self, values: &mut [f32]) {
        let ValueMap::AddOne { subtract, in_f16 } = self else { return };
        let one = if subtract { -1.0 } else { 1.0 };
        for value in values {
            *value += one;
            if in_f16 {
                *value = half::f16::from_f32(*value).to_f32();
            }
        }
    }

    /// Returns the map that undoes this one, up to the rounding of the sum.
    pub fn inverse(self) -> Self {
        match self {
            ValueMap::Identity => ValueMap::Identity,
            ValueMap::AddOne { subtract, in_f16 } => ValueMap::AddOne { subtract: !subtract, in_f16 },
        }
    }
}

/// A run of rows of one source tensor.
pub(super) struct Piece {
    pub tensor: TensorInfo,
    /// First source row and number of rows.
    pub rows: Range<usize>,
    /// Factors an FP8 weight is stored without.
    pub scale: Option<Scale>,
}

/// Pieces one after another, each reordered by the same map.
pub(super) struct SourceRows {
    /// Length of the rows that `map` moves: the tensor's row, or 1 to move elements of a vector.
    pub row_len: usize,
    /// Rows of `row_len` in one row of the target.
    pub rows_per_target_row: usize,
    pub pieces: Vec<Piece>,
    pub map: RowMap,
    pub values: ValueMap,
}

impl SourceRows {
    /// Returns the rows of a target of that shape; a vector's elements are what `map` moves.
    pub fn new(shape: &[usize], mut pieces: Vec<Piece>, map: RowMap, values: ValueMap) -> Self {
        let target_row = shape.last().copied().unwrap_or(1);
        let moves_elements = shape.len() < 2 && map != RowMap::Identity;
        if moves_elements {
            for piece in &mut pieces {
                piece.rows = 0..target_row;
            }
        }
        SourceRows {
            row_len: if moves_elements { 1 } else { target_row },
            rows_per_target_row: if moves_elements { target_row } else { 1 },
            pieces,
            map,
            values,
        }
    }

    /// Returns the rows of a tensor as it is.
    pub fn identity(info: &TensorInfo) -> Self {
        let piece = Piece { tensor: info.clone(), rows: 0..info.n_rows(), scale: None };
        SourceRows::new(&info.shape, vec![piece], RowMap::Identity, ValueMap::Identity)
    }

    /// Calls `visit(piece, source_rows, at)` for maximal reads in order; `at` maps each source row
    /// of the read to its row among the requested ones, or `None` if it is not requested.
    fn reads(
        &self,
        rows: Range<usize>,
        mut visit: impl FnMut(&Piece, Range<usize>, &dyn Fn(usize) -> Option<usize>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let wanted = rows.start * self.rows_per_target_row..rows.end * self.rows_per_target_row;
        let mut piece_start = 0;
        for piece in &self.pieces {
            let n = piece.rows.len();
            let local = wanted.start.max(piece_start) - piece_start
                ..wanted.end.clamp(piece_start, piece_start + n) - piece_start;
            let base = piece_start as isize - wanted.start as isize;
            piece_start += n;
            if local.is_empty() {
                continue;
            }
            let group = self.map.group();
            if group == 1 {
                let first = piece.rows.start;
                let at = |row: usize| Some(((row - first) as isize + base) as usize);
                visit(piece, first + local.start..first + local.end, &at)?;
                continue;
            }
            let inverse = self.map.inverse();
            for head in local.start / group..local.end.div_ceil(group) {
                let first = piece.rows.start;
                let at = |row: usize| {
                    let target = inverse.source_of(row - first);
                    local.contains(&target).then(|| (target as isize + base) as usize)
                };
                visit(piece, first + head * group..first + (head + 1) * group, &at)?;
            }
        }
        Ok(())
    }
}

impl Rows for SourceRows {
    fn read(
        &self,
        source: &dyn TensorSource,
        isa: Isa,
        rows: Range<usize>,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let row_len = self.row_len;
        self.reads(rows, |piece, source_rows, at| {
            let dtype = piece.tensor.dtype;
            let row_bytes = row_len / dtype.block_len() * dtype.block_bytes();
            scratch.resize(source_rows.len() * row_bytes, 0);
            source.read_at(&piece.tensor, (source_rows.start * row_bytes) as u64, scratch)?;
            if self.map == RowMap::Identity {
                let Some(first) = at(source_rows.start) else { return Ok(()) };
                dtype.decode(isa, scratch, &mut out[first * row_len..][..source_rows.len() * row_len]);
            }
            for (row, bytes) in source_rows.zip(scratch.chunks_exact(row_bytes)) {
                let Some(target) = at(row) else { continue };
                let out = &mut out[target * row_len..][..row_len];
                if self.map != RowMap::Identity {
                    dtype.decode(isa, bytes, out);
                }
                if let Some(scale) = &piece.scale {
                    scale.apply(source, isa, row, out)?;
                }
                self.values.apply(out);
            }
            Ok(())
        })
    }

    fn read_stored(
        &self,
        source: &dyn TensorSource,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<bool, Error> {
        let changed =
            self.values != ValueMap::Identity || self.pieces.iter().any(|piece| piece.scale.is_some());
        if changed {
            return Ok(false);
        }
        let mut group = Vec::new();
        self.reads(rows, |piece, source_rows, at| {
            let dtype = piece.tensor.dtype;
            let row_bytes = self.row_len / dtype.block_len() * dtype.block_bytes();
            let offset = (source_rows.start * row_bytes) as u64;
            if self.map == RowMap::Identity {
                let Some(first) = at(source_rows.start) else { return Ok(()) };
                let out = &mut out[first * row_bytes..][..source_rows.len() * row_bytes];
                return source.read_at(&piece.tensor, offset, out);
            }
            group.resize(source_rows.len() * row_bytes, 0);
            source.read_at(&piece.tensor, offset, &mut group)?;
            for (row, bytes) in source_rows.zip(group.chunks_exact(row_bytes)) {
                if let Some(target) = at(row) {
                    out[target * row_bytes..][..row_bytes].copy_from_slice(bytes);
                }
            }
            Ok(())
        })?;
        Ok(true)
    }
}

/// A vector computed from the config instead of read from a file.
pub(super) struct GeneratedRow(pub Vec<f32>);

impl Rows for GeneratedRow {
    fn read(
        &self,
        _: &dyn TensorSource,
        _: Isa,
        rows: Range<usize>,
        _: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let n = self.0.len();
        out.copy_from_slice(&self.0[(rows.start * n).min(n)..(rows.end * n).min(n)]);
        Ok(())
    }

    fn read_stored(&self, _: &dyn TensorSource, rows: Range<usize>, out: &mut [u8]) -> Result<bool, Error> {
        let n = self.0.len();
        let values = &self.0[(rows.start * n).min(n)..(rows.end * n).min(n)];
        for (bytes, value) in out.chunks_exact_mut(4).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_maps_are_permutations_with_inverses() {
        for head_dim in [2, 4, 8, 64, 128] {
            let map = RowMap::Interleave { head_dim };
            let n = 3 * head_dim;
            let mut seen = vec![false; n];
            for row in 0..n {
                assert_eq!(map.inverse().source_of(map.source_of(row)), row);
                assert_eq!(map.source_of(row) / head_dim, row / head_dim, "rows stay in their head");
                seen[map.source_of(row)] = true;
            }
            assert!(seen.iter().all(|seen| *seen));
        }
    }

    #[test]
    fn interleave_pairs_the_halves() {
        let map = RowMap::Interleave { head_dim: 6 };
        let order: Vec<_> = (0..12).map(|row| map.source_of(row)).collect();
        assert_eq!(order, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }

    #[test]
    fn add_one_rounds_in_the_type_of_the_source() {
        let mut f32s = [1e-4, -0.25];
        ValueMap::AddOne { subtract: false, in_f16: false }.apply(&mut f32s);
        assert_eq!(f32s, [1.0001, 0.75]);
        // 1.0001 lies closer to 1 than to f16's next value, 1 + 2^-10
        let mut f16s = [1e-4, -0.25];
        ValueMap::AddOne { subtract: false, in_f16: true }.apply(&mut f16s);
        assert_eq!(f16s, [1.0, 0.75]);
    }

    #[test]
    fn add_one_undone_is_identity_where_the_sum_is_exact() {
        let map = ValueMap::AddOne { subtract: false, in_f16: false };
        let original = [0.5, -0.125, 3.0, 0.0, -1.0];
        let mut values = original;
        map.apply(&mut values);
        map.inverse().apply(&mut values);
        assert_eq!(values, original);
    }
}
