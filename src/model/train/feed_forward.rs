//! Feed-forwards: dense, and mixtures of experts.

use candle_core::{Device, Result, Tensor};

use super::kept::Kept;
use super::linear::{Back, Group, Low, one};
use super::pass::Pass;
use crate::kernel::dropout::RowPlace;
use crate::model::config::Experts;
use crate::model::moe::rows_of_experts;
use crate::nn;

/// `down(act(gate(x)) * up(x))`
pub(super) struct Mlp {
    /// Gate, then up.
    pub gate_up: Group,
    pub down: Group,
}

pub(super) enum FeedForward {
    Dense(Mlp),
    Experts { router: Group, experts: Vec<Mlp> },
}

pub(super) struct SavedMlp {
    gate: Kept,
    up: Kept,
    gate_up_lows: Vec<Low>,
    down_lows: Vec<Low>,
}

/// What an expert did: for which rows, with what weights.
pub(super) struct SavedExpert {
    rows: Vec<(usize, f32)>,
    mlp: SavedMlp,
    y: Kept,
}

pub(super) enum Saved {
    Dense(SavedMlp),
    Experts { probabilities: Tensor, router_lows: Vec<Low>, experts: Vec<Option<SavedExpert>> },
}

impl Mlp {
    fn forward(&self, pass: &Pass<'_>, x: &Tensor, places: &[RowPlace]) -> Result<(Tensor, SavedMlp)> {
        let (ys, gate_up_lows) = self.gate_up.forward(pass, x, places)?;
        let (gate, up) = (&ys[0], &ys[1]);
        let hidden = nn::gated(pass.compute, pass.config.activation, gate, up)?;
        let (gate, up) = (pass.keep(gate)?, pass.keep(up)?);
        let (y, down_lows) = self.down.forward(pass, &hidden, places)?;
        Ok((one(y)?, SavedMlp { gate, up, gate_up_lows, down_lows }))
    }

    fn backward(
        &self,
        pass: &Pass<'_>,
        saved: &SavedMlp,
        (x, dy): (&Tensor, &Tensor),
        places: &[RowPlace],
        grads: &mut [f32],
    ) -> Result<Tensor> {
        let (gate, up) = (pass.back(&saved.gate)?, pass.back(&saved.up)?);
        let activation = pass.config.activation;
        let dys = {
            // the gated product is cheaper to compute than to keep
            let hidden = nn::gated(pass.compute, activation, &gate, &up)?;
            let dys = std::slice::from_ref(dy);
            let back = Back { x: &hidden, dys, lows: &saved.down_lows, places, wants_dx: true };
            let dhidden = wanted(self.down.backward(pass, back, grads)?)?;
            let (dgate, dup) = nn::gated_backward(pass.compute, activation, &gate, &up, &dhidden)?;
            [dgate, dup]
        };
        let back = Back { x, dys: &dys, lows: &saved.gate_up_lows, places, wants_dx: true };
        wanted(self.gate_up.backward(pass, back, grads)?)
    }
}

/// Returns a gradient that was asked for.
pub(super) fn wanted(dx: Option<Tensor>) -> Result<Tensor> {
    dx.ok_or_else(|| candle_core::Error::Msg("a gradient that was wanted is missing".to_owned()))
}

impl FeedForward {
    pub fn is_trained(&self) -> bool {
        let mlp = |mlp: &Mlp| mlp.gate_up.is_trained() || mlp.down.is_trained();
        match self {
            FeedForward::Dense(dense) => mlp(dense),
            FeedForward::Experts { router, experts } => router.is_trained() || experts.iter().any(mlp),
        }
    }

    /// Returns the output for rows x that are at `places`, and what the backward needs.
    pub fn forward(&self, pass: &Pass<'_>, x: &Tensor, places: &[RowPlace]) -> Result<(Tensor, Saved)> {
        match self {
            FeedForward::Dense(mlp) => {
                let (y, saved) = mlp.forward(pass, x, places)?;
                Ok((y, Saved::Dense(saved)))
            }
            FeedForward::Experts { router, experts } => mixture(pass, router, experts, (x, places)),
        }
    }

    pub fn backward(
        &self,
        pass: &Pass<'_>,
        saved: &Saved,
        (x, places): (&Tensor, &[RowPlace]),
        dy: &Tensor,
        grads: &mut [f32],
    ) -> Result<Tensor> {
        match (self, saved) {
            (FeedForward::Dense(mlp), Saved::Dense(saved)) => {
                mlp.backward(pass, saved, (x, dy), places, grads)
            }
            (
                FeedForward::Experts { router, experts },
                Saved::Experts { probabilities, router_lows, experts: saved },
            ) => {
                let routed = Routed { router, experts, places, probabilities, router_lows, saved };
                routed.backward(pass, x, dy, grads)
            }
            _ => candle_core::bail!("activations of another feed-forward"),
        }
    }
}

