//! Clipping by the global norm (arXiv:1211.5063).

use std::sync::Mutex;

use crate::kernel::Compute;

/// Values whose squares are summed by one task.
const CHUNK: usize = 1 << 16;
const LANES: usize = 8;

/// Returns the 2-norm of all gradients.
///
/// Squares are summed in f64: value i of a chunk of 65536 in lane i % 8, ascending, the lanes by a tree, the chunks
/// ascending. So the bits do not depend on the number of threads.
pub fn global_norm(compute: &Compute, gradients: &[f32]) -> f64 {
    let sums: Vec<Mutex<f64>> = gradients.chunks(CHUNK).map(|_| Mutex::new(0.0)).collect();
    compute.team.run(sums.len(), |task| {
        let end = gradients.len().min((task + 1) * CHUNK);
        let sum = sum_of_squares(&gradients[task * CHUNK..end]);
        *sums[task].lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = sum;
    });
    let sums = sums.into_iter().map(|sum| sum.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()));
    sums.fold(0.0, |total, sum| total + sum).sqrt()
}

fn sum_of_squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    for block in values.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Returns the factor that brings gradients of that norm to at most `max_norm`: torch's
/// `clip_grad_norm_`, `min(1, max_norm / (norm + 1e-6))`. NaN if the norm is.
pub fn clip_factor(norm: f64, max_norm: f64) -> f32 {
    let factor = max_norm / (norm + 1e-6);
    if factor > 1.0 { 1.0 } else { factor as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Isa, Team};

    #[test]
    fn the_norm_is_that_of_all_values_whatever_the_threads() {
        let values: Vec<f32> = (0..3 * CHUNK + 5).map(|i| (i % 97) as f32 / 31.0 - 1.5).collect();
        let exact: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let norms = [1, 2, 7].map(|threads| {
            let compute = Compute { isa: Isa::detect(), team: Team::new(threads).unwrap() };
            global_norm(&compute, &values)
        });
        assert!((norms[0] - exact).abs() < 1e-9 * exact, "{} {exact}", norms[0]);
        assert!(norms.iter().all(|norm| norm.to_bits() == norms[0].to_bits()));
        let compute = Compute { isa: Isa::detect(), team: Team::new(1).unwrap() };
        assert_eq!(global_norm(&compute, &[3.0, 0.0, 4.0]), 5.0);
        assert_eq!(global_norm(&compute, &[]), 0.0);
    }

    #[test]
    fn only_greater_norms_are_clipped() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((f64::from(clip_factor(4.0, 1.0)) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
        assert!(clip_factor(f64::NAN, 1.0).is_nan());
        assert_eq!(clip_factor(f64::INFINITY, 1.0), 0.0);
    }
}
