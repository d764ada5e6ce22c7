//! Which rows go to which expert of a mixture, and with what weight: `model::moe`.

use super::super::CudaError;
use super::super::buffer::{Buffer, optional};
use super::super::device::Device;
use super::super::launch::{Arg, Launch};
use super::elementwise::DropoutRows;
use super::{THREADS, arg, blocks, over_rows};

/// Rows that a block routes: a warp each.
const ROWS: usize = 8;

/// How rows choose.
#[derive(Clone, Copy, Debug)]
pub struct Routing {
    pub n_experts: usize,
    /// Of a row, `1 <= n_used <= n_experts`.
    pub n_used: usize,
    /// Whether the weights of a row are divided by their sum.
    pub renormalize: bool,
}

/// Where rows went.
pub struct Routed {
    routing: Routing,
    /// `[R, n_experts]`
    probabilities: Buffer<f32>,
    /// The experts of every row, ascending, `[R, n_used]`.
    chosen: Buffer<u32>,
    /// Theirs.
    weights: Buffer<f32>,
    /// Where in [`Lists`] they stand.
    slots: Buffer<u32>,
}

/// The rows of every expert, ascending: those of the first, then those of the next.
pub struct Lists {
    /// Of each expert.
    pub counts: Buffer<u32>,
    pub ids: Buffer<u32>,
    pub weights: Buffer<f32>,
    /// Theirs, where the rows have places.
    pub places: DropoutRows,
}

impl Routed {
    /// Chooses every row's experts by the router's logits, `[R, n_experts]`; `places` are the rows', where they have some.
    ///
    /// # Panics
    /// If there are no logits for whole rows, not as many places, or more experts are used than there are.
    pub fn new(
        device: &Device,
        routing: Routing,
        logits: &Buffer<f32>,
        places: Option<&DropoutRows>,
    ) -> Result<(Routed, Lists), CudaError> {
        let (n, n_used) = (routing.n_experts, routing.n_used);
        assert!((1..=n).contains(&n_used) && logits.len().is_multiple_of(n));
        let rows = logits.len() / n;
        assert!(places.is_none_or(|places| places.len() == rows));
        let all = rows * n_used;
        let routed = Routed {
            routing,
            probabilities: Buffer::uninit(device, rows * n)?,
            chosen: Buffer::uninit(device, all)?,
            weights: Buffer::uninit(device, all)?,
            slots: Buffer::uninit(device, all)?,
        };
        let lists = Lists {
            counts: Buffer::uninit(device, n)?,
            ids: Buffer::uninit(device, all)?,
            weights: Buffer::uninit(device, all)?,
            places: DropoutRows::uninit(device, places.map_or(0, |_| all))?,
        };
        let Routed { probabilities, chosen, weights, slots, .. } = &routed;
        let args = [logits.arg(), probabilities.arg(), chosen.arg(), weights.arg()];
        // SAFETY: the lengths were checked.
        unsafe { routed.launch(device, "route_rows", &args, rows)? };
        let args = [
            chosen.arg(),
            weights.arg(),
            optional(places.map(|places| &places.documents)),
            optional(places.map(|places| &places.positions)),
            arg(rows),
            arg(n_used),
            lists.counts.arg(),
            lists.ids.arg(),
            lists.weights.arg(),
            lists.places.documents.arg(),
            lists.places.positions.arg(),
            slots.arg(),
        ];
        // SAFETY: every choice has a place in the lists.
        unsafe { over_rows(device, "list_rows", n, &args)? };
        Ok((routed, lists))
    }

    /// Writes the gradients of the logits, given those of [`Lists::weights`].
    ///
    /// # Panics
    /// If there are not as many.
    pub fn backward(
        &self,
        device: &Device,
        dweights: &Buffer<f32>,
        dlogits: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let Routed { probabilities, chosen, weights, slots, .. } = self;
        assert!(dweights.len() == weights.len() && dlogits.len() == probabilities.len());
        let args =
            [probabilities.arg(), chosen.arg(), weights.arg(), slots.arg(), dweights.arg(), dlogits.arg()];
        // SAFETY: the lengths were checked; slots are below the number of weights.
        unsafe { self.launch(device, "route_rows_backward", &args, weights.len() / self.routing.n_used) }
    }

    /// Launches a kernel of which a warp has a row.
    ///
    /// # Safety
    /// As [`Device::launch`]; these are its arguments but for the sizes.
    unsafe fn launch(
        &self,
        device: &Device,
        kernel: &str,
        args: &[Arg],
        rows: usize,
    ) -> Result<(), CudaError> {
        let Routing { n_experts, n_used, renormalize } = self.routing;
        let sizes = [arg(rows), arg(n_experts), arg(n_used), Arg::I32(renormalize.into())];
        let args = [args, &sizes].concat();
        let grid = (blocks(rows.div_ceil(ROWS)), 1);
        // SAFETY: the caller's.
        unsafe { device.launch(&Launch { kernel, grid, threads: THREADS, shared: 0, args: &args }) }
    }
}
