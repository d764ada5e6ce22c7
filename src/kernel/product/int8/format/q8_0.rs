//! Q8_0: codes as they lie, one scale.

use super::super::kernel::{Codes, Sink, Weights};
use super::super::lanes::{Lanes, Words};
use super::{read, two_halves, unrolled};
use crate::kernel::product::panels::{Part, parts};

pub struct Q8;

impl Codes for Q8 {
    const NAME: &'static str = "Q8_0";
    const BYTES: usize = 34;
    const BITS: u32 = 8;
    const GROUPS: usize = 1;
    const PARTS: &'static [Part] = &parts([0..2, 2..34]);

    #[inline(always)]
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>) {
        let scales = two_halves(s, s.word(words, 0));
        unrolled!(block in [0, 1] {
            let mut codes: [S::I; 8] = read(s, words, 1 + 8 * block);
            for codes in &mut codes {
                *codes = s.signed(*codes);
            }
            sink.weights(Weights::plain(codes, scales[block]));
        });
    }

    #[cfg(test)]
    fn slowly(block: &[u8]) -> super::super::oracle::Slow {
        use super::super::oracle::{Slow, half};
        Slow {
            codes: block[2..].iter().map(|code| i32::from(*code as i8)).collect(),
            group: 32,
            scales: vec![half(block, 0)],
            minima: vec![],
        }
    }
}
