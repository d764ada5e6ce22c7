//! A dense model's frozen matrices in blocks (QLoRA, arXiv:2305.14314): less memory, the same training.

use super::plan::{self, Place, Trains};
use super::{Error, Method};
use crate::model::arch::Role;
use crate::model::decoder::Decoder;
use crate::model::weights::{FeedForward, Linear, Mlp, Weights};
use crate::tensor::Dtype;
use crate::tensor::format::{Nf4, REGISTRY};

/// What frozen matrices become when a model is opened for training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseFormat {
    /// 4-bit NormalFloat in blocks of 64: 4.5 bits a weight.
    Nf4,
    /// The same with its scales in 8 bits (double quantization): 4.127 bits a weight.
    Nf4Double,
    /// A block format of GGUF.
    Blocks(Dtype),
}

impl BaseFormat {
    /// Returns every format there is.
    pub fn all() -> Vec<BaseFormat> {
        let blocks = REGISTRY.iter().filter(|format| format.can_encode() && format.block_len() > 1);
        let blocks = blocks.map(|format| BaseFormat::Blocks(Dtype(*format)));
        [BaseFormat::Nf4, BaseFormat::Nf4Double].into_iter().chain(blocks).collect()
    }

    /// Returns the name used by recipes: `nf4`, `nf4_double`, `q4_k`.
    pub fn name(self) -> String {
        match self {
            BaseFormat::Nf4 => "nf4".to_owned(),
            BaseFormat::Nf4Double => "nf4_double".to_owned(),
            BaseFormat::Blocks(dtype) => dtype.name().to_ascii_lowercase(),
        }
    }

    /// Returns the format of that name, case ignored.
    pub fn by_name(name: &str) -> Option<BaseFormat> {
        BaseFormat::all().into_iter().find(|format| format.name().eq_ignore_ascii_case(name))
    }

    pub(super) fn dtype(self) -> Dtype {
        match self {
            BaseFormat::Nf4 | BaseFormat::Nf4Double => Dtype(&Nf4),
            BaseFormat::Blocks(dtype) => dtype,
        }
    }
}

/// Puts the matrices of linear layers that `method` leaves frozen into blocks. Embedding, output layer, norms, routers and modules
/// that are trained whole stay as they are.
///
/// The parts of a fused matrix (Phi), and experts, are quantized each on its own.
///
/// Errors on a matrix that is in blocks already, whose rows are no whole blocks, or with a weight that the format cannot hold;
/// if nothing is frozen; and as [`plan::plan`].
pub(super) fn quantize(decoder: &mut Decoder, method: &Method, format: BaseFormat) -> Result<(), Error> {
    let modules = plan::trained(decoder, method)?;
    let is_fused = plan::is_fused(decoder)?;
    let compute = decoder.compute.clone();
    let dtype = format.dtype();
    let mut any = false;
    for (place, linear) in linears(&mut decoder.weights, is_fused) {
        let Some((_, module, trains)) = modules.get(&place) else { continue };
        if matches!(trains, Trains::Whole) {
            continue;
        }
        let (weight, name) = (&linear.weight, || module.name.clone());
        if weight.dtype().block_len() > 1 {
            return Err(Error::InBlocks { name: name(), found: weight.dtype() });
        }
        if !weight.cols().is_multiple_of(dtype.block_len()) {
            return Err(Error::PartialBlocks { name: name(), cols: weight.cols(), format: dtype });
        }
        let nested = format == BaseFormat::Nf4Double;
        let quantized = weight.quantized(&compute, dtype, nested);
        linear.weight = quantized.map_err(|at| Error::Unquantizable {
            name: name(),
            row: at.row,
            col: at.col,
            format: dtype,
        })?;
        any = true;
    }
    match any {
        true => Ok(()),
        false => Err(Error::NothingFrozen),
    }
}

/// Returns the bytes of all linear layers of the blocks in a format.
pub(super) fn bytes(decoder: &Decoder, format: BaseFormat) -> u64 {
    let dtype = format.dtype();
    let of = |linear: &Linear| {
        let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
        (rows * cols.div_ceil(dtype.block_len()) * dtype.block_bytes()) as u64
    };
    let mlp = |mlp: &Mlp| of(&mlp.gate) + of(&mlp.up) + of(&mlp.down);
    let layers = decoder.weights.layers.iter().map(|layer| {
        let attention = of(&layer.q) + of(&layer.k) + of(&layer.v) + of(&layer.o);
        attention
            + match &layer.ffn {
                FeedForward::Dense(dense) => mlp(dense),
                FeedForward::Experts { experts, .. } => experts.iter().map(mlp).sum(),
            }
    });
    layers.sum()
}

/// Returns the linear layers of all blocks but the routers, each with the module it is, or is some rows of.
fn linears(weights: &mut Weights, is_fused: bool) -> Vec<(Place, &mut Linear)> {
    let mut all = Vec::new();
    let of = |own: Role, fused: Role| if is_fused { fused } else { own };
    for (layer, weights) in weights.layers.iter_mut().enumerate() {
        all.push(((of(Role::QProj, Role::QkvProj), layer, 0), &mut weights.q));
        all.push(((of(Role::KProj, Role::QkvProj), layer, 0), &mut weights.k));
        all.push(((of(Role::VProj, Role::QkvProj), layer, 0), &mut weights.v));
        all.push(((Role::OProj, layer, 0), &mut weights.o));
        match &mut weights.ffn {
            FeedForward::Dense(mlp) => {
                let Mlp { gate, up, down } = &mut **mlp;
                all.push(((of(Role::GateProj, Role::GateUpProj), layer, 0), gate));
                all.push(((of(Role::UpProj, Role::GateUpProj), layer, 0), up));
                all.push(((Role::DownProj, layer, 0), down));
            }
            FeedForward::Experts { experts, .. } => {
                for (expert, Mlp { gate, up, down }) in experts.iter_mut().enumerate() {
                    all.push(((Role::GateExperts, layer, expert), gate));
                    all.push(((Role::UpExperts, layer, expert), up));
                    all.push(((Role::DownExperts, layer, expert), down));
                }
            }
        }
    }
    all
}
