//! One layer on a device: `model::weights::Layer`.

use super::experts::ExpertsOn;
use super::linear::LinearOn;
use super::observe::Watch;
use super::rows::Rows;
use super::sheet::Sheet;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::{GateUp, Turn, add_to, gated, rope};
use crate::cuda::op::norm::Norm;
use crate::cuda::op::paged::PagedRows;
use crate::cuda::{CudaError, Device};
use crate::kernel::Compute;
use crate::model::config::ModelConfig;
use crate::model::observe::Input;
use crate::model::weights::{FeedForward, Layer, Mlp, Vector};

pub(super) struct LayerOn<T> {
    index: usize,
    attn_norm: NormOn,
    q: LinearOn<T>,
    k: LinearOn<T>,
    v: LinearOn<T>,
    o: LinearOn<T>,
    q_norm: Option<NormOn>,
    k_norm: Option<NormOn>,
    post_attn_norm: Option<NormOn>,
    ffn_norm: NormOn,
    ffn: FeedForwardOn<T>,
    post_ffn_norm: Option<NormOn>,
}

enum FeedForwardOn<T> {
    Dense(Box<MlpOn<T>>),
    Experts(Box<ExpertsOn<T>>),
}

/// What every step of a forward shares.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub device: &'a Device,
    pub config: &'a ModelConfig,
    pub sheet: &'a Sheet<'a>,
    pub watch: &'a Watch<'a>,
}

/// A norm's weight on the device.
pub(super) struct NormOn(Buffer<f32>);

impl NormOn {
    pub fn new(device: &Device, weight: &Vector) -> Result<NormOn, CudaError> {
        Ok(NormOn(Buffer::of(device, weight)?))
    }

    /// Returns the norms of rows, which may be the residual stream's, or of the heads that they are made of.
    pub fn forward<X: Float, T: Float>(
        &self,
        device: &Device,
        config: &ModelConfig,
        x: &Rows<X>,
    ) -> Result<Rows<T>, CudaError> {
        let mut y = Rows::uninit(device, x.n(), x.cols())?;
        self.op(config).forward(device, &x.all(), &mut y.all_mut())?;
        Ok(y)
    }

    /// Returns `x + residual`, and its norm.
    fn forward_of_sum<T: Float>(
        &self,
        pass: &Pass<'_>,
        x: &Rows<f32>,
        residual: &Rows<T>,
    ) -> Result<(Rows<f32>, Rows<T>), CudaError> {
        let device = pass.device;
        let mut sum = Rows::uninit(device, x.n(), x.cols())?;
        let mut y = Rows::uninit(device, x.n(), x.cols())?;
        let op = self.op(pass.config);
        op.forward_of_sum(device, &x.all(), &residual.all(), &mut sum.all_mut(), &mut y.all_mut())?;
        Ok((sum, y))
    }

    fn op(&self, config: &ModelConfig) -> Norm<'_> {
        Norm { weight: &self.0, offset: 0.0, eps: config.rms_norm_eps }
    }
}

/// `down(act(gate(x)) * up(x))`
pub(super) struct MlpOn<T> {
    gate: LinearOn<T>,
    up: LinearOn<T>,
    down: LinearOn<T>,
}

impl<T: Float> MlpOn<T> {
    pub fn new(device: &Device, compute: &Compute, mlp: &Mlp) -> Result<MlpOn<T>, CudaError> {
        let linear = |linear| LinearOn::new(device, compute, linear);
        Ok(MlpOn { gate: linear(&mlp.gate)?, up: linear(&mlp.up)?, down: linear(&mlp.down)? })
    }

    /// `see` is told what goes into the products.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: &Rows<T>,
        see: impl Fn(Input, &Rows<T>) -> Result<(), CudaError>,
    ) -> Result<Rows<T>, CudaError> {
        let device = pass.device;
        see(Input::FeedForward, x)?;
        let (gate, up): (Rows<T>, Rows<T>) = (self.gate.forward(device, x)?, self.up.forward(device, x)?);
        let mut hidden = Rows::uninit(device, x.n(), gate.cols())?;
        let input = GateUp::Apart(&gate.all(), &up.all());
        gated(device, pass.config.activation, input, gate.cols(), &mut hidden.all_mut())?;
        see(Input::Gated, &hidden)?;
        self.down.forward(device, &hidden)
    }
}

