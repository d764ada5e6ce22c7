//! The commands again, in a temporary directory.

use std::path::{Component, Path, PathBuf};

use serde_json::Value as Json;
use tempfile::TempDir;

use super::compare::{self, Comparison};
use super::inputs::Places;
use super::{How, ReplayError};
use crate::cli::device::Shared;
use crate::cli::eval;
use crate::cli::gate::{self, GateJob, Models, Place};
use crate::cli::imatrix::{self, ImatrixJob};
use crate::cli::merge::{self, MergeJob};
use crate::cli::model::WeightsArg;
use crate::cli::quantize::{self, ImportanceFile, QuantizeJob};
use crate::error::Failure;
use crate::eval::report::markdown;
use crate::model;
use crate::provenance::{
    EvalMode, EvalSettings, ImatrixSettings, Input, Manifest, MergeSettings, Output, OutputRole,
    QuantizeSettings, Role, sha256_of_file,
};
use crate::quantize::Control;

pub fn quantize(
    manifest: &Manifest,
    settings: &QuantizeSettings,
    places: &Places,
    how: &How,
) -> Result<Comparison, Failure> {
    let work = work_dir(how)?;
    let importance = manifest
        .inputs_of(Role::Importance)
        .next()
        .map(|input| ImportanceFile { path: places.given(input).into(), named: input.path.clone().into() });
    let model = manifest.inputs_of(Role::Model).next().map(|input| places.model(input)).unwrap_or_default();
    let model = under_its_name(&model, settings.directory.as_deref(), work.path())?;
    let given = model.display().to_string();
    let job = QuantizeJob { settings: settings.clone(), given, model, importance };
    let prepared = job.prepare(false)?;
    let path = work.path().join("replay.gguf");
    let interrupted = quantize::interrupt_flag();
    let progress = quantize::Progress::new(prepared.rows().map(|row| row.n_weights).sum(), how.quiet);
    let advance = |n_weights| progress.advance(n_weights);
    let control = Control { interrupted: &interrupted, progress: &advance };
    let outcome = prepared.execute(&job.output(&path, how.isa, how.n_threads), &control);
    progress.finish();
    Ok(Comparison::of_outputs(&manifest.outputs, &quantize::outputs(&outcome?)))
}

pub fn merge(
    manifest: &Manifest,
    settings: &MergeSettings,
    places: &Places,
    how: &How,
) -> Result<Comparison, Failure> {
    let one = |role: Role| manifest.inputs_of(role).next().ok_or(ReplayError::Unnamed { role: role.name() });
    let (model, adapter) = (one(Role::Model)?, one(Role::Adapter)?);
    settings.directory.as_deref().map_or(Ok(()), check_name)?;
    let work = work_dir(how)?;
    let job = MergeJob {
        settings: settings.clone(),
        given: places.given(model),
        base: places.model(model),
        adapter: places.given(adapter).into(),
    };
    quantize::interrupt_flag();
    let changes = job.changes(how.isa)?;
    let path = work.path().join(if job.makes_file() { "merged.gguf" } else { "merged" });
    let how = merge::How { threads: how.threads_given, isa: how.isa_given, quiet: how.quiet };
    job.write(&path, &changes, &how)?;
    Ok(Comparison::of_outputs(&manifest.outputs, &job.outputs(&path)?))
}

pub fn imatrix(
    manifest: &Manifest,
    settings: &ImatrixSettings,
    places: &Places,
    how: &How,
) -> Result<Comparison, Failure> {
    let work = work_dir(how)?;
    let one = |role| manifest.inputs_of(role).next();
    let source = match (one(Role::Model), one(Role::Text)) {
        (Some(model), Some(text)) => Some(imatrix::Source {
            model: places.given(model),
            adapter: one(Role::Adapter).map(|adapter| places.given(adapter).into()),
            text: places.given(text).into(),
            dataset: text.path.clone(),
        }),
        // files alone were added up
        (None, None) if one(Role::Importance).is_some() => None,
        (None, _) => return Err(ReplayError::Unnamed { role: Role::Model.name() }.into()),
        (Some(_), None) => return Err(ReplayError::Unnamed { role: Role::Text.name() }.into()),
    };
    let in_file =
        |input: &Input| ImportanceFile { path: places.given(input).into(), named: input.path.clone().into() };
    let in_files = manifest.inputs_of(Role::Importance).map(in_file).collect();
    let job = ImatrixJob { settings: settings.clone(), source, in_files };
    let interrupt = eval::Interrupt::install();
    interrupt.set_temporary(work.path().to_owned());
    let made = job.make(&imatrix::How {
        on: &Shared::choose(how.device, how.quiet)?,
        threads: how.threads_given,
        isa: how.isa_given,
        weights: WeightsArg::default(),
        offline: true,
        quiet: how.quiet,
        digests: false,
    })?;
    let file = made.sums.write(&work.path().join("imatrix"), job.form()?, false)?;
    Ok(Comparison::of_outputs(&manifest.outputs, &[imatrix::output(&file)]))
}

