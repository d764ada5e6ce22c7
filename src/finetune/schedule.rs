//! Learning rates by step.

use crate::kernel::math64;

/// How the learning rate falls from its peak, after warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    Constant,
    /// To `final_lr`, along a line.
    Linear,
    /// To `final_lr`, along half a cosine (arXiv:1608.03983).
    Cosine,
    /// Stays at the peak, then falls along a line in the last `decay_steps` (warm-up, stable, decay: arXiv:2404.06395).
    Wsd {
        decay_steps: usize,
    },
}

/// How long the learning rate rises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    Steps(usize),
    /// Of all steps, rounded up.
    Ratio(f64),
}

impl Warmup {
    /// Returns the number of steps, at most `total`.
    pub fn steps(self, total: usize) -> usize {
        match self {
            Warmup::Steps(steps) => steps.min(total),
            // total is below 2^53, a ratio between 0 and 1
            Warmup::Ratio(ratio) => ((ratio * total as f64).ceil() as usize).min(total),
        }
    }
}

/// The learning rate of every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub peak_lr: f64,
    /// What it falls to, were there one step more.
    pub final_lr: f64,
    pub warmup_steps: usize,
    pub total_steps: usize,
    pub decay: Decay,
}

impl Schedule {
    /// Returns the learning rate of step `step`, counted from 0.
    ///
    /// With w steps of warm-up it is `peak * (step + 1) / w` in them: no step is wasted at 0. After them, the share of
    /// the way down is `(step - w) / (total - w)`: the first step after warm-up has the peak, the last one is above the end.
    pub fn lr_at(&self, step: usize) -> f64 {
        let Schedule { peak_lr, final_lr, warmup_steps, total_steps, decay } = *self;
        if step < warmup_steps {
            return peak_lr * (step + 1) as f64 / warmup_steps as f64;
        }
        let share = |first: usize| {
            let steps = total_steps.saturating_sub(first).max(1);
            (step.saturating_sub(first) as f64 / steps as f64).min(1.0)
        };
        let down = match decay {
            Decay::Constant => return peak_lr,
            Decay::Linear => share(warmup_steps),
            Decay::Cosine => {
                let (_, cos) = math64::sin_cos(std::f64::consts::PI * share(warmup_steps));
                0.5 * (1.0 - cos)
            }
            Decay::Wsd { decay_steps } => share(total_steps.saturating_sub(decay_steps).max(warmup_steps)),
        };
        peak_lr + (final_lr - peak_lr) * down
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(warmup_steps: usize, total_steps: usize, decay: Decay) -> Vec<f64> {
        let schedule = Schedule { peak_lr: 8.0, final_lr: 0.0, warmup_steps, total_steps, decay };
        (0..total_steps).map(|step| schedule.lr_at(step)).collect()
    }

    #[test]
    fn rates_rise_to_the_peak_and_fall_as_named() {
        assert_eq!(rates(2, 6, Decay::Constant), [4.0, 8.0, 8.0, 8.0, 8.0, 8.0]);
        assert_eq!(rates(2, 6, Decay::Linear), [4.0, 8.0, 8.0, 6.0, 4.0, 2.0]);
        assert_eq!(rates(0, 4, Decay::Linear), [8.0, 6.0, 4.0, 2.0]);
        assert_eq!(rates(1, 6, Decay::Wsd { decay_steps: 2 }), [8.0, 8.0, 8.0, 8.0, 8.0, 4.0]);
        let cosine = rates(2, 6, Decay::Cosine);
        let root = 8f64.sqrt();
        let expected = [4.0, 8.0, 8.0, 4.0 + root, 4.0, 4.0 - root];
        for (i, (found, expected)) in cosine.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() < 1e-12, "step {i}: {found}");
        }
    }

    #[test]
    fn a_floor_is_approached_and_kept_behind_the_end() {
        let schedule =
            Schedule { peak_lr: 1.0, final_lr: 0.5, warmup_steps: 0, total_steps: 4, decay: Decay::Linear };
        assert_eq!([0, 2, 4, 9].map(|step| schedule.lr_at(step)), [1.0, 0.75, 0.5, 0.5]);
    }

    #[test]
    fn warm_up_is_rounded_up_and_no_longer_than_the_run() {
        assert_eq!(Warmup::Ratio(0.03).steps(100), 3);
        assert_eq!(Warmup::Ratio(0.03).steps(101), 4);
        assert_eq!(Warmup::Ratio(0.0).steps(10), 0);
        assert_eq!(Warmup::Steps(20).steps(10), 10);
        // all of it warm-up: the peak comes with the last step, and nothing divides by zero
        assert_eq!(rates(3, 3, Decay::Cosine), [8.0 / 3.0, 16.0 / 3.0, 8.0]);
    }
}
