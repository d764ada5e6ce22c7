//! A GGUF read backwards through the same tables: Hugging Face names and layouts.

use std::ops::Range;

use super::arch::{self, Part, Transform};
use super::config::ModelConfig;
use super::names::GgufNames;
use super::rows::{Piece, SourceRows, ValueMap};
use super::{Error, TargetTensor};
use crate::tensor::RowMap;
use crate::tensor::gguf::Gguf;
use crate::tensor::{TensorInfo, TensorSource};

/// Returns the tensors of a GGUF under their Hugging Face names, rows and values as a checkpoint has
/// them: heads de-interleaved, norms less one, stacks of experts apart (in the table's first spelling).
///
/// Generated tensors (rope factors) are left out. Dropped embedding rows stay dropped.
/// Errors on an unknown architecture, a tensor its table lacks, a shape the keys do not imply.
pub fn unmap_gguf(gguf: &Gguf) -> Result<Vec<TargetTensor>, Error> {
    let path = gguf.path();
    let has_output = gguf.find("output.weight").is_some();
    let config = ModelConfig::from_gguf(gguf.metadata(), has_output, path)?;
    let arch = arch::by_gguf_name(config.arch, path)?;
    let names = GgufNames::new(arch);
    let mut out = Vec::new();
    for info in gguf.tensors().iter().filter(|info| !info.name.starts_with("rope_f")) {
        let (row, layer) = names.find(&info.name).ok_or_else(|| Error::UnexpectedTensors {
            path: path.to_path_buf(),
            arch: arch.name,
            count: 1,
            first: info.name.clone(),
        })?;
        let expected = row.shape(&config);
        if info.shape != expected {
            let (path, name, found) = (path.to_path_buf(), info.name.clone(), info.shape.clone());
            return Err(Error::Shape { path, name, found, expected });
        }
        let (map, values) = inverses(row.transform, config.head_dim);
        let source = &row.sources[0];
        let hf = source.hf.replacen("{}", &layer.to_string(), 1);
        if source.part == Part::Expert {
            let (n_experts, n_rows) = (info.shape[0], info.shape[1]);
            for expert in 0..n_experts {
                let name = hf.replacen("{}", &expert.to_string(), 1);
                let rows = expert * n_rows..(expert + 1) * n_rows;
                out.push(tensor(name, info.shape[1..].to_vec(), info, rows, map, values));
            }
        } else {
            out.push(tensor(hf, info.shape.clone(), info, 0..info.n_rows(), map, values));
        }
    }
    Ok(out)
}

fn inverses(transform: Transform, head_dim: usize) -> (RowMap, ValueMap) {
    match transform {
        Transform::None => (RowMap::Identity, ValueMap::Identity),
        Transform::InterleaveQ | Transform::InterleaveK => {
            (RowMap::Interleave { head_dim }.inverse(), ValueMap::Identity)
        }
        Transform::AddOne => {
            (RowMap::Identity, ValueMap::AddOne { subtract: false, in_f16: false }.inverse())
        }
    }
}

fn tensor(
    name: String,
    shape: Vec<usize>,
    info: &TensorInfo,
    rows: Range<usize>,
    map: RowMap,
    values: ValueMap,
) -> TargetTensor {
    let piece = Piece { tensor: info.clone(), rows, scale: None };
    TargetTensor {
        name,
        source_dtype: info.dtype,
        fixed_dtype: None,
        rows: Box::new(SourceRows::new(&shape, vec![piece], map, values)),
        shape,
    }
}
