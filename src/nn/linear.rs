//! Products of activations with weights that stay where they are.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, InplaceOp1, Layout, Result, Shape, Tensor};

use super::{rows_of, values, with_values};
use crate::kernel::activation::add_bias;
use crate::kernel::product::{Operand, accumulate_outer, matmul_add_scaled, matmul_all, transposed_products};
use crate::kernel::{Arithmetic, Compute, Matrix};

/// One matrix `[N, K]` to multiply by, and a bias of N values to add.
#[derive(Clone)]
pub struct Product {
    pub weight: Matrix,
    pub bias: Option<Arc<[f32]>>,
    pub arithmetic: Arithmetic,
}

/// Returns `x W^T + b`, `[.., N]`, for each of several matrices on the same `x` `[.., K]`, in one parallel region.
///
/// Errors if the rows of x are not K long.
pub fn products(compute: &Arc<Compute>, x: &Tensor, products: Vec<Product>) -> Result<Vec<Tensor>> {
    let outputs: Vec<usize> = products.iter().map(|product| product.weight.rows()).collect();
    let op = Products { compute: compute.clone(), products };
    let flat = x.apply_op1_no_bwd(&op)?;
    let mut dims = x.dims().to_vec();
    let n_rows: usize = dims.iter().rev().skip(1).product();
    let mut start = 0;
    let mut out = Vec::with_capacity(outputs.len());
    for n in outputs {
        if let Some(last) = dims.last_mut() {
            *last = n;
        }
        out.push(flat.narrow(0, start, n_rows * n)?.reshape(dims.as_slice())?); // [.., N]
        start += n_rows * n;
    }
    Ok(out)
}

/// Adds `scale * (x W^T)` to y, `[.., N]`, where it lies, for `x` `[.., K]`: the product rounded as in [`products`], its multiple
/// and the sum each rounded. A bias is not added.
///
/// Errors if the shapes disagree, y is x, or for a product in integers.
pub fn add_product_scaled(
    compute: &Arc<Compute>,
    y: &Tensor,
    x: &Tensor,
    product: &Product,
    scale: f32,
) -> Result<()> {
    let (n, k) = (product.weight.rows(), product.weight.cols());
    if last_dim(x) != k || last_dim(y) != n || x.elem_count() * n != y.elem_count() * k {
        candle_core::bail!("a sum of {:?} and {:?} times a matrix of {n} x {k}", y.shape(), x.shape());
    }
    if product.arithmetic == Arithmetic::Int8 {
        candle_core::bail!("sums of integer products go on from zero only");
    }
    with_values(x, |x| y.inplace_op1(&AddProduct { compute, x, product, scale }))?
}

/// Returns the sum over the products of `dY W`, `[T, K]`, for gradients `dY` `[T, N]` of their results: one chain of
/// each element over the rows of the matrices, one matrix after another. Weights and biases get no gradient.
///
/// A product in integers has the gradient of one in bf16. Errors if there are not as many gradients as products, there is none,
/// or their shapes disagree.
pub fn products_backward(compute: &Arc<Compute>, dys: &[Tensor], products: &[Product]) -> Result<Tensor> {
    let (Some(first), Some(product)) = (dys.first(), products.first()) else {
        candle_core::bail!("no products to go back through");
    };
    let (n_rows, k) = (first.elem_count() / product.weight.rows().max(1), product.weight.cols());
    if dys.len() != products.len() {
        candle_core::bail!("{} gradients for {} products", dys.len(), products.len());
    }
    let mut operands = Vec::with_capacity(products.len());
    for (dy, product) in dys.iter().zip(products) {
        let weight = &product.weight;
        if weight.cols() != k || weight.rows() == 0 || dy.elem_count() != n_rows * weight.rows() {
            let [n, k] = [weight.rows(), weight.cols()];
            candle_core::bail!("a gradient of shape {:?} for a matrix of {n} x {k}", dy.shape());
        }
        let arithmetic = match product.arithmetic {
            Arithmetic::Int8 => Arithmetic::Bf16,
            float => float,
        };
        operands.push((Operand::Matrix(weight), arithmetic));
    }
    let dx = with_all_values(dys, |dys| transposed_products(compute, dys, &operands, n_rows))?;
    Tensor::from_vec(dx, (n_rows, k), first.device())
}

