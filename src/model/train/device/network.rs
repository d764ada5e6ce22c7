//! All layers on a device, in one type of activations.

use super::super::sheet::Sheet;
use super::super::{Checkpointing, StepKey, Trainable};
use super::State;
use super::batch::Batch;
use super::block::{BlockOn, Saved};
use super::pass::{NormOn, Pass};
use super::weights::{Frozen, Ready, Values, embedded};
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::{Occurrences, embedding_backward, gather_rows};
use crate::cuda::op::loss::{Head, HeadGradients, Targets, linear_cross_entropy};
use crate::cuda::{CudaError, Device};

/// What a gradient of the rows' losses is multiplied by.
pub(super) enum Slopes<'a> {
    /// The same for all.
    Scale(f32),
    /// Given the losses, in nats.
    Of(&'a mut dyn FnMut(&[f32]) -> Vec<f32>),
}

/// Forward and backward, whatever the type of activations.
pub(super) trait Steps {
    /// Adds to the gradients; returns where the negative log-likelihood of every target will be.
    fn backward(
        &self,
        state: &mut State,
        sheet: &Sheet,
        step: StepKey,
        slopes: Slopes<'_>,
    ) -> Result<Buffer<f32>, CudaError>;

    /// Returns the negative log-likelihood of every target, without dropout.
    fn nll(&self, state: &State, sheet: &Sheet, is_base: bool) -> Result<Vec<f32>, CudaError>;
}

pub(super) struct Network<'m, T> {
    model: &'m Trainable,
    device: &'m Device,
    blocks: Vec<BlockOn<'m, T>>,
    output_norm: NormOn<'m>,
    /// Of an output layer that is not trained.
    output: Option<Frozen<T>>,
}

/// What the backward has of a block: its input, and what was kept besides.
struct Taped<T> {
    x: Buffer<f32>,
    saved: Option<Saved<T>>,
}

impl<'m, T: Float> Network<'m, T> {
    pub fn new(model: &'m Trainable, device: &'m Device) -> Result<Network<'m, T>, CudaError> {
        let (plan, compute, config) = (&model.plan, &*model.decoder.compute, &model.decoder.config);
        let blocks = plan.blocks.iter().map(|block| BlockOn::new(device, compute, config, block));
        let is_frozen = plan.output.weight.is_none();
        Ok(Network {
            model,
            device,
            blocks: blocks.collect::<Result<_, _>>()?,
            output_norm: NormOn::new(device, &plan.output_norm)?,
            output: is_frozen.then(|| Frozen::of(device, compute, &plan.output.base.weight)).transpose()?,
        })
    }

    fn pass<'a>(
        &'a self,
        values: Values<'a>,
        batch: &'a Batch<'a>,
        is_base: bool,
        step: Option<StepKey>,
    ) -> Pass<'a> {
        let key = step.unwrap_or(StepKey { seed: 0, step: 0, first_document: 0 });
        Pass {
            device: self.device,
            config: &self.model.decoder.config,
            compute: &self.model.decoder.compute,
            values,
            batch,
            is_base,
            rate: if step.is_some() { self.model.rate } else { 0.0 },
            seed: key.seed,
            step: key.step,
        }
    }

    /// Returns the output layer's matrix.
    fn head<'a>(&'a self, pass: &Pass<'a>) -> Result<Ready<'a, T>, CudaError> {
        let output = &self.model.plan.output;
        match (&self.output, &output.weight) {
            (Some(frozen), _) => frozen.ready(self.device),
            (None, Some(range)) if !pass.is_base => Ok(Ready::Part(pass.values.of(range.clone()))),
            _ => {
                let frozen = Frozen::of(self.device, pass.compute, &output.base.weight)?;
                let values = frozen.ready(self.device)?;
                Ok(Ready::Made(Buffer::copy_of(self.device, &values)?))
            }
        }
    }

    /// Returns the rows of the embedding, times its scale: `[T, C]`.
    fn embedding(&self, pass: &Pass<'_>) -> Result<Buffer<f32>, CudaError> {
        let (embedding, tokens) = (&self.model.plan.embedding, &pass.batch.sheet.tokens);
        let scale = pass.config.embedding_scale;
        match &embedding.range {
            Some(range) if !pass.is_base => {
                let table = pass.values.exact.slice(range.clone());
                let ids = Buffer::of(self.device, tokens)?;
                let mut x = Buffer::uninit(self.device, tokens.len() * embedding.base.cols())?;
                gather_rows(self.device, &table, &ids, scale, &mut x)?;
                Ok(x)
            }
            _ => Buffer::of(self.device, &embedded::<f32>(pass.compute, &embedding.base, tokens, scale)),
        }
    }

    /// Returns the last block's output for the rows that targets are predicted from, `[R, C]`, and what the backward needs of the
    /// blocks from the first trained one on.
    fn forward(&self, pass: &Pass<'_>, is_kept: bool) -> Result<(Buffer<f32>, Vec<Taped<T>>), CudaError> {
        let mut x = self.embedding(pass)?;
        let first = self.model.first_trained();
        let mut tape = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            let (next, saved) = block.forward(pass, &x)?;
            let x = std::mem::replace(&mut x, next);
            if is_kept && i >= first {
                let keeps_all = self.model.checkpointing == Checkpointing::None;
                tape.push(Taped { x, saved: keeps_all.then_some(saved) });
            }
        }
        Ok((x, tape))
    }

    /// Computes the losses of rows behind the output norm, and their gradients if they are wanted.
    fn losses(
        &self,
        pass: &Pass<'_>,
        hidden: &Buffer<T>,
        factors: &Buffer<f32>,
        gradients: Option<HeadGradients<'_, T>>,
    ) -> Result<Buffer<f32>, CudaError> {
        let batch = pass.batch;
        let weight = self.head(pass)?;
        let head = Head { weight: &weight, hidden, width: pass.config.d_model };
        let softcap = pass.config.final_logit_softcap.filter(|cap| *cap != 0.0);
        let targets = Targets { classes: &batch.targets, factors, softcap };
        let mut nll = Buffer::uninit(self.device, batch.targets.len())?;
        linear_cross_entropy(self.device, &head, &targets, &mut nll, gradients)?;
        Ok(nll)
    }

    /// Goes back from the last block's output and its gradient.
    fn blocks_backward(
        &self,
        pass: &Pass<'_>,
        mut dx: Buffer<f32>,
        mut tape: Vec<Taped<T>>,
        grads: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let (first, embedding) = (self.model.first_trained(), &self.model.plan.embedding.range);
        for (i, block) in self.blocks.iter().enumerate().skip(first).rev() {
            let Some(Taped { x, saved }) = tape.pop() else { break };
            let saved = match saved {
                Some(saved) => saved,
                None => block.forward(pass, &x)?.1,
            };
            let wants_dx = i > first || embedding.is_some();
            match block.backward(pass, (&x, &saved), &dx, wants_dx, grads)? {
                Some(next) => dx = next,
                None => return Ok(()),
            }
        }
        if let Some(range) = embedding {
            let rows = Occurrences::of(&pass.batch.sheet.tokens);
            let scale = pass.config.embedding_scale;
            embedding_backward(self.device, &dx, &rows, scale, &mut grads.slice_mut(range.clone()))?;
        }
        Ok(())
    }
}

