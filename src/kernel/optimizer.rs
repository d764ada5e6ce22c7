//! The factors of an optimizer's step, which are the same on the CPU and on a GPU.

use super::math64;

/// An optimizer's factors in one step, computed in f64 and each rounded to f32 once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    AdamW { keep: f32, first: f32, beta2: f32, second: f32, root: f32, eps: f32, step_size: f32 },
    Lion { keep: f32, beta1: f32, rest1: f32, beta2: f32, rest2: f32, lr: f32 },
}

impl Step {
    /// Returns step `step`, from 1, of AdamW.
    pub fn adamw((beta1, beta2): (f64, f64), eps: f64, lr: f64, weight_decay: f64, step: u64) -> Step {
        // steps stay far below 2^53
        let correction = |beta: f64| 1.0 - math64::pow(beta, step as f64);
        Step::AdamW {
            keep: (1.0 - lr * weight_decay) as f32,
            first: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            second: (1.0 - beta2) as f32,
            root: correction(beta2).sqrt() as f32,
            eps: eps as f32,
            step_size: (lr / correction(beta1)) as f32,
        }
    }

    /// Returns a step of Lion.
    pub fn lion((beta1, beta2): (f64, f64), lr: f64, weight_decay: f64) -> Step {
        Step::Lion {
            keep: (1.0 - lr * weight_decay) as f32,
            beta1: beta1 as f32,
            rest1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            rest2: (1.0 - beta2) as f32,
            lr: lr as f32,
        }
    }
}
