//! MXFP4: E2M1 values, doubled so that they are integers, and a power of two.

use super::super::kernel::{Codes, Sink, Weights};
use super::super::lanes::{Lanes, MAX_LANES, Rows};
use super::nibbles;
use crate::tensor::format::mxfp4_half_scale;

pub struct Mxfp4;

/// Twice the E2M1 values, plus the offset.
const DOUBLED: [i8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

impl Codes for Mxfp4 {
    const NAME: &'static str = "MXFP4";
    const LEN: usize = 32;
    const BYTES: usize = 17;
    const BITS: u32 = 5;
    const OFFSET: i32 = 12;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn block<S: Lanes>(s: S, rows: Rows<'_>, at: usize, sink: &mut impl Sink<S>) {
        let mut codes = nibbles(s, rows, at + 1);
        for codes in &mut codes {
            *codes = s.lookup(&DOUBLED, *codes);
        }
        let mut scales = [0.0; MAX_LANES];
        for (lane, scale) in scales[..S::LANES].iter_mut().enumerate() {
            *scale = mxfp4_half_scale(rows.byte(lane, at));
        }
        sink.weights(Weights::plain(codes, s.load(&scales)));
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
