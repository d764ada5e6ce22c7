//! One layer on a device: `train::block`.

use super::super::block::Block;
use super::super::feed_forward::FeedForward;
use super::experts::{ExpertsOn, SavedExperts};
use super::linear::{Back, GroupOn, Low, apart, wanted};
use super::mlp::{MlpOn, SavedMlp};
use super::pass::{NormOn, Pass};
use super::weights::Ready;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::attention::{Gradients, Operands, Saved as OfAttention};
use crate::cuda::op::elementwise::{DropoutRows, Turn, add_scaled, gather_rows, rope, scatter_rows};
use crate::cuda::{CudaError, Device};
use crate::kernel::Compute;
use crate::model::config::ModelConfig;
use crate::model::device::cast::narrowed;

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
    ffn: FeedForwardOn<'m, T>,
    post_ffn_norm: Option<NormOn<'m>>,
}

enum FeedForwardOn<'m, T> {
    Dense(MlpOn<'m, T>),
    Experts(ExpertsOn<'m, T>),
}

enum SavedFeedForward<T> {
    Dense(Box<SavedMlp<T>>),
    Experts(Box<SavedExperts<T>>),
}

/// What a block's backward needs of its forward besides its input.
pub(super) struct Saved<T> {
    /// As the products left them where heads are normed, else turned.
    q: Buffer<T>,
    k: Buffer<T>,
    v: Buffer<T>,
    qkv_lows: Vec<Low<T>>,
    attended: Buffer<T>,
    lse: Buffer<f32>,
    o_lows: Vec<Low<T>>,
    /// Before a norm behind attention, where there is one.
    attn_y: Option<Buffer<T>>,
    /// The residual stream. What follows, too, is of the rows that are computed behind attention.
    middle: Buffer<f32>,
    ffn: SavedFeedForward<T>,
    ffn_y: Option<Buffer<T>>,
}

impl<'m, T: Float> BlockOn<'m, T> {
    pub fn new(
        device: &Device,
        compute: &Compute,
        config: &'m ModelConfig,
        block: &'m Block,
    ) -> Result<BlockOn<'m, T>, CudaError> {
        let ffn = match (&block.ffn, &config.experts) {
            (FeedForward::Dense(mlp), _) => FeedForwardOn::Dense(MlpOn::new(device, compute, mlp)?),
            (FeedForward::Experts { router, experts }, Some(settings)) => {
                let parts = (router, &experts[..]);
                FeedForwardOn::Experts(ExpertsOn::new(device, compute, parts, settings)?)
            }
            (FeedForward::Experts { .. }, None) => panic!("a plan has experts where the config has"),
        };
        let group = |group| GroupOn::new(device, compute, group);
        let norm = |norm| NormOn::new(device, norm);
        let optional = |norm: &'m Option<_>| norm.as_ref().map(|norm| NormOn::new(device, norm)).transpose();
        Ok(BlockOn {
            block,
            attn_norm: norm(&block.attn_norm)?,
            qkv: group(&block.qkv)?,
            q_norm: optional(&block.q_norm)?,
            k_norm: optional(&block.k_norm)?,
            o: group(&block.o)?,
            post_attn_norm: optional(&block.post_attn_norm)?,
            ffn_norm: norm(&block.ffn_norm)?,
            ffn,
            post_ffn_norm: optional(&block.post_ffn_norm)?,
        })
    }

    /// Returns where the rows are that are computed behind attention.
    fn places<'a>(&self, pass: &Pass<'a>) -> &'a DropoutRows {
        pass.batch.places(self.block.is_last)
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
    fn picked<'a, X: Float>(&self, pass: &Pass<'_>, x: &'a Buffer<X>) -> Result<Ready<'a, X>, CudaError> {
        if !self.block.is_last {
            return Ok(Ready::Here(x));
        }
        let scored = &pass.batch.scored;
        let mut y = Buffer::uninit(pass.device, x.len() / pass.batch.n_rows() * scored.len())?;
        gather_rows(pass.device, x, scored, 1.0, &mut y)?;
        Ok(Ready::Made(y))
    }

    /// Returns gradients of those rows among zeros for all.
    fn picked_backward<'a, X: Float>(
        &self,
        pass: &Pass<'_>,
        dy: &'a Buffer<X>,
    ) -> Result<Ready<'a, X>, CudaError> {
        if !self.block.is_last {
            return Ok(Ready::Here(dy));
        }
        let scored = &pass.batch.scored;
        let mut dx = Buffer::zeros(pass.device, dy.len() / scored.len() * pass.batch.n_rows())?;
        scatter_rows(pass.device, dy, scored, &mut dx)?;
        Ok(Ready::Made(dx))
    }

    /// Returns the block's output for x `[T, C]`, of the last block for the rows that targets are predicted from, and what its
    /// backward needs besides x.
    pub fn forward(&self, pass: &Pass<'_>, x: &Buffer<f32>) -> Result<(Buffer<f32>, Saved<T>), CudaError> {
        let device = pass.device;
        let normed: Buffer<T> = self.attn_norm.forward(pass, x)?;
        let ([mut q, mut k, v], qkv_lows) =
            apart(self.qkv.forward(pass, &normed, pass.batch.places(false))?);
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
            let operands = Operands { q: &q, k: &k, v: &v };
            let layer = pass.batch.layer(self.block.attention);
            layer.documents.forward(device, &operands, &mut attended, &mut lse)?;
        }
        let places = self.places(pass);
        let picked = self.picked(pass, &attended)?;
        let ([y], o_lows) = apart(self.o.forward(pass, &picked, places)?);
        drop(picked);
        let (y, attn_y) = behind(pass, &self.post_attn_norm, y)?;
        let picked = self.picked(pass, x)?;
        let (middle, normed) = self.ffn_norm.forward_of_sum(pass, &picked, &y)?;
        drop(picked);
        let (y, ffn) = match &self.ffn {
            FeedForwardOn::Dense(mlp) => {
                let (y, saved) = mlp.forward(pass, &normed, places)?;
                (y, SavedFeedForward::Dense(Box::new(saved)))
            }
            FeedForwardOn::Experts(experts) => {
                let (y, saved) = experts.forward(pass, &normed, places)?;
                (y, SavedFeedForward::Experts(Box::new(saved)))
            }
        };
        drop(normed);
        let (y, ffn_y) = behind(pass, &self.post_ffn_norm, y)?;
        let mut out = Buffer::uninit(device, middle.len())?;
        add_scaled(device, &middle, &y, 1.0, &mut out)?;
        let saved = Saved { q, k, v, qkv_lows, attended, lse, o_lows, attn_y, middle, ffn, ffn_y };
        Ok((out, saved))
    }

    /// Adds to the gradients of what is trained here, given that of the output; returns that of the block's input x, if it is
    /// wanted.
    pub fn backward(
        &self,
        pass: &Pass<'_>,
        (x, saved): (&Buffer<f32>, &Saved<T>),
        dout: &Buffer<f32>,
        wants_dx: bool,
        grads: &mut Buffer<f32>,
    ) -> Result<Option<Buffer<f32>>, CudaError> {
        let dmiddle = self.ffn_backward(pass, saved, dout, grads)?;
        let dqkv = {
            let dy = narrowed(pass.device, &dmiddle)?;
            let dy = behind_backward(pass, &self.post_attn_norm, &saved.attn_y, &dy, grads)?;
            let attended = self.picked(pass, &saved.attended)?;
            let (dys, lows) = ([&*dy], &saved.o_lows);
            let places = self.places(pass);
            let back = Back { x: &attended, dys: &dys, lows, places, wants_dx: true };
            let dattended = wanted(self.o.backward(pass, &back, grads)?);
            let dattended = self.picked_backward(pass, &dattended)?;
            self.attention_backward(pass, saved, &dattended, grads)?
        };
        let normed: Buffer<T> = self.attn_norm.forward(pass, x)?;
        let wants_dnormed = wants_dx || self.block.attn_norm.range.is_some();
        let back = Back {
            x: &normed,
            dys: &[&dqkv[0], &dqkv[1], &dqkv[2]],
            lows: &saved.qkv_lows,
            places: pass.batch.places(false),
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
        dout: &Buffer<f32>,
        grads: &mut Buffer<f32>,
    ) -> Result<Buffer<f32>, CudaError> {
        let dy = narrowed(pass.device, dout)?;
        let dy = behind_backward(pass, &self.post_ffn_norm, &saved.ffn_y, &dy, grads)?;
        let (normed, places): (Buffer<T>, _) =
            (self.ffn_norm.forward(pass, &saved.middle)?, self.places(pass));
        let dnormed = match (&self.ffn, &saved.ffn) {
            (FeedForwardOn::Dense(mlp), SavedFeedForward::Dense(saved)) => {
                mlp.backward(pass, saved, (&normed, &dy), places, grads)?
            }
            (FeedForwardOn::Experts(experts), SavedFeedForward::Experts(saved)) => {
                experts.backward(pass, saved, (&normed, &dy), places, grads)?
            }
            _ => panic!("activations of another feed-forward"),
        };
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
            let operands = Operands { q: &q, k: &k, v };
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
