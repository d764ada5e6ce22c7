//! Manifests of evaluations: written beside a report, and read back into arguments.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::Value as Json;

use super::{Args, ChatTemplateUse, ComputeArg, text};
use crate::cli::model::LoadedModel;
use crate::cli::term;
use crate::error::{Diagnostic, Failure};
use crate::eval::report;
use crate::eval::run::{Plan, RunOptions, TaskResult};
use crate::eval::suite::Suite;
use crate::provenance::{
    Content, DataLicence, Draft, EvalMode, EvalSettings, Finished, InputFiles, Job, Licences, Output,
    OutputRole, Role, Samples, Started, hex, inherit, licence_beside, licence_of_model, merkle_root_of_lines,
    remove_manifest,
};

/// A run over suites, measured.
pub struct Measured<'a> {
    pub suites: &'a [Suite],
    pub plan: &'a Plan<'a>,
    pub results: &'a [TaskResult],
    pub report: &'a Json,
    pub data: Vec<InputFiles>,
    pub licences: Licences,
    /// What chat templates saw.
    pub date: String,
    /// What a gate said, as Markdown.
    pub verdict: Option<&'a str>,
    /// The baseline's model, if it was read.
    pub base: &'a [InputFiles],
}

/// A run over a text, measured.
pub struct MeasuredText<'a> {
    pub mode: EvalMode,
    pub model: &'a LoadedModel,
    /// What was read besides the model.
    pub others: Vec<InputFiles>,
    pub report: Option<&'a Json>,
    pub logits_sha256: Option<[u8; 32]>,
}

/// Writes the manifest of a report over suites.
pub fn write_of_suites(
    args: &Args,
    started: Started,
    model: &LoadedModel,
    report_path: &Path,
    measured: Measured,
) -> Result<(), Failure> {
    let mut inputs = model.inputs()?.to_vec();
    if let Some(named) = &args.named {
        let is_moved = |role: Role| match args.adapter {
            Some(_) => role == Role::Adapter,
            None => matches!(role, Role::Model | Role::ModelFiles),
        };
        for input in inputs.iter_mut().filter(|input| is_moved(input.role)) {
            input.path = named.display().to_string();
        }
    }
    inputs.extend(measured.suites.iter().map(|suite| {
        let input = InputFiles::of_file(Role::Suite, Some(suite.name.clone()), &suite.path);
        input.with_sha256(&suite.sha256)
    }));
    inputs.extend(measured.data);
    inputs.extend(args.baseline.as_deref().map(|path| InputFiles::of_run(Role::Baseline, path)));
    inputs.extend(args.policy.as_deref().map(|path| InputFiles::of_file(Role::Policy, None, path)));
    inputs.extend_from_slice(measured.base);

    let samples = report::samples(&measured.plan.tasks, measured.results);
    let (lines, merkle_root) = merkle_root_of_lines(&samples);
    let samples_path = report_path.with_file_name("samples.jsonl");
    let mut outputs = vec![
        Output::of_report(report_path, measured.report),
        Output::of_text(OutputRole::Samples, &samples_path, &samples),
    ];
    if let (Some(path), Some(verdict)) = (&args.render.markdown, measured.verdict) {
        outputs.push(Output::of_text(OutputRole::Verdict, path, verdict));
    }
    let settings = EvalSettings { date: Some(measured.date), ..settings(args, EvalMode::Suite, model) };
    let (samples, licences) = (Some(Samples { lines, merkle_root }), measured.licences);
    write(args, started, model, report_path, Parts { settings, inputs, outputs, samples, licences })
}

/// Writes the manifest of a report over a text, or of saved logits; none if neither was written, or if none is wanted.
pub fn write_of_text(args: &Args, started: Started, measured: MeasuredText) -> Result<(), Failure> {
    let artefact = text::artefact(args).filter(|_| !args.no_manifest);
    if args.force {
        // of what was replaced
        let mut others = text::outputs(args).filter(|path| Some(path) != artefact.as_ref());
        others.try_for_each(|path| remove_manifest(&path))?;
    }
    let Some(artefact) = artefact else { return Ok(()) };
    let MeasuredText { mode, model, others, report, logits_sha256 } = measured;
    let mut inputs = model.inputs()?.to_vec();
    inputs.extend(others);
    let mut outputs = Vec::new();
    if let (Some(dir), Some(report)) = (&args.out, report) {
        outputs.push(Output::of_report(&text::report_path(dir), report));
    }
    if let (Some(path), Some(sha256)) = (&args.save_logits, logits_sha256) {
        let (path, sha256) = (path.display().to_string(), hex(&sha256));
        outputs.push(Output { role: OutputRole::Logits, path, content: Content::File, sha256 });
    }
    let (settings, licences) = (settings(args, mode, model), licences(model, &[])?);
    write(args, started, model, &artefact, Parts { settings, inputs, outputs, samples: None, licences })
}

/// What a manifest has to say.
struct Parts {
    settings: EvalSettings,
    inputs: Vec<InputFiles>,
    outputs: Vec<Output>,
    samples: Option<Samples>,
    licences: Licences,
}

fn write(
    args: &Args,
    started: Started,
    model: &LoadedModel,
    artefact: &Path,
    parts: Parts,
) -> Result<(), Failure> {
    let Parts { settings, inputs, outputs, samples, licences } = parts;
    let compute = model.decoder.compute();
    let threads = compute.team.threads();
    let draft = Draft::begin(artefact, args.force, Job::Eval(settings), inputs, started, threads)?;
    let notes = draft.finish(Finished { outputs, samples, licences, threads, isa: compute.isa.name() })?;
    for note in notes.iter().filter(|_| !args.quiet) {
        term::say(&format!("note: {}", term::printable(note)));
    }
    Ok(())
}

