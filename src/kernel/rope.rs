//! Rotary position embedding (arXiv:2104.09864).

use std::sync::{PoisonError, RwLock};

use super::Compute;
use super::disjoint::for_row_blocks;
use super::math64;
use super::simd::{Kernel, Simd, dispatch};

/// Returns the frequencies without scaling: 1 / theta^(2i / dim) for i < dim / 2, radians per position.
///
/// As transformers does in f32: the exponent 2i / dim, the power, and its reciprocal are each rounded to f32.
pub fn inv_freq(theta: f32, dim: usize) -> Vec<f32> {
    let power = |i: usize| math64::pow(f64::from(theta), f64::from((2 * i) as f32 / dim as f32)) as f32;
    (0..dim / 2).map(|i| 1.0 / power(i)).collect()
}

/// Cosines and sines per position and frequency, made as positions are met.
#[derive(Debug)]
pub struct RopeTable {
    inv_freq: Vec<f32>,
    attention_factor: f32,
    /// Per position, from 0: the cosines of all frequencies, then the sines.
    rows: RwLock<Vec<f32>>,
}

impl RopeTable {
    /// Returns the table of those frequencies in radians per position; sines and cosines come multiplied by
    /// `attention_factor` (1 except in yarn and longrope).
    ///
    /// As transformers does: the angle is the f32 product of the position and the frequency, its sine and
    /// cosine are rounded to f32 and then multiplied by the factor.
    pub fn new(inv_freq: &[f32], attention_factor: f32) -> Self {
        RopeTable { inv_freq: inv_freq.to_vec(), attention_factor, rows: RwLock::default() }
    }

    /// Returns how many values of a head are rotated: two per frequency.
    pub fn dim(&self) -> usize {
        2 * self.inv_freq.len()
    }

    /// Returns the rows of the positions below `n`: per position the cosines of all frequencies, then the sines.
    pub fn rows(&self, n: u32) -> Vec<f32> {
        let Some(last) = n.checked_sub(1) else { return Vec::new() };
        self.grow_to(last);
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        rows[..n as usize * self.dim()].to_vec()
    }

    /// Makes the rows up to `position`.
    fn grow_to(&self, position: u32) {
        /// Positions made at once.
        const STEP: usize = 256;
        let row_len = self.dim();
        if row_len == 0 {
            return;
        }
        let n_wanted = position as usize + 1;
        if self.rows.read().unwrap_or_else(PoisonError::into_inner).len() >= n_wanted * row_len {
            return;
        }
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let n_made = rows.len() / row_len;
        for position in n_made..n_wanted.next_multiple_of(STEP) {
            let angles = self.inv_freq.iter().map(|freq| math64::sin_cos(f64::from(position as f32 * freq)));
            let (sines, cosines): (Vec<_>, Vec<_>) = angles.unzip();
            rows.extend(cosines.into_iter().chain(sines).map(|value| value as f32 * self.attention_factor));
        }
    }
}

/// Rotates x in place; x is `[T, H, head_dim]`, row t at position `positions[t]`.
///
/// Half-split layout, as in transformers: of the first `dim = table.dim()` values of a head, value i is paired with
/// value i + dim / 2: `(a, b)` becomes `(a cos - b sin, b cos + a sin)`, every product and sum rounded. The
/// values from dim on stay.
///
/// # Panics
/// If x is no whole rows, or the table rotates more than `head_dim` values.
pub fn rope(compute: &Compute, x: &mut [f32], head_dim: usize, positions: &[u32], table: &RopeTable) {
    turn::<false>(compute, x, head_dim, positions, table);
}

/// Replaces the gradient of [`rope`]'s result by that of its x: `(a, b)` becomes `(a cos + b sin, b cos - a sin)`.
///
/// # Panics
/// As [`rope`].
pub fn rope_backward(
    compute: &Compute,
    dy: &mut [f32],
    head_dim: usize,
    positions: &[u32],
    table: &RopeTable,
) {
    turn::<true>(compute, dy, head_dim, positions, table);
}

fn turn<const BACK: bool>(
    compute: &Compute,
    x: &mut [f32],
    head_dim: usize,
    positions: &[u32],
    table: &RopeTable,
) {
    let Some(last) = positions.iter().max() else {
        return assert!(x.is_empty());
    };
    let row_len = x.len() / positions.len();
    assert!(x.len() == row_len * positions.len() && row_len.is_multiple_of(head_dim));
    assert!(table.dim() <= head_dim);
    if table.dim() == 0 {
        return;
    }
    table.grow_to(*last);
    let rows = table.rows.read().unwrap_or_else(PoisonError::into_inner);
    for_row_blocks(&compute.team, x, row_len, |first_row, x| {
        for (x, position) in x.chunks_exact_mut(row_len).zip(&positions[first_row..]) {
            let angles = &rows[*position as usize * table.dim()..][..table.dim()];
            dispatch(compute.isa, Rotate::<BACK> { heads: x, head_dim, angles });
        }
    });
}

/// Rotation by the angles, or back.
struct Rotate<'a, const BACK: bool> {
    heads: &'a mut [f32],
    head_dim: usize,
    angles: &'a [f32],
}

