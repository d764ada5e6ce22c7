//! MXFP4: E2M1 values, doubled so that they are integers, and a power of two.

use super::super::kernel::{Codes, Sink, Weights};
use super::super::lanes::{Lanes, Words};
use super::{nibbles, unrolled};
use crate::kernel::product::panels::{Part, parts};

pub struct Mxfp4;

/// Twice the E2M1 values, plus the offset.
const DOUBLED: [i8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

impl Codes for Mxfp4 {
    const NAME: &'static str = "MXFP4";
    const BYTES: usize = 17;
    const BITS: u32 = 5;
    const OFFSET: i32 = 12;
    const GROUPS: usize = 1;
    const PARTS: &'static [Part] = &parts([0..1, 1..17]);

    #[inline(always)]
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>) {
        let exponents = s.word(words, 0);
        unrolled!(block in [0, 1, 2, 3] {
            let mut codes = nibbles(s, words, 1 + 4 * block);
            for codes in &mut codes {
                *codes = s.lookup(&DOUBLED, *codes);
            }
            let exponent = s.and(s.shr(exponents, 8 * block as u32), s.splat(255));
            sink.weights(Weights::plain(codes, half_scale(s, exponent)));
        });
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> super::super::oracle::Slow {
        const VALUES: [i32; 8] = [0, 1, 2, 3, 4, 6, 8, 12];
        let code = |i: usize| {
            let nibble = usize::from(block[1 + i % 16] >> (4 * (i / 16)) & 15);
            VALUES[nibble % 8] * if nibble < 8 { 1 } else { -1 }
        };
        super::super::oracle::Slow {
            codes: (0..32).map(code).collect(),
            group: 32,
            scales: vec![2f64.powi(i32::from(block[0]) - 128) as f32],
            minima: vec![],
        }
    }
}

/// Returns 2^(exponent - 128) in two factors, as the smallest are denormal.
#[inline(always)]
fn half_scale<S: Lanes>(s: S, exponent: S::I) -> S::F {
    let power = |exponent: S::I| s.from_bits(s.shl(s.add(exponent, s.splat(127 - 64)), 23));
    s.mul(power(s.shr(exponent, 1)), power(s.shr(s.add(exponent, s.splat(1)), 1)))
}
