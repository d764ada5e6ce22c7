//! `eval.gate`: a result is promoted only if it is no worse than the model it began with.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::Args;
use super::prepare::Prepared;
use super::results::remove_file;
use crate::cli::device::Shared;
use crate::cli::eval::{self, ComputeArg};
use crate::cli::gate::{GateJob, How};
use crate::error::Failure;
use crate::finetune::recipe::{Compute, Gate};
use crate::provenance;

/// What is measured: a model, or an adapter on the base.
pub enum Candidate {
    Model(PathBuf),
    Adapter(PathBuf),
}

/// What the gate said.
pub struct Judged {
    pub passed: bool,
    /// `PASS`, `FAIL`, ...
    pub verdict: String,
    pub code: ExitCode,
}

/// Measures base and candidate by the suite, into `dir`/gate, on what the run was trained on, and compares them. The manifest of
/// the candidate's report calls it `named`: where it lies once it is promoted.
pub fn judge(
    args: &Args,
    prepared: &Prepared,
    gate: &Gate,
    (candidate, named): (&Candidate, &Path),
    dir: &Path,
) -> Result<Judged, Failure> {
    let base = prepared.base.display().to_string();
    let (baseline, new) = (dir.join("gate/base"), dir.join("gate/result"));
    measure(args, prepared, gate, Measured { model: base.clone(), adapter: None, named: None }, &baseline)?;
    let (model, adapter) = match candidate {
        Candidate::Model(path) => (path.display().to_string(), None),
        Candidate::Adapter(path) => (base, Some(path.clone())),
    };
    let measured = Measured { model, adapter, named: Some(named.to_owned()) };
    measure(args, prepared, gate, measured, &new)?;
    let job = GateJob { baseline, candidate: new, policy: gate.policy.clone(), models: None };
    let on = Shared::default();
    let how = How {
        offline: args.offline,
        threads: args.threads,
        isa: args.isa.as_deref(),
        quiet: args.quiet,
        on: &on,
    };
    let verdict = job.judge(&how)?.verdict;
    let verdict_name = verdict.judgement.outcome.name().to_owned();
    Ok(Judged {
        passed: verdict.exit_code == 0,
        verdict: verdict_name,
        code: ExitCode::from(verdict.exit_code),
    })
}

/// Removes the manifest of the candidate's report: what was measured is not kept, and cannot be measured again.
pub fn forget_candidate(dir: &Path) -> Result<(), Failure> {
    remove_file(&provenance::manifest_path(&dir.join("gate/result/report.json")))
}

struct Measured {
    model: String,
    adapter: Option<PathBuf>,
    named: Option<PathBuf>,
}

fn measure(
    args: &Args,
    prepared: &Prepared,
    gate: &Gate,
    Measured { model, adapter, named }: Measured,
    out: &Path,
) -> Result<(), Failure> {
    let compute = match prepared.recipe.model.compute {
        Compute::Auto => ComputeArg::Auto,
        Compute::F32 => ComputeArg::F32,
        Compute::Bf16 => ComputeArg::Bf16,
    };
    let eval = eval::Args {
        model,
        adapter,
        named,
        suite: vec![gate.suite.clone()],
        compute,
        out: Some(out.to_owned()),
        force: true,
        device: prepared.gate_on,
        threads: args.threads,
        isa: args.isa.clone(),
        offline: args.offline,
        quiet: true,
        ..eval::Args::default()
    };
    eval::run(&eval).map(|_| ())
}