/// Continues the gradient of a matrix, `grad` `[N, K]`: `grad[n][k] += sum over t of dy[t][n] * (scale * x[t][k])`, a chain
/// of fused multiply-adds over ascending t that begins at what `grad` holds, for `dy` `[T, N]` and `x` `[T, K]`.
///
/// Errors if the shapes disagree.
pub fn weight_gradient(
    compute: &Arc<Compute>,
    dy: &Tensor,
    x: &Tensor,
    scale: f32,
    grad: &mut [f32],
) -> Result<()> {
    let (n, k) = (last_dim(dy), last_dim(x));
    if grad.len() != n * k || dy.elem_count() * k != x.elem_count() * n {
        let shapes = (dy.shape(), x.shape());
        candle_core::bail!("gradients of shapes {shapes:?} for a matrix of {} values", grad.len());
    }
    with_values(dy, |dy| {
        with_values(x, |x| match scale {
            1.0 => accumulate_outer(compute, dy, n, x, k, grad),
            scale => {
                let scaled = crate::kernel::activation::scaled(compute, x, scale);
                accumulate_outer(compute, dy, n, &scaled, k, grad);
            }
        })
    })?
}

/// Continues the gradient of a bias: `grad[n] += dy[t][n]`, ascending t, for `dy` `[T, N]`.
///
/// Errors if the rows of dy are not as long as grad.
pub fn bias_gradient(compute: &Arc<Compute>, dy: &Tensor, grad: &mut [f32]) -> Result<()> {
    let n = last_dim(dy);
    if n != grad.len() {
        candle_core::bail!("gradients of {n} values for a bias of {}", grad.len());
    }
    with_values(dy, |dy| {
        for row in dy.chunks_exact(n.max(1)) {
            crate::kernel::activation::add(compute, grad, row);
        }
    })
}

fn last_dim(tensor: &Tensor) -> usize {
    tensor.dims().last().copied().unwrap_or(1)
}

/// Calls `read` with the values of all tensors.
///
/// Errors as [`with_values`].
fn with_all_values<T>(tensors: &[Tensor], read: impl FnOnce(&[&[f32]]) -> T) -> Result<T> {
    let guards: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut slices = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        match &**storage {
            candle_core::Storage::Cpu(storage) => slices.push(values(storage, layout)?),
            _ => candle_core::bail!("a tensor is not on the CPU"),
        }
    }
    Ok(read(&slices))
}

/// See [`add_product_scaled`].
struct AddProduct<'a> {
    compute: &'a Compute,
    x: &'a [f32],
    product: &'a Product,
    scale: f32,
}

impl InplaceOp1 for AddProduct<'_> {
    fn name(&self) -> &'static str {
        "add_product"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let AddProduct { compute, x, product, scale } = *self;
        let (CpuStorage::F32(all), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            candle_core::bail!("a sum that is not f32 or not contiguous");
        };
        let y = &mut all[start..end];
        matmul_add_scaled(compute, x, &product.weight, product.arithmetic, scale, y);
        Ok(())
    }
}

/// Results one after another in one flat tensor: an op has a single result.
struct Products {
    compute: Arc<Compute>,
    products: Vec<Product>,
}

impl CustomOp1 for Products {
    fn name(&self) -> &'static str {
        "products"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let (n_rows, k) = rows_of(layout);
        if let Some(product) = self.products.iter().find(|product| product.weight.cols() != k) {
            candle_core::bail!("rows of {k} values for a matrix of {} columns", product.weight.cols());
        }
        let total: usize = self.products.iter().map(|product| product.weight.rows()).sum();
        let matrices: Vec<_> =
            self.products.iter().map(|product| (&product.weight, product.arithmetic)).collect();
        let mut flat = matmul_all(&self.compute, x, &matrices);
        let mut rest = flat.as_mut_slice();
        for product in &self.products {
            let (part, behind) = rest.split_at_mut(n_rows * product.weight.rows());
            rest = behind;
            let Some(bias) = &product.bias else { continue };
            add_bias(&self.compute, part, bias);
        }
        Ok((CpuStorage::F32(flat), Shape::from(n_rows * total)))
    }
}
