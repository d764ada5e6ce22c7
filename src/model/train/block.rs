//! One layer: attention and feed-forward, forward and backward.

use candle_core::{Device, Result, Tensor};

use super::feed_forward::{self, FeedForward, wanted};
use super::kept::Kept;
use super::linear::{Back, Group, Low, one};
use super::pass::{Norm, Pass};
use crate::kernel::dropout::RowPlace;
use crate::model::config::Attention;
use crate::nn::{self, Turns};

pub(super) struct Block {
    /// Behind attention only rows that a target is predicted from are computed: nothing comes after that reads others.
    pub is_last: bool,
    pub attention: Attention,
    pub attn_norm: Norm,
    /// q, k, v
    pub qkv: Group,
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub o: Group,
    pub post_attn_norm: Option<Norm>,
    pub ffn_norm: Norm,
    pub ffn: FeedForward,
    pub post_ffn_norm: Option<Norm>,
}

/// What a block's backward needs of its forward: norms, turned heads and gated products are computed anew.
pub(super) struct Saved {
    x: Kept,
    /// As the products left them.
    qkv: [Kept; 3],
    qkv_lows: Vec<Low>,
    attended: Kept,
    /// Log-sums of the exponentials of scores, `[T, H]`.
    lse: Tensor,
    o_lows: Vec<Low>,
    /// Before a norm behind attention, where there is one.
    attn_y: Option<Kept>,
    /// What follows, too, is of the rows that are computed behind attention.
    middle: Kept,
    ffn: feed_forward::Saved,
    ffn_y: Option<Kept>,
}

impl Block {
    /// Returns true if a parameter is trained here.
    pub fn is_trained(&self) -> bool {
        let norms = [Some(&self.attn_norm), Some(&self.ffn_norm), self.q_norm.as_ref(), self.k_norm.as_ref()];
        let behind = [self.post_attn_norm.as_ref(), self.post_ffn_norm.as_ref()];
        norms.into_iter().chain(behind).flatten().any(|norm| norm.range.is_some())
            || self.qkv.is_trained()
            || self.o.is_trained()
            || self.ffn.is_trained()
    }

    fn turns<'p>(&self, pass: &'p Pass<'_>) -> &'p Turns {
        match self.attention {
            Attention::Full => &pass.sheet.turns,
            Attention::Sliding => &pass.sheet.local_turns,
        }
    }

    /// Returns heads as attention takes them: normed, if the model norms them, and turned.
    fn turned(&self, pass: &Pass<'_>, heads: &Tensor, norm: &Option<Norm>) -> Result<Tensor> {
        let normed = match norm {
            Some(norm) => norm.forward(pass, heads)?,
            None => heads.clone(),
        };
        nn::rope(pass.compute, &normed, pass.config.head_dim, self.turns(pass))
    }

    fn turned_backward(
        &self,
        pass: &Pass<'_>,
        (heads, norm): (&Tensor, &Option<Norm>),
        dy: &Tensor,
        grads: &mut [f32],
    ) -> Result<Tensor> {
        let dy = nn::rope_backward(pass.compute, dy, pass.config.head_dim, self.turns(pass))?;
        match norm {
            Some(norm) => norm.backward(pass, heads, &dy, grads),
            None => Ok(dy),
        }
    }

    /// Returns the rows of x, `[T, C]`, that are computed behind attention.
    fn picked(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        match self.is_last {
            true => nn::gather(x, &pass.sheet.scored),
            false => Ok(x.clone()),
        }
    }

    /// Returns gradients of those rows among zeros for all `n_rows`.
    fn picked_backward(&self, pass: &Pass<'_>, dy: &Tensor, n_rows: usize) -> Result<Tensor> {
        if !self.is_last {
            return Ok(dy.clone());
        }
        let len = dy.dim(1)?;
        let mut dx = vec![0.0; n_rows * len];
        nn::gather_backward(dy, &pass.sheet.scored, &mut dx)?;
        Tensor::from_vec(dx, (n_rows, len), &Device::Cpu)
    }

    /// Returns where those rows are.
    fn places<'p>(&self, pass: &'p Pass<'_>) -> &'p [RowPlace] {
        if self.is_last { &pass.sheet.scored_places } else { &pass.sheet.places }
    }

    /// Returns the block's output, of the last block for the rows that targets are predicted from, and what its backward
    /// needs.
    pub fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<(Tensor, Saved)> {
        let normed = self.attn_norm.forward(pass, x)?;
        let (qkv, qkv_lows) = self.qkv.forward(pass, &normed, &pass.sheet.places)?;
        let [q, k, v]: [Tensor; 3] =
            qkv.try_into().map_err(|_| candle_core::Error::Msg("not q, k and v".to_owned()))?;
        let qkv = [pass.keep(&q)?, pass.keep(&k)?, pass.keep(&v)?];
        let (q, k) = (self.turned(pass, &q, &self.q_norm)?, self.turned(pass, &k, &self.k_norm)?);
        let shape = pass.config.attention_shape(self.attention);
        let (attended, lse) = nn::document_attention(pass.compute, shape, &q, &k, &v, &pass.sheet.cu)?;
        let places = self.places(pass);
        let (y, o_lows) = self.o.forward(pass, &self.picked(pass, &attended)?, places)?;
        let (y, attn_y) = behind(pass, &self.post_attn_norm, one(y)?)?;
        let middle = nn::add(pass.compute, &self.picked(pass, x)?, &y)?;
        let (y, ffn) = self.ffn.forward(pass, &self.ffn_norm.forward(pass, &middle)?, places)?;
        let (y, ffn_y) = behind(pass, &self.post_ffn_norm, y)?;
        let out = nn::add(pass.compute, &middle, &y)?;
        let saved = Saved {
            x: pass.keep(x)?,
            qkv,
            qkv_lows,
            attended: pass.keep(&attended)?,
            lse,
            o_lows,
            attn_y,
            middle: pass.keep(&middle)?,
            ffn,
            ffn_y,
        };
        Ok((out, saved))
    }

