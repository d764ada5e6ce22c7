//! The decoder as it is trained, on a device: the CPU's forward and backward, step for step, with the operations of [`crate::cuda::op`].
//!
//! Frozen weights are copied once: dense ones as the products take them, blocks as they are stored. Parameters and their gradients are
//! flat f32 vectors of the CPU's layout. The residual stream and its gradient are f32; all other activations are of the products' type,
//! f32 or bf16. The order of all sums depends on shapes alone.

mod batch;
mod block;
mod dora;
mod experts;
mod linear;
mod mlp;
mod network;
mod pass;
mod weights;

use half::bf16;

use self::network::{Network, Slopes, Steps};
use super::sheet::Sheet;
use super::{Document, Error, LossSum, ParameterInfo, Parameters, StepKey, Trainable};
use crate::cuda::Device;
use crate::cuda::buffer::Buffer;
use crate::cuda::op::attention::MAX_HEAD_DIM;
use crate::cuda::op::elementwise::{add_to, to_bf16};
use crate::cuda::op::loss;
use crate::cuda::op::optimizer::Flat;
pub use crate::model::device::Precision;
use crate::model::device::weights_bytes;

/// A model on a device, its parameters, and their gradients.
pub struct OnDevice<'m> {
    model: &'m Trainable,
    device: &'m Device,
    network: Box<dyn Steps + 'm>,
    state: State,
}

/// What training changes.
struct State {
    params: Buffer<f32>,
    /// The same as bf16, where products take that.
    rounded: Option<Buffer<bf16>>,
    grads: Buffer<f32>,
    /// The gradient of the output layer where that is the embedding: what lies behind the parameters on the CPU.
    apart: Buffer<f32>,
}

impl Precision {
    /// Returns that of a model: f32 if it was opened so, or if all of its matrices are stored in it and nothing else was asked for.
    pub fn of(model: &Trainable) -> Precision {
        Precision::of_decoder(&model.decoder)
    }
}

/// Returns the bytes that a model takes on a device besides what training keeps: its matrices, the largest of those in blocks once more,
/// decoded, and the logits of that many targets.
pub fn base_bytes(model: &Trainable, n_targets: usize) -> u64 {
    let (decoder, bytes) = (&model.decoder, Precision::of(model).bytes());
    weights_bytes(decoder) + loss::working_bytes(n_targets, model.vocab_size(), bytes) as u64
}

/// Errors if the model, or what is trained of it, has no place on a device yet.
pub fn check(model: &Trainable) -> Result<(), Error> {
    if model.decoder.config.head_dim > MAX_HEAD_DIM {
        let (what, instead) = ("a model with heads of more than 256 values", "use --device cpu");
        return Err(Error::NotOnDevice { what, instead });
    }
    Ok(())
}

