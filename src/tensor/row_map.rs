//! Orders in which the rows of a stored tensor are read.

/// A one-to-one reordering of a tensor's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowMap {
    Identity,
    /// In each head of `head_dim` rows, the halves (x_0.., y_0..) become pairs (x_0, y_0, x_1, ..):
    /// transformers rotates dimension i with i + D/2, ggml's `llama` rotates 2i with 2i + 1.
    Interleave {
        head_dim: usize,
    },
    /// The inverse of [`RowMap::Interleave`].
    Deinterleave {
        head_dim: usize,
    },
}

impl RowMap {
    /// Returns the source row that lands in `row`.
    pub fn source_of(self, row: usize) -> usize {
        match self {
            RowMap::Identity => row,
            RowMap::Interleave { head_dim } => {
                let (head, at) = (row / head_dim, row % head_dim);
                head * head_dim + at % 2 * (head_dim / 2) + at / 2
            }
            RowMap::Deinterleave { head_dim } => {
                let (head, at) = (row / head_dim, row % head_dim);
                head * head_dim + at % (head_dim / 2) * 2 + at / (head_dim / 2)
            }
        }
    }

    /// Returns the map that undoes this one.
    pub fn inverse(self) -> Self {
        match self {
            RowMap::Identity => RowMap::Identity,
            RowMap::Interleave { head_dim } => RowMap::Deinterleave { head_dim },
            RowMap::Deinterleave { head_dim } => RowMap::Interleave { head_dim },
        }
    }

    /// Returns the rows that move only among themselves: reads of whole groups are contiguous.
    pub(crate) fn group(self) -> usize {
        match self {
            RowMap::Identity => 1,
            RowMap::Interleave { head_dim } | RowMap::Deinterleave { head_dim } => head_dim,
        }
    }
}
