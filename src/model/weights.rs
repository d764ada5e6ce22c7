//! A model's tensors by role, mapped where they lie.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::adapter::LowRank;
use super::arch::{self, Arch, Role, Transform};
use super::checkpoint::{block_size, in_reference_order, refuse_quantized};
use super::config::ModelConfig;
use super::gguf_config;
use super::map::f32_dtype;
use super::mapper::{Gathered, Mapper, is_integer};
use super::names::GgufNames;
use super::rows::{Piece, SourceRows, ValueMap};
use super::{Checkpoint, Error, Rows};
use crate::kernel::product::SharedBytes;
use crate::kernel::{Isa, Matrix};
use crate::tensor::gguf::Gguf;
use crate::tensor::{RowMap, TensorInfo, TensorSource};

/// A vector of a norm or bias, shared with the ops that use it.
pub type Vector = Arc<[f32]>;

/// Everything a decoder computes with.
#[derive(Clone)]
pub(super) struct Weights {
    pub token_embedding: Matrix,
    pub output: Linear,
    pub output_norm: Vector,
    pub layers: Vec<Layer>,
}

#[derive(Clone)]
pub(super) struct Layer {
    pub attn_norm: Vector,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub q_norm: Option<Vector>,
    pub k_norm: Option<Vector>,
    pub post_attn_norm: Option<Vector>,
    pub ffn_norm: Vector,
    pub ffn: FeedForward,
    pub post_ffn_norm: Option<Vector>,
}

#[derive(Clone)]
pub(super) enum FeedForward {
    Dense(Box<Mlp>),
    Experts { router: Linear, experts: Vec<Mlp> },
}

/// `down(act(gate(x)) * up(x))`
#[derive(Clone)]
pub(super) struct Mlp {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// `x W^T + b`, and an adapter's share if there is one.
#[derive(Clone)]
pub(super) struct Linear {
    pub weight: Matrix,
    pub bias: Option<Vector>,
    pub low_rank: Option<Arc<LowRank>>,
}

/// A target's source rows, and how they are read.
struct Part {
    shape: Vec<usize>,
    rows: SourceRows,
}

/// Tensors of one file or directory, found by role and layer.
pub(super) struct Loader {
    pub config: ModelConfig,
    arch: &'static Arch,
    source: Box<dyn TensorSource>,
    parts: HashMap<(Role, usize), Part>,
    isa: Isa,
}

impl Loader {
    /// Opens the tensors of a checkpoint; reads headers only.
    ///
    /// Errors as [`super::map_checkpoint`].
    pub fn of_checkpoint(checkpoint: Checkpoint, isa: Isa) -> Result<Self, Error> {
        let path = checkpoint.dir.join("config.json");
        refuse_quantized(&checkpoint.config, &path)?;
        let config = checkpoint.model_config()?;
        let arch = arch::by_gguf_name(config.arch, &path)?;
        let mut mapper = Mapper::new(arch, &config, checkpoint.source.path());
        mapper.block = block_size(&checkpoint.config);
        mapper.scaled_fp8 =
            checkpoint.config.get("quantization_config").is_some_and(|section| !section.is_null());
        let (gathered, _) = mapper.gather(in_reference_order(checkpoint.source.as_ref()))?;
        let parts = gathered.into_iter().map(|gathered| {
            let values = match gathered.row.transform {
                Transform::AddOne => ValueMap::AddOne { subtract: false, in_f16: false },
                _ => ValueMap::Identity,
            };
            part(gathered, RowMap::Identity, values)
        });
        Ok(Loader { parts: parts.collect(), config, arch, source: checkpoint.source, isa })
    }