impl<'m> OnDevice<'m> {
    /// Copies the model's weights and these parameters to the device.
    ///
    /// Errors as [`check`], and if the device has no room.
    ///
    /// # Panics
    /// If there are not as many parameters.
    pub fn new(model: &'m Trainable, device: &'m Device, params: &[f32]) -> Result<Self, Error> {
        check(model)?;
        let n = model.n_parameters();
        let precision = Precision::of(model);
        let network: Box<dyn Steps + 'm> = match precision {
            Precision::F32 => Box::new(Network::<f32>::new(model, device)?),
            Precision::Bf16 => Box::new(Network::<bf16>::new(model, device)?),
        };
        let rounded = (precision == Precision::Bf16).then(|| Buffer::uninit(device, n)).transpose()?;
        let state = State {
            params: Buffer::uninit(device, n)?,
            rounded,
            grads: Buffer::zeros(device, n)?,
            apart: Buffer::zeros(device, model.gradient_len() - n)?,
        };
        let mut this = OnDevice { model, device, network, state };
        this.set_params(params)?;
        Ok(this)
    }

    pub fn device(&self) -> &'m Device {
        self.device
    }

    pub fn parameters(&self) -> &'m [ParameterInfo] {
        self.model.parameters()
    }

    /// Overwrites the parameters.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn set_params(&mut self, params: &[f32]) -> Result<(), Error> {
        let State { params: on_device, rounded, .. } = &mut self.state;
        on_device.write(self.device, params)?;
        if let Some(rounded) = rounded {
            to_bf16(self.device, on_device, rounded)?;
        }
        Ok(())
    }

    /// Returns the parameters.
    pub fn params(&self) -> Result<Parameters, Error> {
        Ok(self.state.params.read(self.device)?.into())
    }

    /// Returns the parameters where they lie.
    pub fn params_on_device(&self) -> &Buffer<f32> {
        &self.state.params
    }

    /// Returns the parameters' gradients where they lie.
    pub fn gradients(&self) -> &Buffer<f32> {
        &self.state.grads
    }

    /// Returns the same, to be changed there.
    pub fn gradients_mut(&mut self) -> &mut Buffer<f32> {
        &mut self.state.grads
    }

    /// Overwrites the parameters' gradients.
    ///
    /// # Panics
    /// If there are not as many as parameters.
    pub fn set_gradients(&mut self, gradients: &[f32]) -> Result<(), Error> {
        Ok(self.state.grads.write(self.device, gradients)?)
    }

    /// Makes all gradients zero.
    pub fn clear_gradients(&mut self) -> Result<(), Error> {
        self.state.grads.fill_zero(self.device)?;
        Ok(self.state.apart.fill_zero(self.device)?)
    }

    /// Returns what an optimizer changes, with its moments.
    pub fn flat<'a>(&'a mut self, moments: &'a mut [Buffer<f32>]) -> Flat<'a> {
        let State { params, rounded, grads, .. } = &mut self.state;
        Flat { params, moments, gradients: grads, rounded: rounded.as_mut() }
    }

    /// As [`Trainable::forward_backward`], into the gradients on the device. It asks for all of that and waits for none of it: the
    /// host can lay out what comes next meanwhile.
    ///
    /// Errors as there, and if the device has no room or is lost.
    pub fn forward_backward(
        &mut self,
        documents: &[Document<'_>],
        scale: f32,
        step: StepKey,
    ) -> Result<PendingLoss, Error> {
        let sheet = self.model.sheet(documents, step.first_document)?;
        if sheet.scored.is_empty() {
            return Ok(PendingLoss(None));
        }
        let nll = self.network.backward(&mut self.state, &sheet, step, Slopes::Scale(scale))?;
        Ok(PendingLoss(Some(nll)))
    }

    /// As [`Trainable::log_probs_backward`], into the gradients on the device.
    ///
    /// Errors as [`OnDevice::forward_backward`].
    ///
    /// # Panics
    /// If there are not as many slopes as documents.
    pub fn log_probs_backward(
        &mut self,
        documents: &[Document<'_>],
        step: StepKey,
        slopes: &mut dyn FnMut(&[Vec<f32>]) -> Vec<f32>,
    ) -> Result<(), Error> {
        let sheet = self.model.sheet(documents, step.first_document)?;
        if sheet.scored.is_empty() {
            assert_eq!(slopes(&vec![Vec::new(); documents.len()]).len(), documents.len());
            return Ok(());
        }
        let mut of_rows = |nll: &[f32]| {
            let each = by_document(&sheet, nll);
            let slopes = slopes(&each);
            assert_eq!(slopes.len(), each.len());
            // the loss falls as a log-probability rises
            each.iter().zip(slopes).flat_map(|(rows, slope)| vec![-slope; rows.len()]).collect()
        };
        self.network.backward(&mut self.state, &sheet, step, Slopes::Of(&mut of_rows))?;
        Ok(())
    }

    /// As [`Trainable::finish_gradients`].
    pub fn finish_gradients(&mut self) -> Result<(), Error> {
        let State { grads, apart, .. } = &mut self.state;
        if let Some(range) = self.model.plan.embedding.range.clone().filter(|_| !apart.is_empty()) {
            add_to(self.device, &mut grads.slice_mut(range), apart, 1.0)?;
        }
        Ok(())
    }

    /// Returns the natural-log probability of every target of every document, without dropout; with `is_base` of the model as it
    /// was opened.
    ///
    /// Errors as [`OnDevice::forward_backward`].
    pub fn log_probs(&self, is_base: bool, documents: &[Document<'_>]) -> Result<Vec<Vec<f32>>, Error> {
        let sheet = self.model.sheet(documents, 0)?;
        if sheet.scored.is_empty() {
            return Ok(vec![Vec::new(); documents.len()]);
        }
        Ok(by_document(&sheet, &self.network.nll(&self.state, &sheet, is_base)?))
    }
}

/// The loss of a micro-batch that a device may still be at.
pub struct PendingLoss(Option<Buffer<f32>>);

impl PendingLoss {
    /// Returns it, once everything before is done.
    ///
    /// Errors if any of that went wrong.
    pub fn read(&self, device: &Device) -> Result<LossSum, Error> {
        let Some(nll) = &self.0 else { return Ok(LossSum::default()) };
        let nll = nll.read(device)?;
        Ok(LossSum { nll: super::sum(&nll), tokens: nll.len() })
    }
}

/// Returns the log-probabilities of each document's targets.
fn by_document(sheet: &Sheet, nll: &[f32]) -> Vec<Vec<f32>> {
    let of = |ends: &[usize]| nll[ends[0]..ends[1]].iter().map(|nll| -nll).collect();
    sheet.scored_cu.windows(2).map(of).collect()
}
