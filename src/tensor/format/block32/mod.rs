//! The formats with 32 weights per block: Q8_0, Q4_0, Q5_0, Q4_1, Q5_1, MXFP4.
//!
//! Encoders work on one block per SIMD lane: element i of `LANES` blocks is one vector. Each block is so summed
//! in its own order, the reference's (ggml's `quantize_row_*`), whatever the width.

mod affine;
mod mxfp4;
mod q8_0;
#[cfg(test)]
mod reference;
mod symmetric;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;

use super::BlockFormat;
use super::blocks::{Rows, check_lengths, sums_of_squares};
use crate::kernel::Isa;
use crate::kernel::simd::{Kernel, Simd, dispatch};

pub static Q8_0: Blocks32<q8_0::Q8> = Blocks32(PhantomData);
pub static Q4_0: Blocks32<symmetric::Symmetric<4>> = Blocks32(PhantomData);
pub static Q5_0: Blocks32<symmetric::Symmetric<5>> = Blocks32(PhantomData);
pub static Q4_1: Blocks32<affine::Affine<4>> = Blocks32(PhantomData);
pub static Q5_1: Blocks32<affine::Affine<5>> = Blocks32(PhantomData);
pub static MXFP4: Blocks32<mxfp4::Mxfp4> = Blocks32(PhantomData);

/// Weights per block.
const LEN: usize = 32;
/// The most lanes any ISA has.
const MAX_LANES: usize = 16;
/// The most bytes any of these blocks has.
const MAX_BYTES: usize = 34;

/// The parts in which these formats differ.
pub trait Block32: Send + Sync + 'static {
    const NAME: &'static str;
    const GGML_ID: u32;
    const BYTES: usize;
    /// Whether importance changes the result.
    const WEIGHTED: bool;

    /// Encodes `LANES` blocks: lane j of `x[i]` is element i of block j, which goes to `out[j * BYTES..]`.
    fn encode<S: Simd>(s: S, x: &[S::F32; LEN], out: &mut [u8]);

    /// Encodes `LANES` blocks, lane j of `weights[i]` being what the error of `x[i]` in block j counts.
    fn encode_weighted<S: Simd>(s: S, x: &[S::F32; LEN], weights: &[S::F32; LEN], out: &mut [u8]);

    /// Decodes one block of `BYTES` bytes to 32 values.
    fn decode<S: Simd>(s: S, block: &[u8], out: &mut [f32]);
}

/// A [`Block32`] as a format of the registry.
pub struct Blocks32<B>(PhantomData<B>);

impl<B: Block32> BlockFormat for Blocks32<B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn ggml_id(&self) -> Option<u32> {
        Some(B::GGML_ID)
    }

    fn block_len(&self) -> usize {
        LEN
    }

    fn block_bytes(&self) -> usize {
        B::BYTES
    }

    fn can_encode(&self) -> bool {
        true
    }

    fn decode(&self, isa: Isa, bytes: &[u8], out: &mut [f32]) {
        check_lengths(self, out.len(), bytes.len());
        dispatch(isa, Decode::<B> { bytes, out, format: PhantomData });
    }

    fn encode(&self, isa: Isa, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        let rows = Rows::new(self, rows, row_len, importance.filter(|_| B::WEIGHTED), out.len());
        if !out.is_empty() {
            dispatch(isa, Encode::<B> { rows, out, format: PhantomData });
        }
    }
}

struct Decode<'a, B> {
    bytes: &'a [u8],
    out: &'a mut [f32],
    format: PhantomData<B>,
}

impl<B: Block32> Kernel for Decode<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, out) in self.bytes.chunks_exact(B::BYTES).zip(self.out.chunks_exact_mut(LEN)) {
            B::decode(s, block, out);
        }
    }
}

struct Encode<'a, B> {
    rows: Rows<'a>,
    out: &'a mut [u8],
    format: PhantomData<B>,
}

impl<B: Block32> Kernel for Encode<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let squares = if self.rows.has_importance() { sums_per_row(s, &self.rows) } else { Vec::new() };
        let (mut values, mut importances) = ([0.0; MAX_LANES * LEN], [0.0; MAX_LANES * LEN]);
        let mut padded = [0; MAX_LANES * MAX_BYTES];
        let mut x = [s.splat(0.0); LEN];
        for (group, out) in self.out.chunks_mut(S::LANES * B::BYTES).enumerate() {
            let first = group * S::LANES * LEN;
            let tile = ..S::LANES * LEN;
            s.transpose(self.rows.weights_tile(first, &mut values[tile]), LEN, &mut x);
            let whole = out.len() == S::LANES * B::BYTES;
            // lanes past the last block hold zeros, and their bytes are dropped
            let bytes = if whole { &mut *out } else { &mut padded[..] };
            match self.rows.importance_tile(first, &mut importances[tile]) {
                None => B::encode(s, &x, bytes),
                Some(importance) => {
                    let mean_square = mean_squares_of_group(s, &squares, &self.rows, first);
                    B::encode_weighted(s, &x, &weights_of_errors(s, &x, importance, mean_square), bytes);
                }
            }
            if !whole {
                out.copy_from_slice(&padded[..out.len()]);
            }
        }
    }
}

