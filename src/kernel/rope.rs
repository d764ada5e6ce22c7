//! Rotary position embedding (arXiv:2104.09864).

use std::sync::{PoisonError, RwLock};

use super::Compute;
use super::disjoint::for_row_blocks;
use super::math::double;
use super::simd::{Kernel, Simd, dispatch};

/// Returns the frequencies without scaling: 1 / theta^(2i / dim) for i < dim / 2, radians per position.
///
/// As transformers does in f32: the exponent 2i / dim, the power, and its reciprocal are each rounded to f32.
pub fn inv_freq(theta: f32, dim: usize) -> Vec<f32> {
    let power = |i: usize| double::pow(f64::from(theta), f64::from((2 * i) as f32 / dim as f32)) as f32;
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

    /// Makes the rows up to `position`.
    fn grow_to(&self, position: u32) {
        /// Positions made at once.
        const STEP: usize = 256;
        let row_len = self.dim();
        let n_wanted = position as usize + 1;
        if self.rows.read().unwrap_or_else(PoisonError::into_inner).len() >= n_wanted * row_len {
            return;
        }
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let n_made = rows.len() / row_len;
        for position in n_made..n_wanted.next_multiple_of(STEP) {
            let angles = self.inv_freq.iter().map(|freq| double::sin_cos(f64::from(position as f32 * freq)));
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
            dispatch(compute.isa, Rotate { heads: x, head_dim, angles });
        }
    });
}

struct Rotate<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    angles: &'a [f32],
}

impl Kernel for Rotate<'_> {
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
                s.store(a * cos - b * sin, &mut low[at..]);
                s.store(b * cos + a * sin, &mut high[at..]);
            }
            for i in body..half {
                let (a, b) = (low[i], high[i]);
                low[i] = a * cosines[i] - b * sines[i];
                high[i] = b * cosines[i] + a * sines[i];
            }
        }
    }
}