impl<T: Float> LayerOn<T> {
    pub fn new(
        device: &Device,
        compute: &Compute,
        config: &ModelConfig,
        (index, layer): (usize, &Layer),
    ) -> Result<LayerOn<T>, CudaError> {
        let linear = |linear| LinearOn::new(device, compute, linear);
        let norm = |norm| NormOn::new(device, norm);
        let optional =
            |norm: &Option<Vector>| norm.as_ref().map(|norm| NormOn::new(device, norm)).transpose();
        let ffn = match (&layer.ffn, &config.experts) {
            (FeedForward::Dense(mlp), _) => FeedForwardOn::Dense(Box::new(MlpOn::new(device, compute, mlp)?)),
            (FeedForward::Experts { router, experts }, Some(settings)) => {
                let parts = (router, &experts[..]);
                FeedForwardOn::Experts(Box::new(ExpertsOn::new(device, compute, parts, settings)?))
            }
            (FeedForward::Experts { .. }, None) => panic!("weights have experts where the config has"),
        };
        Ok(LayerOn {
            index,
            attn_norm: norm(&layer.attn_norm)?,
            q: linear(&layer.q)?,
            k: linear(&layer.k)?,
            v: linear(&layer.v)?,
            o: linear(&layer.o)?,
            q_norm: optional(&layer.q_norm)?,
            k_norm: optional(&layer.k_norm)?,
            post_attn_norm: optional(&layer.post_attn_norm)?,
            ffn_norm: norm(&layer.ffn_norm)?,
            ffn,
            post_ffn_norm: optional(&layer.post_ffn_norm)?,
        })
    }

    /// Returns the layer's output for x `[T, C]`, the residual stream, and puts keys and values into the cache; with `of_picked` only the wanted rows'
    /// output, `[R, C]`.
    pub fn forward(&self, pass: &Pass<'_>, x: &Rows<f32>, of_picked: bool) -> Result<Rows<f32>, CudaError> {
        let (device, sheet) = (pass.device, pass.sheet);
        let picked = sheet.picked.as_ref().filter(|_| of_picked);
        let normed: Rows<T> = self.attn_norm.forward(device, pass.config, x)?;
        pass.watch.all(device, self.index, Input::Attention, &normed)?;
        let k = self.k.forward(device, &normed)?;
        let v: Rows<T> = self.v.forward(device, &normed)?;
        let k = self.turned(pass, k, &self.k_norm, false)?;
        sheet.all.store(device, self.index, &k.all(), &v.all())?;
        drop((k, v));
        let Some(picked) = picked else {
            let q = self.q.forward(device, &normed)?;
            drop(normed);
            return self.behind_keys(pass, x, q, &sheet.all, false);
        };
        if picked.ids.is_empty() {
            return Rows::uninit(device, 0, x.cols());
        }
        let q = self.q.forward(device, &normed.gathered(device, &picked.ids)?)?;
        drop(normed);
        self.behind_keys(pass, &x.gathered(device, &picked.ids)?, q, &picked.rows, true)
    }

    /// Returns the output of rows x, whose queries are `q`, once the keys they see are in the cache.
    fn behind_keys(
        &self,
        pass: &Pass<'_>,
        x: &Rows<f32>,
        q: Rows<T>,
        rows: &PagedRows<'_>,
        of_picked: bool,
    ) -> Result<Rows<f32>, CudaError> {
        let (device, config) = (pass.device, pass.config);
        let q = self.turned(pass, q, &self.q_norm, of_picked)?;
        let mut attended = Rows::uninit(device, q.n(), q.cols())?;
        let shape = config.attention_shape(config.attention[self.index]);
        rows.attention(device, self.index, &shape, &q.all(), &mut attended.all_mut())?;
        drop(q);
        pass.watch.all(device, self.index, Input::Attended, &attended)?;
        let y = self.o.forward(device, &attended)?;
        drop(attended);
        let y = behind(pass, &self.post_attn_norm, y)?;
        let (mut middle, normed) = self.ffn_norm.forward_of_sum(pass, x, &y)?;
        drop(y);
        let y = match &self.ffn {
            FeedForwardOn::Dense(mlp) => {
                mlp.forward(pass, &normed, |input, x| pass.watch.all(device, self.index, input, x))?
            }
            FeedForwardOn::Experts(experts) => experts.forward(pass, self.index, &normed)?,
        };
        drop(normed);
        let y = behind(pass, &self.post_ffn_norm, y)?;
        add_to(device, &mut middle.all_mut(), &y.all(), 1.0)?;
        Ok(middle)
    }

    /// Returns heads normed and turned, as attention takes them.
    fn turned(
        &self,
        pass: &Pass<'_>,
        heads: Rows<T>,
        norm: &Option<NormOn>,
        of_picked: bool,
    ) -> Result<Rows<T>, CudaError> {
        let (device, config) = (pass.device, pass.config);
        let mut heads = behind(pass, norm, heads)?;
        if let Some(rows) = pass.sheet.turns(config.attention[self.index], of_picked) {
            let shape = (heads.cols(), heads.cols() / config.head_dim, config.head_dim);
            rope(device, &mut heads.all_mut(), shape, &rows, Turn::Forward)?;
        }
        Ok(heads)
    }
}

/// Puts rows through a norm, if there is one.
fn behind<T: Float>(pass: &Pass<'_>, norm: &Option<NormOn>, y: Rows<T>) -> Result<Rows<T>, CudaError> {
    match norm {
        Some(norm) => norm.forward(pass.device, pass.config, &y),
        None => Ok(y),
    }
}
