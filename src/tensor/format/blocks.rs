//! What all block encoders share: argument checks and the walk over rows.

use half::f16;

use super::BlockFormat;
use crate::kernel::simd::Simd;

/// Checks that `n_weights` weights are whole blocks and fill `n_bytes` bytes.
///
/// # Panics
/// If not: a caller's bug.
pub(super) fn check_lengths(format: &dyn BlockFormat, n_weights: usize, n_bytes: usize) {
    assert_eq!(
        n_weights % format.block_len(),
        0,
        "{}: {n_weights} weights are not whole blocks",
        format.name()
    );
    let expected = n_weights / format.block_len() * format.block_bytes();
    assert_eq!(n_bytes, expected, "{}: wrong byte count for {n_weights} weights", format.name());
}

/// What [`BlockFormat::encode`] reads.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    weights: &'a [f32],
    row_len: usize,
    importance: Option<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// Returns the rows after checking all lengths.
    ///
    /// # Panics
    /// If the lengths disagree: a caller's bug.
    pub(super) fn new(
        format: &dyn BlockFormat,
        weights: &'a [f32],
        row_len: usize,
        importance: Option<&'a [f32]>,
        n_bytes: usize,
    ) -> Rows<'a> {
        check_lengths(format, weights.len(), n_bytes);
        assert_eq!(row_len % format.block_len(), 0, "{}: rows are not whole blocks", format.name());
        assert!(weights.len().is_multiple_of(row_len), "{}: rows are not whole", format.name());
        if let Some(importance) = importance {
            assert_eq!(importance.len(), row_len, "{}: one importance per column", format.name());
        }
        Rows { weights, row_len, importance }
    }

    pub(super) fn weights(&self) -> &'a [f32] {
        self.weights
    }

    pub(super) fn row_len(&self) -> usize {
        self.row_len
    }

    pub(super) fn has_importance(&self) -> bool {
        self.importance.is_some()
    }

    /// Returns `buffer.len()` weights from `start`: in place, or past the last row in `buffer`, followed by its zeros.
    #[inline(always)]
    pub(super) fn weights_tile<'b>(&self, start: usize, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        let x = &self.weights[start..];
        if x.len() >= buffer.len() {
            return &x[..buffer.len()];
        }
        buffer[..x.len()].copy_from_slice(x);
        buffer
    }

    /// Returns the importance of `buffer.len()` weights from `start`, in `buffer` if they cross a row's end.
    #[inline(always)]
    pub(super) fn importance_tile<'b>(&self, start: usize, buffer: &'b mut [f32]) -> Option<&'b [f32]>
    where
        'a: 'b,
    {
        let importance = self.importance?;
        let column = start % self.row_len;
        if column + buffer.len() <= self.row_len {
            return Some(&importance[column..][..buffer.len()]);
        }
        let next_rows = importance.iter().cycle();
        for (out, value) in buffer.iter_mut().zip(importance[column..].iter().chain(next_rows)) {
            *out = *value;
        }
        Some(buffer)
    }

    /// Returns the importance of `len` weights from `start`, which do not cross a row's end.
    #[inline(always)]
    pub(super) fn importance(&self, start: usize, len: usize) -> Option<&'a [f32]> {
        self.importance.map(|importance| &importance[start % self.row_len..][..len])
    }
}

/// Returns the half nearest to a scale, even on ties; NaN (from sums that overflow) as x86 makes it, on every machine.
#[inline(always)]
pub(super) fn half_scale(d: f32) -> f16 {
    const X86_NAN: f16 = f16::from_bits(0xfe00);
    if d.is_nan() { X86_NAN } else { f16::from_f32(d) }
}

/// Writes the sum of squares of each run of `len` weights, summed in order. `len` is a multiple of 16.
#[inline(always)]
pub(super) fn sums_of_squares<S: Simd>(s: S, x: &[f32], len: usize, sums: &mut [f32]) {
    let lanes = S::LANES * len;
    let whole = sums.len() / S::LANES;
    for (x, sums) in x.chunks_exact(lanes).zip(sums.chunks_exact_mut(S::LANES)) {
        let mut sum = s.splat(0.0);
        for at in (0..len).step_by(16) {
            let mut tile = [sum; 16];
            s.transpose(&x[at..], len, &mut tile);
            for v in tile {
                sum = sum + v * v;
            }
        }
        s.store(sum, sums);
    }
    for (x, sum) in x.chunks_exact(len).zip(sums).skip(whole * S::LANES) {
        *sum = x.iter().fold(0.0, |sum, v| sum + v * v);
    }
}
