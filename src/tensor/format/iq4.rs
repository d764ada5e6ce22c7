//! The 16-value codebook of IQ4_NL and IQ4_XS and the search for sub-block scales, one sub-block per lane.

use super::symmetric::{EPS, signed_max};
use crate::kernel::simd::Simd;

/// Weights per sub-block.
pub(super) const SUB_LEN: usize = 32;
/// Bytes of a sub-block's indices.
pub(super) const INDEX_BYTES: usize = SUB_LEN / 2;

/// The codebook: levels denser near zero, as trained weights are.
pub(crate) const LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

const LEVELS_F32: [f32; 16] = {
    let mut levels = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        levels[i] = LEVELS[i] as f32;
        i += 1;
    }
    levels
};

/// Adding it rounds |v| < 2^26 to a multiple of [`CELL`] and leaves the quotient in the low bits.
const CELL_MAGIC: f32 = 1.5 * (1 << 26) as f32;
const CELL: i32 = 8;
/// Values are cut to this before the look-up, so that 32 cells are enough: 14 above zero, 17 below.
const TOP: f32 = 112.0;
const BOTTOM: f32 = -136.0;
/// Bits of a cell's word that hold an index; thresholds are multiples of 1/2 and leave them 0.
const INDEX_BITS: i32 = 15;

/// Per cell (centre 8 c, at index c modulo 32) the threshold in it, and in the low bits the index of the level below
/// that threshold. The threshold between two levels is their mean, at which the upper one is taken; a cell
/// has one at most, and none lies on a border between cells.
const CELLS: [f32; 32] = {
    let mut cells = [0.0f32; 32];
    let mut c = -17;
    while c <= 14 {
        let (low, high) = ((CELL * c - CELL / 2) as f32, (CELL * c + CELL / 2) as f32);
        let mut index = 0; // thresholds below the cell
        while index < 15 && threshold(index) < low {
            index += 1;
        }
        let has_one = index < 15 && threshold(index) < high;
        let bound = if has_one { threshold(index) } else { 4.0 * TOP };
        cells[(c & 31) as usize] = f32::from_bits(bound.to_bits() | index as u32);
        c += 1;
    }
    cells
};

const fn threshold(index: usize) -> f32 {
    0.5 * (LEVELS[index] as f32 + LEVELS[index + 1] as f32)
}

/// Returns the index of the nearest level in the low 4 bits (others are arbitrary), the upper level on ties.
/// `v <= TOP` and `v >= BOTTOM`.
#[inline(always)]
fn index_of_cut<S: Simd>(s: S, v: S::F32) -> S::I32 {
    let cell = s.to_bits(v + s.splat(CELL_MAGIC));
    let word = s.to_bits(s.lookup32(&CELLS, cell));
    let bound = s.from_bits(word & s.splat_i32(!INDEX_BITS));
    s.select_i32(s.ge(v, bound), word + s.splat_i32(1), word)
}

/// Returns the index of the nearest level, the upper one on ties; NaN gives the last.
#[inline(always)]
fn index<S: Simd>(s: S, v: S::F32) -> S::I32 {
    let cut = s.max(s.min(v, s.splat(TOP)), s.splat(BOTTOM));
    index_of_cut(s, cut) & s.splat_i32(INDEX_BITS)
}

/// Reads `LANES` sub-blocks that lie one after the other: lane j of vector i is element i of sub-block j.
#[inline(always)]
fn sub_blocks<S: Simd>(s: S, x: &[f32]) -> [S::F32; SUB_LEN] {
    let mut out = [s.splat(0.0); SUB_LEN];
    s.transpose(x, SUB_LEN, &mut out);
    out
}

/// Which weights' squares are averaged into sigma^2.
pub(super) enum Sigma2<S: Simd> {
    /// Those of the sub-block.
    PerSubBlock,
    /// Given for every lane's sub-block.
    Given(S::F32),
}

/// `LANES` sub-blocks, transposed.
struct Tile<S: Simd> {
    x: [S::F32; SUB_LEN],
    w: [S::F32; SUB_LEN],
}

