//! Q4_0, Q5_0, Q4_1, Q5_1: blocks of 32 with nibbles and perhaps a dword of fifth bits.

use super::super::kernel::{Codes, Sink, Weights};
use super::super::lanes::{Lanes, Words};
use super::{bytes, nibbles, two_halves, unrolled};
#[cfg(test)]
use crate::kernel::product::int8::oracle::{Slow, half};
use crate::kernel::product::panels::{Part, parts};

/// Q4_0 and Q5_0: one scale, codes around 2^(BITS - 1).
pub struct Symmetric<const BITS: u32>;

/// Q4_1 and Q5_1: a scale and what is added.
pub struct Affine<const BITS: u32>;

impl<const BITS: u32> Codes for Symmetric<BITS> {
    const NAME: &'static str = if BITS == 5 { "Q5_0" } else { "Q4_0" };
    const BYTES: usize = if BITS == 5 { 22 } else { 18 };
    const BITS: u32 = BITS;
    const OFFSET: i32 = 1 << (BITS - 1);
    const GROUPS: usize = 1;
    const PARTS: &'static [Part] = &parts([0..2, 2..Self::BYTES]);

    #[inline(always)]
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>) {
        let scales = two_halves(s, s.word(words, 0));
        unrolled!(block in [0, 1] {
            let first = 1 + block * (Self::BYTES - 2) / 4;
            sink.weights(Weights::plain(codes::<S, BITS>(s, words, first), scales[block]));
        });
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> Slow {
        let codes = slow_codes::<BITS>(&block[2..]).map(|code| code - Self::OFFSET);
        Slow { codes: codes.to_vec(), group: 32, scales: vec![half(block, 0)], minima: vec![] }
    }
}

impl<const BITS: u32> Codes for Affine<BITS> {
    const NAME: &'static str = if BITS == 5 { "Q5_1" } else { "Q4_1" };
    const BYTES: usize = if BITS == 5 { 24 } else { 20 };
    const BITS: u32 = BITS;
    const GROUPS: usize = 1;
    const HAS_MINIMA: bool = true;

    #[inline(always)]
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>) {
        let [scale, minimum] = two_halves(s, s.word(words, 0));
        sink.weights(Weights::affine(codes::<S, BITS>(s, words, 1), scale, minimum));
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> Slow {
        let codes = slow_codes::<BITS>(&block[4..]).to_vec();
        Slow { codes, group: 32, scales: vec![half(block, 0)], minima: vec![-half(block, 2)] }
    }
}

/// Reads the codes that begin, with the fifth bits if there are any, at word `first`.
#[inline(always)]
fn codes<S: Lanes, const BITS: u32>(s: S, words: Words<'_>, first: usize) -> [S::I; 8] {
    if BITS == 4 {
        return nibbles(s, words, first);
    }
    let fifth = s.word(words, first);
    let mut codes = nibbles(s, words, first + 1);
    for (j, codes) in codes.iter_mut().enumerate() {
        // bits 0, 1, 2, 3 to bits 0, 8, 16, 24: the product has bit i at i, i + 7, i + 14 and i + 21
        let four = s.and(s.shr(fifth, 4 * j as u32), s.splat(15));
        let spread = s.and(s.mul_i32(four, s.splat(0x0020_4081)), s.splat(bytes(1)));
        *codes = s.or(*codes, s.shl(spread, 4));
    }
    codes
}

#[cfg(test)]
fn slow_codes<const BITS: u32>(block: &[u8]) -> [i32; 32] {
    let nibbles = if BITS == 5 { 4 } else { 0 };
    std::array::from_fn(|i| {
        let low = block[nibbles + i % 16] >> (4 * (i / 16)) & 15;
        let fifth = if BITS == 5 { block[i / 8] >> (i % 8) & 1 } else { 0 };
        i32::from(low | fifth << 4)
    })
}
