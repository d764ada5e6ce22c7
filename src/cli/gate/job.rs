//! A comparison as command line and manifest both describe it.

use std::path::{Path, PathBuf};

use super::divergence::{self, Place};
use crate::cli::device::Shared;
use crate::cli::eval::TextFile;
use crate::error::Failure;
use crate::eval::gate::{Policy, Run, Verdict, compare};
use crate::provenance::{InputFiles, Licences, Role, parent_of};

/// What is compared.
pub struct GateJob {
    pub baseline: PathBuf,
    pub candidate: PathBuf,
    pub policy: Option<PathBuf>,
    pub models: Option<Models>,
}

/// Both models, and the text over which their divergence is measured.
pub struct Models {
    pub baseline: Place,
    pub candidate: Place,
    pub text: PathBuf,
}

/// How models run; results do not depend on it.
#[derive(Clone, Copy)]
pub struct How<'a> {
    pub offline: bool,
    pub threads: Option<u16>,
    pub isa: Option<&'a str>,
    pub quiet: bool,
    /// What computes.
    pub on: &'a Shared,
}

/// A verdict, and what it was made of.
pub struct Judged {
    pub baseline: Run,
    pub candidate: Run,
    pub verdict: Verdict,
    pub inputs: Vec<InputFiles>,
}

impl GateJob {
    /// Compares; errors before a model is loaded if a report cannot be read or is of another model.
    pub fn judge(&self, how: &How) -> Result<Judged, Failure> {
        let policy = open_policy(self.policy.as_deref())?;
        let baseline = open_run(&self.baseline)?;
        let candidate = open_run(&self.candidate)?;
        let mut inputs = vec![
            InputFiles::of_run(Role::Baseline, &self.baseline),
            InputFiles::of_run(Role::Candidate, &self.candidate),
        ];
        inputs.extend(self.policy.as_deref().map(|path| InputFiles::of_file(Role::Policy, None, path)));
        let mut verdict = compare(&baseline, &candidate, &policy)?;
        if let Some(models) = &self.models {
            let text = TextFile::read(&models.text)?;
            inputs.extend(divergence::check_measured(&models.baseline, &baseline, how)?);
            let of_candidate = divergence::check_measured(&models.candidate, &candidate, how)?;
            inputs.extend(of_candidate.into_iter().map(divergence::as_candidate));
            inputs.push(text.input());
            let (base, model) =
                (models.baseline.open(&baseline, how)?, models.candidate.open(&candidate, how)?);
            let found = divergence::over_text(&model, &base, &text, policy.alpha, how.quiet)?;
            verdict.divergence = Some(found);
        }
        Ok(Judged { baseline, candidate, verdict, inputs })
    }
}

/// Reads a run, and what the manifest beside it says of licences.
pub fn open_run(path: &Path) -> Result<Run, Failure> {
    let mut run = Run::open(path)?;
    run.licences = licences_of(path)?;
    Ok(run)
}

/// Returns the licences in the manifest of a run, if it has one that speaks of it.
fn licences_of(path: &Path) -> Result<Option<Licences>, Failure> {
    let input = InputFiles::of_run(Role::Baseline, path).with_digests()?;
    Ok(parent_of(&input).and_then(Result::ok).map(|parent| parent.licences))
}

/// Returns the policy of a file, or the default one.
pub fn open_policy(path: Option<&Path>) -> Result<Policy, Failure> {
    Ok(path.map(Policy::open).transpose()?.unwrap_or_default())
}
