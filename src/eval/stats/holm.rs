//! Holm's correction for several tests.

/// Returns the p-values adjusted so that those below alpha name a false one with probability at most alpha, whatever
/// their dependence (Holm 1979): of m in ascending order the i-th (from 0) times m - i, never below the one before,
/// at most 1. In the order given.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, index) in order.into_iter().enumerate() {
        largest = largest.max(p[index] * (p.len() - rank) as f64).min(1.0);
        adjusted[index] = largest;
    }
    adjusted
}
