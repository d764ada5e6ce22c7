//! Linear layers that share an input, with what is trained of them.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::dora;
use super::pass::Pass;
use crate::kernel::Arithmetic;
use crate::kernel::activation;
use crate::model::weights::{Linear, Vector};
use crate::nn::{self, Product, RowPlace};

/// Linear layers on one input, and the adapters beside them.
pub(super) struct Group {
    pub parts: Vec<Part>,
    pub adapters: Vec<Adapter>,
}

/// One matrix: a module's, or some rows of it where a module is fused (Phi).
pub(super) struct Part {
    pub base: Linear,
    pub arithmetic: Arithmetic,
    /// Where its rows lie among the parameters, if they are trained.
    pub weight: Option<Range<usize>>,
    pub bias: Option<Range<usize>>,
}

/// A pair `scale * (x A^T) B^T` beside the parts of one module.
pub(super) struct Adapter {
    /// Of the group.
    pub parts: Range<usize>,
    /// `[rank, in]`
    pub a: Range<usize>,
    /// `[out, rank]`, the rows of the parts one after another
    pub b: Range<usize>,
    pub rank: usize,
    pub scale: f32,
    /// Index of the module among the model's.
    pub module: u32,
    pub magnitude: Option<dora::Magnitude>,
}

/// What an adapter's backward needs of its forward.
pub(super) struct Low {
    /// `x A^T`, `[T, rank]`
    low: Tensor,
    /// Of a DoRA adapter: what its rows' directions are multiplied by.
    gains: Option<Arc<[f32]>>,
}

/// The parameters of a forward, and those that the backward adds to.
pub(super) type Gradients<'a> = &'a mut [f32];

impl Part {
    pub fn product(&self, pass: &Pass<'_>) -> Product {
        let (rows, cols) = (self.base.weight.rows(), self.base.weight.cols());
        let weight = pass.matrix(&self.weight, rows, cols).unwrap_or_else(|| self.base.weight.clone());
        Product { weight, bias: None, arithmetic: self.arithmetic }
    }

    pub fn bias(&self, pass: &Pass<'_>) -> Option<Vector> {
        match pass.own(&self.bias) {
            Some(values) => Some(values.into()),
            None => self.base.bias.clone(),
        }
    }
}

impl Adapter {
    fn down(&self, pass: &Pass<'_>) -> Product {
        let weight = pass.values(&self.a, self.rank, self.a.len() / self.rank);
        Product { weight, bias: None, arithmetic: Arithmetic::F32 }
    }

    /// Returns where the rows of B of each part lie among the parameters.
    pub fn b_ranges(&self, parts: &[Part]) -> Vec<Range<usize>> {
        let mut start = self.b.start;
        let range = |part: &Part| {
            let end = start + part.base.weight.rows() * self.rank;
            std::mem::replace(&mut start, end)..end
        };
        parts[self.parts.clone()].iter().map(range).collect()
    }

    fn ups(&self, pass: &Pass<'_>, parts: &[Part]) -> Vec<Product> {
        let product = |range: Range<usize>| {
            let weight = pass.values(&range, range.len() / self.rank, self.rank);
            Product { weight, bias: None, arithmetic: Arithmetic::F32 }
        };
        self.b_ranges(parts).into_iter().map(product).collect()
    }

    /// Returns the input as the pair sees it.
    fn dropped(&self, pass: &Pass<'_>, x: &Tensor, places: &[RowPlace]) -> Result<Tensor> {
        match pass.rate > 0.0 {
            true => nn::dropout(pass.compute, x, pass.rate, &pass.mask_key(self.module, places)),
            false => Ok(x.clone()),
        }
    }
}

impl Group {
    /// Returns true if a parameter is trained here.
    pub fn is_trained(&self) -> bool {
        !self.adapters.is_empty()
            || self.parts.iter().any(|part| part.weight.is_some() || part.bias.is_some())
    }

