//! NF4: 64 weights in 36 bytes, weight = absmax * level[q] with the 16 levels of 4-bit NormalFloat.
//!
//! Dettmers et al., "QLoRA" (arXiv:2305.14314), appendix E, as bitsandbytes computes it in blocks of 64. Block: absmax as f32,
//! 32 bytes of indices (weight j low nibble, weight j + 32 high nibble). No file has it: a dense model becomes it in memory.

use super::BlockFormat;
use super::blocks::{Rows, check_lengths};
use crate::kernel::Isa;
use crate::kernel::simd::{Kernel, Simd, dispatch};

/// Weights per block.
pub(crate) const BLOCK_LEN: usize = 64;
/// Bytes of a block's indices.
pub(crate) const INDEX_BYTES: usize = BLOCK_LEN / 2;
const BLOCK_BYTES: usize = 4 + INDEX_BYTES;

/// The levels: means of neighbouring quantiles of a normal distribution, with an exact zero and both ends at 1.
const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// What lies between two levels; a value above it gets the upper one.
const BOUNDS: [f32; 15] = midpoints(&LEVELS);

/// The 8-bit map of absmax values in double quantization: sign, a power of ten, and what is left of the bits for a
/// linear fraction (dynamic tree quantization, Dettmers, arXiv:1511.04561), ascending.
pub(crate) const DYNAMIC: [f32; 256] = dynamic();

const fn midpoints<const N: usize, const M: usize>(levels: &[f32; N]) -> [f32; M] {
    assert!(M + 1 == N);
    let mut bounds = [0.0; M];
    let mut i = 0;
    while i < M {
        bounds[i] = (levels[i] + levels[i + 1]) / 2.0;
        i += 1;
    }
    bounds
}

const fn dynamic() -> [f32; 256] {
    const SCALES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut map = [0.0; 256];
    // 127 positive values behind 127 negative ones and 0; the last is 1
    let (mut exponent, mut at) = (0, 0);
    while exponent < 7 {
        let n = 1 << exponent;
        let mut i = 0;
        while i < n {
            let value = SCALES[exponent] * ((tenth_to_one(i, n) + tenth_to_one(i + 1, n)) / 2.0);
            map[128 + at] = value;
            map[126 - at] = -value;
            (i, at) = (i + 1, at + 1);
        }
        exponent += 1;
    }
    map[255] = 1.0;
    map
}

/// Returns value `i` of `n + 1` from 0.1 to 1, rounded as torch's `linspace` rounds it.
const fn tenth_to_one(i: usize, n: usize) -> f32 {
    let step = (1.0 - 0.1f32) / n as f32;
    match i < n.div_ceil(2) {
        true => (0.1f32 as f64 + step as f64 * i as f64) as f32,
        false => (1.0 - step as f64 * (n - i) as f64) as f32,
    }
}

/// Returns the index of the value of [`DYNAMIC`] nearest to `x`, the lower one on ties.
pub(crate) fn nearest_dynamic(x: f32) -> u8 {
    const BOUNDS: [f32; 255] = midpoints(&DYNAMIC);
    BOUNDS.partition_point(|bound| *bound < x) as u8
}

/// Returns 1 / absmax; of what is all zero, a number that keeps it so.
#[inline(always)]
pub(crate) fn inverse_of(absmax: f32) -> f32 {
    1.0 / absmax.max(1e-38)
}

/// The NF4 format.
pub struct Nf4;

impl BlockFormat for Nf4 {
    fn name(&self) -> &'static str {
        "NF4"
    }

    fn block_len(&self) -> usize {
        BLOCK_LEN
    }

    fn block_bytes(&self) -> usize {
        BLOCK_BYTES
    }

    fn can_encode(&self) -> bool {
        true
    }

    fn decode(&self, isa: Isa, bytes: &[u8], out: &mut [f32]) {
        check_lengths(self, out.len(), bytes.len());
        dispatch(isa, Decode { bytes, out });
    }

    /// Encodes whole rows; importance changes nothing.
    fn encode(&self, isa: Isa, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        let rows = Rows::new(self, rows, row_len, importance, out.len());
        dispatch(isa, Encode { weights: rows.weights(), out });
    }
}

/// Returns the absmax of a block's bytes, and its indices.
pub(crate) fn split(block: &[u8]) -> (f32, &[u8]) {
    let (absmax, indices) = block.split_at(4);
    (f32::from_le_bytes([absmax[0], absmax[1], absmax[2], absmax[3]]), indices)
}

/// Decodes blocks whose indices lie one after another, and whose absmax values are `scales`.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn decode_scaled(isa: Isa, scales: &[f32], indices: &[u8], out: &mut [f32]) {
    assert!(indices.len() == scales.len() * INDEX_BYTES && out.len() == scales.len() * BLOCK_LEN);
    dispatch(isa, DecodeScaled { scales, indices, out });
}