impl<S: Simd> Tile<S> {
    /// Returns the weights with their weight in the fit: x^2, or importance * sqrt(sigma2 + x^2).
    #[inline(always)]
    fn new(s: S, x: &[f32], importance: Option<&[f32]>, sigma2: Sigma2<S>) -> Tile<S> {
        let x = sub_blocks(s, x);
        let mut w = x;
        let mut sum = s.splat(0.0);
        for w in &mut w {
            *w = *w * *w;
            sum = sum + *w;
        }
        if let Some(importance) = importance {
            let sigma2 = match sigma2 {
                Sigma2::PerSubBlock => sum * s.splat(2.0 / SUB_LEN as f32),
                Sigma2::Given(sigma2) => sigma2,
            };
            for (w, importance) in w.iter_mut().zip(sub_blocks(s, importance)) {
                *w = importance * s.sqrt(sigma2 + *w);
            }
        }
        Tile { x, w }
    }

    /// Returns the sums of w q x and of w q q, for the levels q nearest to inverse * x.
    #[inline(always)]
    fn sums(&self, s: S, inverse: S::F32) -> (S::F32, S::F32) {
        let (mut qx, mut qq) = (s.splat(0.0), s.splat(0.0));
        for (&x, &w) in self.x.iter().zip(&self.w) {
            // inverse * x is at most 134 in magnitude, so above BOTTOM
            let q = s.lookup16(&LEVELS_F32, index_of_cut(s, s.min(inverse * x, s.splat(TOP))));
            let wq = w * q;
            qx = qx + wq * x;
            qq = qq + wq * q;
        }
        (qx, qq)
    }

    /// Returns every lane's best scale d of x ~ d * level, of 16 tries around max / -127.
    #[inline(always)]
    fn search_scale(&self, s: S) -> S::F32 {
        let zero = s.splat(0.0);
        let max = signed_max(s, &self.x);
        let negligible = s.lt(s.abs(max), s.splat(EPS));
        let max = s.select(negligible, s.splat(1.0), max);
        let lowest = LEVELS_F32[0];
        let (qx, qq) = self.sums(s, s.splat(1.0) / (-max / s.splat(lowest)));
        let mut d = s.select(s.gt(qq, zero), qx / qq, zero);
        let mut best = d * qx;
        for step in -7..=7i32 {
            let (qx, qq) = self.sums(s, s.splat(step as f32 + lowest) / max);
            let better = s.gt(qq, zero) & s.gt(qx * qx, best * qq);
            d = s.select(better, qx / qq, d);
            best = s.select(better, d * qx, best);
        }
        s.select(negligible, zero, d)
    }
}

/// Returns the best scales of `LANES` sub-blocks that lie one after the other, under weights x^2
/// or importance * sqrt(sigma2 + x^2).
#[inline(always)]
pub(super) fn search_scales<S: Simd>(
    s: S,
    x: &[f32],
    importance: Option<&[f32]>,
    sigma2: Sigma2<S>,
) -> S::F32 {
    Tile::new(s, x, importance, sigma2).search_scale(s)
}

/// Writes the indices of one sub-block: j in the low nibble with j + 16 in the high one.
#[inline(always)]
pub(super) fn store_indices<S: Simd>(s: S, x: &[f32], inverse: f32, out: &mut [u8]) {
    let inverse = s.splat(inverse);
    for j in (0..INDEX_BYTES).step_by(S::LANES) {
        let low = index(s, inverse * s.load(&x[j..]));
        let high = index(s, inverse * s.load(&x[INDEX_BYTES + j..]));
        s.store_u8(low | s.shl::<4>(high), &mut out[j..]);
    }
}

