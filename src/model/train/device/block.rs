//! One layer on a device: `train::block` and the dense part of `train::feed_forward`.

use super::super::block::Block;
use super::super::feed_forward::{FeedForward, Mlp};
use super::batch::Rows;
use super::linear::{Back, GroupOn, apart};
use super::pass::{NormOn, Pass};
use super::weights::Ready;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::attention::{Gradients, Operands, Saved as OfAttention};
use crate::cuda::op::elementwise::{
    GateUp, Turn, add_to, gated, gated_backward, gather_rows, rope, scatter_rows,
};
use crate::cuda::{CudaError, Device};
use crate::kernel::Compute;

/// A block's weights on the device.
pub(super) struct BlockOn<'m, T> {
    block: &'m Block,
    attn_norm: NormOn<'m>,
    qkv: GroupOn<'m, T>,
    q_norm: Option<NormOn<'m>>,
    k_norm: Option<NormOn<'m>>,
    o: GroupOn<'m, T>,
    post_attn_norm: Option<NormOn<'m>>,
    ffn_norm: NormOn<'m>,
    gate_up: GroupOn<'m, T>,
    down: GroupOn<'m, T>,
    post_ffn_norm: Option<NormOn<'m>>,
}

/// What a block's backward needs of its forward besides its input.
pub(super) struct Saved<T> {
    /// As the products left them where heads are normed, else turned.
    q: Buffer<T>,
    k: Buffer<T>,
    v: Buffer<T>,
    qkv_lows: Vec<Buffer<T>>,
    attended: Buffer<T>,
    lse: Buffer<f32>,
    o_lows: Vec<Buffer<T>>,
    /// Before a norm behind attention, where there is one.
    attn_y: Option<Buffer<T>>,
    /// What follows, too, is of the rows that are computed behind attention.
    middle: Buffer<T>,
    gate: Buffer<T>,
    up: Buffer<T>,
    gate_up_lows: Vec<Buffer<T>>,
    down_lows: Vec<Buffer<T>>,
    ffn_y: Option<Buffer<T>>,
}

