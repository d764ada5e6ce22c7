//! Optimizers over one flat vector of parameters.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::kernel::Compute;
use crate::kernel::optimizer::Step;

/// Parameters that one task updates.
const CHUNK: usize = 1 << 14;

/// A rule that turns gradients into new parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Adam with decoupled weight decay (arXiv:1711.05101), as torch computes it.
    AdamW { beta1: f64, beta2: f64, eps: f64 },
    /// arXiv:2302.06675.
    Lion { beta1: f64, beta2: f64 },
}

/// What an optimizer remembers between steps: all that a resumed run needs.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerState {
    /// Steps done.
    pub step: u64,
    /// As long as the parameters each: AdamW's first and second moment, Lion's first.
    pub moments: Vec<Vec<f32>>,
}

/// A run of parameters that share their settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub range: Range<usize>,
    /// Factor on the learning rate.
    pub lr_factor: f64,
    pub weight_decay: f64,
}

/// The settings of one step.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    pub lr: f64,
    /// Factor on the gradients: that of clipping.
    pub gradient_factor: f32,
    /// Ascending and disjoint; what lies in none stays as it is.
    pub groups: &'a [Group],
}

impl Optimizer {
    /// Returns AdamW with torch's defaults.
    pub fn adamw() -> Self {
        Optimizer::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }

    /// Returns Lion with the defaults of its paper.
    pub fn lion() -> Self {
        Optimizer::Lion { beta1: 0.9, beta2: 0.99 }
    }

    /// Returns the name in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Optimizer::AdamW { .. } => "adamw",
            Optimizer::Lion { .. } => "lion",
        }
    }

    /// Returns the number of values remembered per parameter.
    pub fn n_moments(&self) -> usize {
        match self {
            Optimizer::AdamW { .. } => 2,
            Optimizer::Lion { .. } => 1,
        }
    }

    /// Returns the state before the first step.
    pub fn state(&self, n_parameters: usize) -> OptimizerState {
        OptimizerState { step: 0, moments: vec![vec![0.0; n_parameters]; self.n_moments()] }
    }

    /// Does one step: updates the parameters and the state.
    ///
    /// Every parameter is computed on its own in f32, by a fixed sequence of rounded operations without fused ones, its
    /// factors in f64 rounded once: the same bits for any number of threads.
    ///
    /// # Panics
    /// If lengths disagree, or groups overlap or leave the parameters.
    pub fn step(
        &self,
        compute: &Compute,
        state: &mut OptimizerState,
        params: &mut [f32],
        gradients: &[f32],
        update: &Update<'_>,
    ) {
        assert_eq!(params.len(), gradients.len());
        assert_eq!(state.moments.len(), self.n_moments());
        assert!(state.moments.iter().all(|moment| moment.len() == params.len()));
        state.step += 1;
        let step = state.step;
        let mut moments = state.moments.iter_mut();
        let first = moments.next().map_or(&mut [][..], Vec::as_mut_slice);
        let second = moments.next().map_or(&mut [][..], Vec::as_mut_slice);
        let mut rest = Chunk { params, first, second, gradients };
        let mut at = 0;
        let mut tasks = Vec::new();
        for group in update.groups {
            let (_, behind) = rest.split_at(group.range.start - at);
            let (mut own, behind) = behind.split_at(group.range.len());
            (rest, at) = (behind, group.range.end);
            let rule = self.rule(step, update, group);
            while !own.params.is_empty() {
                let at = CHUNK.min(own.params.len());
                let (chunk, behind) = own.split_at(at);
                tasks.push((rule, Mutex::new(chunk)));
                own = behind;
            }
        }
        compute.team.run(tasks.len(), |task| {
            let (rule, chunk) = &tasks[task];
            rule.apply(&mut chunk.lock().unwrap_or_else(PoisonError::into_inner));
        });
    }

    /// Returns what a step does to a group.
    fn rule(&self, step: u64, update: &Update<'_>, group: &Group) -> Rule {
        let lr = update.lr * group.lr_factor;
        let step = match *self {
            Optimizer::AdamW { beta1, beta2, eps } => {
                Step::adamw((beta1, beta2), eps, lr, group.weight_decay, step)
            }
            Optimizer::Lion { beta1, beta2 } => Step::lion((beta1, beta2), lr, group.weight_decay),
        };
        Rule { gradient_factor: update.gradient_factor, step }
    }
}

/// Parameters with what belongs to them; moments an optimizer lacks are empty.
struct Chunk<'a> {
    params: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    gradients: &'a [f32],
}

impl<'a> Chunk<'a> {
    fn split_at(self, at: usize) -> (Chunk<'a>, Chunk<'a>) {
        let (params, params_behind) = self.params.split_at_mut(at);
        let (first, first_behind) = self.first.split_at_mut(at.min(self.first.len()));
        let (second, second_behind) = self.second.split_at_mut(at.min(self.second.len()));
        let (gradients, gradients_behind) = self.gradients.split_at(at);
        let behind = Chunk {
            params: params_behind,
            first: first_behind,
            second: second_behind,
            gradients: gradients_behind,
        };
        (Chunk { params, first, second, gradients }, behind)
    }
}

/// A step, and the factor on the gradients that it is given.
#[derive(Clone, Copy)]
struct Rule {
    gradient_factor: f32,
    step: Step,
}

