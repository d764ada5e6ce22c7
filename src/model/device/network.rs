//! All layers on a device, in one type of activations.

use std::ops::Range;

use super::cache::DeviceCache;
use super::layer::{LayerOn, NormOn, Pass};
use super::linear::LinearOn;
use super::observe::{DeviceSums, Watch};
use super::rows::{Rows, TOGETHER};
use super::sheet::{Angles, Sheet};
use super::weights::embedded;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::score::{score, softcap};
use crate::cuda::{CudaError, Device};
use crate::model::Scored;
use crate::model::batch::Batch;
use crate::model::decoder::Decoder;
use crate::model::observe::Input;

/// Final hidden states, `[R, C]`.
pub(super) enum Hidden {
    F32(Rows<f32>),
    Bf16(Rows<half::bf16>),
}

/// Forward and scores, whatever the type of activations.
pub(super) trait Run {
    /// Returns the final hidden states of the wanted rows; keys and values of all go into the cache, the inputs of products into the sums.
    fn run(
        &self,
        cache: &DeviceCache<'_>,
        batch: &Batch,
        sums: Option<&mut DeviceSums>,
    ) -> Result<Hidden, CudaError>;

    /// Returns how likely each (row, token) is.
    fn score(&self, hidden: &Hidden, targets: &[(usize, u32)]) -> Result<Vec<Scored>, CudaError>;

    /// Returns the logits of rows.
    fn logits(&self, hidden: &Hidden, rows: Range<usize>) -> Result<Vec<f32>, CudaError>;
}

/// A type of activations.
pub(super) trait Activation: Float {
    fn hidden(rows: Rows<Self>) -> Hidden;

    /// Returns the rows, if they are of this type.
    fn rows(hidden: &Hidden) -> Option<&Rows<Self>>;
}

impl Activation for f32 {
    fn hidden(rows: Rows<f32>) -> Hidden {
        Hidden::F32(rows)
    }

    fn rows(hidden: &Hidden) -> Option<&Rows<f32>> {
        if let Hidden::F32(rows) = hidden { Some(rows) } else { None }
    }
}

impl Activation for half::bf16 {
    fn hidden(rows: Rows<half::bf16>) -> Hidden {
        Hidden::Bf16(rows)
    }

    fn rows(hidden: &Hidden) -> Option<&Rows<half::bf16>> {
        if let Hidden::Bf16(rows) = hidden { Some(rows) } else { None }
    }
}

pub(super) struct Network<'m, T> {
    decoder: &'m Decoder,
    device: &'m Device,
    layers: Vec<LayerOn<T>>,
    output_norm: NormOn,
    output: LinearOn<T>,
    full: Angles,
    sliding: Option<Angles>,
}

impl<'m, T: Activation> Network<'m, T> {
    pub fn new(decoder: &'m Decoder, device: &'m Device) -> Result<Network<'m, T>, CudaError> {
        let (weights, compute, config) = (&decoder.weights, &*decoder.compute, &decoder.config);
        let layers = weights.layers.iter().enumerate();
        let layers = layers.map(|layer| LayerOn::new(device, compute, config, layer));
        let (full, sliding) = Angles::of(&decoder.ropes);
        Ok(Network {
            decoder,
            device,
            layers: layers.collect::<Result<_, _>>()?,
            output_norm: NormOn::new(device, &weights.output_norm)?,
            output: LinearOn::new(device, compute, &weights.output)?,
            full,
            sliding,
        })
    }

    fn softcap(&self) -> Option<f32> {
        self.decoder.config.final_logit_softcap.filter(|cap| *cap != 0.0)
    }

    /// # Panics
    /// If the hidden states are of another type: they come of another decoder then.
    fn rows<'h>(&self, hidden: &'h Hidden) -> &'h Rows<T> {
        T::rows(hidden).unwrap_or_else(|| panic!("hidden states of another decoder"))
    }

    /// Returns the logits of these rows, not capped.
    fn logits_of(&self, hidden: &Rows<T>, ids: &[u32]) -> Result<Rows<f32>, CudaError> {
        let ids = Buffer::of(self.device, ids)?;
        self.output.forward(self.device, &hidden.gathered(self.device, &ids)?)
    }
}

