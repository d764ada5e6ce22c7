//! Checks of an encoder and decoder against slow forms of the same format, on every ISA the machine has.

use half::f16;

use super::BlockFormat;
use crate::kernel::Isa;

/// Encodes one block: weights, their importance, the block's bytes.
pub(super) type EncodeBlock = fn(&[f32], Option<&[f32]>, &mut [u8]);
/// Decodes one block.
pub(super) type DecodeBlock = fn(&[u8], &mut [f32]);

/// xorshift64* (Vigna, arXiv:1402.6246).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in (0, 1).
    fn unit(&mut self) -> f32 {
        ((self.next() >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    }

    /// Roughly normal, variance 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

/// Ways to fill rows, each with a name for messages. The value at i gets a normal variate and uniform ones.
type Fill = fn(usize, f32, &mut Random) -> f32;

const FILLS: &[(&str, Fill)] = &[
    ("normal", |_, x, _| 0.02 * x),
    ("heavy tail", |_, x, r| 0.02 * x / r.unit()),
    ("zeros", |_, _, _| 0.0),
    ("constant", |_, _, _| -0.37),
    // least squares on these are rounding noise: offsets beyond the largest value, negative scales
    ("constant up to rounding", |_, x, _| -0.37 * (1.0 + x.round() * f32::EPSILON)),
    ("constant up to one rounding", |_, x, _| -0.37 * (1.0 + f32::EPSILON * f32::from(x > 1.0))),
    ("nearly constant", |_, x, _| -0.37 - 1e-6 * x),
    ("outliers", |i, x, _| if i % 97 == 0 { 10.0 * x } else { 0.01 * x }),
    ("denormal", |_, x, _| 1e-40 * x),
    ("at the zero threshold", |_, x, _| 1e-15 * x),
    ("half denormal", |_, x, _| 2e-6 * x),
    ("past half's range", |_, x, _| 7e4 * x),
    ("large", |_, x, _| 1e13 * x),
    ("squares overflow", |_, x, _| 1e19 * x),
    ("huge", |_, x, _| 3e37 * x),
    ("every other 16 zero", |i, x, _| if i / 16 % 2 == 0 { 0.0 } else { x }),
    ("magnitudes differ", |i, x, _| x * 10f32.powi((i / 16 * 7 % 60) as i32 - 30)),
    ("magnitudes differ somewhat", |i, x, _| x * 10f32.powi((i / 16 * 7 % 8) as i32 - 4)),
    ("sparse", |_, x, r| if r.unit() < 0.8 { 0.0 } else { x }),
    ("integers", |_, x, _| (3.0 * x).round()),
    ("halves of integers", |_, x, _| -0.5 * (40.0 * x).round()),
    ("powers of two", |_, x, r| 2f32.powi((24.0 * r.unit()) as i32 - 12).copysign(x)),
    ("all negative", |_, x, _| -x.abs()),
];

const IMPORTANCES: &[(&str, Fill)] = &[
    ("uniform", |_, _, r| r.unit()),
    ("heavy tail", |_, x, r| x * x / r.unit()),
    ("mostly zero", |_, _, r| if r.unit() < 0.6 { 0.0 } else { r.unit() }),
    ("zero", |_, _, _| 0.0),
    ("huge", |_, _, r| 1e30 * r.unit()),
];

fn filled(fill: Fill, len: usize, random: &mut Random) -> Vec<f32> {
    let value = |i| {
        let x = random.normal();
        fill(i, x, random)
    };
    (0..len).map(value).collect()
}

fn encoded_slowly(
    format: &dyn BlockFormat,
    oracle: EncodeBlock,
    x: &[f32],
    importance: Option<&[f32]>,
) -> Vec<u8> {
    let (len, bytes) = (format.block_len(), format.block_bytes());
    let mut out = vec![0x5a; x.len() / len * bytes];
    for (b, (x, out)) in x.chunks_exact(len).zip(out.chunks_exact_mut(bytes)).enumerate() {
        oracle(x, importance.map(|w| &w[b * len % w.len()..][..len]), out);
    }
    out
}

/// Checks that the encoder gives the oracle's bytes: rows that do not fill the lanes, with every
/// kind of values, without and with importance.
pub(super) fn check_encode(format: &dyn BlockFormat, oracle: EncodeBlock) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (row_len, n_rows) = (3 * format.block_len(), 7);
    for (name, fill) in FILLS {
        let x = filled(*fill, row_len * n_rows, &mut random);
        assert!(x.iter().all(|v| v.is_finite()), "{name}");
        for importance in std::iter::once(None).chain(IMPORTANCES.iter().map(Some)) {
            let weights = importance.map(|(_, fill)| filled(*fill, row_len, &mut random));
            let want = encoded_slowly(format, oracle, &x, weights.as_deref());
            for isa in Isa::available() {
                let mut got = vec![0xa5; want.len()];
                format.encode(isa, &x, row_len, weights.as_deref(), &mut got);
                let differ = got.iter().zip(&want).position(|(a, b)| a != b);
                let weighted = importance.map_or("none", |(name, _)| name);
                let (format, isa) = (format.name(), isa.name());
                assert_eq!(differ, None, "{format} on {isa}: values {name}, importance {weighted}");
            }
        }
    }
}

/// Checks that the decoder gives the oracle's bits for arbitrary bytes, the halves at `halves_at` being finite.
pub(super) fn check_decode(format: &dyn BlockFormat, halves_at: &[usize], oracle: DecodeBlock) {
    let mut random = Random(0x1234_5678_9abc_def1);
    let (len, n_bytes, n_blocks) = (format.block_len(), format.block_bytes(), 67);
    let mut bytes: Vec<u8> = (0..n_blocks * n_bytes).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(n_bytes) {
        for at in halves_at {
            let d = f16::from_bits(random.next() as u16);
            let d = if d.is_finite() { d } else { f16::MAX };
            block[*at..*at + 2].copy_from_slice(&d.to_le_bytes());
        }
    }
    let mut want = vec![0.0; n_blocks * len];
    for (block, out) in bytes.chunks_exact(n_bytes).zip(want.chunks_exact_mut(len)) {
        oracle(block, out);
    }
    for isa in Isa::available() {
        let mut got = vec![f32::NAN; want.len()];
        format.decode(isa, &bytes, &mut got);
        let differ = got.iter().zip(&want).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differ, None, "{} on {}", format.name(), isa.name());
    }
}
