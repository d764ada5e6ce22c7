//! The decoder on a device: the CPU's forward, step for step, with the operations of [`crate::cuda::op`].
//!
//! Matrices are copied once: dense ones as the products take them, blocks as they are stored. Activations, keys and values are of the
//! products' type, f32 or bf16. What comes of a token depends on it and those before it in its sequence alone, to the bit: every
//! product has the same number of rows ([`rows::TOGETHER`]), and all else treats rows alone.

mod cache;
pub(in crate::model) mod cast;
pub(in crate::model) mod experts;
mod layer;
mod linear;
mod network;
mod observe;
mod rows;
mod sheet;
pub(in crate::model) mod weights;

use std::ops::Range;

pub use self::cache::DeviceCache;
pub use self::observe::{DeviceSums, sums_bytes};
pub use self::rows::TOGETHER;

use self::network::{Hidden, Network, Run};
use super::Error;
use super::config::ModelConfig;
use super::decode::{Scored, Segment};
use super::decoder::Decoder;
use super::observe::{SiteSums, SiteTensors};
use super::weights as stored;
use crate::cuda::Device;
use crate::cuda::op::attention::MAX_HEAD_DIM;
use crate::cuda::op::paged::PageShape;
use crate::kernel::kv_cache::PAGE;
use crate::kernel::{ComputeMode, Matrix};

/// What products take and activations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// Returns that of a decoder: f32 if it was opened so, or if all of its matrices are stored in it and nothing else was asked for.
    pub fn of_decoder(decoder: &Decoder) -> Precision {
        let is_f32 = |matrix: &&Matrix| matrix.dtype().name() == "F32";
        match decoder.mode {
            ComputeMode::F32 => Precision::F32,
            ComputeMode::Auto if matrices(decoder).iter().all(is_f32) => Precision::F32,
            _ => Precision::Bf16,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Returns the bytes of a value.
    pub(in crate::model) fn bytes(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        }
    }
}

/// Returns the matrices of a decoder that a device gets: all but the embedding, of which single rows are looked up.
fn matrices<'d>(decoder: &'d Decoder) -> Vec<&'d Matrix> {
    let weights = &decoder.weights;
    let mut all = vec![&weights.output.weight];
    for layer in &weights.layers {
        all.extend([&layer.q, &layer.k, &layer.v, &layer.o].map(|linear| &linear.weight));
        let mlp = |mlp: &'d stored::Mlp| [&mlp.gate, &mlp.up, &mlp.down].map(|linear| &linear.weight);
        match &layer.ffn {
            stored::FeedForward::Dense(dense) => all.extend(mlp(dense)),
            stored::FeedForward::Experts { router, experts } => {
                all.push(&router.weight);
                all.extend(experts.iter().flat_map(mlp));
            }
        }
    }
    all
}

/// Returns the bytes that a decoder's matrices take on a device, and the largest of those in blocks once more, decoded.
pub(in crate::model) fn weights_bytes(decoder: &Decoder) -> u64 {
    let (matrices, bytes) = (matrices(decoder), Precision::of_decoder(decoder).bytes());
    let stored: usize = matrices.iter().map(|matrix| weights::frozen_bytes(matrix, bytes)).sum();
    stored as u64 + decoded_bytes(decoder)
}

/// Returns the bytes of the largest matrix in blocks, decoded for a product.
fn decoded_bytes(decoder: &Decoder) -> u64 {
    let (matrices, bytes) = (matrices(decoder), Precision::of_decoder(decoder).bytes());
    let in_blocks = matrices.iter().filter(|matrix| matrix.dtype().block_len() > 1);
    in_blocks.map(|matrix| matrix.rows() * matrix.cols() * bytes).max().unwrap_or(0) as u64
}

/// A decoder's weights on a device.
pub struct DeviceDecoder<'m> {
    decoder: &'m Decoder,
    device: &'m Device,
    precision: Precision,
    network: Box<dyn Run + 'm>,
}

/// Final hidden states of the wanted tokens of one forward, a row each, on the device.
pub struct DeviceHidden(Hidden);

/// Errors if a device cannot compute with a model as it was opened.
pub fn check(decoder: &Decoder) -> Result<(), Error> {
    if decoder.config.head_dim > MAX_HEAD_DIM {
        let (what, instead) = ("a model with heads of more than 256 values", "use --device cpu");
        return Err(Error::NotOnDevice { what, instead });
    }
    if decoder.mode == ComputeMode::Int8 {
        let (what, instead) = ("--compute int8", "use --compute bf16 or f32, or --device cpu");
        return Err(Error::NotOnDevice { what, instead });
    }
    Ok(())
}

/// Returns the bytes that a model takes on a device with batches of that many tokens and keys and values of `n_cached` tokens.
pub fn memory(decoder: &Decoder, batch_tokens: usize, n_cached: usize) -> u64 {
    let bytes = Precision::of_decoder(decoder).bytes();
    let pages = n_cached.div_ceil(PAGE) * page_shape(&decoder.config, bytes).page_bytes();
    weights_bytes(decoder) + working_bytes(decoder, batch_tokens) + pages as u64
}

