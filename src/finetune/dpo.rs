//! Direct preference optimization (arXiv:2305.18290): losses of pairs, from log-probabilities of whole answers.

use crate::kernel::math64;

/// How much more likely the chosen answer should become than the rejected one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DpoLoss {
    /// `-(1 - s) ln sigmoid(beta m) - s ln sigmoid(-beta m)`, s the share of labels taken to be wrong
    /// (0 is DPO itself; arXiv:2305.18290, section 3, and Mitchell's note on conservative DPO).
    Sigmoid { label_smoothing: f64 },
    /// `(m - 1 / (2 beta))^2` with means over tokens in m (IPO, arXiv:2310.12036).
    Ipo,
    /// `max(0, 1 - beta m)` (SLiC, arXiv:2305.10425).
    Hinge,
}

/// Log-probabilities of a pair's answers: sums over their target tokens ([`DpoLoss::Ipo`]: means).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLogProbs {
    pub chosen: f64,
    pub rejected: f64,
}

/// A pair's loss, its derivatives, and what is worth logging.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpoOutcome {
    pub loss: f64,
    /// d loss / d log-probability of the chosen answer; that of the rejected one is its negative.
    pub d_chosen: f64,
    /// `beta * (policy - reference)`
    pub reward_chosen: f64,
    pub reward_rejected: f64,
}

impl DpoOutcome {
    /// Returns true if the policy prefers the chosen answer more than the reference does.
    pub fn is_right(&self) -> bool {
        self.reward_chosen > self.reward_rejected
    }
}

impl DpoLoss {
    /// Returns the outcome of a pair, with `m = (policy.chosen - reference.chosen) - (policy.rejected -
    /// reference.rejected)`.
    pub fn of(self, beta: f64, policy: PairLogProbs, reference: PairLogProbs) -> DpoOutcome {
        let chosen = policy.chosen - reference.chosen;
        let rejected = policy.rejected - reference.rejected;
        let margin = chosen - rejected;
        let (loss, d_chosen) = match self {
            DpoLoss::Sigmoid { label_smoothing: s } => {
                let (right, wrong) = (softplus(-beta * margin), softplus(beta * margin));
                let slope = s * sigmoid(beta * margin) - (1.0 - s) * sigmoid(-beta * margin);
                ((1.0 - s) * right + s * wrong, beta * slope)
            }
            DpoLoss::Ipo => {
                let off = margin - 1.0 / (2.0 * beta);
                (off * off, 2.0 * off)
            }
            DpoLoss::Hinge => {
                let short = 1.0 - beta * margin;
                if short > 0.0 { (short, -beta) } else { (0.0, 0.0) }
            }
        };
        DpoOutcome { loss, d_chosen, reward_chosen: beta * chosen, reward_rejected: beta * rejected }
    }

    /// Returns true if the loss takes means over tokens instead of sums.
    pub fn takes_means(self) -> bool {
        self == DpoLoss::Ipo
    }
}

fn sigmoid(x: f64) -> f64 {
    let e = math64::exp(-x.abs());
    if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) }
}

/// Returns `ln(1 + e^x)` without overflow.
fn softplus(x: f64) -> f64 {
    let e = math64::exp(-x.abs());
    // below 1e-5 the series is exact to 1e-15
    let log = if e < 1e-5 { e - e * e / 2.0 + e * e * e / 3.0 } else { math64::ln(1.0 + e) };
    x.max(0.0) + log
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSSES: [DpoLoss; 4] = [
        DpoLoss::Sigmoid { label_smoothing: 0.0 },
        DpoLoss::Sigmoid { label_smoothing: 0.1 },
        DpoLoss::Ipo,
        DpoLoss::Hinge,
    ];

    fn pair(chosen: f64, rejected: f64) -> PairLogProbs {
        PairLogProbs { chosen, rejected }
    }

    #[test]
    fn derivatives_are_those_of_the_loss() {
        let reference = pair(-11.0, -9.5);
        for loss in LOSSES {
            for (chosen, rejected) in [(-10.0, -12.0), (-14.0, -9.0), (-11.0, -9.5), (-400.0, -2.0)] {
                let at = |shift: f64| loss.of(0.1, pair(chosen + shift, rejected), reference).loss;
                let h = 1e-5;
                let slope = (at(h) - at(-h)) / (2.0 * h);
                let found = loss.of(0.1, pair(chosen, rejected), reference).d_chosen;
                assert!((found - slope).abs() < 1e-6 * slope.abs().max(1.0), "{loss:?}: {found} {slope}");
            }
        }
    }

    #[test]
    fn an_unchanged_policy_has_the_loss_of_a_coin() {
        let same = pair(-3.0, -4.0);
        let outcome = LOSSES[0].of(0.1, same, same);
        assert!((outcome.loss - std::f64::consts::LN_2).abs() < 1e-15);
        assert!((outcome.d_chosen + 0.05).abs() < 1e-15);
        assert!(!outcome.is_right());
        let better = LOSSES[0].of(0.1, pair(-2.0, -4.0), same);
        assert!(better.is_right() && better.loss < outcome.loss);
        assert!((better.reward_chosen - 0.1).abs() < 1e-15 && better.reward_rejected == 0.0);
    }

    #[test]
    fn far_margins_neither_overflow_nor_vanish() {
        let reference = pair(0.0, 0.0);
        let lost = LOSSES[0].of(1.0, pair(-5000.0, 0.0), reference);
        assert_eq!((lost.loss, lost.d_chosen), (5000.0, -1.0));
        let won = LOSSES[0].of(1.0, pair(0.0, -20.0), reference);
        assert!((won.loss / (-20f64).exp() - 1.0).abs() < 1e-6, "{}", won.loss);
    }
}