struct Encode<'a> {
    weights: &'a [f32],
    out: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.weights.chunks_exact(BLOCK_LEN).zip(self.out.chunks_exact_mut(BLOCK_BYTES)) {
            let mut absmax = s.splat(0.0);
            for x in x.chunks_exact(S::LANES) {
                absmax = s.max(s.abs(s.load(x)), absmax);
            }
            let mut lanes = [0.0; 16];
            s.store(absmax, &mut lanes);
            // the largest of some numbers is the same in any order
            let absmax = lanes.into_iter().fold(0.0, f32::max);
            let mut indices = [0; BLOCK_LEN];
            for (x, indices) in x.chunks_exact(S::LANES).zip(indices.chunks_exact_mut(S::LANES)) {
                s.store_u8(index(s, s.load(x) * s.splat(inverse_of(absmax))), indices);
            }
            out[..4].copy_from_slice(&absmax.to_le_bytes());
            let (low, high) = indices.split_at(INDEX_BYTES);
            for (out, (low, high)) in out[4..].iter_mut().zip(low.iter().zip(high)) {
                *out = low | high << 4;
            }
        }
    }
}

/// Returns the index of the level nearest to `x`, the lower one on ties.
#[inline(always)]
fn index<S: Simd>(s: S, x: S::F32) -> S::I32 {
    let (mut index, one) = (s.splat_i32(0), s.splat_i32(1));
    for bound in BOUNDS {
        index = s.select_i32(s.gt(x, s.splat(bound)), index + one, index);
    }
    index
}

struct Decode<'a> {
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, out) in self.bytes.chunks_exact(BLOCK_BYTES).zip(self.out.chunks_exact_mut(BLOCK_LEN)) {
            let (absmax, indices) = split(block);
            decode_block(s, absmax, indices, out);
        }
    }
}

struct DecodeScaled<'a> {
    scales: &'a [f32],
    indices: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for DecodeScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.indices.chunks_exact(INDEX_BYTES).zip(self.out.chunks_exact_mut(BLOCK_LEN));
        for (absmax, (indices, out)) in self.scales.iter().zip(blocks) {
            decode_block(s, *absmax, indices, out);
        }
    }
}

#[inline(always)]
fn decode_block<S: Simd>(s: S, absmax: f32, indices: &[u8], out: &mut [f32]) {
    let absmax = s.splat(absmax);
    for j in (0..INDEX_BYTES).step_by(S::LANES) {
        let pair = s.load_u8(&indices[j..]);
        s.store(absmax * s.lookup16(&LEVELS, pair), &mut out[j..]);
        s.store(absmax * s.lookup16(&LEVELS, s.shr::<4>(pair)), &mut out[INDEX_BYTES + j..]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{check_decode, check_encode};
    use super::super::testing::{digest, encode, float_bytes, inputs};
    use super::*;

    const GOLDENS: &str = include_str!("../../../tests/golden/nf4.json");

    /// Encodes one block the slow way.
    fn encode_block(x: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
        let absmax = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        out[..4].copy_from_slice(&absmax.to_le_bytes());
        out[4..].fill(0);
        for (i, x) in x.iter().enumerate() {
            let scaled = x * (1.0 / absmax.max(1e-38));
            let index = BOUNDS.iter().filter(|bound| **bound < scaled).count() as u8;
            out[4 + i % 32] |= index << (4 * (i / 32));
        }
    }

    fn decode_block(block: &[u8], out: &mut [f32]) {
        let absmax = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        for (i, out) in out.iter_mut().enumerate() {
            *out = absmax * LEVELS[usize::from(block[4 + i % 32] >> (4 * (i / 32)) & 15)];
        }
    }

    #[test]
    fn blocks_are_those_of_the_slow_form() {
        check_encode(&Nf4, encode_block);
        // the upper half of absmax: a finite half is a finite f32
        check_decode(&Nf4, &[2], decode_block);
    }

    #[test]
    fn codes_absmax_and_values_are_those_of_bitsandbytes() {
        let goldens: serde_json::Value = serde_json::from_str(GOLDENS).unwrap();
        let inputs = inputs();
        assert_eq!(goldens["plain"].as_object().unwrap().len(), inputs.len());
        for (kind, x) in inputs {
            let golden = &goldens["plain"][kind];
            for isa in Isa::available() {
                let bytes = encode(&Nf4, isa, &x, 768, None);
                let blocks = || bytes.chunks_exact(BLOCK_BYTES).map(split);
                let codes: Vec<u8> = blocks()
                    .flat_map(|(_, pairs)| {
                        let low = pairs.iter().map(|pair| pair & 15);
                        low.chain(pairs.iter().map(|pair| pair >> 4))
                    })
                    .collect();
                let first: String = codes[..64].iter().map(|code| format!("{code:x}")).collect();
                assert_eq!(golden["first_64"], first, "{kind} on {}", isa.name());
                assert_eq!(golden["codes"], digest(&codes), "{kind} on {}", isa.name());
                let absmax: Vec<f32> = blocks().map(|(absmax, _)| absmax).collect();
                assert_eq!(golden["absmax"], digest(&float_bytes(&absmax)), "{kind} on {}", isa.name());
                let mut decoded = vec![0.0; x.len()];
                Nf4.decode(isa, &bytes, &mut decoded);
                assert_eq!(golden["decoded"], digest(&float_bytes(&decoded)), "{kind} on {}", isa.name());
            }
        }
    }

    #[test]
    fn the_map_of_scales_ascends_and_every_value_is_nearest_to_itself() {
        assert!(DYNAMIC.is_sorted_by(|a, b| a < b));
        for (i, value) in DYNAMIC.iter().enumerate() {
            assert_eq!(usize::from(nearest_dynamic(*value)), i);
        }
    }
}