/// Returns each row's sum of squares.
#[inline(always)]
fn sums_per_row<S: Simd>(s: S, rows: &Rows) -> Vec<f32> {
    let mut sums = vec![0.0; rows.weights().len() / rows.row_len()];
    sums_of_squares(s, rows.weights(), rows.row_len(), &mut sums);
    sums
}

/// Returns, for the blocks from weight `first`, each one's row's mean square.
#[inline(always)]
fn mean_squares_of_group<S: Simd>(s: S, squares: &[f32], rows: &Rows, first: usize) -> S::F32 {
    let mut of_lane = [0.0; MAX_LANES];
    for (lane, square) in of_lane.iter_mut().enumerate() {
        // past the last row: 0
        *square = squares.get((first + lane * LEN) / rows.row_len()).copied().unwrap_or(0.0);
    }
    s.load(&of_lane) / s.splat(rows.row_len() as f32)
}

/// Returns importance * sqrt(the row's mean square + x^2).
#[inline(always)]
fn weights_of_errors<S: Simd>(
    s: S,
    x: &[S::F32; LEN],
    importance: &[f32],
    mean_square: S::F32,
) -> [S::F32; LEN] {
    let mut weights = [mean_square; LEN];
    s.transpose(importance, LEN, &mut weights);
    for i in 0..LEN {
        weights[i] = weights[i] * s.sqrt(mean_square + x[i] * x[i]);
    }
    weights
}

/// Returns 1 / d, or 0 where d is 0.
#[inline(always)]
fn inverse<S: Simd>(s: S, d: S::F32) -> S::F32 {
    s.select(s.eq(d, s.splat(0.0)), s.splat(0.0), s.splat(1.0) / d)
}

/// Writes lane j of `v` as a half at `out[j * stride]`.
#[inline(always)]
fn put_halves<S: Simd>(s: S, v: S::F32, out: &mut [u8], stride: usize) {
    let mut halves = [0; 2 * MAX_LANES];
    s.store_f16(v, &mut halves);
    for (lane, half) in halves[..2 * S::LANES].chunks_exact(2).enumerate() {
        out[lane * stride..][..2].copy_from_slice(half);
    }
}

/// Writes the 16 bytes of low nibbles: byte i holds element i below element i + 16.
#[inline(always)]
fn put_nibbles<S: Simd>(s: S, q: &[S::I32; LEN], out: &mut [u8], stride: usize) {
    let mut pairs = [s.splat_i32(0); LEN / 2];
    let low = s.splat_i32(15);
    for (i, pair) in pairs.iter_mut().enumerate() {
        *pair = (q[i] & low) | s.shl::<4>(q[i + LEN / 2]);
    }
    s.store_bytes_by_lane(&pairs, out, stride);
}

/// Writes bit 4 of all elements as 32 bits, element i in bit i.
#[inline(always)]
fn put_fifth_bits<S: Simd>(s: S, q: &[S::I32; LEN], out: &mut [u8], stride: usize) {
    let mut bits = s.splat_i32(0);
    let fifth = s.splat_i32(16);
    for q in q.iter().rev() {
        bits = s.shl::<1>(bits) | s.shr::<4>(*q & fifth);
    }
    let mut words = [0; MAX_LANES];
    s.store_i32(bits, &mut words);
    for (lane, word) in words[..S::LANES].iter().enumerate() {
        out[lane * stride..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

/// Returns elements i.. of a block: `LANES` low (i < 16) or high nibbles of the 16 bytes, and bit 4 from `fifth_bits`.
#[inline(always)]
fn quants<S: Simd>(s: S, nibbles: &[u8], fifth_bits: Option<u32>, i: usize) -> S::I32 {
    let bytes = s.load_u8(&nibbles[i % 16..]);
    let q = if i < 16 { bytes & s.splat_i32(15) } else { s.shr::<4>(bytes) };
    let Some(bits) = fifth_bits else { return q };
    let bit_of_lane: [i32; MAX_LANES] = std::array::from_fn(|lane| 1 << lane);
    let zero = s.splat_i32(0);
    let missing = s.eq_i32(s.splat_i32((bits >> i) as i32) & s.load_i32(&bit_of_lane), zero);
    q | s.select_i32(missing, zero, s.splat_i32(16))
}

#[inline(always)]
fn half_at(bytes: &[u8]) -> f32 {
    crate::kernel::convert::f16_bits_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

#[inline(always)]
fn word_at(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
