//! Statistics of paired comparisons: pure functions of f64, no I/O, the same bits on every machine.
//!
//! Two models answer the same items. Of item i, d_i is the candidate's score less the baseline's (-1, 0, 1 if answers
//! are right or wrong), and items of one cluster (a source, a template) are not independent. What is asked:
//!
//! - is the candidate worse? [`mcnemar_exact`] for single items, [`sign_flip`] for clusters; [`holm`] over several;
//! - how much worse may it be? [`tango_interval`] and [`clustered_tango_interval`] for right and wrong, [`bca`]
//!   and [`cluster_bootstrap`] for other scores, [`clustered_se`] for a standard error;
//! - how far is one model's own mean known? [`mean_interval`]; a figure that is no mean? [`figure_interval`];
//! - what could have been seen? [`power`].
//!
//! Functions of transcendental kind stand on `kernel::math64`, random numbers on `kernel::philox`: no C library, no
//! state, so that two machines never disagree about a verdict.

mod bootstrap;
mod cluster;
mod figure;
mod holm;
mod mcnemar;
mod mean;
pub mod normal;
pub mod power;
mod sign_flip;
pub mod student;
mod tango;

#[cfg(test)]
mod golden;

pub use bootstrap::{Draws, bca, cluster_bootstrap};
pub use cluster::{Sum, Variance, cluster_sums, clustered_se, variance};
pub use figure::{Addition, FEWEST_DRAWN, figure_interval};
pub use holm::holm;
pub use mcnemar::mcnemar_exact;
pub use mean::mean_interval;
pub use sign_flip::{Method as SignFlipMethod, SignFlip, sign_flip};
pub use tango::{clustered_tango_interval, observed_design_effect, tango_interval};

/// The p-values of a test for a difference.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct PValues {
    /// Against "worse": small if the candidate lost more than chance would have it.
    pub worse: f64,
    /// Against "different".
    pub two_sided: f64,
}

impl PValues {
    /// Returns the values of a test statistic with a symmetric distribution under the null hypothesis, from the
    /// probabilities of what is as low and of what is as high as what was found.
    fn symmetric(as_low: f64, as_high: f64) -> PValues {
        PValues { worse: as_low.min(1.0), two_sided: (2.0 * as_low.min(as_high)).min(1.0) }
    }
}

/// A lower and an upper bound.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    pub lower: f64,
    pub upper: f64,
}
