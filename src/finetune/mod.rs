//! Fine-tuning: what a run is to do ([`recipe`]), and what stands between gradients and the next parameters.

mod clip;
mod dpo;
mod optimizer;
pub mod parallel;
pub mod recipe;
pub mod report;
pub mod run;
mod schedule;

pub use clip::{clip_factor, global_norm};
pub use dpo::{DpoLoss, DpoOutcome, PairLogProbs};
pub use optimizer::{Group, Optimizer, OptimizerState, Update};
pub use schedule::{Decay, Schedule, Warmup};