fn settings<'a>(pass: &Pass<'a>) -> Result<&'a Experts> {
    match &pass.config.experts {
        Some(experts) => Ok(experts),
        None => candle_core::bail!("experts without a config"),
    }
}

fn places_of(places: &[RowPlace], rows: &[(usize, f32)]) -> (Vec<usize>, Vec<RowPlace>) {
    rows.iter().map(|(row, _)| (*row, places[*row])).unzip()
}

/// Each expert computes its tokens' rows at once; a token's experts are summed in ascending index.
fn mixture(
    pass: &Pass<'_>,
    router: &Group,
    experts: &[Mlp],
    (x, places): (&Tensor, &[RowPlace]),
) -> Result<(Tensor, Saved)> {
    let config = settings(pass)?;
    let (logits, router_lows) = router.forward(pass, x, places)?;
    let probabilities = nn::softmax(pass.compute, &one(logits)?)?; // [T, E]
    let rows_of = rows_of_experts(&probabilities, config)?;
    let mut y = vec![0.0; x.elem_count()];
    let mut saved = Vec::with_capacity(experts.len());
    for (mlp, rows) in experts.iter().zip(rows_of) {
        if rows.is_empty() {
            saved.push(None);
            continue;
        }
        let (indexes, own) = places_of(places, &rows);
        let (out, mlp) = mlp.forward(pass, &nn::gather(x, &indexes)?, &own)?;
        nn::scatter_scaled(&out, &rows, &mut y)?;
        saved.push(Some(SavedExpert { y: pass.keep(&out)?, rows, mlp }));
    }
    let y = Tensor::from_vec(y, x.shape(), &Device::Cpu)?;
    Ok((y, Saved::Experts { probabilities, router_lows, experts: saved }))
}

/// A mixture, and what its forward left.
struct Routed<'a> {
    router: &'a Group,
    experts: &'a [Mlp],
    places: &'a [RowPlace],
    probabilities: &'a Tensor,
    router_lows: &'a [Low],
    saved: &'a [Option<SavedExpert>],
}

impl Routed<'_> {
    fn backward(&self, pass: &Pass<'_>, x: &Tensor, dy: &Tensor, grads: &mut [f32]) -> Result<Tensor> {
        let n_experts = self.experts.len();
        let mut dx = vec![0.0; x.elem_count()];
        let mut dweights = vec![0.0; self.probabilities.elem_count()];
        for (expert, (mlp, saved)) in self.experts.iter().zip(self.saved).enumerate() {
            let Some(SavedExpert { rows, mlp: saved, y }) = saved else { continue };
            let (indexes, places) = places_of(self.places, rows);
            let y = pass.back(y)?;
            let scattered = |dy: &[f32]| nn::scatter_scaled_backward(pass.compute, &y, rows, dy);
            let (dout, dots) = nn::with_values(dy, scattered)??;
            for ((row, _), dot) in rows.iter().zip(dots) {
                dweights[row * n_experts + expert] = dot;
            }
            let own_x = nn::gather(x, &indexes)?;
            let own_dx = mlp.backward(pass, saved, (&own_x, &dout), &places, grads)?;
            nn::gather_backward(&own_dx, &indexes, &mut dx)?;
        }
        let dx = Tensor::from_vec(dx, x.shape(), &Device::Cpu)?;
        let dys = [self.logit_gradients(pass, &dweights)?];
        let back = Back { x, dys: &dys, lows: self.router_lows, places: self.places, wants_dx: true };
        let through_router = wanted(self.router.backward(pass, back, grads)?)?;
        nn::add(pass.compute, &dx, &through_router)
    }

    /// Returns the gradients of the router's logits from those of the chosen experts' weights, `[T, E]`.
    fn logit_gradients(&self, pass: &Pass<'_>, dweights: &[f32]) -> Result<Tensor> {
        let (n_experts, renormalize) = (self.experts.len(), settings(pass)?.renormalize);
        let mut chosen: Vec<Vec<(usize, f32)>> = vec![Vec::new(); dweights.len() / n_experts];
        for (expert, saved) in self.saved.iter().enumerate() {
            for (row, weight) in saved.iter().flat_map(|saved| &saved.rows) {
                chosen[*row].push((expert, *weight));
            }
        }
        let mut dprobabilities = vec![0.0; dweights.len()];
        nn::with_values(self.probabilities, |probabilities| {
            let rows = probabilities.chunks_exact(n_experts).zip(dweights.chunks_exact(n_experts));
            for (((p, dw), chosen), dp) in rows.zip(&chosen).zip(dprobabilities.chunks_exact_mut(n_experts)) {
                let dw: Vec<f32> = chosen.iter().map(|(expert, _)| dw[*expert]).collect();
                nn::expert_weights_backward(p, chosen, &dw, renormalize, dp);
            }
        })?;
        let dprobabilities = Tensor::from_vec(dprobabilities, self.probabilities.shape(), &Device::Cpu)?;
        nn::softmax_backward(pass.compute, self.probabilities, &dprobabilities)
    }
}
