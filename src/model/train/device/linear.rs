//! Linear layers that share an input, on a device: `train::linear`.

use std::ops::Range;

use super::super::linear::{Adapter, Group};
use super::dora::Gains;
use super::pass::Pass;
use super::weights::{Frozen, Ready};
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::elementwise::{Dropout, DropoutRows, add_bias, add_to};
use crate::cuda::op::norm::bias_gradient;
use crate::cuda::product::{PartMut, Product, Sizes};
use crate::cuda::{CudaError, Device};
use crate::kernel::Compute;

/// A group's matrices on the device.
pub(super) struct GroupOn<'m, T> {
    pub(super) group: &'m Group,
    parts: Vec<PartOn<T>>,
    /// Of each adapter: the squared norms of the rows it scales (DoRA).
    pub(super) squares: Vec<Option<Buffer<f64>>>,
}

/// What is not trained of a part.
struct PartOn<T> {
    weight: Option<Frozen<T>>,
    bias: Option<Buffer<f32>>,
}

/// What a pair's backward needs of its forward.
pub(super) struct Low<T> {
    /// `x A^T`, `[T, rank]`
    pub low: Buffer<T>,
    /// Of a DoRA adapter.
    pub gains: Option<Gains>,
}

/// What a group's forward gives: every part's output, and what the backward needs of the pairs.
pub(super) type Outputs<T> = (Vec<Buffer<T>>, Vec<Low<T>>);

/// What goes into a group's backward.
pub(super) struct Back<'a, T> {
    /// The forward's input.
    pub x: &'a Buffer<T>,
    /// Gradients of the parts' outputs.
    pub dys: &'a [&'a Buffer<T>],
    pub lows: &'a [Low<T>],
    /// Where the rows of x are.
    pub places: &'a DropoutRows,
    pub wants_dx: bool,
}

impl<'m, T: Float> GroupOn<'m, T> {
    pub fn new(device: &Device, compute: &Compute, group: &'m Group) -> Result<GroupOn<'m, T>, CudaError> {
        let parts = group.parts.iter().map(|part| {
            let weight = match part.weight {
                Some(_) => None,
                None => Some(Frozen::of(device, compute, &part.base.weight)?),
            };
            let bias = part.base.bias.as_ref().filter(|_| part.bias.is_none());
            Ok(PartOn { weight, bias: bias.map(|bias| Buffer::of(device, bias)).transpose()? })
        });
        let squares = group.adapters.iter().map(|adapter| match &adapter.magnitude {
            Some(magnitude) => Buffer::of(device, &magnitude.squares).map(Some),
            None => Ok(None),
        });
        Ok(GroupOn {
            group,
            parts: parts.collect::<Result<_, CudaError>>()?,
            squares: squares.collect::<Result<_, CudaError>>()?,
        })
    }

    /// Returns the matrix of part i.
    pub(super) fn weight<'a>(&'a self, pass: &Pass<'a>, i: usize) -> Result<Ready<'a, T>, CudaError> {
        let base = &self.group.parts[i];
        match (&self.parts[i].weight, &base.weight) {
            (Some(frozen), _) => frozen.ready(pass.device),
            (None, Some(range)) if !pass.is_base => Ok(Ready::Part(pass.values.of(range.clone()))),
            _ => match Frozen::of(pass.device, pass.compute, &base.base.weight)? {
                Frozen::Dense(values) => Ok(Ready::Made(values)),
                // what is trained whole was dense, or is decoded once for what reads it
                blocks => {
                    let values = blocks.ready(pass.device)?;
                    Ok(Ready::Made(Buffer::copy_of(pass.device, &values)?))
                }
            },
        }
    }

    fn bias<'a>(&'a self, pass: &Pass<'a>, i: usize) -> Result<Option<Ready<'a, f32>>, CudaError> {
        let base = &self.group.parts[i];
        Ok(match (&self.parts[i].bias, &base.bias) {
            (Some(bias), _) => Some(Ready::Here(bias)),
            (None, Some(range)) if !pass.is_base => Some(Ready::Part(pass.values.exact.slice(range.clone()))),
            _ => match &base.base.bias {
                Some(bias) => Some(Ready::Made(Buffer::of(pass.device, bias)?)),
                None => None,
            },
        })
    }

    fn adapters(&self, pass: &Pass<'_>) -> &'m [Adapter] {
        if pass.is_base { &[] } else { &self.group.adapters }
    }

    /// Returns the sizes of part i's product with that many values of the input.
    pub(super) fn sizes(&self, i: usize, n_values: usize) -> Sizes {
        let weight = &self.group.parts[i].base.weight;
        Sizes { m: n_values / weight.cols(), n: weight.rows(), k: weight.cols() }
    }

    /// Returns the input as a pair sees it.
    fn dropped<'a>(
        &self,
        pass: &Pass<'_>,
        adapter: &Adapter,
        x: &'a Buffer<T>,
        places: &DropoutRows,
    ) -> Result<Ready<'a, T>, CudaError> {
        if pass.rate == 0.0 {
            return Ok(Ready::Here(x));
        }
        let mut y = Buffer::uninit(pass.device, x.len())?;
        dropout(pass, adapter).apply(pass.device, x, places, &mut y)?;
        Ok(Ready::Made(y))
    }

