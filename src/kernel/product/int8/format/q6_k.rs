//! Q6_K: nibbles, upper bit pairs, and 8-bit scales of 16 weights each.

use super::super::kernel::{Codes, Sink, Weights};
use super::super::lanes::{Lanes, Words};
use super::{bytes, nibbles, signed, two_halves, unrolled};
use crate::kernel::product::panels::{Part, Recode, parts};

pub struct Q6K;

impl Codes for Q6K {
    const NAME: &'static str = "Q6_K";
    const BYTES: usize = 210;
    const BITS: u32 = 6;
    const OFFSET: i32 = 32;
    const GROUPS: usize = 2;
    const PARTS: &'static [Part] = &parts([0..2, 2..210]);
    const RECODE: Option<Recode> = Some(Recode { stored_to_packed, packed_to_stored });

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

/// Gives `sink` the weights of a block of which `words` are all but the factor, as [`stored_to_packed`] says.
#[inline(always)]
fn weights<S: Lanes>(s: S, words: Words<'_>, d: S::F, sink: &mut impl Sink<S>) {
    for pair in 0..4 {
        let scales = s.word(words, pair);
        let pair = words.part(4 + 12 * pair, 12);
        unrolled!(odd in [0, 1] {
            let mut codes = nibbles(s, pair, 6 * odd);
            for j in 0..8 {
                let high = s.word(pair, 6 * odd + 4 + j / 4);
                // bits 2 (j % 4) and the next, to bits 4 and 5
                let high = match j % 4 {
                    0 => s.shl(high, 4),
                    1 => s.shl(high, 2),
                    2 => high,
                    _ => s.shr(high, 2),
                };
                codes[j] = s.or(codes[j], s.and(high, s.splat(bytes(0x30))));
            }
            let bit = 16 * odd as u32;
            let scales = [s.mul(d, signed(s, scales, bit, 8)), s.mul(d, signed(s, scales, bit + 8, 8))];
            sink.weights(Weights::halves(codes, scales));
        });
    }
}

/// Bytes before the codes of a packed block: the factor and the scales.
const HEADER: usize = 18;

/// Bytes of 32 packed codes: 16 of nibbles, code l beside code l + 16, then 8 with the high bits of codes l, l + 4, l + 8
/// and l + 12 in a byte.
const GROUP: usize = 24;

fn stored_to_packed(stored: &[u8], packed: &mut [u8]) {
    packed[..2].copy_from_slice(&stored[208..]);
    packed[2..HEADER].copy_from_slice(&stored[192..208]);
    for (i, group) in packed[HEADER..].chunks_exact_mut(GROUP).enumerate() {
        let (half, run) = (i / 4, i % 4);
        let low = &stored[64 * half + 32 * (run % 2)..][..32];
        let high = &stored[128 + 32 * half..][..32];
        let (nibbles, bits) = group.split_at_mut(16);
        let (shift_low, shift_high) = (4 * (run / 2), 2 * run);
        for l in 0..16 {
            nibbles[l] = low[l] >> shift_low & 15 | (low[l + 16] >> shift_low & 15) << 4;
        }
        for (w, bits) in bits.chunks_exact_mut(4).enumerate() {
            let high = |l: usize| high[16 * w + l] >> shift_high & 3;
            for c in 0..4 {
                bits[c] = high(c) | high(c + 4) << 2 | high(c + 8) << 4 | high(c + 12) << 6;
            }
        }
    }
}

fn packed_to_stored(packed: &[u8], stored: &mut [u8]) {
    stored.fill(0);
    stored[208..].copy_from_slice(&packed[..2]);
    stored[192..208].copy_from_slice(&packed[2..HEADER]);
    for (i, group) in packed[HEADER..].chunks_exact(GROUP).enumerate() {
        let (half, run) = (i / 4, i % 4);
        for l in 0..32 {
            let low = group[l % 16] >> (4 * (l / 16)) & 15;
            let high = group[16 + 4 * (l / 16) + l % 4] >> (2 * (l / 4 % 4)) & 3;
            stored[64 * half + 32 * (run % 2) + l] |= low << (4 * (run / 2));
            stored[128 + 32 * half + l] |= high << (2 * run);
        }
    }
}