impl Rule {
    fn apply(self, chunk: &mut Chunk<'_>) {
        let n = chunk.params.len();
        let (params, gradients, m) = (&mut chunk.params[..n], &chunk.gradients[..n], &mut chunk.first[..n]);
        let Rule { gradient_factor, step } = self;
        match step {
            Step::AdamW { keep, first, beta2, second, root, eps, step_size } => {
                let v = &mut chunk.second[..n];
                for i in 0..n {
                    let g = gradients[i] * gradient_factor;
                    m[i] += first * (g - m[i]);
                    v[i] = beta2 * v[i] + second * (g * g);
                    params[i] = keep * params[i] - step_size * (m[i] / (v[i].sqrt() / root + eps));
                }
            }
            Step::Lion { keep, beta1, rest1, beta2, rest2, lr } => {
                for i in 0..n {
                    let g = gradients[i] * gradient_factor;
                    let direction = beta1 * m[i] + rest1 * g;
                    let sign = if direction == 0.0 { direction } else { 1f32.copysign(direction) };
                    // a NaN stays one: copysign would hide it
                    let sign = if direction.is_nan() { direction } else { sign };
                    params[i] = keep * params[i] - lr * sign;
                    m[i] = beta2 * m[i] + rest2 * g;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::noise;
    use crate::kernel::{Isa, Team};

    fn compute(threads: usize) -> Compute {
        Compute { isa: Isa::detect(), team: Team::new(threads).unwrap() }
    }

    /// Runs some steps; gradients of step i are noise of seed i.
    fn run(optimizer: Optimizer, threads: usize, n: usize, groups: &[Group], steps: u32) -> Vec<f32> {
        let (compute, mut params) = (compute(threads), noise(n, 99));
        let mut state = optimizer.state(n);
        for step in 0..steps {
            let update = Update { lr: 0.01, gradient_factor: 0.5, groups };
            optimizer.step(&compute, &mut state, &mut params, &noise(n, step), &update);
        }
        assert_eq!(state.step, u64::from(steps));
        params
    }

    fn group(range: Range<usize>, weight_decay: f64) -> Group {
        Group { range, lr_factor: 1.0, weight_decay }
    }

    #[test]
    fn adamw_is_the_formula_in_f64() {
        let (n, steps) = (CHUNK + 100, 5);
        let found = run(Optimizer::adamw(), 1, n, &[group(0..n, 0.1)], steps);
        let mut params: Vec<f64> = noise(n, 99).into_iter().map(f64::from).collect();
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        for step in 0..steps {
            for (i, g) in noise(n, step).into_iter().enumerate() {
                let (g, t) = (f64::from(g) * 0.5, step as i32 + 1);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                params[i] *= 1.0 - 0.01 * 0.1;
                let (m, v) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.999f64.powi(t)));
                params[i] -= 0.01 * m / (v.sqrt() + 1e-8);
            }
        }
        for (i, (found, expected)) in found.iter().zip(&params).enumerate() {
            // a handful of f32 roundings of numbers below 1
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{i}: {found} {expected}");
        }
    }

    #[test]
    fn lion_steps_by_the_sign() {
        let n = 1000;
        let found = run(Optimizer::lion(), 1, n, &[group(0..n, 0.0)], 1);
        for ((found, before), g) in found.iter().zip(noise(n, 99)).zip(noise(n, 0)) {
            assert_eq!(*found, before - 0.01 * g.signum());
        }
        let mut params = [1.0f32];
        let mut state = Optimizer::lion().state(1);
        let update = Update { lr: 0.01, gradient_factor: 1.0, groups: &[group(0..1, 0.5)] };
        Optimizer::lion().step(&compute(1), &mut state, &mut params, &[0.0], &update);
        assert_eq!(params, [(1.0 - 0.01 * 0.5) as f32], "a zero has no sign, decay remains");
    }

    #[test]
    fn groups_have_their_own_settings_and_the_rest_stays() {
        let n = 3 * CHUNK;
        let groups = [
            Group { range: 10..CHUNK + 10, lr_factor: 1.0, weight_decay: 0.0 },
            Group { range: 2 * CHUNK..n - 1, lr_factor: 2.0, weight_decay: 0.1 },
        ];
        let (before, found) = (noise(n, 99), run(Optimizer::adamw(), 2, n, &groups, 1));
        let gradients = noise(n, 0);
        for i in 0..n {
            let decay = |by: f32| before[i] * (1.0 - by);
            // the first step is the sign of the gradient, times the rate
            let step = gradients[i].signum() * 0.01;
            let expected = match i {
                _ if groups[0].range.contains(&i) => before[i] - step,
                _ if groups[1].range.contains(&i) => decay(0.002) - 2.0 * step,
                _ => before[i],
            };
            // eps shows beside the smallest gradients
            assert!((found[i] - expected).abs() < 2e-4, "{i}: {} {expected}", found[i]);
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let n = 5 * CHUNK + 3;
        for optimizer in [Optimizer::adamw(), Optimizer::lion()] {
            let bits = |threads| -> Vec<u32> {
                let groups = [group(0..n / 2, 0.1), group(n / 2..n, 0.0)];
                run(optimizer, threads, n, &groups, 3).iter().map(|p| p.to_bits()).collect()
            };
            let one = bits(1);
            assert!(one == bits(2) && one == bits(7), "{}", optimizer.name());
        }
    }
}
