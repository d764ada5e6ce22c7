//! Q2_K: bit pairs, with 4-bit scales and minima of 16 weights each.

use super::super::kernel::{Codes, Sink, Weights};
use super::super::lanes::{Lanes, Words};
use super::{byte, field, fields, read, two_halves, unrolled};
use crate::kernel::product::panels::{Part, parts};

pub struct Q2K;

impl Codes for Q2K {
    const NAME: &'static str = "Q2_K";
    const BYTES: usize = 84;
    const BITS: u32 = 2;
    const GROUPS: usize = 2;
    const PARTS: &'static [Part] = &parts([80..84, 0..80]);
    const HAS_MINIMA: bool = true;

    #[inline(always)]
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>) {
        let [d, negated_dmin] = two_halves(s, s.xor(s.word(words, 0), s.splat(0x8000_0000)));
        for half in 0..2 {
            let (groups, low) = (words.part(1 + 2 * half, 2), words.part(5 + 8 * half, 8));
            unrolled!(run in [0, 1, 2, 3] {
                let word = s.word(groups, run / 2);
                let (scales, minima) = (field(s, word, 0, 15), field(s, word, 4, 15));
                let at = 2 * (run % 2);
                sink.weights(Weights {
                    codes: fields(s, read(s, low, 0), 2 * run as u32, 3),
                    scales: [s.mul(d, byte(s, scales, at)), s.mul(d, byte(s, scales, at + 1))],
                    negated_minima: [
                        s.mul(negated_dmin, byte(s, minima, at)),
                        s.mul(negated_dmin, byte(s, minima, at + 1)),
                    ],
                });
            });
        }
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> super::super::oracle::Slow {
        use super::super::oracle::{Slow, half};
        let code = |i: usize| i32::from(block[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3);
        Slow {
            codes: (0..256).map(code).collect(),
            group: 16,
            scales: (0..16).map(|j| half(block, 80) * f32::from(block[j] & 15)).collect(),
            minima: (0..16).map(|j| half(block, 82) * f32::from(block[j] >> 4)).collect(),
        }
    }
}
