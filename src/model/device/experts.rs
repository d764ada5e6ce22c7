//! A mixture of experts on a device: the router's probabilities come to the host, which says which rows go to which expert.

use super::layer::{MlpOn, Pass};
use super::linear::LinearOn;
use super::rows::Rows;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::combine_rows;
use crate::cuda::{CudaError, Device};
use crate::kernel::Compute;
use crate::kernel::softmax::softmax_rows;
use crate::model::config::Experts;
use crate::model::moe::rows_of;
use crate::model::weights::{Linear, Mlp};

pub(super) struct ExpertsOn<T> {
    /// Its products are f32, whatever the others are.
    router: LinearOn<f32>,
    experts: Vec<MlpOn<T>>,
    settings: Experts,
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
        Ok(ExpertsOn { router: LinearOn::new(device, compute, router)?, experts, settings: settings.clone() })
    }

    /// Returns the output for rows x; a token's experts are summed in ascending index.
    pub fn forward(&self, pass: &Pass<'_>, x: &Rows<T>) -> Result<Rows<T>, CudaError> {
        let device = pass.device;
        let logits: Rows<f32> = self.router.forward(device, &x.widened(device)?)?;
        let mut probabilities = logits.all().read(device)?;
        softmax_rows(pass.compute, &mut probabilities, self.experts.len());
        let rows_of = rows_of(&probabilities, &self.settings);
        // copied at once: every copy waits for what was asked for before
        let (ids, weights): (Vec<u32>, Vec<f32>) =
            rows_of.iter().flatten().map(|(row, weight)| (*row as u32, *weight)).unzip();
        let (ids, weights) = (Buffer::of(device, &ids)?, Buffer::of(device, &weights)?);
        let mut y = Rows::zeros(device, x.n(), x.cols())?;
        let mut first = 0;
        for (mlp, rows) in self.experts.iter().zip(rows_of) {
            let range = first..first + rows.len();
            first = range.end;
            if range.is_empty() {
                continue;
            }
            let (ids, weights) = (ids.slice(range.clone()), weights.slice(range));
            let out = mlp.forward(pass, &x.gathered(device, &ids)?)?;
            combine_rows(device, &out.all(), &ids, Some(&weights), &mut y.all_mut())?;
        }
        Ok(y)
    }
}
