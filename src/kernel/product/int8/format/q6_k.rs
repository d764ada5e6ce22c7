//! Q6_K: nibbles, upper bit pairs, and 8-bit scales of 16 weights each.

use super::super::kernel::{Codes, Sink, Weights};
use super::super::lanes::{Lanes, Words};
use super::{field, read, signed, two_halves, unrolled};
use crate::kernel::product::panels::{Part, parts};

pub struct Q6K;

impl Codes for Q6K {
    const NAME: &'static str = "Q6_K";
    const BYTES: usize = 210;
    const BITS: u32 = 6;
    const OFFSET: i32 = 32;
    const GROUPS: usize = 2;
    const PARTS: &'static [Part] = &parts([208..210, 192..208, 0..64, 128..160, 64..128, 160..192]);

    #[inline(always)]
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>) {
        let factors = two_halves(s, s.word(words, 0));
        for block in 0..2 {
            weights(s, words.part(1 + 52 * block, 52), factors[block], sink);
        }
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> super::super::oracle::Slow {
        use super::super::oracle::{Slow, half};
        let code = |i: usize| {
            let (half, run, l) = (i / 128, i / 32 % 4, i % 32);
            let low = block[64 * half + 32 * (run % 2) + l] >> (4 * (run / 2)) & 15;
            let high = block[128 + 32 * half + l] >> (2 * run) & 3;
            i32::from(low | high << 4) - 32
        };
        Slow {
            codes: (0..256).map(code).collect(),
            group: 16,
            scales: (0..16).map(|j| half(block, 208) * f32::from(block[192 + j] as i8)).collect(),
            minima: vec![],
        }
    }
}

/// Gives `sink` the weights of a block of which `words` are all but the factor.
#[inline(always)]
fn weights<S: Lanes>(s: S, words: Words<'_>, d: S::F, sink: &mut impl Sink<S>) {
    for half in 0..2 {
        let (low, high) = (words.part(4 + 24 * half, 16), words.part(20 + 24 * half, 8));
        let groups = words.part(2 * half, 2);
        unrolled!(run in [0, 1, 2, 3] {
            let mut codes: [S::I; 8] = read(s, low, 8 * (run % 2));
            for i in 0..8 {
                let nibble = field(s, codes[i], if run < 2 { 0 } else { 4 }, 15);
                codes[i] = s.or(nibble, s.shl(field(s, s.word(high, i), 2 * run as u32, 3), 4));
            }
            let (word, bit) = (s.word(groups, run / 2), 16 * (run as u32 % 2));
            let scales = [s.mul(d, signed(s, word, bit, 8)), s.mul(d, signed(s, word, bit + 8, 8))];
            sink.weights(Weights::halves(codes, scales));
        });
    }
}
