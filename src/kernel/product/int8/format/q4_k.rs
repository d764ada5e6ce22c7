//! Q4_K: nibbles, and the 6-bit scales and minima that Q5_K has too.

use super::super::kernel::{Codes, Sink, Weights};
use super::super::lanes::{Lanes, Words};
use super::{byte, bytes, field, fields, read, two_halves, unrolled};
#[cfg(test)]
use crate::kernel::product::int8::oracle::{Slow, half};

pub struct Q4K;

impl Codes for Q4K {
    const NAME: &'static str = "Q4_K";
    const BYTES: usize = 144;
    const BITS: u32 = 4;
    const GROUPS: usize = 1;
    const HAS_MINIMA: bool = true;

    #[inline(always)]
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>) {
        let header = Header::read(s, words);
        unrolled!(pair in [0, 1, 2, 3] {
            let v = read(s, words, 4 + 8 * pair);
            sink.weights(header.weights(s, fields(s, v, 0, 15), 2 * pair));
            sink.weights(if S::ANY_CODES {
                header.weights_of_16(s, fields(s, v, 0, 0xf0), 2 * pair + 1)
            } else {
                header.weights(s, fields(s, v, 4, 15), 2 * pair + 1)
            });
        });
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> Slow {
        slow(block, |i| block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15)
    }
}

/// The scales and minima of 8 groups of 32: d and dmin, then 6-bit codes in 12 bytes.
#[derive(Clone, Copy)]
pub struct Header<S: Lanes> {
    d: S::F,
    negated_dmin: S::F,
    /// Codes of groups 0 to 3 and 4 to 7, a byte each.
    scales: [S::I; 2],
    minima: [S::I; 2],
}

impl<S: Lanes> Header<S> {
    /// Reads the first four words.
    #[inline(always)]
    pub fn read(s: S, words: Words<'_>) -> Self {
        let [factors, scales, minima, rest] = read(s, words, 0);
        let [d, negated_dmin] = two_halves(s, s.xor(factors, s.splat(0x8000_0000)));
        let top = |v| s.and(s.shr(v, 2), s.splat(bytes(0x30)));
        Header {
            d,
            negated_dmin,
            scales: [field(s, scales, 0, 63), s.or(field(s, rest, 0, 15), top(scales))],
            minima: [field(s, minima, 0, 63), s.or(field(s, rest, 4, 15), top(minima))],
        }
    }

    /// Returns the weights of group `j`, whose codes are given times 16: they need no shift. The scale is a sixteenth, and
    /// both factors are exact, so products have the same bits.
    #[inline(always)]
    pub fn weights_of_16(&self, s: S, codes: [S::I; 8], j: usize) -> Weights<S> {
        let d = s.mul(self.d, s.splat_f32(1.0 / 16.0));
        Header { d, ..*self }.weights(s, codes, j)
    }

    /// Returns the weights of group `j`.
    #[inline(always)]
    pub fn weights(&self, s: S, codes: [S::I; 8], j: usize) -> Weights<S> {
        let scale = s.mul(self.d, byte(s, self.scales[j / 4], j % 4));
        let minimum = s.mul(self.negated_dmin, byte(s, self.minima[j / 4], j % 4));
        Weights::affine(codes, scale, minimum)
    }
}

#[cfg(test)]
pub fn slow(block: &[u8], code: impl Fn(usize) -> u8) -> Slow {
    let b = &block[4..16];
    let codes = |j: usize| match j {
        0..4 => (b[j] % 64, b[j + 4] % 64),
        _ => (b[j + 4] % 16 + b[j - 4] / 64 * 16, b[j + 4] / 16 + b[j] / 64 * 16),
    };
    Slow {
        codes: (0..256).map(|i| i32::from(code(i))).collect(),
        group: 32,
        scales: (0..8).map(|j| half(block, 0) * f32::from(codes(j).0)).collect(),
        minima: (0..8).map(|j| half(block, 2) * f32::from(codes(j).1)).collect(),
    }
}
