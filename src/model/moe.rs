//! Mixture of experts: which experts a token goes to, and with what weight.

use candle_core::Tensor;

use super::config::Experts;
use crate::nn;

/// Returns the experts of one token in ascending index, each with its weight; `probabilities` is the softmax
/// of the router's logits.
///
/// The most probable `n_used` are chosen, of equal ones the lowest indexes; `renormalize` divides their
/// probabilities by their sum, added up in the order of choice (Mixtral, arXiv:2401.04088).
fn route(probabilities: &[f32], experts: &Experts) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    // stable: equal probabilities keep ascending indexes
    order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
    order.truncate(experts.n_used);
    let sum: f32 = order.iter().fold(0.0, |sum, expert| sum + probabilities[*expert]);
    let by = if experts.renormalize { sum } else { 1.0 };
    order.sort_unstable();
    order.into_iter().map(|expert| (expert, probabilities[expert] / by)).collect()
}

/// Returns the rows that go to each expert, ascending, each with its weight; `probabilities` is the softmax of the router's
/// logits, row by row.
fn rows_of(probabilities: &[f32], experts: &Experts) -> Vec<Vec<(usize, f32)>> {
    let n = experts.n;
    let mut rows_of = vec![Vec::new(); n];
    for (row, probabilities) in probabilities.chunks_exact(n.max(1)).enumerate() {
        for (expert, weight) in route(probabilities, experts) {
            rows_of[expert].push((row, weight));
        }
    }
    rows_of
}

/// Returns [`rows_of`] of probabilities `[T, E]`.
pub(super) fn rows_of_experts(
    probabilities: &Tensor,
    experts: &Experts,
) -> candle_core::Result<Vec<Vec<(usize, f32)>>> {
    nn::with_values(probabilities, |probabilities| rows_of(probabilities, experts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_experts_are_chosen_and_come_in_order() {
        let experts = |renormalize| Experts { n: 4, n_used: 2, d_ff: 8, renormalize };
        let probabilities = [0.125, 0.5, 0.125, 0.25];
        assert_eq!(route(&probabilities, &experts(false)), [(1, 0.5), (3, 0.25)]);
        assert_eq!(route(&probabilities, &experts(true)), [(1, 0.5 / 0.75), (3, 0.25 / 0.75)]);
        assert_eq!(route(&[0.25; 4], &experts(true)), [(0, 0.5), (1, 0.5)]);
    }
}