/// Decodes one sub-block.
#[inline(always)]
pub(super) fn decode<S: Simd>(s: S, indices: &[u8], scale: f32, out: &mut [f32]) {
    let scale = s.splat(scale);
    for j in (0..INDEX_BYTES).step_by(S::LANES) {
        let pair = s.load_u8(&indices[j..]);
        s.store(scale * s.lookup16(&LEVELS_F32, pair), &mut out[j..]);
        s.store(scale * s.lookup16(&LEVELS_F32, s.shr::<4>(pair)), &mut out[INDEX_BYTES + j..]);
    }
}

/// Returns 1 / d, 0 for 0.
#[inline(always)]
pub(super) fn inverse_of(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

#[cfg(test)]
pub(super) mod oracle {
    use super::super::oracle_symmetric::signed_max;
    use super::LEVELS;

    /// Returns the index of the nearest level, the upper one on ties; NaN gives the last.
    pub fn nearest_level(v: f32) -> u8 {
        let level = |i: usize| f32::from(LEVELS[i]);
        let upper = (1..15).find(|i| v < level(*i)).unwrap_or(15);
        let lower_is_nearer = v - level(upper - 1) < level(upper) - v;
        upper as u8 - u8::from(lower_is_nearer)
    }

    /// Returns 2/n times the sum of squares, summed in order.
    pub fn sigma2(x: &[f32]) -> f32 {
        x.iter().fold(0.0f32, |sum, v| sum + v * v) * (2.0 / x.len() as f32)
    }

    /// Returns the best scale d of `x ~ d * level`, of 16 tries.
    pub fn search_scale(x: &[f32], importance: Option<&[f32]>, sigma2: f32) -> f32 {
        let max = signed_max(x);
        if max.abs() < 1e-15 {
            return 0.0;
        }
        let weight = |i: usize| match importance {
            Some(importance) => importance[i] * (sigma2 + x[i] * x[i]).sqrt(),
            None => x[i] * x[i],
        };
        let sums = |inverse: f32| {
            let (mut qx, mut qq) = (0.0f32, 0.0f32);
            for i in 0..32 {
                let q = f32::from(LEVELS[nearest_level(inverse * x[i]) as usize]);
                qx += weight(i) * q * x[i];
                qq += weight(i) * q * q;
            }
            (qx, qq)
        };
        let (qx, qq) = sums(1.0 / (-max / -127.0));
        let mut d = if qq > 0.0 { qx / qq } else { 0.0 };
        let mut best = d * qx;
        for step in -7..=7 {
            let (qx, qq) = sums((step - 127) as f32 / max);
            if qq > 0.0 && qx * qx > best * qq {
                d = qx / qq;
                best = d * qx;
            }
        }
        d
    }

    /// Packs 32 indices, two to a byte: j in the low nibble with j + 16 in the high one.
    pub fn pack(x: &[f32], inverse: f32, out: &mut [u8]) {
        for j in 0..16 {
            out[j] = nearest_level(inverse * x[j]) | nearest_level(inverse * x[j + 16]) << 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Isa;
    use crate::kernel::simd::{Kernel, dispatch};

    struct Indices<'a>(&'a [f32]);

    impl Kernel for Indices<'_> {
        type Output = Vec<u8>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<u8> {
            let mut out = vec![0; self.0.len()];
            for (v, out) in self.0.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                s.store_u8(index(s, s.load(v)), out);
            }
            out
        }
    }

    #[test]
    fn the_table_finds_the_nearest_level_of_every_value() {
        let mut values = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0];
        // a step of 1/2 passes all levels, thresholds and cell borders
        for halves in -600..=600i32 {
            let middle = halves as f32 / 2.0;
            values.extend([middle, middle.next_down(), middle.next_up()]);
        }
        for bits in (0..=u32::MAX).step_by(40_009) {
            values.push(f32::from_bits(bits));
        }
        values.resize(values.len().next_multiple_of(16), 0.0);
        let want: Vec<u8> = values.iter().map(|v| oracle::nearest_level(*v)).collect();
        for isa in Isa::available() {
            let got = dispatch(isa, Indices(&values));
            for ((value, want), got) in values.iter().zip(&want).zip(&got) {
                assert_eq!(want, got, "{value:e} on {}", isa.name());
            }
        }
    }
}
