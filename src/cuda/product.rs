//! Dense products with f32 sums.

use super::buffer::Buffer;

/// A product of row-major matrices. x, y, dy are [m, n] and so on as each says; w is always `[n, k]`, as checkpoints have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// `y[m, n] = x[m, k] w^T`
    Forward,
    /// `dx[m, k] = dy[m, n] w`
    InputGradient,
    /// `dw[n, k] = dy[m, n]^T x[m, k]`
    WeightGradient,
}

/// The sizes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Product {
    /// Returns the lengths of the operands in their order, and of the result.
    pub(super) fn lengths(self, Sizes { m, n, k }: Sizes) -> [usize; 3] {
        match self {
            Product::Forward => [n * k, m * k, m * n],
            Product::InputGradient => [n * k, m * n, m * k],
            Product::WeightGradient => [m * k, m * n, n * k],
        }
    }
}

/// Which part of a buffer a matrix is.
#[derive(Clone, Copy)]
pub struct Part<'a, T> {
    pub buffer: &'a Buffer<T>,
    pub first: usize,
}

impl<'a, T> From<&'a Buffer<T>> for Part<'a, T> {
    fn from(buffer: &'a Buffer<T>) -> Self {
        Part { buffer, first: 0 }
    }
}

/// Where a result goes.
pub struct PartMut<'a, T> {
    pub buffer: &'a mut Buffer<T>,
    pub first: usize,
}

impl<'a, T> From<&'a mut Buffer<T>> for PartMut<'a, T> {
    fn from(buffer: &'a mut Buffer<T>) -> Self {
        PartMut { buffer, first: 0 }
    }
}

/// A product by the addresses of its operands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gemm {
    pub product: Product,
    pub sizes: Sizes,
    pub a: Operand,
    pub b: Operand,
    pub out: Operand,
    pub factor: f32,
    pub keep: f32,
}

/// Values on a device: bf16, or f32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    pub address: u64,
    pub is_bf16: bool,
}
