//! Random numbers by counter: the same (seed, purpose, step, index) gives the same number on every machine, in any
//! order of asking.
//!
//! Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

/// A stream of random numbers for one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
    purpose: u32,
}

/// What numbers are for: streams of different purposes never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// Choosing tokens.
    Sampling = 1,
    /// Choosing examples for a prompt.
    FewShot = 2,
    /// Ordering documents.
    Shuffle = 3,
    /// Drawing samples again, with replacement.
    Bootstrap = 4,
    /// Drawing signs of differences.
    SignFlip = 5,
    /// Which activations are dropped.
    Dropout = 6,
    /// Drawing parameters before training.
    Initial = 7,
    /// Choosing training rows to validate on.
    HeldOut = 16,
    /// Choosing an epoch's part of a file.
    Mixture = 17,
}

impl Philox {
    /// Returns the stream of a seed for a purpose.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        Philox { key: [seed as u32, (seed >> 32) as u32], purpose: purpose as u32 }
    }

    /// Returns 128 random bits: the block of counter (step, low index, high index, purpose).
    pub fn block(&self, step: u32, index: u64) -> [u32; 4] {
        philox4x32_10([step, index as u32, (index >> 32) as u32, self.purpose], self.key)
    }

    /// Returns a stream of the same purpose whose key is half a block of this one.
    pub fn stream(&self, step: u32, index: u64) -> Philox {
        let [low, high, ..] = self.block(step, index);
        Philox { key: [low, high], purpose: self.purpose }
    }

    /// Returns [`Philox::block`] of the indexes `first .. first + 16`: word w of block l is `[w][l]`.
    #[inline(always)]
    pub(super) fn blocks(&self, step: u32, first: u64) -> [[u32; 16]; 4] {
        let (mut low, mut high) = ([0; 16], [0; 16]);
        for l in 0..16 {
            let index = first + l as u64;
            (low[l], high[l]) = (index as u32, (index >> 32) as u32);
        }
        rounds([[step; 16], low, high, [self.purpose; 16]], self.key)
    }

    /// Returns a number in [0, 1): a multiple of 2^-24, so exact in f32.
    pub fn uniform(&self, step: u32, index: u64) -> f32 {
        const UNIT: f32 = 1.0 / (1 << 24) as f32;
        (self.block(step, index)[0] >> 8) as f32 * UNIT
    }

    /// Returns a number in [0, 1): a multiple of 2^-53.
    pub fn uniform_f64(&self, step: u32, index: u64) -> f64 {
        const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
        let [low, high, ..] = self.block(step, index);
        ((u64::from(high) << 32 | u64::from(low)) >> 11) as f64 * UNIT
    }

    /// Returns a number in `0 .. n`; its bias is below n / 2^64.
    ///
    /// # Panics
    /// If n is 0.
    pub fn below(&self, step: u32, index: u64, n: u64) -> u64 {
        assert!(n > 0);
        let [low, high, ..] = self.block(step, index);
        let bits = u64::from(high) << 32 | u64::from(low);
        ((u128::from(bits) * u128::from(n)) >> 64) as u64
    }
}

/// Returns the block of a counter under a key, after ten rounds.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [a, b, c, d] = rounds(counter.map(|word| [word]), key);
    [a[0], b[0], c[0], d[0]]
}

/// Ten rounds over the counters of N blocks, word by word, so that a compiler makes vectors of them.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "four arrays by one index")]
fn rounds<const N: usize>(mut counter: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    for _ in 0..10 {
        for l in 0..N {
            let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0][l]);
            let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2][l]);
            counter[0][l] = (second >> 32) as u32 ^ counter[1][l] ^ key[0];
            counter[2][l] = (first >> 32) as u32 ^ counter[3][l] ^ key[1];
            (counter[1][l], counter[3][l]) = (second as u32, first as u32);
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kat_vectors of Random123 1.14: all zeros, all ones, digits of pi.
    #[test]
    fn blocks_are_the_known_answers() {
        let zeros = philox4x32_10([0; 4], [0; 2]);
        assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox4x32_10([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let pi = philox4x32_10(counter, [0xa409_3822, 0x299f_31d0]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn every_part_of_the_address_counts() {
        let stream = Philox::new(7, Purpose::Sampling);
        let block = stream.block(1, 2);
        assert_eq!(Philox::new(7, Purpose::Sampling).block(1, 2), block);
        let others = [
            Philox::new(8, Purpose::Sampling).block(1, 2),
            Philox::new(7 + (1 << 32), Purpose::Sampling).block(1, 2),
            Philox::new(7, Purpose::FewShot).block(1, 2),
            stream.block(2, 2),
            stream.block(1, 3),
            stream.block(1, 2 + (1 << 32)),
        ];
        assert!(others.iter().all(|other| *other != block));
    }

    #[test]
    fn numbers_fill_their_range_evenly() {
        let stream = Philox::new(3, Purpose::Shuffle);
        let n = 40_000;
        let mut counts = [[0; 10]; 3];
        for i in 0..n {
            let (a, b) = (stream.uniform(0, i), stream.uniform_f64(1, i));
            assert!((0.0..1.0).contains(&a) && (0.0..1.0).contains(&b));
            counts[0][(a * 10.0) as usize] += 1;
            counts[1][(b * 10.0) as usize] += 1;
            counts[2][stream.below(2, i, 10) as usize] += 1;
        }
        // 4000 expected, a standard deviation of 60
        assert!(counts.as_flattened().iter().all(|count| (3700..4300).contains(count)), "{counts:?}");
        assert_eq!(stream.below(0, 0, 1), 0);
    }
}
