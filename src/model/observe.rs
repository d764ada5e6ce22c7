//! What goes into a decoder's matrix products, for those who want to know.

mod sums;

use candle_core::Tensor;

pub use sums::{InputSums, SiteSums};

use super::arch::{self, Role, Row};
use super::config::ModelConfig;
use crate::nn;

/// Products that share their inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    /// Of q, k and v: the normed residual.
    Attention,
    /// Of the attention's output: what its heads gave.
    Attended,
    /// Of a mixture's router: the normed residual.
    Router,
    /// Of gate and up: the normed residual.
    FeedForward,
    /// Of down: the gated product.
    Gated,
    /// Of the output layer: the final-normed hidden state.
    Output,
}

/// Where inputs of products are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The number of layers for [`Input::Output`].
    pub layer: usize,
    pub input: Input,
}

/// The tensors whose products take their inputs at one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteTensors {
    pub site: Site,
    /// GGUF names.
    pub names: Vec<String>,
    pub columns: usize,
    /// Experts stacked in the tensors, 1 where there are none.
    pub n_experts: usize,
}

/// Inputs of products, rows of a forward.
pub struct Inputs<'a> {
    pub site: Site,
    /// Which of the stacked experts takes them; 0 where there are none.
    pub expert: usize,
    /// Of which rows of the forward they are, ascending; of all, in order, if `None`.
    pub rows: Option<&'a [usize]>,
    /// `[T, columns]`
    pub x: &'a [f32],
}

/// Squared inputs that add up to no finite f32.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    /// GGUF name of the first of the tensors that take them.
    pub tensor: String,
    /// Row of the forward.
    pub row: usize,
    pub column: usize,
    /// NaN or infinite.
    pub value: f32,
}

/// Hears of all inputs of products in a forward.
///
/// A site's rows come ascending, in one call or several; the sites in the order in which they are computed. A decoder on
/// a device has none: it sums them where they are.
pub trait Observer {
    /// Errors if the inputs are no numbers to go on with.
    fn inputs(&mut self, inputs: &Inputs<'_>) -> Result<(), NotFinite>;
}

/// Returns the sites of a model, and the tensors of each as a GGUF names them.
pub fn sites(config: &ModelConfig) -> Vec<SiteTensors> {
    let rows = arch::classes().map(|class| class.arch).find(|arch| arch.name == config.arch);
    let rows: &[Row] = rows.map_or(&[], |arch| arch.rows);
    let mut sites = Vec::new();
    let mut add = |layer: usize, input: Input| {
        let (roles, n_experts) = roles(input, config);
        let of_site = || rows.iter().filter(|row| roles.contains(&row.role));
        let names: Vec<String> = of_site().map(|row| row.gguf_name(layer)).collect();
        let columns = of_site().find_map(|row| row.shape(config).last().copied());
        if let Some(columns) = columns {
            sites.push(SiteTensors { site: Site { layer, input }, names, columns, n_experts });
        }
    };
    for layer in 0..config.n_layers {
        add(layer, Input::Attention);
        add(layer, Input::Attended);
        if config.experts.is_some() {
            add(layer, Input::Router);
        }
        add(layer, Input::FeedForward);
        add(layer, Input::Gated);
    }
    add(config.n_layers, Input::Output);
    sites
}

/// Returns the roles of the tensors that take an input, and how many experts they stack.
fn roles(input: Input, config: &ModelConfig) -> (&'static [Role], usize) {
    let experts = config.experts.as_ref().map(|experts| experts.n);
    let n_experts = experts.unwrap_or(1);
    match input {
        Input::Attention => (&[Role::QProj, Role::KProj, Role::VProj, Role::QkvProj], 1),
        Input::Attended => (&[Role::OProj], 1),
        Input::Router => (&[Role::Router], 1),
        Input::FeedForward if experts.is_some() => (&[Role::GateExperts, Role::UpExperts], n_experts),
        Input::FeedForward => (&[Role::GateProj, Role::UpProj, Role::GateUpProj], 1),
        Input::Gated if experts.is_some() => (&[Role::DownExperts], n_experts),
        Input::Gated => (&[Role::DownProj], 1),
        Input::Output if config.tied_embeddings => (&[Role::TokenEmbedding], 1),
        Input::Output => (&[Role::Output], 1),
    }
}

/// An observer in a forward, if there is one, and what it could not go on with.
#[derive(Default)]
pub(super) struct Watch<'a> {
    observer: Option<&'a mut dyn Observer>,
    pub refused: Option<NotFinite>,
}

impl<'a> Watch<'a> {
    pub fn of(observer: &'a mut dyn Observer) -> Self {
        Watch { observer: Some(observer), refused: None }
    }

    /// Tells of x, `[T, columns]`, that all rows of the forward have.
    pub fn all(&mut self, layer: usize, input: Input, x: &Tensor) -> candle_core::Result<()> {
        self.part(layer, input, None, x)
    }

    /// Tells of x, which an expert takes of some rows; without one it's all rows.
    pub fn part(
        &mut self,
        layer: usize,
        input: Input,
        expert: Option<(usize, &[usize])>,
        x: &Tensor,
    ) -> candle_core::Result<()> {
        let Some(observer) = self.observer.as_mut().filter(|_| self.refused.is_none()) else { return Ok(()) };
        let (expert, rows) = expert.map_or((0, None), |(expert, rows)| (expert, Some(rows)));
        let site = Site { layer, input };
        let told = nn::with_values(x, |x| observer.inputs(&Inputs { site, expert, rows, x }))?;
        self.refused = told.err();
        Ok(())
    }
}
