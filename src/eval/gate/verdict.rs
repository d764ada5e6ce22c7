//! A comparison of two runs from end to end.

use serde::Serialize;

use super::divergence::Divergence;
use super::judge::{Judgement, judge};
use super::pair::{self, pair};
use super::policy::Policy;
use super::read::Run;
use crate::provenance::Licences;

/// The version of the layout that `lctl gate --json` prints.
const VERSION: u32 = 1;

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Pass,
    Fail,
    Inconclusive,
    NotComparable,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Pass => "PASS",
            Outcome::Fail => "FAIL",
            Outcome::Inconclusive => "INCONCLUSIVE",
            Outcome::NotComparable => "NOT COMPARABLE",
        }
    }

    /// Returns the process's exit status.
    pub fn exit_code(self, policy: &Policy) -> u8 {
        match self {
            Outcome::Pass => 0,
            Outcome::Fail => 3,
            Outcome::Inconclusive if policy.allow_inconclusive => 0,
            Outcome::Inconclusive => 4,
            Outcome::NotComparable => 5,
        }
    }
}

/// What a gate says, and everything it stands on.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    lctl_gate: u32,
    lctl: &'static str,
    pub baseline: Side,
    pub candidate: Side,
    pub policy: PolicyFacts,
    #[serde(flatten)]
    pub judgement: Judgement,
    /// Where both models were at hand.
    pub divergence: Option<Divergence>,
    /// What the reader should know.
    pub notes: Vec<String>,
    pub exit_code: u8,
}

/// One of the two.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    pub model: String,
    pub sha256: String,
    pub adapter: Option<String>,
    pub lctl: String,
    /// Absent without a manifest.
    pub licences: Option<Licences>,
}

/// What was demanded.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyFacts {
    pub sha256: Option<String>,
    pub alpha: f64,
    pub margin: f64,
    pub power: f64,
    pub flips: f64,
    pub correlation: f64,
    pub draws: usize,
    pub seed: u64,
    pub inconclusive: &'static str,
}

/// Compares two runs. Errors if the policy does not fit the baseline.
pub fn compare(baseline: &Run, candidate: &Run, policy: &Policy) -> Result<Verdict, pair::Error> {
    let pairing = pair(baseline, candidate, policy)?;
    let judgement = if pairing.obstacles.is_empty() {
        judge(&pairing.pairs, policy)
    } else {
        let reasons = pairing.obstacles;
        Judgement { outcome: Outcome::NotComparable, reasons, pool: None, tasks: Vec::new() }
    };
    Ok(Verdict {
        lctl_gate: VERSION,
        lctl: env!("CARGO_PKG_VERSION"),
        baseline: side(baseline),
        candidate: side(candidate),
        policy: PolicyFacts {
            sha256: policy.sha256.clone(),
            alpha: policy.alpha,
            margin: policy.margin,
            power: policy.power,
            flips: policy.flips,
            correlation: policy.correlation,
            draws: policy.draws.n,
            seed: policy.draws.seed,
            inconclusive: if policy.allow_inconclusive { "allow" } else { "block" },
        },
        exit_code: judgement.outcome.exit_code(policy),
        judgement,
        divergence: None,
        notes: pairing.notes,
    })
}

fn side(run: &Run) -> Side {
    Side {
        model: run.model.name.clone(),
        sha256: run.model.sha256.clone(),
        adapter: run.model.adapter.as_ref().map(|adapter| adapter.name.clone()),
        lctl: run.lctl.clone(),
        licences: run.licences.clone(),
    }
}
