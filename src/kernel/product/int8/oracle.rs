//! The slow, obvious form of integer products: the definition that the fast kernels must equal to the bit.

use super::activations::{BLOCK, TINY};

/// A block of weights as integer codes: weight = scale * code - minimum, scales and minima of 16 weights each.
pub struct Slow {
    pub codes: Vec<i32>,
    /// Weights that share a scale and a minimum: 16 or 32.
    pub group: usize,
    pub scales: Vec<f32>,
    /// None if the format has none.
    pub minima: Vec<f32>,
}

/// Returns scale and codes of 32 activations.
pub fn quantize(x: &[f32]) -> (f32, Vec<i32>) {
    assert_eq!(x.len(), BLOCK);
    if !x.iter().all(|x| x.is_finite()) {
        return (f32::NAN, vec![0; BLOCK]);
    }
    let amax = x.iter().fold(0.0f32, |amax, x| amax.max(x.abs()));
    if amax < TINY {
        return (0.0, vec![0; BLOCK]);
    }
    let inverse = 127.0 / amax;
    (amax / 127.0, x.iter().map(|x| (x * inverse).round_ties_even() as i32).collect())
}

/// Returns the product of a row of activations with a row of weights, given as consecutive blocks.
pub fn dot(x: &[f32], blocks: &[Slow]) -> f32 {
    let mut y = 0.0f32;
    let mut at = 0;
    for block in blocks {
        for first in (0..block.codes.len()).step_by(BLOCK) {
            let (scale, codes) = quantize(&x[at..at + BLOCK]);
            y = scale.mul_add(block_sum(&codes, block, first), y);
            at += BLOCK;
        }
    }
    y
}

/// Returns the sum over the groups of 32 columns from weight `first` of the block, without the activations' scale.
fn block_sum(x: &[i32], block: &Slow, first: usize) -> f32 {
    let groups = (0..BLOCK).step_by(block.group);
    let mut sum: Option<f32> = None;
    for at in groups.clone() {
        let pairs = x[at..at + block.group].iter().zip(&block.codes[first + at..]);
        let dot = pairs.map(|(x, code)| x * code).sum::<i32>() as f32;
        let scale = block.scales[(first + at) / block.group];
        sum = Some(sum.map_or(scale * dot, |sum| scale.mul_add(dot, sum)));
    }
    let mut sum = sum.unwrap_or(0.0);
    if !block.minima.is_empty() {
        for at in groups {
            let codes = x[at..at + block.group].iter().sum::<i32>() as f32;
            sum = (-block.minima[(first + at) / block.group]).mul_add(codes, sum);
        }
    }
    sum
}

/// Returns the binary16 at byte `at`.
#[cfg(test)]
pub fn half(bytes: &[u8], at: usize) -> f32 {
    crate::kernel::convert::f16_bits_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}
