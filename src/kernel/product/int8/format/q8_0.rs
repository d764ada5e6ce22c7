//! Q8_0: codes as they lie, one scale.

use super::super::kernel::{Codes, Sink, Weights};
use super::super::lanes::{Lanes, Rows};
use super::transpose32;

pub struct Q8;

impl Codes for Q8 {
    const NAME: &'static str = "Q8_0";
    const LEN: usize = 32;
    const BYTES: usize = 34;
    const BITS: u32 = 8;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn block<S: Lanes>(s: S, rows: Rows<'_>, at: usize, sink: &mut impl Sink<S>) {
        let mut codes = transpose32(s, rows, at + 2);
        for codes in &mut codes {
            *codes = s.signed(*codes);
        }
        sink.weights(Weights::plain(codes, s.halves(rows, at)));
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
