//! Products of activations with weights that stay where they are.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{rows_of, values};
use crate::kernel::activation::add_bias;
use crate::kernel::product::matmul_all;
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
