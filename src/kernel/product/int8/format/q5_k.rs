//! Q5_K: Q4_K with fifth bits.

use super::super::kernel::{Codes, Sink};
use super::super::lanes::{Lanes, Words};
use super::q4_k::Header;
use super::{field, read};

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
        let fifth: [S::I; 8] = read(s, words, 4);
        for pair in 0..4 {
            let v: [S::I; 8] = read(s, words, 12 + 8 * pair);
            let (mut low, mut high) = (v, v);
            for i in 0..8 {
                let fifth = |group: usize| s.shl(field(s, fifth[i], group as u32, 1), 4);
                low[i] = s.or(field(s, v[i], 0, 15), fifth(2 * pair));
                high[i] = s.or(field(s, v[i], 4, 15), fifth(2 * pair + 1));
            }
            sink.weights(header.weights(s, low, 2 * pair));
            sink.weights(header.weights(s, high, 2 * pair + 1));
        }
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> super::super::oracle::Slow {
        super::q4_k::slow(block, |i| {
            let low = block[48 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            low | (block[16 + i % 32] >> (i / 32) & 1) << 4
        })
    }
}
