//! NF4 whose scales are quantized too: 4.127 bits a weight instead of 4.5.
//!
//! Double quantization of "QLoRA" (Dettmers et al., arXiv:2305.14314, section 3) as bitsandbytes defines it: the mean of all absmax values is
//! taken off them, and the rest is quantized to 8 bits in blocks of 256, each with an absmax of its own in f32.

use std::ops::Range;

use crate::kernel::Isa;
use crate::tensor::format::nf4::{
    BLOCK_LEN, DYNAMIC, INDEX_BYTES, decode_scaled, inverse_of, nearest_dynamic, split,
};
use crate::tensor::format::{BlockFormat as _, Nf4};

/// Scales that share a step.
const SCALES: usize = 256;

/// Blocks of NF4, all rows one after another.
pub struct Nested {
    /// [`INDEX_BYTES`] of each block.
    pub(crate) indices: Vec<u8>,
    /// A value of [`DYNAMIC`] of each block.
    pub(crate) scales: Vec<u8>,
    /// What these are multiplied by, of [`SCALES`] blocks each.
    pub(crate) steps: Vec<f32>,
    /// What is added then.
    pub(crate) offset: f32,
}

impl Nested {
    /// Returns blocks of NF4 with their scales quantized.
    pub fn of(blocks: &[u8]) -> Nested {
        let blocks = || blocks.chunks_exact(Nf4.block_bytes()).map(split);
        let absmax: Vec<f32> = blocks().map(|(absmax, _)| absmax).collect();
        let sum = absmax.iter().fold(0.0, |sum, absmax| sum + f64::from(*absmax));
        let offset = (sum / absmax.len().max(1) as f64) as f32;
        let (mut scales, mut steps) = (Vec::with_capacity(absmax.len()), Vec::new());
        for absmax in absmax.chunks(SCALES) {
            let step = absmax.iter().fold(0.0f32, |max, absmax| max.max((absmax - offset).abs()));
            let inverse = inverse_of(step);
            scales.extend(absmax.iter().map(|absmax| nearest_dynamic((absmax - offset) * inverse)));
            steps.push(step);
        }
        let indices = blocks().flat_map(|(_, indices)| indices).copied().collect();
        Nested { indices, scales, steps, offset }
    }

    /// Returns the bytes that all this takes.
    pub fn bytes(&self) -> usize {
        self.indices.len() + self.scales.len() + size_of_val(self.steps.as_slice()) + size_of::<f32>()
    }

    fn scale(&self, block: usize) -> f32 {
        DYNAMIC[usize::from(self.scales[block])] * self.steps[block / SCALES] + self.offset
    }

    /// Returns the bytes that `blocks` have as NF4.
    ///
    /// # Panics
    /// If there are no such blocks.
    pub fn nf4(&self, blocks: Range<usize>) -> Vec<u8> {
        let block = |block: usize| {
            let indices = &self.indices[block * INDEX_BYTES..(block + 1) * INDEX_BYTES];
            self.scale(block).to_le_bytes().into_iter().chain(indices.iter().copied())
        };
        blocks.flat_map(block).collect()
    }

    /// Writes `blocks` as f32.
    ///
    /// # Panics
    /// If there are no such blocks, or `out` has another length.
    pub fn decode(&self, isa: Isa, blocks: Range<usize>, out: &mut [f32]) {
        const TOGETHER: usize = 16;
        assert_eq!(out.len(), blocks.len() * BLOCK_LEN);
        for (out, first) in out.chunks_mut(TOGETHER * BLOCK_LEN).zip(blocks.step_by(TOGETHER)) {
            let n = out.len() / BLOCK_LEN;
            let mut scales = [0.0; TOGETHER];
            (0..n).for_each(|i| scales[i] = self.scale(first + i));
            let indices = &self.indices[first * INDEX_BYTES..(first + n) * INDEX_BYTES];
            decode_scaled(isa, &scales[..n], indices, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::format::testing::{digest, float_bytes, inputs};

    const GOLDENS: &str = include_str!("../../../tests/golden/nf4.json");

    #[test]
    fn scales_and_values_are_those_of_bitsandbytes() {
        let goldens: serde_json::Value = serde_json::from_str(GOLDENS).unwrap();
        let golden = &goldens["nested"];
        assert_eq!(golden["map"], digest(&float_bytes(&DYNAMIC)));
        let inputs = inputs();
        let kind = |kind: &serde_json::Value| {
            inputs.iter().find(|(name, _)| kind == name).unwrap_or_else(|| panic!("no kind {kind}")).1.clone()
        };
        let x: Vec<f32> = goldens["nested_kinds"].as_array().unwrap().iter().flat_map(kind).collect();
        for isa in Isa::available() {
            let mut blocks = vec![0; x.len() / BLOCK_LEN * Nf4.block_bytes()];
            Nf4.encode(isa, &x, BLOCK_LEN, None, &mut blocks);
            let nested = Nested::of(&blocks);
            let number = |value: f32| f64::from(value);
            assert_eq!(golden["offset"], number(nested.offset));
            let steps: Vec<f64> = nested.steps.iter().map(|step| number(*step)).collect();
            assert_eq!(golden["steps"], serde_json::json!(steps));
            assert_eq!(golden["scales"], digest(&nested.scales));
            let n = nested.scales.len();
            let mut decoded = vec![0.0; x.len()];
            nested.decode(isa, 0..n, &mut decoded);
            assert_eq!(golden["decoded"], digest(&float_bytes(&decoded)), "{}", isa.name());
            // the bytes that a row is put together from say the same
            let mut again = vec![0.0; x.len()];
            Nf4.decode(isa, &nested.nf4(0..n), &mut again);
            assert!(again == decoded);
            assert_eq!(nested.bytes(), x.len() / 2 + n + 4 * n.div_ceil(256) + 4);
        }
    }
}