    fn adapters(&self, pass: &Pass<'_>) -> &[Adapter] {
        if pass.is_base { &[] } else { &self.adapters }
    }

    /// Returns every part's output for `x` `[T, K]`, and what the backward needs besides x.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: &Tensor,
        places: &[RowPlace],
    ) -> Result<(Vec<Tensor>, Vec<Low>)> {
        let adapters = self.adapters(pass);
        let scaled = |i: usize| {
            adapters.iter().any(|adapter| adapter.magnitude.is_some() && adapter.parts.contains(&i))
        };
        let product = |(i, part): (usize, &Part)| {
            let bias = if scaled(i) { None } else { part.bias(pass) };
            Product { bias, ..part.product(pass) }
        };
        let mut products: Vec<Product> = self.parts.iter().enumerate().map(product).collect();
        if pass.rate == 0.0 {
            products.extend(adapters.iter().map(|adapter| adapter.down(pass)));
        }
        let mut ys = nn::products(pass.compute, x, products)?;
        let mut undropped = ys.split_off(self.parts.len()).into_iter();
        let mut lows = Vec::with_capacity(adapters.len());
        for adapter in adapters {
            let dropped = adapter.dropped(pass, x, places)?;
            let low = match undropped.next() {
                // a copy: the view would keep the results of all products until the backward
                Some(low) => low.force_contiguous()?,
                None => one(nn::products(pass.compute, &dropped, vec![adapter.down(pass)])?)?,
            };
            let ups = adapter.ups(pass, &self.parts);
            let mut gains = None;
            match &adapter.magnitude {
                None => {
                    for (i, up) in adapter.parts.clone().zip(&ups) {
                        nn::add_product_scaled(pass.compute, &ys[i], &low, up, adapter.scale)?;
                    }
                }
                Some(_) => {
                    let ups = nn::products(pass.compute, &low, ups)?;
                    let g = dora::gains(pass, adapter, &self.parts)?;
                    self.scale_directions(pass, adapter, &dropped, &ups, &g, &mut ys)?;
                    gains = Some(g);
                }
            }
            lows.push(Low { low, gains });
        }
        Ok((ys, lows))
    }

    /// Turns base outputs z (without bias) into `z + (g - 1) z' + g s up + bias`, z' being the base's output for the
    /// dropped input (z itself without dropout), as PEFT's DoRA has it.
    fn scale_directions(
        &self,
        pass: &Pass<'_>,
        adapter: &Adapter,
        dropped: &Tensor,
        ups: &[Tensor],
        gains: &[f32],
        ys: &mut [Tensor],
    ) -> Result<()> {
        let bases = self.dropped_bases(pass, adapter, dropped)?;
        let mut first = 0;
        for (k, i) in adapter.parts.clone().enumerate() {
            let rows = self.parts[i].base.weight.rows();
            let gains = &gains[first..first + rows];
            let direction =
                nn::add_scaled(pass.compute, bases.get(k).unwrap_or(&ys[i]), &ups[k], adapter.scale)?;
            let scaled = dora::scale_columns(&direction, gains)?;
            ys[i] = match bases.get(k) {
                None => scaled,
                // y = z - z' + g (z' + s up)
                Some(base) => {
                    let rest = nn::add_scaled(pass.compute, &ys[i], base, -1.0)?;
                    nn::add(pass.compute, &rest, &scaled)?
                }
            };
            if let Some(bias) = self.parts[i].bias(pass) {
                ys[i] = dora::add_to_rows(&ys[i], &bias)?;
            }
            first += rows;
        }
        Ok(())
    }

    /// Returns the base's outputs for the dropped input; none without dropout.
    fn dropped_bases(&self, pass: &Pass<'_>, adapter: &Adapter, dropped: &Tensor) -> Result<Vec<Tensor>> {
        if pass.rate == 0.0 {
            return Ok(Vec::new());
        }
        nn::products(pass.compute, dropped, self.base_products(pass, adapter.parts.clone()))
    }

    fn base_products(&self, pass: &Pass<'_>, parts: Range<usize>) -> Vec<Product> {
        self.parts[parts].iter().map(|part| part.product(pass)).collect()
    }

    /// Adds to the gradients of what is trained here; returns the gradient of x, if it is wanted.
    pub fn backward(&self, pass: &Pass<'_>, back: Back<'_>, grads: Gradients<'_>) -> Result<Option<Tensor>> {
        let Back { x, dys, lows, places, wants_dx } = back;
        for (part, dy) in self.parts.iter().zip(dys) {
            if let Some(range) = &part.weight {
                nn::weight_gradient(pass.compute, dy, x, 1.0, &mut grads[range.clone()])?;
            }
            if let Some(range) = &part.bias {
                nn::bias_gradient(pass.compute, dy, &mut grads[range.clone()])?;
            }
        }
        let adapters = self.adapters(pass).iter().zip(lows);
        let mut dlows = Vec::with_capacity(lows.len());
        for (adapter, low) in adapters.clone() {
            let dropped = adapter.dropped(pass, x, places)?;
            let own = &dys[adapter.parts.clone()];
            if let Some(magnitude) = &adapter.magnitude {
                self.magnitude_gradient(pass, adapter, magnitude, (&dropped, low, own), grads)?;
            }
            dlows.push(self.pair_gradients(pass, adapter, (own, low), &dropped, grads)?);
        }
        if !wants_dx {
            return Ok(None);
        }
        let mut base_dys = self.base_gradients(pass, dys, lows)?;
        let mut products = self.base_products(pass, 0..self.parts.len());
        if pass.rate == 0.0 {
            // the pairs saw x itself: their share goes on with the sums of the base
            products.extend(adapters.map(|(adapter, _)| adapter.down(pass)));
            base_dys.append(&mut dlows);
            return Ok(Some(nn::products_backward(pass.compute, &base_dys, &products)?));
        }
        let mut dx = nn::products_backward(pass.compute, &base_dys, &products)?;
        for ((adapter, low), dlow) in adapters.zip(&dlows) {
            let own = &dys[adapter.parts.clone()];
            dx = self.add_dropped(pass, adapter, (dx, dlow), (own, low), places)?;
        }
        Ok(Some(dx))
    }

    /// Adds to the gradients of A and B; returns that of `x A^T`.
    fn pair_gradients(
        &self,
        pass: &Pass<'_>,
        adapter: &Adapter,
        (dys, low): (&[Tensor], &Low),
        dropped: &Tensor,
        grads: Gradients<'_>,
    ) -> Result<Tensor> {
        let scaled = scaled_by(dys, low, &self.parts[adapter.parts.clone()])?;
        for (range, dy) in adapter.b_ranges(&self.parts).into_iter().zip(&scaled) {
            nn::weight_gradient(pass.compute, dy, &low.low, adapter.scale, &mut grads[range])?;
        }
        let dlow = nn::products_backward(pass.compute, &scaled, &adapter.ups(pass, &self.parts))?;
        let values = nn::with_values(&dlow, |dlow| activation::scaled(pass.compute, dlow, adapter.scale))?;
        let dlow = Tensor::from_vec(values, dlow.shape(), &Device::Cpu)?;
        nn::weight_gradient(pass.compute, &dlow, dropped, 1.0, &mut grads[adapter.a.clone()])?;
        Ok(dlow)
    }

    /// Returns what the base matrices' outputs get: the gains times what a DoRA adapter's do, where nothing is dropped.
    fn base_gradients(&self, pass: &Pass<'_>, dys: &[Tensor], lows: &[Low]) -> Result<Vec<Tensor>> {
        let mut base = dys.to_vec();
        for (adapter, low) in self.adapters(pass).iter().zip(lows) {
            if low.gains.is_some() && pass.rate == 0.0 {
                let parts = adapter.parts.clone();
                let scaled = scaled_by(&dys[parts.clone()], low, &self.parts[parts.clone()])?;
                base.splice(parts, scaled);
            }
        }
        Ok(base)
    }

    /// Returns dx plus what came through the dropped input.
    fn add_dropped(
        &self,
        pass: &Pass<'_>,
        adapter: &Adapter,
        (dx, dlow): (Tensor, &Tensor),
        (dys, low): (&[Tensor], &Low),
        places: &[RowPlace],
    ) -> Result<Tensor> {
        let down = [adapter.down(pass)];
        let mut share = nn::products_backward(pass.compute, std::slice::from_ref(dlow), &down)?;
        if low.gains.is_some() {
            // the dropped input also went through the base: (g - 1) z'
            let scaled = scaled_by(dys, low, &self.parts[adapter.parts.clone()])?;
            let less =
                scaled.iter().zip(dys).map(|(scaled, dy)| nn::add_scaled(pass.compute, scaled, dy, -1.0));
            let less: Vec<Tensor> = less.collect::<Result<_>>()?;
            let products = self.base_products(pass, adapter.parts.clone());
            let base = nn::products_backward(pass.compute, &less, &products)?;
            share = nn::add(pass.compute, &base, &share)?;
        }
        let key = pass.mask_key(adapter.module, places);
        nn::add(pass.compute, &dx, &nn::dropout_backward(pass.compute, &share, pass.rate, &key)?)
    }

    /// Adds `sum over t of dy (z' + s up) / norm` to the gradient of the magnitudes; directions are computed anew.
    fn magnitude_gradient(
        &self,
        pass: &Pass<'_>,
        adapter: &Adapter,
        magnitude: &dora::Magnitude,
        (dropped, low, dys): (&Tensor, &Low, &[Tensor]),
        grads: Gradients<'_>,
    ) -> Result<()> {
        let bases = nn::products(pass.compute, dropped, self.base_products(pass, adapter.parts.clone()))?;
        let ups = nn::products(pass.compute, &low.low, adapter.ups(pass, &self.parts))?;
        let norms = dora::norms(pass, adapter, &self.parts)?;
        let mut start = 0;
        for ((base, up), dy) in bases.iter().zip(&ups).zip(dys) {
            let direction = nn::add_scaled(pass.compute, base, up, adapter.scale)?;
            let end = start + dy.dim(1)?;
            let range = magnitude.range.start + start..magnitude.range.start + end;
            dora::add_column_dots(dy, &direction, &norms[start..end], &mut grads[range])?;
            start = end;
        }
        Ok(())
    }
}

/// What goes into a group's backward.
pub(super) struct Back<'a> {
    /// The forward's input.
    pub x: &'a Tensor,
    /// Gradients of the parts' outputs.
    pub dys: &'a [Tensor],
    pub lows: &'a [Low],
    pub places: &'a [RowPlace],
    pub wants_dx: bool,
}

/// Returns gradients of outputs times the gains of their rows, if there are any.
fn scaled_by(dys: &[Tensor], low: &Low, parts: &[Part]) -> Result<Vec<Tensor>> {
    let Some(gains) = &low.gains else { return Ok(dys.to_vec()) };
    let mut first = 0;
    let scale = |(dy, part): (&Tensor, &Part)| {
        let end = first + part.base.weight.rows();
        let scaled = dora::scale_columns(dy, &gains[first..end]);
        first = end;
        scaled
    };
    dys.iter().zip(parts).map(scale).collect()
}

/// Returns the only tensor of a list.
pub(super) fn one(mut tensors: Vec<Tensor>) -> Result<Tensor> {
    match (tensors.pop(), tensors.pop()) {
        (Some(tensor), None) => Ok(tensor),
        _ => candle_core::bail!("not one tensor"),
    }
}
