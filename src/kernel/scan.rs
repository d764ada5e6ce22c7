//! One pass over values: is all of it finite, and how far is a decoded copy from its original.

use super::Isa;
use super::simd::{Kernel, Simd, dispatch};

/// Returns the index of the first NaN or infinity.
pub fn first_non_finite(isa: Isa, values: &[f32]) -> Option<usize> {
    first_beyond(isa, values, f32::MAX)
}

/// Returns the index of the first value that is NaN or whose magnitude is above `limit`, a finite number >= 0.
pub fn first_beyond(isa: Isa, values: &[f32], limit: f32) -> Option<usize> {
    dispatch(isa, FirstBeyond(values, limit))
}

struct FirstBeyond<'a>(&'a [f32], f32);

impl Kernel for FirstBeyond<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Option<usize> {
        // long enough to hide the test, short enough that looking again costs nothing
        const STRETCH: usize = 512;
        let limit = self.1;
        let is_within = |value: &f32| value.abs() <= limit;
        for (start, stretch) in self.0.chunks(STRETCH).enumerate() {
            let vectors = stretch.chunks_exact(S::LANES);
            let rest = vectors.remainder();
            let magnitude = s.splat_i32(i32::MAX);
            let mut largest = s.splat_i32(0);
            for vector in vectors {
                largest = s.max_i32(largest, s.to_bits(s.load(vector)) & magnitude);
            }
            // as integers, magnitudes keep their order, and NaN lies above infinity
            let any = s.any(s.gt_i32(largest, s.splat_i32(limit.to_bits() as i32)));
            if any || !rest.iter().all(is_within) {
                let within = stretch.iter().position(|value| !is_within(value));
                return within.map(|index| start * STRETCH + index);
            }
        }
        None
    }
}

/// Sums for a relative error: `sqrt(squared_error / squared)` is the relative RMSE.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSums {
    /// Sum of (original - decoded)^2.
    pub squared_error: f64,
    /// Sum of original^2.
    pub squared: f64,
}

impl std::ops::AddAssign for ErrorSums {
    fn add_assign(&mut self, other: Self) {
        self.squared_error += other.squared_error;
        self.squared += other.squared;
    }
}

/// Returns the error sums of `decoded` against `original`, in f64.
///
/// Element i is added to virtual lane i % 16, and the lanes by one fixed tree, so the bits depend on the
/// slices alone. A caller that adds up the sums of several slices must keep to one split and one order.
///
/// # Panics
/// If the lengths differ.
pub fn error_sums(isa: Isa, original: &[f32], decoded: &[f32]) -> ErrorSums {
    assert_eq!(original.len(), decoded.len());
    let (xs, x_rest) = original.as_chunks();
    let (ys, y_rest) = decoded.as_chunks();
    let mut lanes = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => {
            assert!(Isa::detect() >= isa, "the caller checked that the machine has {}", isa.name());
            // SAFETY: the assertion proves that the CPU has AVX2.
            unsafe { x86::lane_sums(xs, ys) }
        }
        _ => lane_sums(xs, ys),
    };
    for (lane, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
        lanes.add(lane, *x, *y);
    }
    ErrorSums { squared_error: tree_sum(lanes.errors), squared: tree_sum(lanes.squares) }
}

const VIRTUAL_LANES: usize = 16;

/// The sums of every virtual lane.
struct LaneSums {
    errors: [f64; VIRTUAL_LANES],
    squares: [f64; VIRTUAL_LANES],
}

impl LaneSums {
    #[inline(always)]
    fn add(&mut self, lane: usize, x: f32, y: f32) {
        let value = f64::from(x);
        let error = value - f64::from(y);
        self.errors[lane] += error * error;
        self.squares[lane] += value * value;
    }
}