    /// Opens the tensors of a GGUF; reads headers, and factors of rope.
    ///
    /// Errors on a tensor the architecture's table lacks, a missing one, a shape the keys don't imply.
    pub fn of_gguf(gguf: Gguf, isa: Isa) -> Result<Self, Error> {
        let config = gguf_config::with_factors(&gguf)?;
        let arch = arch::by_gguf_name(config.arch, gguf.path())?;
        let names = GgufNames::new(arch);
        let mut parts = HashMap::new();
        let mut unknown: Vec<&TensorInfo> = Vec::new();
        for info in gguf.tensors().iter().filter(|info| !info.name.starts_with("rope_f")) {
            let Some((row, layer)) = names.find(&info.name) else {
                unknown.push(info);
                continue;
            };
            check_gguf_tensor(&gguf, info, &row.shape(&config), layer, &config)?;
            let n_rows = if info.shape.len() < 2 { 1 } else { info.n_rows() };
            let piece = Piece { tensor: info.clone(), rows: 0..n_rows, scale: None };
            let map = match row.transform {
                Transform::InterleaveQ | Transform::InterleaveK => {
                    RowMap::Deinterleave { head_dim: config.head_dim }
                }
                _ => RowMap::Identity,
            };
            let (shape, dtype, pieces) = (info.shape.clone(), info.dtype, vec![piece]);
            let gathered = Gathered { row, layer, shape, dtype, pieces };
            let (key, part) = part(gathered, map, ValueMap::Identity);
            parts.insert(key, part);
        }
        if let Some(first) = unknown.iter().map(|info| &info.name).min() {
            let (path, first) = (gguf.path().to_path_buf(), first.clone());
            return Err(Error::UnexpectedTensors { path, arch: arch.name, count: unknown.len(), first });
        }
        Ok(Loader { parts, config, arch, source: Box::new(gguf), isa })
    }

    /// Returns the weights: matrices mapped, vectors read.
    ///
    /// FP8 matrices stored with factors are decoded into memory, four bytes a weight: no product takes factors.
    pub fn weights(&self) -> Result<Weights, Error> {
        let token_embedding = self.matrix(Role::TokenEmbedding, 0)?;
        let output = match self.config.tied_embeddings {
            true => token_embedding.clone(),
            false => self.matrix(Role::Output, 0)?,
        };
        Ok(Weights {
            token_embedding,
            output: Linear { weight: output, bias: None, low_rank: None },
            output_norm: self.vector(Role::OutputNorm, 0)?,
            layers: (0..self.config.n_layers).map(|layer| self.layer(layer)).collect::<Result<_, _>>()?,
        })
    }

    fn layer(&self, layer: usize) -> Result<Layer, Error> {
        let config = &self.config;
        let (q_rows, kv_rows) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let (q, k, v) = match self.has(Role::QkvProj, layer) {
            true => {
                let of = |rows: Range<usize>| self.slice(Role::QkvProj, layer, rows);
                let end = q_rows + 2 * kv_rows;
                (of(0..q_rows)?, of(q_rows..q_rows + kv_rows)?, of(q_rows + kv_rows..end)?)
            }
            false => (
                self.linear(Role::QProj, Role::QBias, layer)?,
                self.linear(Role::KProj, Role::KBias, layer)?,
                self.linear(Role::VProj, Role::VBias, layer)?,
            ),
        };
        Ok(Layer {
            attn_norm: self.vector(Role::AttnNorm, layer)?,
            q,
            k,
            v,
            o: self.linear(Role::OProj, Role::OBias, layer)?,
            q_norm: self.optional_vector(Role::QNorm, layer)?,
            k_norm: self.optional_vector(Role::KNorm, layer)?,
            post_attn_norm: self.optional_vector(Role::PostAttnNorm, layer)?,
            ffn_norm: self.vector(Role::FfnNorm, layer)?,
            ffn: self.feed_forward(layer)?,
            post_ffn_norm: self.optional_vector(Role::PostFfnNorm, layer)?,
        })
    }

    fn feed_forward(&self, layer: usize) -> Result<FeedForward, Error> {
        let Some(experts) = &self.config.experts else {
            let d_ff = self.config.d_ff;
            let (gate, up) = match self.has(Role::GateUpProj, layer) {
                true => (
                    self.slice(Role::GateUpProj, layer, 0..d_ff)?,
                    self.slice(Role::GateUpProj, layer, d_ff..2 * d_ff)?,
                ),
                false => (
                    self.linear(Role::GateProj, Role::GateBias, layer)?,
                    self.linear(Role::UpProj, Role::UpBias, layer)?,
                ),
            };
            let down = self.linear(Role::DownProj, Role::DownBias, layer)?;
            return Ok(FeedForward::Dense(Box::new(Mlp { gate, up, down })));
        };
        let of = |role: Role, n_rows: usize, expert: usize| {
            self.slice(role, layer, expert * n_rows..(expert + 1) * n_rows)
        };
        let mlp = |expert: usize| -> Result<Mlp, Error> {
            Ok(Mlp {
                gate: of(Role::GateExperts, experts.d_ff, expert)?,
                up: of(Role::UpExperts, experts.d_ff, expert)?,
                down: of(Role::DownExperts, self.config.d_model, expert)?,
            })
        };
        let router = Linear { weight: self.matrix(Role::Router, layer)?, bias: None, low_rank: None };
        Ok(FeedForward::Experts { router, experts: (0..experts.n).map(mlp).collect::<Result<_, _>>()? })
    }

