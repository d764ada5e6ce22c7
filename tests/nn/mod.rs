//! Operations with their gradients: against finite differences in f64, against PyTorch, and against themselves on other
//! instruction sets and thread counts.

mod golden;
mod gradients;
mod ops;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use lctl::kernel::{Compute, Isa};

fn noise(n: usize, seed: u32, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        scale * (state as f32 / 2f32.powi(31) - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

fn tensor(values: Vec<f32>, dims: &[usize]) -> Tensor {
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    lctl::nn::with_values(tensor, <[f32]>::to_vec).unwrap()
}

fn compute(isa: Isa, threads: usize) -> Arc<Compute> {
    Arc::new(Compute::new(isa, threads).unwrap())
}