impl<T: Float> Steps for Network<'_, T> {
    fn backward(
        &self,
        state: &mut State,
        sheet: &Sheet,
        step: StepKey,
        slopes: Slopes<'_>,
    ) -> Result<Buffer<f32>, CudaError> {
        let State { params, rounded, grads, apart } = state;
        let values = Values { exact: params, rounded: rounded.as_ref() };
        let batch = Batch::new::<T>(self.device, &self.model.decoder.config, sheet)?;
        let pass = self.pass(values, &batch, false, Some(step));
        let mut factors = Buffer::zeros(self.device, sheet.targets.len())?;
        if let Slopes::Scale(scale) = slopes {
            factors.write(self.device, &vec![scale; sheet.targets.len()])?;
        }
        let (picked, tape) = self.forward(&pass, true)?;
        let hidden: Buffer<T> = self.output_norm.forward(&pass, &picked)?;
        if let Slopes::Of(slopes) = slopes {
            let nll = self.losses(&pass, &hidden, &factors, None)?.read(self.device)?;
            factors.write(self.device, &slopes(&nll))?;
        }
        let mut dhidden = Buffer::uninit(self.device, hidden.len())?;
        let n = params.len();
        let nll = {
            let mut within = None;
            let weight = match self.model.plan.output_gradient.clone() {
                Some(range) if range.start >= n => Some(&mut *apart),
                Some(range) => Some(&mut **within.insert(grads.slice_mut(range))),
                None => None,
            };
            self.losses(&pass, &hidden, &factors, Some(HeadGradients { hidden: &mut dhidden, weight }))?
        };
        drop(hidden);
        let dx = self.output_norm.backward(&pass, &picked, &dhidden, None, grads)?;
        drop((picked, dhidden));
        self.blocks_backward(&pass, dx, tape, grads)?;
        Ok(nll)
    }

    fn nll(&self, state: &State, sheet: &Sheet, is_base: bool) -> Result<Vec<f32>, CudaError> {
        let values = Values { exact: &state.params, rounded: state.rounded.as_ref() };
        let batch = Batch::new::<T>(self.device, &self.model.decoder.config, sheet)?;
        let pass = self.pass(values, &batch, is_base, None);
        let (picked, _) = self.forward(&pass, false)?;
        let hidden: Buffer<T> = self.output_norm.forward(&pass, &picked)?;
        let none = Buffer::zeros(self.device, sheet.targets.len())?;
        self.losses(&pass, &hidden, &none, None)?.read(self.device)
    }
}