/// Returns the bytes that a batch of that many tokens takes while it is computed and scored.
fn working_bytes(decoder: &Decoder, batch_tokens: usize) -> u64 {
    let (config, bytes) = (&decoder.config, Precision::of_decoder(decoder).bytes());
    let n_rows = batch_tokens.next_multiple_of(TOGETHER);
    let d_ff = config.experts.as_ref().map_or(config.d_ff, |experts| experts.d_ff);
    let heads = (config.n_heads + config.n_kv_heads) * config.head_dim;
    // what a layer has at its widest: the f32 sums between blocks, a norm of them, and q, k, v or gate, up and their product
    let sums = 2 * config.d_model * size_of::<f32>();
    let wide = 2 * config.d_model + (2 * heads).max(3 * d_ff);
    let logits = TOGETHER * config.vocab_size * size_of::<f32>();
    (n_rows * (sums + wide * bytes) + logits) as u64
}

fn page_shape(config: &ModelConfig, value_bytes: usize) -> PageShape {
    PageShape { n_layers: config.n_layers, row_len: config.n_kv_heads * config.head_dim, value_bytes }
}

impl<'m> DeviceDecoder<'m> {
    /// Copies the weights to the device.
    ///
    /// Errors as [`check`], and if the device has no room.
    pub fn new(decoder: &'m Decoder, device: &'m Device) -> Result<Self, Error> {
        check(decoder)?;
        let precision = Precision::of_decoder(decoder);
        let network: Box<dyn Run + 'm> = match precision {
            Precision::F32 => Box::new(Network::<f32>::new(decoder, device)?),
            Precision::Bf16 => Box::new(Network::<half::bf16>::new(decoder, device)?),
        };
        Ok(DeviceDecoder { decoder, device, precision, network })
    }

    pub fn device(&self) -> &'m Device {
        self.device
    }

    /// Returns the decoder whose weights these are.
    pub fn decoder(&self) -> &'m Decoder {
        self.decoder
    }

    /// Returns what products take.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    fn page_shape(&self) -> PageShape {
        page_shape(&self.decoder.config, self.precision.bytes())
    }

    /// Returns the bytes of keys and values of a sequence of `n` tokens that shares none.
    pub fn cache_bytes(&self, n: usize) -> usize {
        n.div_ceil(PAGE) * self.page_shape().page_bytes()
    }

    /// Returns the bytes that a batch of that many tokens takes while it is computed and scored, decoded weights among them.
    pub fn batch_bytes(&self, batch_tokens: usize) -> u64 {
        working_bytes(self.decoder, batch_tokens) + decoded_bytes(self.decoder)
    }

    /// Returns an empty cache that holds at most `budget_bytes` of keys and values, made as they are needed.
    pub fn new_cache(&self, budget_bytes: usize) -> DeviceCache<'m> {
        DeviceCache::new(self.device, self.page_shape(), budget_bytes)
    }

    /// As [`Decoder::forward`].
    ///
    /// Errors as there, and if the device has no room or is lost.
    ///
    /// # Panics
    /// As there.
    pub fn forward(
        &self,
        cache: &mut DeviceCache<'m>,
        segments: &[Segment<'_>],
    ) -> Result<DeviceHidden, Error> {
        let hidden = self
            .decoder
            .bounds()
            .forward(cache, segments, |cache, batch| Ok(self.network.run(cache, batch, None)?))?;
        Ok(DeviceHidden(hidden))
    }

    /// Returns sums of nothing at these sites, for [`DeviceDecoder::forward_observed`].
    ///
    /// Errors if the device has no room.
    pub fn new_sums(&self, sites: Vec<SiteTensors>) -> Result<DeviceSums, Error> {
        Ok(DeviceSums::new(self.device, sites)?)
    }

    /// As [`DeviceDecoder::forward`]; the inputs of the products are added to the sums, as [`Decoder::forward_observed`] tells of them.
    ///
    /// Waits until the sums are there. Errors as `forward`, and if squared inputs add up to no finite f32.
    ///
    /// # Panics
    /// As there, or if the sums are of another model's sites.
    pub fn forward_observed(
        &self,
        cache: &mut DeviceCache<'m>,
        segments: &[Segment<'_>],
        sums: &mut DeviceSums,
    ) -> Result<DeviceHidden, Error> {
        let hidden = self.decoder.bounds().forward(cache, segments, |cache, batch| {
            let hidden = self.network.run(cache, batch, Some(&mut *sums))?;
            sums.refused(self.device)?.map_or(Ok(hidden), |refused| Err(Error::InputNotFinite(refused)))
        })?;
        Ok(DeviceHidden(hidden))
    }

    /// Returns what the sums came to.
    ///
    /// Errors if the device is lost.
    pub fn read_sums(&self, sums: DeviceSums) -> Result<Vec<SiteSums>, Error> {
        Ok(sums.read(self.device)?)
    }

    /// As [`Decoder::score`].
    ///
    /// Errors on a token outside the vocabulary, and if the device has no room or is lost.
    ///
    /// # Panics
    /// If a row is none of the hidden states'.
    pub fn score(&self, hidden: &DeviceHidden, targets: &[(usize, u32)]) -> Result<Vec<Scored>, Error> {
        let vocab_size = self.decoder.weights.output.weight.rows();
        if let Some((_, token)) = targets.iter().find(|(_, token)| *token as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { token: *token, vocab_size });
        }
        Ok(self.network.score(&hidden.0, targets)?)
    }

    /// Returns the logits of `rows`, `[rows.len(), vocab_size]` row-major.
    ///
    /// Errors if the device has no room or is lost.
    ///
    /// # Panics
    /// If a row is none of the hidden states'.
    pub fn logits(&self, hidden: &DeviceHidden, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        Ok(self.network.logits(&hidden.0, rows)?)
    }
}