/// Returns a model's input as one of the model compared with.
pub fn as_base(input: InputFiles) -> Option<InputFiles> {
    let role = match input.role {
        Role::Model => Role::Base,
        Role::ModelFiles => Role::BaseFiles,
        _ => return None,
    };
    Some(InputFiles { role, ..input })
}

/// Returns the data files that the tasks used: those given by name, and those that the suites name.
pub fn data_inputs(options: &RunOptions, suites: &[Suite], plan: &Plan) -> Vec<InputFiles> {
    let tasks = &plan.tasks;
    let sets = || tasks.iter().flat_map(|task| [Some(&task.data), task.shots.as_ref().map(|(_, set)| set)]);
    let used = |path: &Path| sets().flatten().find(|set| &*set.path == path);
    let given = &options.data;
    let mut names: Vec<&String> = given.keys().collect();
    names.sort();
    let mut inputs: Vec<InputFiles> = names
        .into_iter()
        .map(|name| InputFiles::of_file(Role::Data, Some(name.clone()), &given[name]))
        .collect();
    for suite in suites {
        for (name, spec) in suite.data.iter().filter(|(name, _)| !given.contains_key(*name)) {
            let file = spec.on_hub().map(|hub| &hub.file);
            let in_cache = file.and_then(|file| options.hub.get(file)).cloned();
            let Some(path) = spec.file(suite.directory()).or(in_cache) else { continue };
            let Some(set) = used(&path) else { continue };
            let mut input =
                InputFiles::of_file(Role::SuiteData, Some(format!("{}/{name}", suite.name)), &path);
            // whose cache it lies in is no part of what was measured
            if let Some(file) = file {
                input.path = file.to_string();
            }
            // with parts the set's digest is of all files
            let has_parts = !spec.format_of(&options.data, name).parts.is_empty();
            inputs.push(if has_parts { input } else { input.with_sha256(&set.sha256) });
        }
    }
    inputs
}

/// Returns what is known of the licences of model, adapter and data.
pub fn licences(model: &LoadedModel, data: &[InputFiles]) -> Result<Licences, Failure> {
    let files = data.iter().flat_map(|input| &input.files);
    let mut licences = Licences {
        base: licence_of_model(&model.path),
        adapter: model.adapter.as_deref().map(licence_of_model),
        data: files
            .map(|file| DataLicence { name: file.name.clone(), licence: licence_beside(&file.path) })
            .collect(),
    };
    inherit(&mut licences, model.inputs()?);
    Ok(licences)
}

fn settings(args: &Args, mode: EvalMode, model: &LoadedModel) -> EvalSettings {
    EvalSettings {
        mode,
        compute: args.compute.name().to_owned(),
        context: args.context,
        seed: args.seed,
        limit: args.limit,
        few_shot: args.few_shot,
        chat_template: args.chat_template.name().to_owned(),
        date: None,
        device: model.on_device().map(Into::into),
    }
}

/// A setting of a manifest that this program does not know.
#[derive(Debug, thiserror::Error)]
#[error("the manifest's `{key}` is `{found}`")]
pub struct UnknownSetting {
    key: &'static str,
    found: String,
}

impl UnknownSetting {
    pub fn new(key: &'static str, found: &str) -> Self {
        UnknownSetting { key, found: found.to_owned() }
    }
}

impl Diagnostic for UnknownSetting {
    fn hint(&self) -> Option<String> {
        Some("was the manifest edited, or written by another version of lctl?".into())
    }
}

/// Where the inputs of a run are now.
pub struct Places {
    pub model: String,
    pub adapter: Option<PathBuf>,
    pub suites: Vec<PathBuf>,
    /// `NAME=FILE`
    pub data: Vec<String>,
    pub text: Option<PathBuf>,
    /// Compared with in either way.
    pub base: Option<String>,
    pub base_adapter: Option<PathBuf>,
    pub base_logits: Option<PathBuf>,
    pub baseline: Option<PathBuf>,
    pub policy: Option<PathBuf>,
}

/// Returns the arguments that a manifest's settings stand for; nothing is written but what the caller adds.
///
/// Errors if a setting has a value that no argument has.
pub fn args_of(settings: &EvalSettings, places: Places) -> Result<Args, UnknownSetting> {
    let unknown = UnknownSetting::new;
    let compute = ComputeArg::from_str(&settings.compute, false);
    let chat_template = ChatTemplateUse::from_str(&settings.chat_template, false);
    let context = settings.context.filter(|context| *context < 2);
    if let Some(context) = context {
        return Err(unknown("context", &context.to_string()));
    }
    if settings.limit == Some(0) {
        return Err(unknown("limit", "0"));
    }
    let is = |mode| settings.mode == mode;
    Ok(Args {
        model: places.model,
        suite: places.suites,
        data: places.data,
        perplexity: places.text.clone().filter(|_| is(EvalMode::Perplexity)),
        text: places.text.filter(|_| is(EvalMode::KlBase)),
        kl_base: places.base.clone().filter(|_| is(EvalMode::KlBase)),
        baseline_model: places.base.filter(|_| is(EvalMode::Suite)),
        baseline_adapter: places.base_adapter,
        base_logits: places.base_logits,
        adapter: places.adapter,
        baseline: places.baseline,
        policy: places.policy,
        compute: compute.map_err(|_| unknown("compute", &settings.compute))?,
        chat_template: chat_template.map_err(|_| unknown("chat_template", &settings.chat_template))?,
        context: settings.context,
        seed: settings.seed,
        limit: settings.limit,
        few_shot: settings.few_shot,
        date: settings.date.clone(),
        offline: true,
        no_manifest: true,
        is_replay: true,
        ..Args::default()
    })
}