    fn has(&self, role: Role, layer: usize) -> bool {
        self.parts.contains_key(&(role, layer))
    }

    fn part(&self, role: Role, layer: usize) -> Result<&Part, Error> {
        self.parts.get(&(role, layer)).ok_or_else(|| {
            let row = self.arch.rows.iter().find(|row| row.role == role);
            let name = row.map_or_else(|| format!("{role:?}"), |row| row.gguf_name(layer));
            let detail = format!(" (`{}` in a GGUF)", self.arch.name);
            Error::MissingTensor { path: self.path(), name, detail }
        })
    }

    fn path(&self) -> PathBuf {
        self.source.path().to_path_buf()
    }

    fn linear(&self, weight: Role, bias: Role, layer: usize) -> Result<Linear, Error> {
        let bias = self.optional_vector(bias, layer)?;
        Ok(Linear { weight: self.matrix(weight, layer)?, bias, low_rank: None })
    }

    fn slice(&self, role: Role, layer: usize, rows: Range<usize>) -> Result<Linear, Error> {
        let weight = self.matrix_rows(self.part(role, layer)?, rows)?;
        Ok(Linear { weight, bias: None, low_rank: None })
    }

    fn matrix(&self, role: Role, layer: usize) -> Result<Matrix, Error> {
        let part = self.part(role, layer)?;
        self.matrix_rows(part, 0..part.shape[0])
    }

    /// Returns rows of a matrix, or of a stack of matrices seen as one.
    fn matrix_rows(&self, part: &Part, rows: Range<usize>) -> Result<Matrix, Error> {
        let cols = part.shape.last().copied().unwrap_or(1);
        let mut first = 0;
        for piece in &part.rows.pieces {
            let end = first + piece.rows.len();
            if first <= rows.start && rows.end <= end && piece.scale.is_none() {
                let info = &piece.tensor;
                let stored = piece.rows.start + rows.start - first;
                let offset = info.offset as usize + stored * info.row_bytes();
                let bytes: SharedBytes = self.source.mapping(info)?;
                return Ok(Matrix::new(bytes, offset, info.dtype, rows.len(), cols, part.rows.map));
            }
            first = end;
        }
        let values = self.read(part, rows.clone(), cols)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(Matrix::new(Arc::new(bytes), 0, f32_dtype(), rows.len(), cols, RowMap::Identity))
    }

    fn vector(&self, role: Role, layer: usize) -> Result<Vector, Error> {
        let part = self.part(role, layer)?;
        Ok(self.read(part, 0..1, part.shape[0])?.into())
    }

    fn optional_vector(&self, role: Role, layer: usize) -> Result<Option<Vector>, Error> {
        self.has(role, layer).then(|| self.vector(role, layer)).transpose()
    }

    /// Returns rows of a part as f32, transforms applied.
    fn read(&self, part: &Part, rows: Range<usize>, row_len: usize) -> Result<Vec<f32>, Error> {
        let mut values = vec![0.0; rows.len() * row_len];
        part.rows.read(self.source.as_ref(), self.isa, rows, &mut Vec::new(), &mut values)?;
        Ok(values)
    }
}

fn part(gathered: Gathered, map: RowMap, values: ValueMap) -> ((Role, usize), Part) {
    let Gathered { row, layer, shape, pieces, .. } = gathered;
    let rows = SourceRows::new(&shape, pieces, map, values);
    ((row.role, layer), Part { shape, rows })
}

fn check_gguf_tensor(
    gguf: &Gguf,
    info: &TensorInfo,
    expected: &[usize],
    layer: usize,
    config: &ModelConfig,
) -> Result<(), Error> {
    let (path, name) = (gguf.path().to_path_buf(), info.name.clone());
    if info.shape != expected {
        return Err(Error::Shape { path, name, found: info.shape.clone(), expected: expected.to_vec() });
    }
    if layer >= config.n_layers {
        return Err(Error::IndexOutOfRange {
            path,
            name,
            what: "layer",
            index: layer,
            count: config.n_layers,
        });
    }
    if !info.dtype.can_decode() || is_integer(info.dtype) {
        return Err(Error::UnreadableDtype { path, name, dtype: info.dtype.name().to_owned() });
    }
    Ok(())
}
