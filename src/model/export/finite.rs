//! Whether a base's weights are numbers: what is damaged is not handed on.

use rayon::prelude::*;

use super::Error;
use crate::kernel::Isa;
use crate::kernel::scan::first_non_finite;
use crate::model::mapper::is_integer;
use crate::tensor::{TensorInfo, TensorSource};

/// Values decoded at once, about.
const PIECE: usize = 1 << 16;

/// Errors with the first NaN or infinity of a tensor, if it holds numbers that can be one.
pub(super) fn check_finite(source: &dyn TensorSource, info: &TensorInfo, isa: Isa) -> Result<(), Error> {
    let (dtype, columns) = (info.dtype, info.shape.last().copied().unwrap_or(1));
    let row_bytes = columns / dtype.block_len() * dtype.block_bytes();
    if !dtype.can_decode() || is_integer(dtype) || row_bytes == 0 {
        return Ok(());
    }
    let n_rows = (PIECE / columns).max(1);
    let first = |(piece, bytes): (usize, &[u8])| {
        let mut values = vec![0.0; bytes.len() / row_bytes * columns];
        dtype.decode(isa, bytes, &mut values);
        let at = first_non_finite(isa, &values)?;
        Some((piece * n_rows + at / columns, at % columns, values[at]))
    };
    let pieces = source.bytes(info)?.par_chunks(n_rows * row_bytes).enumerate();
    match pieces.find_map_first(first) {
        None => Ok(()),
        Some((row, column, value)) => Err(Error::BaseNotFinite {
            path: source.files()[info.shard].clone(),
            name: info.name.clone(),
            dtype: dtype.name().to_owned(),
            value,
            row,
            column,
        }),
    }
}
