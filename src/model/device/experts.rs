//! A mixture of experts on a device. It says itself which rows go to which expert; the host learns how many each has, once per layer, for
//! the shapes of the products.

use super::layer::{MlpOn, Pass};
use super::linear::LinearOn;
use super::rows::Rows;
use crate::cuda::buffer::Float;
use crate::cuda::op::elementwise::combine_rows;
use crate::cuda::op::routing::{Routed, Routing};
use crate::cuda::{CudaError, Device};
use crate::kernel::Compute;
use crate::model::config::Experts;
use crate::model::observe::{Input, Site};
use crate::model::weights::{Linear, Mlp};

pub(super) struct ExpertsOn<T> {
    /// Its products are f32, whatever the others are.
    router: LinearOn<f32>,
    experts: Vec<MlpOn<T>>,
    routing: Routing,
}

/// Returns how rows choose among a model's experts.
pub(in crate::model) fn routing_of(settings: &Experts) -> Routing {
    let &Experts { n: n_experts, n_used, renormalize, .. } = settings;
    Routing { n_experts, n_used, renormalize }
}

impl<T: Float> ExpertsOn<T> {
    pub fn new(
        device: &Device,
        compute: &Compute,
        (router, experts): (&Linear, &[Mlp]),
        settings: &Experts,
    ) -> Result<ExpertsOn<T>, CudaError> {
        let experts = experts.iter().map(|mlp| MlpOn::new(device, compute, mlp));
        let experts = experts.collect::<Result<_, _>>()?;
        Ok(ExpertsOn {
            router: LinearOn::new(device, compute, router)?,
            experts,
            routing: routing_of(settings),
        })
    }

    /// Returns the output of layer `index` for rows x; a token's experts are summed in ascending index.
    pub fn forward(&self, pass: &Pass<'_>, index: usize, x: &Rows<T>) -> Result<Rows<T>, CudaError> {
        let device = pass.device;
        pass.watch.all(device, index, Input::Router, x)?;
        let logits: Rows<f32> = self.router.forward(device, &x.widened(device)?)?;
        let (_, lists) = Routed::new(device, self.routing, &logits.all(), None)?;
        drop(logits);
        let counts = lists.counts.read(device)?;
        let mut y = Rows::zeros(device, x.n(), x.cols())?;
        let mut first = 0;
        for (expert, (mlp, count)) in self.experts.iter().zip(counts).enumerate() {
            let range = first..first + count as usize;
            first = range.end;
            if range.is_empty() {
                continue;
            }
            let (ids, weights) = (lists.ids.slice(range.clone()), lists.weights.slice(range));
            let x = x.gathered(device, &ids)?;
            let see = |input, x: &Rows<T>| {
                let site = Site { layer: index, input };
                pass.watch.part(device, site, (expert, &ids), x)
            };
            let out = mlp.forward(pass, &x, see)?;
            combine_rows(device, &out.all(), &ids, Some(&weights), &mut y.all_mut())?;
        }
        Ok(y)
    }
}