impl<T: Activation> Run for Network<'_, T> {
    fn run(
        &self,
        cache: &DeviceCache<'_>,
        batch: &Batch,
        sums: Option<&mut DeviceSums>,
    ) -> Result<Hidden, CudaError> {
        let (device, config, compute) = (self.device, &self.decoder.config, &*self.decoder.compute);
        if batch.tokens.is_empty() {
            return Ok(T::hidden(Rows::uninit(device, 0, config.d_model)?));
        }
        let angles = (&self.full, self.sliding.as_ref());
        let sheet = Sheet::new::<T>(device, cache, angles, config.head_dim, batch)?;
        let watch = Watch::of(sums);
        let pass = Pass { device, config, sheet: &sheet, watch: &watch };
        let table = &self.decoder.weights.token_embedding;
        let values = embedded::<f32>(compute, table, &batch.tokens, config.embedding_scale);
        let mut x = Rows::of(device, &values, config.d_model)?;
        for (i, layer) in self.layers.iter().enumerate() {
            // the last layer's keys and values are for later tokens; the rest only for the wanted rows
            x = layer.forward(&pass, &x, i + 1 == self.layers.len())?;
        }
        let hidden: Rows<T> = self.output_norm.forward(device, config, &x)?;
        watch.all(device, config.n_layers, Input::Output, &hidden)?;
        Ok(T::hidden(hidden))
    }

    fn score(&self, hidden: &Hidden, targets: &[(usize, u32)]) -> Result<Vec<Scored>, CudaError> {
        let hidden = self.rows(hidden);
        let mut rows: Vec<usize> = targets.iter().map(|(row, _)| *row).collect();
        rows.dedup();
        assert!(rows.iter().all(|row| *row < hidden.n()));
        let vocab_size = self.decoder.weights.output.weight.rows();
        let (mut scored, mut rest) = (Vec::with_capacity(targets.len()), targets);
        for rows in rows.chunks(TOGETHER) {
            // rows of a batch are below 2^32: its tokens are in memory four bytes each
            let ids: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
            let logits = self.logits_of(hidden, &ids)?;
            let mut asked: Vec<[u32; 2]> = Vec::new();
            for (at, row) in (0..).zip(rows) {
                let n = rest.iter().take_while(|(of, _)| of == row).count();
                asked.extend(rest[..n].iter().map(|(_, token)| [at, *token]));
                rest = &rest[n..];
            }
            let found = score(self.device, &logits.all(), (rows.len(), vocab_size), &asked, self.softcap())?;
            let (log_probs, best) = (found.log_probs.read(self.device)?, found.best.read(self.device)?);
            scored.extend(asked.iter().zip(log_probs).map(|([row, token], log_prob)| Scored {
                log_prob,
                is_greedy: best[*row as usize] == *token,
            }));
        }
        Ok(scored)
    }

    fn logits(&self, hidden: &Hidden, rows: Range<usize>) -> Result<Vec<f32>, CudaError> {
        let hidden = self.rows(hidden);
        assert!(rows.end <= hidden.n());
        let vocab_size = self.decoder.weights.output.weight.rows();
        let mut all = Vec::with_capacity(rows.len() * vocab_size);
        let ids: Vec<u32> = rows.map(|row| row as u32).collect();
        for ids in ids.chunks(TOGETHER) {
            let mut logits = self.logits_of(hidden, ids)?;
            if let Some(cap) = self.softcap() {
                softcap(self.device, &mut logits.all_mut(), cap)?;
            }
            all.append(&mut logits.all().read(self.device)?);
        }
        Ok(all)
    }
}
