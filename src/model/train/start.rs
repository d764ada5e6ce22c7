//! The values that parameters begin with.

use std::path::Path;

use super::plan::Plan;
use super::{Error, ParameterInfo};
use crate::kernel::philox::{Philox, Purpose};
use crate::kernel::{Isa, Matrix};
use crate::model::error::Error as ModelError;
use crate::model::mapper::is_integer;
use crate::model::weights::Vector;
use crate::tensor::safetensors::SafeTensors;
use crate::tensor::{TensorInfo, TensorSource};

/// How a parameter begins.
pub(super) enum Start {
    Zero,
    /// Uniform in +-1 / sqrt(columns): torch's `kaiming_uniform_(a=sqrt(5))`.
    Uniform {
        columns: usize,
        module: u32,
    },
    /// The model's own rows, one matrix after another.
    Rows(Vec<Matrix>),
    /// Vectors one after another, less `offset`.
    Vectors {
        vectors: Vec<Vector>,
        offset: f32,
    },
}

impl Start {
    /// Returns the bytes of the file that it is read from.
    pub fn mapped_bytes(&self) -> usize {
        match self {
            Start::Rows(matrices) => matrices.iter().map(Matrix::mapped_bytes).sum(),
            Start::Zero | Start::Uniform { .. } | Start::Vectors { .. } => 0,
        }
    }

    fn fill(&self, isa: Isa, seed: u64, out: &mut [f32]) {
        match self {
            Start::Zero => out.fill(0.0),
            Start::Uniform { columns, module } => {
                let stream = Philox::new(seed, Purpose::Initial);
                let bound = (1.0 / (*columns as f64).sqrt()) as f32;
                for (i, value) in out.iter_mut().enumerate() {
                    *value = bound * (2.0 * stream.uniform(*module, i as u64) - 1.0);
                }
            }
            Start::Rows(matrices) => {
                let mut rest = out;
                for matrix in matrices {
                    let (own, behind) = rest.split_at_mut(matrix.rows() * matrix.cols());
                    for (i, row) in own.chunks_exact_mut(matrix.cols()).enumerate() {
                        matrix.decode_row(isa, i, row);
                    }
                    rest = behind;
                    // they are trained from here on: what was read is not looked at again
                    matrix.release();
                }
            }
            Start::Vectors { vectors, offset } => {
                let values = vectors.iter().flat_map(|vector| vector.iter());
                out.iter_mut().zip(values).for_each(|(out, value)| *out = value - offset);
            }
        }
    }
}

/// Returns the parameters before the first step.
pub(super) fn initial(plan: &Plan, isa: Isa, seed: u64) -> Vec<f32> {
    let mut params = vec![0.0; plan.n_parameters];
    for (info, start) in plan.parameters.iter().zip(&plan.starts) {
        start.fill(isa, seed, &mut params[info.range.clone()]);
    }
    params
}

/// Returns the parameters that a safetensors file holds under their names.
///
/// Errors on one that is missing, of another shape or no float, and on a tensor that is no parameter.
pub(super) fn read(parameters: &[ParameterInfo], isa: Isa, path: &Path) -> Result<Vec<f32>, Error> {
    let source = SafeTensors::open_file(path).map_err(ModelError::from)?;
    let mut params = vec![0.0; parameters.last().map_or(0, |last| last.range.end)];
    let known = |info: &&TensorInfo| !parameters.iter().any(|parameter| parameter.name == info.name);
    if let Some(info) = source.tensors().iter().find(known) {
        return Err(ModelError::AdapterTarget { path: path.to_path_buf(), name: info.name.clone() }.into());
    }
    for parameter in parameters {
        let Some(info) = source.find(&parameter.name) else {
            let (path, name) = (path.to_path_buf(), parameter.name.clone());
            return Err(ModelError::MissingTensor { path, name, detail: String::new() }.into());
        };
        let (path, name) = (path.to_path_buf(), parameter.name.clone());
        if info.shape != parameter.shape {
            let (found, expected) = (info.shape.clone(), parameter.shape.clone());
            return Err(ModelError::AdapterShape { path, name, found, expected }.into());
        }
        if !info.dtype.can_decode() || is_integer(info.dtype) {
            return Err(
                ModelError::UnreadableDtype { path, name, dtype: info.dtype.name().to_owned() }.into()
            );
        }
        let bytes = source.bytes(info).map_err(ModelError::from)?;
        info.dtype.decode(isa, bytes, &mut params[parameter.range.clone()]);
    }
    Ok(params)
}