    /// Returns `x W^T` of part i, without its bias.
    pub(super) fn product(&self, pass: &Pass<'_>, i: usize, x: &Buffer<T>) -> Result<Buffer<T>, CudaError> {
        let (sizes, weight) = (self.sizes(i, x.len()), self.weight(pass, i)?);
        let mut y = Buffer::uninit(pass.device, sizes.m * sizes.n)?;
        pass.device.product(Product::Forward, sizes, (&*weight, x), (1.0, 0.0), &mut y)?;
        Ok(y)
    }

    /// Returns every part's output for x `[T, K]`, and what the backward needs besides x.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: &Buffer<T>,
        places: &DropoutRows,
    ) -> Result<Outputs<T>, CudaError> {
        let device = pass.device;
        let mut ys =
            (0..self.parts.len()).map(|i| self.product(pass, i, x)).collect::<Result<Vec<_>, _>>()?;
        let mut lows = Vec::new();
        for (index, adapter) in self.adapters(pass).iter().enumerate() {
            let k = adapter.a.len() / adapter.rank;
            let (m, rank) = (x.len() / k, adapter.rank);
            let dropped = self.dropped(pass, adapter, x, places)?;
            let mut low = Buffer::uninit(device, m * rank)?;
            let a = pass.values.of::<T>(adapter.a.clone());
            let sizes = Sizes { m, n: rank, k };
            device.product(Product::Forward, sizes, (&*a, &*dropped), (1.0, 0.0), &mut low)?;
            let gains = self.gains(pass, index)?;
            for (j, (i, range)) in adapter.parts.clone().zip(adapter.b_ranges(&self.group.parts)).enumerate()
            {
                match &gains {
                    None => self.add_pair(pass, adapter.scale, (&low, rank, range), &mut ys[i])?,
                    Some(gains) => {
                        let pair = (&low, rank, range);
                        self.scale_direction(pass, adapter, (gains, j, i), (&dropped, pair), &mut ys[i])?;
                    }
                }
            }
            lows.push(Low { low, gains });
        }
        for (i, y) in ys.iter_mut().enumerate() {
            if let Some(bias) = self.bias(pass, i)? {
                add_bias(device, y, &bias)?;
            }
        }
        Ok((ys, lows))
    }

    /// Adds `scale * low B^T` to y, B being a range of the parameters.
    pub(super) fn add_pair(
        &self,
        pass: &Pass<'_>,
        scale: f32,
        (low, rank, b): (&Buffer<T>, usize, Range<usize>),
        y: &mut Buffer<T>,
    ) -> Result<(), CudaError> {
        let sizes = Sizes { m: low.len() / rank, n: b.len() / rank, k: rank };
        let b = pass.values.of::<T>(b);
        pass.device.product(Product::Forward, sizes, (&*b, low), (scale, 1.0), y)
    }

    /// Adds to the gradients of what is trained here; returns the gradient of x, if it is wanted.
    pub fn backward(
        &self,
        pass: &Pass<'_>,
        back: &Back<'_, T>,
        grads: &mut Buffer<f32>,
    ) -> Result<Option<Buffer<T>>, CudaError> {
        let (device, x) = (pass.device, back.x);
        for (i, (part, &dy)) in self.group.parts.iter().zip(back.dys).enumerate() {
            if let Some(range) = &part.weight {
                let out = PartMut { buffer: &mut *grads, first: range.start };
                let sizes = self.sizes(i, x.len());
                device.product(Product::WeightGradient, sizes, (x, dy), (1.0, 1.0), out)?;
            }
            if let Some(range) = &part.bias {
                bias_gradient(device, dy, &mut grads.slice_mut(range.clone()))?;
            }
        }
        let scaled = self.scaled(pass, back)?;
        let of_pairs: Vec<&Buffer<T>> =
            scaled.iter().zip(back.dys).map(|(scaled, dy)| scaled.as_ref().unwrap_or(dy)).collect();
        let mut dx = None;
        if back.wants_dx {
            // where nothing is dropped a DoRA adapter scales what the base gives
            let dys = if pass.rate == 0.0 { &of_pairs[..] } else { back.dys };
            let mut sum = Buffer::uninit(device, x.len())?;
            for (i, &dy) in dys.iter().enumerate() {
                let keep = if i == 0 { 0.0 } else { 1.0 };
                self.input_gradient(pass, i, dy, keep, &mut sum)?;
            }
            dx = Some(sum);
        }
        for (adapter, low) in self.adapters(pass).iter().zip(back.lows) {
            self.pair_backward(pass, (adapter, low), (back, &of_pairs), dx.as_mut(), grads)?;
        }
        Ok(dx)
    }

    /// Writes `dy W + keep * dx` to dx, W being part i's.
    fn input_gradient(
        &self,
        pass: &Pass<'_>,
        i: usize,
        dy: &Buffer<T>,
        keep: f32,
        dx: &mut Buffer<T>,
    ) -> Result<(), CudaError> {
        let (weight, sizes) = (self.weight(pass, i)?, self.sizes(i, dx.len()));
        pass.device.product(Product::InputGradient, sizes, (&*weight, dy), (1.0, keep), dx)
    }

    /// Adds to the gradients of a pair, and what comes through it to dx. `dys` are those of the parts behind the gains.
    fn pair_backward(
        &self,
        pass: &Pass<'_>,
        (adapter, low): (&Adapter, &Low<T>),
        (back, dys): (&Back<'_, T>, &[&Buffer<T>]),
        dx: Option<&mut Buffer<T>>,
        grads: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let (device, scale, rank) = (pass.device, adapter.scale, adapter.rank);
        let (m, k) = (low.low.len() / rank, adapter.a.len() / rank);
        let mut dlow = Buffer::uninit(device, low.low.len())?;
        let ranges = adapter.b_ranges(&self.group.parts);
        for (j, (range, &dy)) in ranges.into_iter().zip(&dys[adapter.parts.clone()]).enumerate() {
            let sizes = Sizes { m, n: range.len() / rank, k: rank };
            let out = PartMut { buffer: &mut *grads, first: range.start };
            device.product(Product::WeightGradient, sizes, (&low.low, dy), (scale, 1.0), out)?;
            let keep = if j == 0 { 0.0 } else { 1.0 };
            let b = pass.values.of::<T>(range);
            device.product(Product::InputGradient, sizes, (&*b, dy), (scale, keep), &mut dlow)?;
        }
        let sizes = Sizes { m, n: rank, k };
        {
            let dropped = self.dropped(pass, adapter, back.x, back.places)?;
            let out = PartMut { buffer: &mut *grads, first: adapter.a.start };
            device.product(Product::WeightGradient, sizes, (&*dropped, &dlow), (1.0, 1.0), out)?;
            self.magnitude_backward(pass, (adapter, low), (&dropped, back.dys), grads)?;
        }
        let Some(dx) = dx else { return Ok(()) };
        let a = pass.values.of::<T>(adapter.a.clone());
        if pass.rate == 0.0 {
            return device.product(Product::InputGradient, sizes, (&*a, &dlow), (1.0, 1.0), dx);
        }
        let mut share = Buffer::uninit(device, dx.len())?;
        device.product(Product::InputGradient, sizes, (&*a, &dlow), (1.0, 0.0), &mut share)?;
        if low.gains.is_some() {
            // the dropped input also went through the base: (g - 1) z'
            for i in adapter.parts.clone() {
                let mut less = Buffer::copy_of(device, dys[i])?;
                add_to(device, &mut less, back.dys[i], -1.0)?;
                self.input_gradient(pass, i, &less, 1.0, &mut share)?;
            }
        }
        let mut kept = Buffer::uninit(device, dx.len())?;
        dropout(pass, adapter).apply(device, &share, back.places, &mut kept)?;
        add_to(device, dx, &kept, 1.0)
    }
}

fn dropout(pass: &Pass<'_>, adapter: &Adapter) -> Dropout {
    Dropout { seed: pass.seed, step: pass.step, module: adapter.module, rate: pass.rate }
}

/// Returns the outputs of a group of N parts, and what the backward needs.
///
/// # Panics
/// If there are not as many: a plan's groups have the parts that their places need.
pub(super) fn apart<T, const N: usize>((ys, lows): Outputs<T>) -> ([Buffer<T>; N], Vec<Low<T>>) {
    (ys.try_into().unwrap_or_else(|_| panic!("not {N} parts")), lows)
}

/// Returns a gradient that was asked for.
///
/// # Panics
/// If it was not.
pub(super) fn wanted<T>(dx: Option<Buffer<T>>) -> Buffer<T> {
    dx.expect("`wants_dx` was set")
}
