//! Factors stored beside FP8 weights: one, one per row, or one per block.

use std::ops::Range;
use std::sync::OnceLock;

use crate::kernel::Isa;
use crate::tensor::{Error, TensorInfo, TensorSource};

/// How many weights one factor covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Tensor,
    Row,
    /// Blocks of `rows` x `cols`, the last of each row and column cut short; `per_row` factors in a row of blocks.
    Block {
        rows: usize,
        cols: usize,
        per_row: usize,
    },
}

/// The factors of one weight tensor (or of one expert's part of it), read when first needed.
pub(super) struct Scale {
    pub tensor: TensorInfo,
    pub layout: Layout,
    /// Rows of one matrix; a stack of experts has its factors stacked alike.
    pub matrix_rows: usize,
    pub factors: OnceLock<Vec<f32>>,
}

impl Scale {
    /// Returns the factors in `tensor` for a weight of `weight` shape; `block` is the config's
    /// `weight_block_size`. `None` if the shapes fit no layout.
    pub fn fit(tensor: &TensorInfo, weight: &[usize], block: Option<[usize; 2]>) -> Option<Self> {
        let (&cols, &rows) = (weight.last()?, weight.get(weight.len().checked_sub(2)?)?);
        let stack: usize = weight[..weight.len() - 2].iter().product();
        let n = tensor.n_elements();
        let layout = match (tensor.shape.as_slice(), block) {
            (_, _) if n == 1 || n == stack => Layout::Tensor,
            (_, Some([r, c])) if r > 0 && c > 0 && n == stack * rows.div_ceil(r) * cols.div_ceil(c) => {
                Layout::Block { rows: r, cols: c, per_row: cols.div_ceil(c) }
            }
            (_, _) if n == stack * rows => Layout::Row,
            ([.., r, c], None) if stack == 1 => block_of(rows, cols, *r, *c)?,
            _ => return None,
        };
        let one_for_all = n == 1;
        Some(Scale {
            tensor: tensor.clone(),
            layout,
            matrix_rows: if one_for_all { usize::MAX } else { rows },
            factors: OnceLock::new(),
        })
    }

    /// Multiplies `values`, row `row` of the weight tensor, by their factors.
    pub fn apply(
        &self,
        source: &dyn TensorSource,
        isa: Isa,
        row: usize,
        values: &mut [f32],
    ) -> Result<(), Error> {
        let factors = self.factors(source, isa)?;
        let (matrix, row) = (row / self.matrix_rows, row % self.matrix_rows);
        match self.layout {
            Layout::Tensor => scale(values, factors[matrix]),
            Layout::Row => scale(values, factors[matrix * self.matrix_rows + row]),
            Layout::Block { rows, cols, per_row } => {
                let blocks_of_rows = matrix * self.matrix_rows.div_ceil(rows) + row / rows;
                let first = blocks_of_rows * per_row;
                for (values, factor) in values.chunks_mut(cols).zip(&factors[first..first + per_row]) {
                    scale(values, *factor);
                }
            }
        }
        Ok(())
    }

    fn factors(&self, source: &dyn TensorSource, isa: Isa) -> Result<&[f32], Error> {
        if let Some(factors) = self.factors.get() {
            return Ok(factors);
        }
        let whole: Range<usize> = 0..self.tensor.n_bytes as usize;
        let mut bytes = vec![0; whole.len()];
        source.read_at(&self.tensor, 0, &mut bytes)?;
        let mut factors = vec![0.0; self.tensor.n_elements()];
        self.tensor.dtype.decode(isa, &bytes, &mut factors);
        // two threads may both have read them; the values are the same
        Ok(self.factors.get_or_init(|| factors))
    }
}

fn scale(values: &mut [f32], factor: f32) {
    for value in values {
        *value *= factor;
    }
}

/// Returns the square blocks of 128 (or a smaller power of two) that give `r` x `c` factors.
fn block_of(rows: usize, cols: usize, r: usize, c: usize) -> Option<Layout> {
    [128, 64, 32, 16]
        .into_iter()
        .find(|size| rows.div_ceil(*size) == r && cols.div_ceil(*size) == c)
        .map(|size| Layout::Block { rows: size, cols: size, per_row: c })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::format::by_name;

    fn layout(scale: &[usize], weight: &[usize], block: Option<[usize; 2]>) -> Option<Layout> {
        let info = TensorInfo {
            name: "w_scale".to_owned(),
            dtype: by_name("F32").unwrap(),
            shape: scale.to_vec(),
            n_bytes: scale.iter().product::<usize>() as u64 * 4,
            shard: 0,
            offset: 0,
        };
        Scale::fit(&info, weight, block).map(|scale| scale.layout)
    }

    #[test]
    fn shapes_tell_the_layout() {
        let block = |rows, cols, per_row| Some(Layout::Block { rows, cols, per_row });
        assert_eq!(layout(&[], &[256, 512], None), Some(Layout::Tensor));
        assert_eq!(layout(&[1], &[256, 512], Some([128, 128])), Some(Layout::Tensor));
        assert_eq!(layout(&[256], &[256, 512], None), Some(Layout::Row));
        assert_eq!(layout(&[256, 1], &[256, 512], None), Some(Layout::Row));
        assert_eq!(layout(&[2, 4], &[256, 512], Some([128, 128])), block(128, 128, 4));
        // without a declared size, and with blocks cut short
        assert_eq!(layout(&[3, 5], &[300, 520], None), block(128, 128, 5));
        assert_eq!(layout(&[5, 9], &[300, 520], None), block(64, 64, 9));
        // stacks of experts
        assert_eq!(layout(&[8, 2, 4], &[8, 256, 512], Some([128, 128])), block(128, 128, 4));
        assert_eq!(layout(&[8], &[8, 256, 512], None), Some(Layout::Tensor));
        assert_eq!(layout(&[3, 4], &[256, 512], Some([128, 128])), None);
        assert_eq!(layout(&[7], &[256, 512], None), None);
        assert_eq!(layout(&[1], &[256], None), None, "vectors have no scales");
    }
}
