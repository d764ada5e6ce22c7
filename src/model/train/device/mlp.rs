//! A dense feed-forward, or an expert, on a device: `train::feed_forward::Mlp`.

use super::super::feed_forward::Mlp;
use super::linear::{Back, GroupOn, Low, apart, wanted};
use super::pass::Pass;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::{DropoutRows, GateUp, gated, gated_backward};
use crate::cuda::{CudaError, Device};
use crate::kernel::Compute;

pub(super) struct MlpOn<'m, T> {
    gate_up: GroupOn<'m, T>,
    down: GroupOn<'m, T>,
    /// Values between the two.
    d_ff: usize,
}

pub(super) struct SavedMlp<T> {
    gate: Buffer<T>,
    up: Buffer<T>,
    gate_up_lows: Vec<Low<T>>,
    down_lows: Vec<Low<T>>,
}

impl<'m, T: Float> MlpOn<'m, T> {
    pub fn new(device: &Device, compute: &Compute, mlp: &'m Mlp) -> Result<MlpOn<'m, T>, CudaError> {
        let group = |group| GroupOn::new(device, compute, group);
        let d_ff = mlp.down.parts.first().map_or(0, |down| down.base.weight.cols());
        Ok(MlpOn { gate_up: group(&mlp.gate_up)?, down: group(&mlp.down)?, d_ff })
    }

    fn hidden(&self, pass: &Pass<'_>, gate: &Buffer<T>, up: &Buffer<T>) -> Result<Buffer<T>, CudaError> {
        let mut hidden = Buffer::uninit(pass.device, gate.len())?;
        let input = GateUp::Apart(gate, up);
        gated(pass.device, pass.config.activation, input, self.d_ff, &mut hidden)?;
        Ok(hidden)
    }

    /// Returns the output for rows x that are at `places`, and what the backward needs besides x.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: &Buffer<T>,
        places: &DropoutRows,
    ) -> Result<(Buffer<T>, SavedMlp<T>), CudaError> {
        let ([gate, up], gate_up_lows) = apart(self.gate_up.forward(pass, x, places)?);
        let hidden = self.hidden(pass, &gate, &up)?;
        let ([y], down_lows) = apart(self.down.forward(pass, &hidden, places)?);
        Ok((y, SavedMlp { gate, up, gate_up_lows, down_lows }))
    }

    /// Adds to the gradients of what is trained here; returns that of x.
    pub fn backward(
        &self,
        pass: &Pass<'_>,
        saved: &SavedMlp<T>,
        (x, dy): (&Buffer<T>, &Buffer<T>),
        places: &DropoutRows,
        grads: &mut Buffer<f32>,
    ) -> Result<Buffer<T>, CudaError> {
        let (device, SavedMlp { gate, up, gate_up_lows, down_lows }) = (pass.device, saved);
        let dhidden = {
            // the gated product is cheaper to compute than to keep
            let hidden = self.hidden(pass, gate, up)?;
            let back = Back { x: &hidden, dys: &[dy], lows: down_lows, places, wants_dx: true };
            wanted(self.down.backward(pass, &back, grads)?)
        };
        let (mut dgate, mut dup) = (Buffer::uninit(device, gate.len())?, Buffer::uninit(device, gate.len())?);
        let gradients = (&mut dgate, Some(&mut dup));
        let input = GateUp::Apart(gate, up);
        gated_backward(device, pass.config.activation, input, &dhidden, gradients, self.d_ff, None)?;
        let back = Back { x, dys: &[&dgate, &dup], lows: gate_up_lows, places, wants_dx: true };
        Ok(wanted(self.gate_up.backward(pass, &back, grads)?))
    }
}