    /// Adds to the gradients of what is trained here, given that of the output; returns that of the block's input, if it is
    /// wanted.
    pub fn backward(
        &self,
        pass: &Pass<'_>,
        saved: &Saved,
        dout: &Tensor,
        wants_dx: bool,
        grads: &mut [f32],
    ) -> Result<Option<Tensor>> {
        let dmiddle = self.ffn_backward(pass, saved, dout, grads)?;
        let dy = behind_backward(pass, &self.post_attn_norm, &saved.attn_y, &dmiddle, grads)?;
        let attended = pass.back(&saved.attended)?;
        let n_rows = attended.dim(0)?;
        let dattended = {
            let (x, dys) = (self.picked(pass, &attended)?, std::slice::from_ref(&dy));
            let back = Back { x: &x, dys, lows: &saved.o_lows, places: self.places(pass), wants_dx: true };
            self.picked_backward(pass, &wanted(self.o.backward(pass, back, grads)?)?, n_rows)?
        };
        let dqkv = self.attention_backward(pass, saved, &attended, &dattended, grads)?;
        let x = pass.back(&saved.x)?;
        let places = &pass.sheet.places;
        let normed = self.attn_norm.forward(pass, &x)?;
        let wants_dnormed = wants_dx || self.attn_norm.range.is_some();
        let back = Back { x: &normed, dys: &dqkv, lows: &saved.qkv_lows, places, wants_dx: wants_dnormed };
        let Some(dnormed) = self.qkv.backward(pass, back, grads)? else { return Ok(None) };
        let dx = self.attn_norm.backward(pass, &x, &dnormed, grads)?;
        let dmiddle = self.picked_backward(pass, &dmiddle, n_rows)?;
        Ok(Some(nn::add(pass.compute, &dmiddle, &dx)?))
    }

    fn ffn_backward(
        &self,
        pass: &Pass<'_>,
        saved: &Saved,
        dout: &Tensor,
        grads: &mut [f32],
    ) -> Result<Tensor> {
        let dy = behind_backward(pass, &self.post_ffn_norm, &saved.ffn_y, dout, grads)?;
        let middle = pass.back(&saved.middle)?;
        let normed = self.ffn_norm.forward(pass, &middle)?;
        let at = (&normed, self.places(pass));
        let dnormed = self.ffn.backward(pass, &saved.ffn, at, &dy, grads)?;
        let dmiddle = self.ffn_norm.backward(pass, &middle, &dnormed, grads)?;
        nn::add(pass.compute, dout, &dmiddle)
    }

    /// Returns the gradients of q, k and v as the products left them.
    fn attention_backward(
        &self,
        pass: &Pass<'_>,
        saved: &Saved,
        attended: &Tensor,
        dattended: &Tensor,
        grads: &mut [f32],
    ) -> Result<[Tensor; 3]> {
        let [raw_q, raw_k, v] = &saved.qkv;
        let (raw_q, raw_k, v) = (pass.back(raw_q)?, pass.back(raw_k)?, pass.back(v)?);
        let (q, k) = (self.turned(pass, &raw_q, &self.q_norm)?, self.turned(pass, &raw_k, &self.k_norm)?);
        let (dq, dk, dv) = nn::document_attention_backward(
            pass.compute,
            pass.config.attention_shape(self.attention),
            &q,
            &k,
            &v,
            attended,
            &saved.lse,
            dattended,
            &pass.sheet.cu,
        )?;
        let dq = self.turned_backward(pass, (&raw_q, &self.q_norm), &dq, grads)?;
        let dk = self.turned_backward(pass, (&raw_k, &self.k_norm), &dk, grads)?;
        Ok([dq, dk, dv])
    }
}

/// Puts a half of the block through the norm behind it, if there is one; keeps what the norm took.
fn behind(pass: &Pass<'_>, norm: &Option<Norm>, y: Tensor) -> Result<(Tensor, Option<Kept>)> {
    match norm {
        Some(norm) => Ok((norm.forward(pass, &y)?, Some(pass.keep(&y)?))),
        None => Ok((y, None)),
    }
}

fn behind_backward(
    pass: &Pass<'_>,
    norm: &Option<Norm>,
    kept: &Option<Kept>,
    dy: &Tensor,
    grads: &mut [f32],
) -> Result<Tensor> {
    match (norm, kept) {
        (Some(norm), Some(kept)) => norm.backward(pass, &pass.back(kept)?, dy, grads),
        _ => Ok(dy.clone()),
    }
}
