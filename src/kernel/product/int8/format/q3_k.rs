//! Q3_K: bit pairs, third bits, and 6-bit scales of 16 weights each.

use super::super::kernel::{Codes, Sink, Weights};
use super::super::lanes::{Lanes, Words};
use super::{bytes, field, read, signed, two_halves, unrolled};
use crate::kernel::product::panels::{Part, parts};

pub struct Q3K;

impl Codes for Q3K {
    const NAME: &'static str = "Q3_K";
    const BYTES: usize = 110;
    const BITS: u32 = 3;
    const OFFSET: i32 = 4;
    const GROUPS: usize = 2;
    const PARTS: &'static [Part] = &parts([108..110, 96..108, 0..96]);

    #[inline(always)]
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>) {
        let factors = two_halves(s, s.word(words, 0));
        for block in 0..2 {
            weights(s, words.part(1 + 27 * block, 27), factors[block], sink);
        }
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> super::super::oracle::Slow {
        use super::super::oracle::{Slow, half};
        let code = |i: usize| {
            let low = block[32 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
            i32::from(low | (block[i % 32] >> (i / 32) & 1) << 2) - 4
        };
        let scale = |j: usize| {
            let low = block[96 + j % 8] >> (4 * (j / 8)) & 15;
            let code = low | (block[104 + j % 4] >> (2 * (j / 4)) & 3) << 4;
            half(block, 108) * (f32::from(code) - 32.0)
        };
        Slow {
            codes: (0..256).map(code).collect(),
            group: 16,
            scales: (0..16).map(scale).collect(),
            minima: vec![],
        }
    }
}

/// Gives `sink` the weights of a block of which `words` are all but the factor.
#[inline(always)]
fn weights<S: Lanes>(s: S, words: Words<'_>, d: S::F, sink: &mut impl Sink<S>) {
    let scales = scale_codes(s, words);
    unrolled!(half in [0, 1] {
        unrolled!(run in [0, 1, 2, 3] {
            let mut codes: [S::I; 8] = read(s, words, 11 + 8 * half);
            for i in 0..8 {
                let third = field(s, s.word(words, 3 + i), (4 * half + run) as u32, 1);
                codes[i] = s.or(field(s, codes[i], 2 * run as u32, 3), s.shl(third, 2));
            }
            let (word, bit) = (scales[2 * half + run / 2], 16 * (run as u32 % 2));
            let scales = [s.mul(d, signed(s, word, bit, 6)), s.mul(d, signed(s, word, bit + 8, 6))];
            sink.weights(Weights::halves(codes, scales));
        });
    });
}

/// Returns code - 32 of 16 groups, each a signed number of 6 bits in the low end of a byte.
#[inline(always)]
fn scale_codes<S: Lanes>(s: S, words: Words<'_>) -> [S::I; 4] {
    let [low_0, low_1, high] = read(s, words, 0);
    let low = [low_0, low_1];
    let mut codes = [high; 4];
    for (quarter, codes) in codes.iter_mut().enumerate() {
        let low = field(s, low[quarter % 2], if quarter < 2 { 0 } else { 4 }, 15);
        let high = s.shl(field(s, high, 2 * quarter as u32, 3), 4);
        // flipping the top bit subtracts 32
        *codes = s.xor(s.or(low, high), s.splat(bytes(0x20)));
    }
    codes
}
