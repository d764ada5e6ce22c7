//! IQ4_NL and IQ4_XS: nibbles that choose from 16 signed levels.

use super::super::kernel::{Codes, Sink, Weights};
use super::super::lanes::{Lanes, Words};
use super::{nibbles, signed, two_halves, unrolled};
#[cfg(test)]
use crate::kernel::product::int8::oracle::{Slow, half};
use crate::kernel::product::panels::{Part, parts};
use crate::tensor::format::IQ4_LEVELS;

pub struct Iq4Nl;

/// 256 weights, 6-bit scales of 32 each.
pub struct Iq4Xs;

impl Codes for Iq4Nl {
    const NAME: &'static str = "IQ4_NL";
    const BYTES: usize = 18;
    const BITS: u32 = 8;
    const GROUPS: usize = 1;
    const PARTS: &'static [Part] = &parts([0..2, 2..18]);

    #[inline(always)]
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>) {
        let scales = two_halves(s, s.word(words, 0));
        unrolled!(block in [0, 1] {
            sink.weights(Weights::plain(levels(s, words, 1 + 4 * block), scales[block]));
        });
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> Slow {
        Slow { codes: slow_levels(&block[2..]), group: 32, scales: vec![half(block, 0)], minima: vec![] }
    }
}

impl Codes for Iq4Xs {
    const NAME: &'static str = "IQ4_XS";
    const BYTES: usize = 136;
    const BITS: u32 = 8;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>) {
        let header = s.word(words, 0);
        let (d, high, low) = (s.low_half(header), s.shr(header, 16), s.word(words, 1));
        unrolled!(j in [0, 1, 2, 3, 4, 5, 6, 7] {
            let low = s.and(s.shr(low, 4 * j), s.splat(15));
            let high = s.and(s.shl(s.shr(high, 2 * j), 4), s.splat(0x30));
            // flipping the top bit makes code - 32 a signed number of 6 bits
            let code = signed(s, s.xor(s.or(low, high), s.splat(0x20)), 0, 6);
            let codes = levels(s, words, 2 + 4 * j as usize);
            sink.weights(Weights::plain(codes, s.mul(d, code)));
        });
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> Slow {
        let scale = |j: usize| {
            let code =
                (block[4 + j / 2] >> (4 * (j % 2)) & 15) | (block[2 + j / 4] >> (2 * (j % 4)) & 3) << 4;
            half(block, 0) * (f32::from(code) - 32.0)
        };
        Slow {
            codes: block[8..].chunks(16).flat_map(slow_levels).collect(),
            group: 32,
            scales: (0..8).map(scale).collect(),
            minima: vec![],
        }
    }
}

/// Reads the levels that four words of nibbles choose.
#[inline(always)]
fn levels<S: Lanes>(s: S, words: Words<'_>, first: usize) -> [S::I; 8] {
    let mut codes = nibbles(s, words, first);
    for codes in &mut codes {
        *codes = s.signed(s.lookup(&IQ4_LEVELS, *codes));
    }
    codes
}

#[cfg(test)]
fn slow_levels(nibbles: &[u8]) -> Vec<i32> {
    let level = |i: usize| i32::from(IQ4_LEVELS[usize::from(nibbles[i % 16] >> (4 * (i / 16)) & 15)]);
    (0..32).map(level).collect()
}