impl<const BACK: bool> Kernel for Rotate<'_, BACK> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.angles.len() / 2;
        let (cosines, sines) = self.angles.split_at(half);
        let body = half / S::LANES * S::LANES;
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            let (low, high) = head.split_at_mut(half);
            for at in (0..body).step_by(S::LANES) {
                let (a, b) = (s.load(&low[at..]), s.load(&high[at..]));
                let (cos, sin) = (s.load(&cosines[at..]), s.load(&sines[at..]));
                let sin = if BACK { -sin } else { sin };
                s.store(a * cos - b * sin, &mut low[at..]);
                s.store(b * cos + a * sin, &mut high[at..]);
            }
            for i in body..half {
                let (a, b) = (low[i], high[i]);
                let (cos, sin) = (cosines[i], if BACK { -sines[i] } else { sines[i] });
                low[i] = a * cos - b * sin;
                high[i] = b * cos + a * sin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Isa, Team};

    fn noise(n: usize) -> Vec<f32> {
        let mut state = 0x1234_5678_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn rotations_are_near_f64_and_equal_on_every_isa_and_thread_count() {
        for (n_heads, head_dim, dim) in [(4, 64, 64), (2, 80, 20), (1, 10, 10), (3, 256, 128), (600, 32, 32)]
        {
            let positions = [0, 1, 511, 5, 8191, 40_000];
            let freqs = inv_freq(10_000.0, dim);
            let x = noise(positions.len() * n_heads * head_dim);
            let table = RopeTable::new(&freqs, 1.25);
            let mut reference: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let compute = Compute { isa, team: Team::new(threads).unwrap() };
                    let mut y = x.clone();
                    rope(&compute, &mut y, head_dim, &positions, &table);
                    let want = reference.get_or_insert_with(|| y.clone());
                    assert!(y.iter().zip(want).all(|(y, want)| y.to_bits() == want.to_bits()));
                }
            }
            let y = reference.unwrap();
            for (i, (x, y)) in x.chunks_exact(head_dim).zip(y.chunks_exact(head_dim)).enumerate() {
                let position = positions[i / n_heads] as f32;
                for (d, y) in y.iter().enumerate() {
                    if d >= dim {
                        assert_eq!(*y, x[d]);
                        continue;
                    }
                    let angle = f64::from(position * freqs[d % (dim / 2)]);
                    let (a, b) = (f64::from(x[d]), f64::from(x[(d + dim / 2) % dim]));
                    let sine = if d < dim / 2 { -angle.sin() } else { angle.sin() };
                    let want = 1.25 * (a * angle.cos() + b * sine);
                    // three roundings of values below 2.5
                    assert!((f64::from(*y) - want).abs() < 4e-7, "{y} for {want}");
                }
            }
        }
    }

    /// torch 2.15: `1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)`
    #[test]
    fn frequencies_are_those_of_torch() {
        assert_eq!(inv_freq(10_000.0, 64), TORCH_10000_64);
        assert_eq!(inv_freq(500_000.0, 64), TORCH_500000_64);
        assert!(inv_freq(10_000.0, 0).is_empty());
    }

    #[rustfmt::skip]
    const TORCH_10000_64: [f32; 32] = [
        1.0, 0.749_894_2, 0.562_341_33, 0.421_696_5, 0.316_227_76, 0.237_137_36, 0.177_827_94,
        0.133_352_15, 0.1, 0.074_989_416, 0.056_234_13, 0.042_169_65, 0.031_622_78, 0.023_713_736,
        0.017_782_794, 0.013_335_215, 0.01, 0.007_498_942_3, 0.005_623_413_2, 0.004_216_965,
        0.003_162_277_9, 0.002_371_373_8, 0.001_778_279_4, 0.001_333_521_4, 0.001, 0.000_749_894_2,
        0.000_562_341_3, 0.000_421_696_5, 0.000_316_227_8, 0.000_237_137_38, 0.000_177_827_94,
        0.000_133_352_15,
    ];

    #[rustfmt::skip]
    const TORCH_500000_64: [f32; 32] = [
        1.0, 0.663_601_3, 0.440_366_63, 0.292_227_83, 0.193_922_76, 0.128_687_38, 0.085_397_1,
        0.056_669_62, 0.037_606_03, 0.024_955_409, 0.016_560_44, 0.010_989_529, 0.007_292_665,
        0.004_839_421_2, 0.003_211_446, 0.002_131_119_6, 0.001_414_213_4, 0.000_938_473_85,
        0.000_622_772_44, 0.000_413_272_56, 0.000_274_248_2, 0.000_181_991_43, 0.000_120_769_74,
        8.014_295e-5, 5.318_295_7e-5, 3.529_227_6e-5, 2.341_999_8e-5, 1.554_154e-5, 1.031_338_5e-5,
        6.843_975_4e-6, 4.541_670_5e-6, 3.013_858e-6,
    ];

    #[test]
    fn rows_are_those_of_the_positions_asked_for() {
        let table = RopeTable::new(&inv_freq(10_000.0, 8), 1.0);
        assert!(table.rows(0).is_empty());
        let (few, many) = (table.rows(3), table.rows(300));
        assert_eq!((few.len(), many.len()), (24, 2400));
        assert_eq!(few[..4], [1.0; 4], "cosines of position 0");
        assert_eq!(few, many[..24]);
        assert!(RopeTable::new(&[], 1.0).rows(5).is_empty());
    }

    #[test]
    fn sines_and_cosines_are_rounded_once() {
        let table = RopeTable::new(&inv_freq(10_000.0, 128), 1.0);
        table.grow_to(5000);
        let rows = table.rows.read().unwrap();
        assert!(rows.len() >= 5001 * 128);
        let mut n_differ = 0;
        for (position, row) in rows.chunks_exact(128).enumerate() {
            for (i, freq) in table.inv_freq.iter().enumerate() {
                let angle = f64::from(position as f32 * freq);
                n_differ += usize::from(row[i] != angle.cos() as f32 || row[64 + i] != angle.sin() as f32);
            }
        }
        // libm and ours, both within an ulp of f64, round to different f32 about once in 2^28
        assert!(n_differ <= 1, "{n_differ}");
    }
}
