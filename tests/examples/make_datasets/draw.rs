//! Random choices that depend only on what they are for.

use lctl::kernel::philox::{Philox, Purpose};
use sha2::{Digest as _, Sha256};

/// Every file is made with this seed.
const SEED: u64 = 1;

/// A sequence of random choices for one purpose, e.g. the distractors of one question.
pub struct Draws {
    stream: Philox,
    index: u64,
    step: u32,
}

impl Draws {
    /// Returns the choices for a purpose: equal for equal names, otherwise unrelated.
    pub fn new(purpose: &str) -> Draws {
        let digest = Sha256::digest(purpose);
        let index = digest.iter().take(8).fold(0, |index, byte| index << 8 | u64::from(*byte));
        Draws { stream: Philox::new(SEED, Purpose::Shuffle), index, step: 0 }
    }

    /// Returns a number in `0 .. n`; n must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        let number = self.stream.below(self.step, self.index, n as u64);
        self.step += 1;
        number as usize
    }

    /// Returns a number in `low ..= high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// Returns one of the options, of which there is at least one.
    pub fn pick<'a, T: ?Sized>(&mut self, options: &[&'a T]) -> &'a T {
        options[self.below(options.len())]
    }

    /// Puts the items into random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// Returns lower-case hexadecimal digits.
    pub fn hex(&mut self, n: usize) -> String {
        self.digits(b"0123456789abcdef", n)
    }

    /// Returns digits of Base64.
    pub fn base64(&mut self, n: usize) -> String {
        self.digits(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", n)
    }

    fn digits(&mut self, of: &[u8], n: usize) -> String {
        (0..n).map(|_| char::from(of[self.below(of.len())])).collect()
    }
}