fn lane_sums(xs: &[[f32; VIRTUAL_LANES]], ys: &[[f32; VIRTUAL_LANES]]) -> LaneSums {
    let mut sums = LaneSums { errors: [0.0; VIRTUAL_LANES], squares: [0.0; VIRTUAL_LANES] };
    for (x, y) in xs.iter().zip(ys) {
        for lane in 0..VIRTUAL_LANES {
            sums.add(lane, x[lane], y[lane]);
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LaneSums, VIRTUAL_LANES};
    use std::arch::x86_64::*;

    /// [`super::lane_sums`] in vectors; the compiler's own vectors are four times slower.
    #[target_feature(enable = "avx2")]
    pub fn lane_sums(xs: &[[f32; VIRTUAL_LANES]], ys: &[[f32; VIRTUAL_LANES]]) -> LaneSums {
        const WIDTH: usize = 4;
        let mut errors = [_mm256_setzero_pd(); VIRTUAL_LANES / WIDTH];
        let mut squares = errors;
        for (x, y) in xs.iter().zip(ys) {
            for i in 0..VIRTUAL_LANES / WIDTH {
                // SAFETY: values WIDTH * i .. WIDTH * (i + 1) of 16 are read; the loads need no alignment.
                let (x, y) = unsafe {
                    let at = WIDTH * i;
                    (_mm_loadu_ps(x.as_ptr().add(at)), _mm_loadu_ps(y.as_ptr().add(at)))
                };
                let value = _mm256_cvtps_pd(x);
                let error = _mm256_sub_pd(value, _mm256_cvtps_pd(y));
                errors[i] = _mm256_add_pd(errors[i], _mm256_mul_pd(error, error));
                squares[i] = _mm256_add_pd(squares[i], _mm256_mul_pd(value, value));
            }
        }
        let mut sums = LaneSums { errors: [0.0; VIRTUAL_LANES], squares: [0.0; VIRTUAL_LANES] };
        for i in 0..VIRTUAL_LANES / WIDTH {
            // SAFETY: as above, written.
            unsafe {
                _mm256_storeu_pd(sums.errors.as_mut_ptr().add(WIDTH * i), errors[i]);
                _mm256_storeu_pd(sums.squares.as_mut_ptr().add(WIDTH * i), squares[i]);
            }
        }
        sums
    }
}

fn tree_sum(mut lanes: [f64; VIRTUAL_LANES]) -> f64 {
    let mut width = VIRTUAL_LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, mut state: u32) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn finds_the_first_non_finite_value_at_any_place() {
        for isa in Isa::available() {
            for n in [0, 1, 15, 16, 17, 511, 512, 513, 1500] {
                let clean = noise(n, 7);
                assert_eq!(first_non_finite(isa, &clean), None);
                for at in 0..n {
                    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xff80_0001)] {
                        let mut values = clean.clone();
                        values[at] = bad;
                        values[n - 1] = f32::NAN;
                        assert_eq!(first_non_finite(isa, &values), Some(at), "{n} {}", isa.name());
                    }
                }
            }
            assert_eq!(first_non_finite(isa, &[f32::MAX; 40]), None);
            assert_eq!(first_non_finite(isa, &[f32::MIN; 40]), None);
        }
    }

    #[test]
    fn error_sums_are_exact_on_small_integers() {
        let original: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let decoded: Vec<f32> = (0..100).map(|i| (i + i % 3) as f32).collect();
        let squared_error = (0..100).map(|i| f64::from((i % 3) * (i % 3))).sum();
        let want = ErrorSums { squared_error, squared: 328_350.0 };
        for isa in Isa::available() {
            assert_eq!(error_sums(isa, &original, &decoded), want);
        }
    }

    #[test]
    fn error_sums_have_the_same_bits_on_every_isa() {
        for n in [0, 1, 16, 33, 4096, 5003] {
            let (x, y) = (noise(n, 1), noise(n, 2));
            let want = error_sums(Isa::Portable, &x, &y);
            let bits = |sums: ErrorSums| [sums.squared_error.to_bits(), sums.squared.to_bits()];
            let plain: f64 = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            // two summation orders of n terms below 1: apart by less than n * n * 2^-53
            assert!((want.squared - plain).abs() <= (n * n) as f64 * f64::EPSILON);
            for isa in Isa::available() {
                assert_eq!(bits(error_sums(isa, &x, &y)), bits(want), "{n} {}", isa.name());
            }
        }
    }
}