impl<'m, T: Float> BlockOn<'m, T> {
    /// Returns the block on the device; `None` if its feed-forward is not dense.
    pub fn new(
        device: &Device,
        compute: &Compute,
        block: &'m Block,
    ) -> Result<Option<BlockOn<'m, T>>, CudaError> {
        let FeedForward::Dense(Mlp { gate_up, down }) = &block.ffn else { return Ok(None) };
        let group = |group| GroupOn::new(device, compute, group);
        let norm = |norm| NormOn::new(device, norm);
        let optional = |norm: &'m Option<_>| norm.as_ref().map(|norm| NormOn::new(device, norm)).transpose();
        Ok(Some(BlockOn {
            block,
            attn_norm: norm(&block.attn_norm)?,
            qkv: group(&block.qkv)?,
            q_norm: optional(&block.q_norm)?,
            k_norm: optional(&block.k_norm)?,
            o: group(&block.o)?,
            post_attn_norm: optional(&block.post_attn_norm)?,
            ffn_norm: norm(&block.ffn_norm)?,
            gate_up: group(gate_up)?,
            down: group(down)?,
            post_ffn_norm: optional(&block.post_ffn_norm)?,
        }))
    }

    /// Returns which rows are computed behind attention.
    fn rows(&self) -> Rows {
        if self.block.is_last { Rows::Scored } else { Rows::All }
    }

    /// Turns heads in place.
    fn turn(&self, pass: &Pass<'_>, heads: &mut Buffer<T>, turn: Turn) -> Result<(), CudaError> {
        let Some(rows) = pass.batch.layer(self.block.attention).turns() else { return Ok(()) };
        let (stride, head_dim) = (heads.len() / pass.batch.n_rows(), pass.config.head_dim);
        rope(pass.device, heads, (stride, stride / head_dim, head_dim), &rows, turn)
    }

    /// Returns heads as attention takes them, given what was kept of them.
    fn turned<'a>(
        &self,
        pass: &Pass<'_>,
        kept: &'a Buffer<T>,
        norm: &Option<NormOn<'_>>,
    ) -> Result<Ready<'a, T>, CudaError> {
        let Some(norm) = norm else { return Ok(Ready::Here(kept)) };
        let mut heads = norm.forward(pass, kept)?;
        self.turn(pass, &mut heads, Turn::Forward)?;
        Ok(Ready::Made(heads))
    }

    /// Returns the gradient of heads as the products left them.
    fn turned_backward(
        &self,
        pass: &Pass<'_>,
        (kept, norm): (&Buffer<T>, &Option<NormOn<'_>>),
        mut dy: Buffer<T>,
        grads: &mut Buffer<f32>,
    ) -> Result<Buffer<T>, CudaError> {
        self.turn(pass, &mut dy, Turn::Back)?;
        match norm {
            Some(norm) => norm.backward(pass, kept, &dy, None, grads),
            None => Ok(dy),
        }
    }

    /// Returns the rows of x, `[T, C]`, that are computed behind attention.
    fn picked<'a>(&self, pass: &Pass<'_>, x: &'a Buffer<T>) -> Result<Ready<'a, T>, CudaError> {
        if self.rows() == Rows::All {
            return Ok(Ready::Here(x));
        }
        let scored = &pass.batch.scored;
        let mut y = Buffer::uninit(pass.device, x.len() / pass.batch.n_rows() * scored.len())?;
        gather_rows(pass.device, x, scored, 1.0, &mut y)?;
        Ok(Ready::Made(y))
    }

    /// Returns gradients of those rows among zeros for all.
    fn picked_backward<'a>(&self, pass: &Pass<'_>, dy: &'a Buffer<T>) -> Result<Ready<'a, T>, CudaError> {
        if self.rows() == Rows::All {
            return Ok(Ready::Here(dy));
        }
        let scored = &pass.batch.scored;
        let mut dx = Buffer::zeros(pass.device, dy.len() / scored.len() * pass.batch.n_rows())?;
        scatter_rows(pass.device, dy, scored, &mut dx)?;
        Ok(Ready::Made(dx))
    }

    /// Returns the block's output for x `[T, C]`, of the last block for the rows that targets are predicted from, and what its
    /// backward needs besides x.
    pub fn forward(&self, pass: &Pass<'_>, x: &Buffer<T>) -> Result<(Buffer<T>, Saved<T>), CudaError> {
        let device = pass.device;
        let normed = self.attn_norm.forward(pass, x)?;
        let ([mut q, mut k, v], qkv_lows) = apart(self.qkv.forward(pass, &normed, Rows::All)?);
        drop(normed);
        for (heads, norm) in [(&mut q, &self.q_norm), (&mut k, &self.k_norm)] {
            if norm.is_none() {
                self.turn(pass, heads, Turn::Forward)?;
            }
        }
        let mut attended = Buffer::uninit(device, q.len())?;
        let mut lse = Buffer::uninit(device, pass.batch.n_rows() * pass.config.n_heads)?;
        {
            let (q, k) = (self.turned(pass, &q, &self.q_norm)?, self.turned(pass, &k, &self.k_norm)?);
            let operands = Operands { q: &*q, k: &*k, v: &v };
            let layer = pass.batch.layer(self.block.attention);
            layer.documents.forward(device, &operands, &mut attended, &mut lse)?;
        }
        let ([y], o_lows) = apart(self.o.forward(pass, &*self.picked(pass, &attended)?, self.rows())?);
        let (y, attn_y) = behind(pass, &self.post_attn_norm, y)?;
        let (middle, normed) = self.ffn_norm.forward_of_sum(pass, &*self.picked(pass, x)?, &y)?;
        let ([gate, up], gate_up_lows) = apart(self.gate_up.forward(pass, &normed, self.rows())?);
        drop(normed);
        let hidden = self.hidden(pass, &gate, &up)?;
        let ([y], down_lows) = apart(self.down.forward(pass, &hidden, self.rows())?);
        let (mut out, ffn_y) = behind(pass, &self.post_ffn_norm, y)?;
        add_to(device, &mut out, &middle, 1.0)?;
        let saved = Saved {
            q,
            k,
            v,
            qkv_lows,
            attended,
            lse,
            o_lows,
            attn_y,
            middle,
            gate,
            up,
            gate_up_lows,
            down_lows,
            ffn_y,
        };
        Ok((out, saved))
    }

    fn hidden(&self, pass: &Pass<'_>, gate: &Buffer<T>, up: &Buffer<T>) -> Result<Buffer<T>, CudaError> {
        let mut hidden = Buffer::uninit(pass.device, gate.len())?;
        let input = GateUp::Apart(gate, up);
        gated(pass.device, pass.config.activation, input, pass.config.d_ff, &mut hidden)?;
        Ok(hidden)
    }

    /// Adds to the gradients of what is trained here, given that of the output; returns that of the block's input x, if it is
    /// wanted.
    pub fn backward(
        &self,
        pass: &Pass<'_>,
        (x, saved): (&Buffer<T>, &Saved<T>),
        dout: &Buffer<T>,
        wants_dx: bool,
        grads: &mut Buffer<f32>,
    ) -> Result<Option<Buffer<T>>, CudaError> {
        let dmiddle = self.ffn_backward(pass, saved, dout, grads)?;
        let dy = behind_backward(pass, &self.post_attn_norm, &saved.attn_y, &dmiddle, grads)?;
        let dqkv = {
            let attended = self.picked(pass, &saved.attended)?;
            let (dys, lows) = ([&*dy], &saved.o_lows);
            let back = Back { x: &attended, dys: &dys, lows, rows: self.rows(), wants_dx: true };
            let dattended = wanted(self.o.backward(pass, &back, grads)?);
            let dattended = self.picked_backward(pass, &dattended)?;
            self.attention_backward(pass, saved, &dattended, grads)?
        };
        let normed = self.attn_norm.forward(pass, x)?;
        let wants_dnormed = wants_dx || self.block.attn_norm.range.is_some();
        let back = Back {
            x: &normed,
            dys: &[&dqkv[0], &dqkv[1], &dqkv[2]],
            lows: &saved.qkv_lows,
            rows: Rows::All,
            wants_dx: wants_dnormed,
        };
        let Some(dnormed) = self.qkv.backward(pass, &back, grads)? else { return Ok(None) };
        let dmiddle = self.picked_backward(pass, &dmiddle)?;
        self.attn_norm.backward(pass, x, &dnormed, Some(&*dmiddle), grads).map(Some)
    }

    /// Returns the gradient of what lies between attention and feed-forward.
    fn ffn_backward(
        &self,
        pass: &Pass<'_>,
        saved: &Saved<T>,
        dout: &Buffer<T>,
        grads: &mut Buffer<f32>,
    ) -> Result<Buffer<T>, CudaError> {
        let (device, rows, Saved { gate, up, .. }) = (pass.device, self.rows(), saved);
        let dy = behind_backward(pass, &self.post_ffn_norm, &saved.ffn_y, dout, grads)?;
        let dhidden = {
            // the gated product is cheaper to compute than to keep
            let hidden = self.hidden(pass, gate, up)?;
            let dys = [&*dy];
            let back = Back { x: &hidden, dys: &dys, lows: &saved.down_lows, rows, wants_dx: true };
            wanted(self.down.backward(pass, &back, grads)?)
        };
        let (mut dgate, mut dup) = (Buffer::uninit(device, gate.len())?, Buffer::uninit(device, gate.len())?);
        let gradients = (&mut dgate, Some(&mut dup));
        let (input, d_ff) = (GateUp::Apart(gate, up), pass.config.d_ff);
        gated_backward(device, pass.config.activation, input, &dhidden, gradients, d_ff, None)?;
        let normed = self.ffn_norm.forward(pass, &saved.middle)?;
        let dys = [&dgate, &dup];
        let back = Back { x: &normed, dys: &dys, lows: &saved.gate_up_lows, rows, wants_dx: true };
        let dnormed = wanted(self.gate_up.backward(pass, &back, grads)?);
        self.ffn_norm.backward(pass, &saved.middle, &dnormed, Some(dout), grads)
    }

    /// Returns the gradients of q, k and v as the products left them.
    fn attention_backward(
        &self,
        pass: &Pass<'_>,
        saved: &Saved<T>,
        dattended: &Buffer<T>,
        grads: &mut Buffer<f32>,
    ) -> Result<[Buffer<T>; 3], CudaError> {
        let (device, Saved { q: kept_q, k: kept_k, v, .. }) = (pass.device, saved);
        let n = (kept_q.len(), kept_k.len());
        let mut dq = Buffer::uninit(device, n.0)?;
        let (mut dk, mut dv) = (Buffer::uninit(device, n.1)?, Buffer::uninit(device, n.1)?);
        {
            let (q, k) = (self.turned(pass, kept_q, &self.q_norm)?, self.turned(pass, kept_k, &self.k_norm)?);
            let of_attention = OfAttention { out: &saved.attended, lse: &saved.lse, dout: dattended };
            let mut gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
            let layer = pass.batch.layer(self.block.attention);
            let operands = Operands { q: &*q, k: &*k, v };
            layer.documents.backward(device, &operands, &of_attention, &mut gradients)?;
        }
        let dq = self.turned_backward(pass, (kept_q, &self.q_norm), dq, grads)?;
        let dk = self.turned_backward(pass, (kept_k, &self.k_norm), dk, grads)?;
        Ok([dq, dk, dv])
    }
}

/// Puts a half of the block through the norm behind it, if there is one; keeps what the norm took.
fn behind<T: Float>(
    pass: &Pass<'_>,
    norm: &Option<NormOn<'_>>,
    y: Buffer<T>,
) -> Result<(Buffer<T>, Option<Buffer<T>>), CudaError> {
    match norm {
        Some(norm) => Ok((norm.forward(pass, &y)?, Some(y))),
        None => Ok((y, None)),
    }
}

fn behind_backward<'a, T: Float>(
    pass: &Pass<'_>,
    norm: &Option<NormOn<'_>>,
    kept: &Option<Buffer<T>>,
    dy: &'a Buffer<T>,
    grads: &mut Buffer<f32>,
) -> Result<Ready<'a, T>, CudaError> {
    match (norm, kept) {
        (Some(norm), Some(kept)) => Ok(Ready::Made(norm.backward(pass, kept, dy, None, grads)?)),
        _ => Ok(Ready::Here(dy)),
    }
}

/// Returns a gradient that was asked for.
///
/// # Panics
/// If it was not.
fn wanted<T>(dx: Option<Buffer<T>>) -> Buffer<T> {
    dx.expect("`wants_dx` was set")
}
