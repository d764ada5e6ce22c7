//! Q5_K: Q4_K with fifth bits.

use super::super::kernel::{Codes, Sink};
use super::super::lanes::{Lanes, Words};
use super::q4_k::Header;
use super::{field, read, unrolled};

pub struct Q5K;

impl Codes for Q5K {
    const NAME: &'static str = "Q5_K";
    const BYTES: usize = 176;
    const BITS: u32 = 5;
    const GROUPS: usize = 1;
    const HAS_MINIMA: bool = true;

    #[inline(always)]
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>) {
        let header = Header::read(s, words);
        unrolled!(group in [0, 1, 2, 3, 4, 5, 6, 7] {
            let mut codes: [S::I; 8] = read(s, words, 12 + 8 * (group / 2));
            for i in 0..8 {
                let fifth = field(s, s.word(words, 4 + i), group as u32, 1);
                codes[i] = s.or(field(s, codes[i], 4 * (group as u32 % 2), 15), s.shl(fifth, 4));
            }
            sink.weights(header.weights(s, codes, group));
        });
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> super::super::oracle::Slow {
        super::q4_k::slow(block, |i| {
            let low = block[48 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            low | (block[16 + i % 32] >> (i / 32) & 1) << 4
        })
    }
}
