//! What every step of one forward and backward shares.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::kept::{Form, Kept};
use super::sheet::Sheet;
use crate::kernel::dropout::{MaskKey, RowPlace};
use crate::kernel::product::Values;
use crate::kernel::{Compute, Matrix};
use crate::model::config::ModelConfig;
use crate::model::weights::Vector;
use crate::nn;

pub(super) struct Pass<'a> {
    pub compute: &'a Arc<Compute>,
    pub config: &'a ModelConfig,
    pub params: &'a [f32],
    /// The same, as matrices share them.
    pub shared: Arc<Values>,
    /// The model as it was opened: nothing that is trained counts.
    pub is_base: bool,
    pub sheet: &'a Sheet,
    /// Probability that dropout takes a value; 0 outside of training.
    pub rate: f32,
    pub seed: u64,
    pub step: u32,
    pub form: Form,
}

impl<'a> Pass<'a> {
    /// Returns the trained values of a range, if there is one and it counts.
    pub fn own(&self, range: &Option<Range<usize>>) -> Option<&'a [f32]> {
        range.as_ref().filter(|_| !self.is_base).map(|range| &self.params[range.clone()])
    }

    /// Returns the trained matrix of a range, if there is one and it counts.
    pub fn matrix(&self, range: &Option<Range<usize>>, rows: usize, cols: usize) -> Option<Matrix> {
        range.as_ref().filter(|_| !self.is_base).map(|range| self.values(range, rows, cols))
    }

    /// Returns the parameters of a range as a matrix, where they lie.
    pub fn values(&self, range: &Range<usize>, rows: usize, cols: usize) -> Matrix {
        debug_assert_eq!(range.len(), rows * cols);
        Matrix::of_values(self.shared.clone(), range.start, rows, cols)
    }

    pub fn mask_key<'p>(&self, module: u32, places: &'p [RowPlace]) -> MaskKey<'p> {
        MaskKey { seed: self.seed, step: self.step, module, rows: places }
    }

    pub fn keep(&self, x: &Tensor) -> Result<Kept> {
        Kept::new(self.compute, self.form, x)
    }

    pub fn back(&self, kept: &Kept) -> Result<Tensor> {
        kept.tensor(self.compute)
    }
}

/// A norm's weight: of the model, or trained.
pub(super) struct Norm {
    pub base: Vector,
    pub range: Option<Range<usize>>,
    /// What a parameter is less than the factor it stands for (Gemma stores norms less one).
    pub offset: f32,
}

impl Norm {
    pub fn weight(&self, pass: &Pass<'_>) -> Vector {
        match pass.own(&self.range) {
            Some(values) => values.iter().map(|value| value + self.offset).collect(),
            None => self.base.clone(),
        }
    }

    pub fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        nn::rms_norm(pass.compute, x, &self.weight(pass), pass.config.rms_norm_eps)
    }

    /// Adds to the weight's gradient, if it is trained; returns that of x.
    pub fn backward(&self, pass: &Pass<'_>, x: &Tensor, dy: &Tensor, grads: &mut [f32]) -> Result<Tensor> {
        let own = self.range.as_ref().map(|range| &mut grads[range.clone()]);
        nn::rms_norm_backward(pass.compute, x, &self.weight(pass), pass.config.rms_norm_eps, dy, own)
    }
}