pub fn eval(
    manifest: &Manifest,
    settings: &EvalSettings,
    places: &Places,
    how: &How,
    manifest_path: &Path,
) -> Result<Comparison, Failure> {
    let work = work_dir(how)?;
    let one = |role| manifest.inputs_of(role).next().map(|input| places.given(input));
    let all = |role| manifest.inputs_of(role).map(|input| places.given(input));
    let data =
        |input: &Input| format!("{}={}", input.name.as_deref().unwrap_or_default(), places.given(input));
    let mut args = eval::args_of(
        settings,
        eval::Places {
            model: one(Role::Model).unwrap_or_default(),
            adapter: one(Role::Adapter).map(PathBuf::from),
            suites: all(Role::Suite).map(PathBuf::from).collect(),
            data: manifest.inputs_of(Role::Data).map(data).collect(),
            text: one(Role::Text).map(PathBuf::from),
            base: one(Role::Base),
            base_adapter: one(Role::BaseAdapter).map(PathBuf::from),
            base_logits: one(Role::BaseLogits).map(PathBuf::from),
            baseline: one(Role::Baseline).map(PathBuf::from),
            policy: one(Role::Policy).map(PathBuf::from),
        },
    )?;
    let has = |role| manifest.outputs_of(role).next().is_some();
    args.out = Some(work.path().join("out"));
    args.save_logits = has(OutputRole::Logits).then(|| work.path().join("logits"));
    args.render.markdown = has(OutputRole::Verdict).then(|| work.path().join("verdict.md"));
    args.device = how.device;
    (args.threads, args.isa, args.quiet) = (how.threads_given, how.isa_given.map(str::to_owned), how.quiet);
    let interrupt = eval::Interrupt::install();
    interrupt.set_temporary(work.path().to_owned());
    eval::measure(&args, &interrupt)?;

    let mut outputs = Vec::new();
    let report = work.path().join("out/report.json");
    if has(OutputRole::Report) {
        let json: Json =
            serde_json::from_str(&read(&report)?).map_err(|error| unread(&report, error.into()))?;
        outputs.push(Output::of_report(&report, &json));
    }
    let mut samples = None;
    if settings.mode == EvalMode::Suite {
        let path = report.with_file_name("samples.jsonl");
        let text = read(&path)?;
        outputs.push(Output::of_text(OutputRole::Samples, &path, &text));
        samples = Some(text);
    }
    if let Some(path) = &args.render.markdown {
        outputs.push(Output::of_text(OutputRole::Verdict, path, &read(path)?));
    }
    if let Some(path) = &args.save_logits {
        let sha256 = sha256_of_file(path)?;
        outputs.push(Output { sha256, ..Output::of_text(OutputRole::Logits, path, "") });
    }
    let comparison = Comparison::of_outputs(&manifest.outputs, &outputs);
    Ok(match samples {
        Some(samples) => compare::with_samples(comparison, manifest, manifest_path, &samples),
        None => comparison,
    })
}

pub fn gate(manifest: &Manifest, places: &Places, how: &How) -> Result<Comparison, Failure> {
    let one = |role| manifest.inputs_of(role).next().map(|input| places.given(input));
    let path = |role| one(role).map(PathBuf::from);
    let models = match (one(Role::Base), one(Role::Model), path(Role::Text)) {
        (Some(base), Some(model), Some(text)) => Some(Models {
            baseline: Place { model: base, adapter: path(Role::BaseAdapter) },
            candidate: Place { model, adapter: path(Role::Adapter) },
            text,
        }),
        _ => None,
    };
    let job = GateJob {
        baseline: path(Role::Baseline).unwrap_or_default(),
        candidate: path(Role::Candidate).unwrap_or_default(),
        policy: path(Role::Policy),
        models,
    };
    let on = Shared::choose(how.device, how.quiet)?;
    let (threads, isa, quiet) = (how.threads_given, how.isa_given, how.quiet);
    let run = gate::How { offline: true, threads, isa, quiet, on: &on };
    let judged = job.judge(&run)?;
    let text = markdown(&judged.candidate, Some(&judged.verdict));
    let output = Output::of_text(OutputRole::Verdict, Path::new("gate.md"), &text);
    Ok(Comparison::of_outputs(&manifest.outputs, &[output]))
}

fn read(path: &Path) -> Result<String, ReplayError> {
    std::fs::read_to_string(path).map_err(|source| unread(path, source))
}

pub(super) fn unread(path: &Path, source: std::io::Error) -> ReplayError {
    ReplayError::Unread { path: path.to_owned(), source }
}

/// Returns a directory that goes when it is dropped.
pub(super) fn work_dir(how: &How) -> Result<TempDir, ReplayError> {
    let dir = how.work.map_or_else(std::env::temp_dir, Path::to_owned);
    let made = tempfile::Builder::new().prefix("lctl-replay-").tempdir_in(&dir);
    made.map_err(|source| ReplayError::Work { dir, source })
}

/// Returns a path to the model on which its directory has the name it had: `general.name` may come from it.
///
/// Errors if the name could lead anywhere else.
fn under_its_name(given: &Path, name: Option<&str>, work: &Path) -> Result<PathBuf, Failure> {
    let Some(name) = name else { return Ok(given.to_owned()) };
    check_name(name)?;
    let (dir, file) = match given.is_dir() {
        true => (given, None),
        false => (given.parent().unwrap_or(Path::new(".")), given.file_name()),
    };
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    if model::directory_name(&dir) == name {
        return Ok(file.map_or(dir.clone(), |file| dir.join(file)));
    }
    let inner = work.join("model");
    let link = inner.join(name);
    let made = std::fs::create_dir(&inner).and_then(|()| link_directory(&dir, &link));
    made.map_err(|source| ReplayError::Work { dir: inner, source })?;
    Ok(file.map_or(link.clone(), |file| link.join(file)))
}

/// Errors on a name that could lead anywhere else than to one file.
fn check_name(name: &str) -> Result<(), ReplayError> {
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(_)), None) => Ok(()),
        _ => Err(ReplayError::BadDirectory { name: name.to_owned() }),
    }
}

#[cfg(unix)]
fn link_directory(dir: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(dir, link)
}

#[cfg(windows)]
fn link_directory(dir: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_dir(dir, link)
}
