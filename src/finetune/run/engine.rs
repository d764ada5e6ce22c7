//! What a run computes with: the CPU, or a device. It has the parameters, their gradients, and what the optimizer remembers.

use crate::cuda::Device;
#[cfg(gpu)]
use crate::cuda::buffer::Buffer;
#[cfg(gpu)]
use crate::cuda::op::optimizer::{Clip, Run, Step};
use crate::finetune::parallel::Reducer;
use crate::finetune::{Optimizer, OptimizerState, Update, global_norm};
use crate::model::train::{Document, Error, LossSum, Parameters, StepKey, Trainable};
#[cfg(gpu)]
use crate::model::train::{OnDevice, PendingLoss};

/// Which model is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// As it was opened.
    Base,
    Trained,
}

/// Computes the steps of a run. Errors as [`Trainable::forward_backward`], and those of a device.
pub trait Engine {
    /// Returns the log-probability of every target of every document, without dropout.
    fn log_probs(&self, of: Of, documents: &[Document<'_>]) -> Result<Vec<Vec<f32>>, Error>;

    /// Makes all gradients zero, and forgets losses.
    fn clear_gradients(&mut self) -> Result<(), Error>;

    /// [`Trainable::forward_backward`]; a device may still be at it when this returns.
    fn forward_backward(
        &mut self,
        documents: &[Document<'_>],
        scale: f32,
        step: StepKey,
    ) -> Result<(), Error>;

    /// Returns what every [`Engine::forward_backward`] came to since gradients were made zero, in their order.
    fn losses(&mut self) -> Result<Vec<LossSum>, Error>;

    /// [`Trainable::log_probs_backward`]
    fn log_probs_backward(
        &mut self,
        documents: &[Document<'_>],
        step: StepKey,
        slopes: &mut dyn FnMut(&[Vec<f32>]) -> Vec<f32>,
    ) -> Result<(), Error>;

    /// [`Trainable::finish_gradients`]
    fn finish_gradients(&mut self) -> Result<(), Error>;

    /// Replaces the parameters' gradients by their sums over all processes; of one process they stay where they are.
    fn sum_gradients(&mut self, reducer: &dyn Reducer) -> Result<(), super::Error>;

    /// Returns the norm of the parameters' gradients.
    fn gradient_norm(&mut self) -> Result<f64, Error>;

    /// Does a step of the optimizer.
    fn update(&mut self, update: &Update<'_>) -> Result<(), Error>;

    /// Returns whether all parameters are finite.
    fn params_are_finite(&mut self) -> Result<bool, Error>;

    /// Returns whether all that the optimizer remembers is finite.
    fn moments_are_finite(&mut self) -> Result<bool, Error>;

    /// Calls `read` with the parameters and what the optimizer remembers.
    fn with_state(&self, read: &mut dyn FnMut(&[f32], &OptimizerState)) -> Result<(), Error>;

    /// Forgets gradients and what the optimizer remembers, for nothing is trained from here on; and the parameters, unless they are
    /// kept: others have to be set then.
    fn settle(&mut self, keeps_params: bool);

    /// Overwrites the parameters.
    fn set_params(&mut self, params: Parameters) -> Result<(), Error>;

    /// Returns the parameters.
    fn params(&self) -> Result<Parameters, Error>;
}

/// Returns what computes on `device`, or on the CPU if there is none.
///
/// Errors if the model cannot be trained there, or there is no room for it.
pub fn engine<'a>(
    model: &'a Trainable,
    device: Option<&'a Device>,
    optimizer: Optimizer,
    params: Parameters,
    state: OptimizerState,
) -> Result<Box<dyn Engine + 'a>, Error> {
    match device {
        None => Ok(Box::new(Cpu { model, optimizer, params, state, grads: Vec::new(), losses: Vec::new() })),
        #[cfg(gpu)]
        Some(device) => Ok(Box::new(Gpu::new(model, device, optimizer, &params, state)?)),
        #[cfg(not(gpu))]
        Some(device) => match *device {},
    }
}

struct Cpu<'a> {
    model: &'a Trainable,
    optimizer: Optimizer,
    params: Parameters,
    state: OptimizerState,
    grads: Vec<f32>,
    losses: Vec<LossSum>,
}

impl Cpu<'_> {
    fn norm(&self, values: &[f32]) -> f64 {
        global_norm(self.model.decoder().compute(), values)
    }
}

impl Engine for Cpu<'_> {
    fn log_probs(&self, of: Of, documents: &[Document<'_>]) -> Result<Vec<Vec<f32>>, Error> {
        self.model.log_probs((of == Of::Trained).then_some(&self.params), documents)
    }

    fn clear_gradients(&mut self) -> Result<(), Error> {
        self.losses.clear();
        self.grads.clear();
        self.grads.resize(self.model.gradient_len(), 0.0);
        Ok(())
    }

    fn forward_backward(
        &mut self,
        documents: &[Document<'_>],
        scale: f32,
        step: StepKey,
    ) -> Result<(), Error> {
        self.losses.push(self.model.forward_backward(
            &self.params,
            documents,
            scale,
            step,
            &mut self.grads,
        )?);
        Ok(())
    }

    fn losses(&mut self) -> Result<Vec<LossSum>, Error> {
        Ok(std::mem::take(&mut self.losses))
    }

    fn log_probs_backward(
        &mut self,
        documents: &[Document<'_>],
        step: StepKey,
        slopes: &mut dyn FnMut(&[Vec<f32>]) -> Vec<f32>,
    ) -> Result<(), Error> {
        self.model.log_probs_backward(&self.params, documents, step, slopes, &mut self.grads)
    }

    fn finish_gradients(&mut self) -> Result<(), Error> {
        self.model.finish_gradients(&mut self.grads);
        Ok(())
    }

    fn sum_gradients(&mut self, reducer: &dyn Reducer) -> Result<(), super::Error> {
        let n = self.params.len();
        Ok(reducer.all_reduce_sum(&mut self.grads[..n])?)
    }

    fn gradient_norm(&mut self) -> Result<f64, Error> {
        Ok(self.norm(&self.grads[..self.params.len()]))
    }

    fn update(&mut self, update: &Update<'_>) -> Result<(), Error> {
        let gradients = &self.grads[..self.params.len()];
        let compute = self.model.decoder().compute();
        self.optimizer.step(compute, &mut self.state, &mut self.params, gradients, update);
        Ok(())
    }

    fn params_are_finite(&mut self) -> Result<bool, Error> {
        Ok(self.norm(&self.params).is_finite())
    }

    fn moments_are_finite(&mut self) -> Result<bool, Error> {
        Ok(self.state.moments.iter().all(|moment| self.norm(moment).is_finite()))
    }

    fn with_state(&self, read: &mut dyn FnMut(&[f32], &OptimizerState)) -> Result<(), Error> {
        read(&self.params, &self.state);
        Ok(())
    }

    fn settle(&mut self, keeps_params: bool) {
        (self.state.moments, self.grads) = (Vec::new(), Vec::new());
        if !keeps_params {
            self.params = Parameters::default();
        }
    }

    fn set_params(&mut self, params: Parameters) -> Result<(), Error> {
        self.params = params;
        Ok(())
    }

    fn params(&self) -> Result<Parameters, Error> {
        Ok(self.params.clone())
    }
}

#[cfg(gpu)]
struct Gpu<'a> {
    device: &'a Device,
    model: OnDevice<'a>,
    optimizer: Optimizer,
    /// Steps done.
    step: u64,
    moments: Vec<Buffer<f32>>,
    clip: Clip,
    losses: Vec<PendingLoss>,
}

#[cfg(gpu)]
impl<'a> Gpu<'a> {
    fn new(
        model: &'a Trainable,
        device: &'a Device,
        optimizer: Optimizer,
        params: &[f32],
        state: OptimizerState,
    ) -> Result<Gpu<'a>, Error> {
        let moments = state.moments.iter().map(|moment| Buffer::of(device, moment));
        Ok(Gpu {
            device,
            model: OnDevice::new(model, device, params)?,
            optimizer,
            step: state.step,
            moments: moments.collect::<Result<_, _>>()?,
            clip: Clip::new(device, params.len())?,
            losses: Vec::new(),
        })
    }
}

#[cfg(gpu)]
impl Engine for Gpu<'_> {
    fn log_probs(&self, of: Of, documents: &[Document<'_>]) -> Result<Vec<Vec<f32>>, Error> {
        self.model.log_probs(of == Of::Base, documents)
    }

    fn clear_gradients(&mut self) -> Result<(), Error> {
        self.losses.clear();
        self.model.clear_gradients()
    }

    fn forward_backward(
        &mut self,
        documents: &[Document<'_>],
        scale: f32,
        step: StepKey,
    ) -> Result<(), Error> {
        self.losses.push(self.model.forward_backward(documents, scale, step)?);
        Ok(())
    }

    fn losses(&mut self) -> Result<Vec<LossSum>, Error> {
        std::mem::take(&mut self.losses).iter().map(|loss| loss.read(self.device)).collect()
    }

    fn log_probs_backward(
        &mut self,
        documents: &[Document<'_>],
        step: StepKey,
        slopes: &mut dyn FnMut(&[Vec<f32>]) -> Vec<f32>,
    ) -> Result<(), Error> {
        self.model.log_probs_backward(documents, step, slopes)
    }

    fn finish_gradients(&mut self) -> Result<(), Error> {
        self.model.finish_gradients()
    }

    fn sum_gradients(&mut self, reducer: &dyn Reducer) -> Result<(), super::Error> {
        if reducer.world().size == 1 {
            return Ok(());
        }
        if reducer.sum_on_device(self.device, self.model.gradients_mut())? {
            return Ok(());
        }
        // by the host, which has the connections
        let mut gradients = self.model.gradients().read(self.device).map_err(Error::from)?;
        reducer.all_reduce_sum(&mut gradients)?;
        Ok(self.model.set_gradients(&gradients)?)
    }

    fn gradient_norm(&mut self) -> Result<f64, Error> {
        self.clip.measure(self.device, self.model.gradients(), None)?;
        Ok(self.clip.norm(self.device)?)
    }

    fn update(&mut self, update: &Update<'_>) -> Result<(), Error> {
        self.step += 1;
        self.clip.set_factor(self.device, update.gradient_factor)?;
        for group in update.groups {
            let (lr, decay) = (update.lr * group.lr_factor, group.weight_decay);
            let step = match self.optimizer {
                Optimizer::AdamW { beta1, beta2, eps } => {
                    Step::adamw((beta1, beta2), eps, lr, decay, self.step)
                }
                Optimizer::Lion { beta1, beta2 } => Step::lion((beta1, beta2), lr, decay),
            };
            let run = Run { first: group.range.start, n: group.range.len() };
            step.apply(self.device, &mut self.model.flat(&mut self.moments), &self.clip, run)?;
        }
        Ok(())
    }

    fn params_are_finite(&mut self) -> Result<bool, Error> {
        self.clip.measure(self.device, self.model.params_on_device(), None)?;
        Ok(self.clip.norm(self.device)?.is_finite())
    }

    fn moments_are_finite(&mut self) -> Result<bool, Error> {
        for moment in &self.moments {
            self.clip.measure(self.device, moment, None)?;
            if !self.clip.norm(self.device)?.is_finite() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn with_state(&self, read: &mut dyn FnMut(&[f32], &OptimizerState)) -> Result<(), Error> {
        let moments = self.moments.iter().map(|moment| moment.read(self.device)).collect::<Result<_, _>>()?;
        let state = OptimizerState { step: self.step, moments };
        read(&self.model.params()?, &state);
        Ok(())
    }

    fn settle(&mut self, _keeps_params: bool) {
        self.moments.clear();
    }

    fn set_params(&mut self, params: Parameters) -> Result<(), Error> {
        self.model.set_params(&params)
    }

    fn params(&self) -> Result<Parameters, Error> {
        self.model.params()
    }
}
