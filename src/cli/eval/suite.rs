//! `lctl eval --suite`: suites -> plan -> responses -> report.

mod chat;
mod output;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::interrupt::Interrupt;
use super::manifest::{self, Measured};
use super::progress::EvalProgress;
use super::{Args, ChatTemplateUse, text};
use crate::cli::device::Shared;
use crate::cli::gate::{self, How, Place};
use crate::cli::model::LoadedModel;
use crate::cli::render::Written;
use crate::cli::source::find_hub_files;
use crate::cli::term;
use crate::error::{Diagnostic, Failure};
use crate::eval::encode::Encoder;
use crate::eval::gate::{Divergence, Policy, Run, Verdict, compare, prompt_tokens};
use crate::eval::report::{self, RunFacts, Settings, TableTask};
use crate::eval::run::{ModelSide, Plan, Purpose, RunOptions, TaskResult, check_names};
use crate::eval::suite::{ChatUse, Suite};
use crate::eval::{Computer, Engine, EngineOptions, Journal, JournalKey, Outcome};
use crate::provenance::{InputFiles, Licences, Started, remove_manifest};

use chat::Chat;
use output::Outputs;

/// What can be wrong with the options of a run over suites.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    #[error("--data {given}: not NAME=FILE")]
    NoFile { given: String },

    #[error("--data {name}: given twice")]
    DataTwice { name: String },

    #[error("--resume: no journal")]
    NoJournal,

    #[error("--date {given}: not a date")]
    BadDate { given: String },
}

impl Diagnostic for OptionError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            OptionError::NoFile { .. } => {
                "write the data set's name and a file, e.g. `--data test=test.csv`".into()
            }
            OptionError::DataTwice { .. } => "a data set is one file".into(),
            OptionError::NoJournal => "name it with --journal, or the directory it is in with --out".into(),
            OptionError::BadDate { .. } => "write it as 2026-01-31".into(),
        })
    }
}

/// How long the parts of a run took.
struct Times {
    load: Duration,
    plan: Duration,
    engine: Duration,
}

pub fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode, Failure> {
    let started = Started::now();
    let suites = args.suite.iter().map(|path| Suite::open(path)).collect::<Result<Vec<_>, _>>()?;
    let mut options = run_options(args)?;
    let gate = Gate::open(args)?;
    let date = chat::date(args.date.as_deref())?;
    check_names(&suites, &options)?;
    find_hub_files(&suites, &mut options, Purpose::Run, args.offline, args.quiet)?;
    let outputs = Outputs::check(args, &suites, &options)?;
    if args.resume && outputs.journal().is_none() {
        return Err(OptionError::NoJournal.into());
    }
    let begun = Instant::now();
    let on = Shared::choose(args.device, args.quiet)?;
    let loaded = text::open_model(args, &args.model, &on)?;
    let computer = loaded.computer()?;
    let load = begun.elapsed();
    let chat = Chat::of(&loaded.tokenizer, date);
    let render = chat.as_ref().map(|chat| |messages: &_| chat.render(messages));
    let render = render.as_ref().map(|render| render as &_);
    let begun = Instant::now();
    let model = ModelSide {
        encoder: Encoder::new(&loaded.tokenizer),
        chat: render,
        context_length: loaded.decoder.context_length(),
    };
    let plan = Plan::new(&suites, &options, &model)?;
    let plan_time = begun.elapsed();
    say_notes(args, &plan, chat.as_ref());

    let digest = loaded.digest()?;
    let adapter_digest = loaded.adapter_digest()?;
    let mut journal = open_journal(args, &outputs, &loaded, &digest, adapter_digest.as_deref())?;
    if let Some(path) = outputs.journal() {
        interrupt.set_journal(path.to_owned());
    }
    let begun = Instant::now();
    let engine_options = text::engine_options(args, &computer);
    let outcome = answer(args, (&loaded, &computer), engine_options, &plan, journal.as_mut())?;
    let results = plan.finish(&outcome.responses)?;
    let times = Times { load, plan: plan_time, engine: begun.elapsed() };

    let is_chat = plan.tasks.iter().any(|task| task.is_chat);
    let model = report::Model {
        name: output::name_of(&loaded.path),
        sha256: digest,
        adapter: loaded
            .adapter
            .as_deref()
            .zip(adapter_digest)
            .map(|(path, sha256)| report::Adapter { name: output::name_of(path), sha256 }),
        tokenizer_sha256: loaded.tokenizer.digest().to_owned(),
        chat_template: chat.as_ref().filter(|_| is_chat).map(Chat::report),
    };
    let facts = run_facts(&loaded, engine_options, &outcome, &times);
    let report = report::report(&model, &settings(args, &loaded), &plan.tasks, &results, &facts);
    outputs.write(&report, &plan.tasks, &results)?;
    if let Some(path) = outputs.report().filter(|_| args.no_manifest && args.force) {
        remove_manifest(path)?;
    }
    let data = manifest::data_inputs(&options, &suites, &plan);
    let licences = manifest::licences(&loaded, &data)?;
    let run = match gate.is_some() || !args.render.files().is_empty() {
        true => Some(as_saved(&report, &plan, &results, &licences)?),
        false => None,
    };
    let verdict = match (&gate, &run) {
        (Some(gate), Some(run)) => {
            // a device may have no room for another model beside it
            computer.close();
            Some(gate.compare(args, &loaded, (&plan, run))?)
        }
        _ => None,
    };
    let verdict = verdict.as_ref();
    let comparison = gate.as_ref().map(|gate| &gate.baseline).zip(verdict);
    let written = match &run {
        Some(run) => args.render.write(args.force, run, comparison)?,
        None => Written::default(),
    };
    if args.json {
        let mut json = report.clone();
        if let (Some(verdict), Some(json)) = (verdict, json.as_object_mut()) {
            json.insert("gate".into(), gate::json(verdict));
        }
        term::out_json(&json)?;
    } else if !args.quiet && !args.is_replay {
        let tasks = plan.tasks.iter().zip(&results);
        term::out(&report::table(tasks.map(|(task, result)| TableTask::measured(task, result))))?;
        output::say_summary(&results, &facts);
    }
    let code = match verdict {
        Some(verdict) => output::show_verdict(args, verdict)?,
        None => ExitCode::SUCCESS,
    };
    if let Some(path) = outputs.report().filter(|_| !args.no_manifest) {
        let verdict = written.markdown.as_deref().filter(|_| verdict.is_some());
        let base = gate.as_ref().map_or(&[][..], Gate::model_files);
        let (suites, plan, results, report) = (&suites, &plan, &results, &report);
        let date = date.to_string();
        let measured = Measured { suites, plan, results, report, data, licences, date, verdict, base };
        manifest::write_of_suites(args, started, &loaded, path, measured)?;
    }
    written.keep();
    Ok(code)
}

/// The run that --baseline names and what is demanded; read before the model is.
struct Gate {
    baseline: Run,
    policy: Policy,
    /// The baseline's model, and its files.
    model: Option<(Place, Vec<InputFiles>)>,
}

fn how<'a>(args: &'a Args, on: &'a Shared) -> How<'a> {
    How { offline: args.offline, threads: args.threads, isa: args.isa.as_deref(), quiet: args.quiet, on }
}

impl Gate {
    fn open(args: &Args) -> Result<Option<Gate>, Failure> {
        let Some(path) = &args.baseline else { return Ok(None) };
        let policy = gate::open_policy(args.policy.as_deref())?;
        let baseline = gate::open_run(path)?;
        let place = |model: &String| Place { model: model.clone(), adapter: args.baseline_adapter.clone() };
        let model = match args.baseline_model.as_ref().map(place) {
            Some(place) => {
                let files = gate::check_measured(&place, &baseline, &how(args, &Shared::default()))?;
                Some((place, files))
            }
            None => None,
        };
        Ok(Some(Gate { baseline, policy, model }))
    }

    fn model_files(&self) -> &[InputFiles] {
        self.model.as_ref().map_or(&[], |(_, files)| files)
    }

    fn compare(
        &self,
        args: &Args,
        measured: &LoadedModel,
        (plan, candidate): (&Plan, &Run),
    ) -> Result<Verdict, Failure> {
        let mut verdict = compare(&self.baseline, candidate, &self.policy)?;
        if let Some((place, _)) = &self.model {
            // it decides nothing, so that its failure must not cost the verdict
            match self.divergence(args, place, measured, plan) {
                Ok(Some(found)) => verdict.divergence = Some(found),
                Ok(None) => verdict.notes.push("no divergence: the prompts fill no two chunks".to_owned()),
                Err(failure) => verdict.notes.push(format!("no divergence: {}", one_line(&failure))),
            }
        }
        Ok(verdict)
    }

    fn divergence(
        &self,
        args: &Args,
        place: &Place,
        measured: &LoadedModel,
        plan: &Plan,
    ) -> Result<Option<Divergence>, Failure> {
        let base = place.open(&self.baseline, &how(args, &measured.shared()))?;
        let prompts = |most| prompt_tokens(&plan.requests, most);
        gate::over_prompts(measured, &base, prompts, self.policy.alpha, args.quiet)
    }
}

/// Returns the run as `lctl gate` and `lctl report` would read it, through the same text.
fn as_saved(report: &Json, plan: &Plan, results: &[TaskResult], licences: &Licences) -> Result<Run, Failure> {
    let (report, samples) = (report.to_string(), report::samples(&plan.tasks, results));
    let mut run = Run::read(Path::new("report.json"), &report, Path::new("samples.jsonl"), &samples)?;
    run.licences = Some(licences.clone());
    Ok(run)
}

fn one_line(failure: &Failure) -> String {
    let text = failure.to_string();
    let first = text.lines().next().unwrap_or_default();
    first.strip_prefix("error: ").unwrap_or(first).to_owned()
}

/// Reads `--data NAME=FILE`, each name once.
pub fn data_files(given: &[String]) -> Result<HashMap<String, PathBuf>, OptionError> {
    let mut data: HashMap<String, PathBuf> = HashMap::new();
    for given in given {
        let (name, path) =
            given.split_once('=').ok_or_else(|| OptionError::NoFile { given: given.clone() })?;
        if name.is_empty() || path.is_empty() {
            return Err(OptionError::NoFile { given: given.clone() });
        }
        if data.insert(name.to_owned(), path.into()).is_some() {
            return Err(OptionError::DataTwice { name: name.to_owned() });
        }
    }
    Ok(data)
}

fn run_options(args: &Args) -> Result<RunOptions, OptionError> {
    let data = data_files(&args.data)?;
    let chat = match args.chat_template {
        ChatTemplateUse::Auto => ChatUse::Auto,
        ChatTemplateUse::On => ChatUse::On,
        ChatTemplateUse::Off => ChatUse::Off,
    };
    let limit = args.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(RunOptions { few_shot: args.few_shot, chat, limit, seed: args.seed, data, hub: HashMap::new() })
}

fn say_notes(args: &Args, plan: &Plan, chat: Option<&Chat>) {
    if args.quiet {
        return;
    }
    let folded = chat.filter(|chat| chat.has_folded()).map(|_| {
        "the chat template refuses a system message; its text begins the first user message instead"
            .to_owned()
    });
    for note in plan.notes.iter().chain(&folded) {
        term::say(&format!("note: {}", term::printable(note)));
    }
}

fn open_journal(
    args: &Args,
    outputs: &Outputs,
    loaded: &LoadedModel,
    digest: &str,
    adapter_digest: Option<&str>,
) -> Result<Option<Journal>, Failure> {
    let Some(path) = outputs.journal() else { return Ok(None) };
    // with another driver or cuBLAS the last bits may be others
    let device = loaded.on_device().into_iter().flat_map(|device| {
        [
            ("device", device.name),
            ("precision", device.precision.to_owned()),
            ("driver", device.driver),
            ("cublas", device.cublas),
        ]
    });
    let key = [
        ("lctl", env!("CARGO_PKG_VERSION").to_owned()),
        ("model", digest.to_owned()),
        ("adapter", adapter_digest.unwrap_or("none").to_owned()),
        ("tokenizer", loaded.tokenizer.digest().to_owned()),
        ("compute", args.compute.name().to_owned()),
        ("context", loaded.decoder.context_length().to_string()),
    ];
    let key = JournalKey::new(key.into_iter().chain(device));
    Ok(Some(match args.resume {
        true => Journal::resume(path, &key)?,
        false => Journal::create(path, &key, args.force)?,
    }))
}

fn answer(
    args: &Args,
    (loaded, computer): (&LoadedModel, &Computer<'_>),
    options: EngineOptions,
    plan: &Plan,
    journal: Option<&mut Journal>,
) -> Result<Outcome, Failure> {
    let mut progress = EvalProgress::new(args.quiet);
    let engine = Engine::new(computer, options).with_tokenizer(&loaded.tokenizer);
    let outcome = engine.run(&plan.requests, journal, &mut |state| {
        let more = format!(", {} of {} answers", state.responses_done, state.responses_total);
        progress.show(state.tokens_done, state.tokens_total, &more);
    })?;
    progress.finish(outcome.usage.computed_tokens);
    Ok(outcome)
}

fn settings(args: &Args, loaded: &LoadedModel) -> Settings {
    Settings {
        compute: args.compute.name(),
        context: loaded.decoder.context_length(),
        seed: args.seed,
        limit: args.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        few_shot: args.few_shot,
        chat_template: args.chat_template.name(),
        device: loaded.on_device(),
    }
}

fn run_facts(loaded: &LoadedModel, options: EngineOptions, outcome: &Outcome, times: &Times) -> RunFacts {
    let usage = outcome.usage;
    let engine_seconds = times.engine.as_secs_f64();
    RunFacts {
        isa: loaded.decoder.compute().isa.name(),
        threads: loaded.decoder.compute().team.threads(),
        batch_tokens: options.batch_tokens,
        prefix_cache: options.prefix_cache,
        load_seconds: times.load.as_secs_f64(),
        plan_seconds: times.plan.as_secs_f64(),
        engine_seconds,
        requests: outcome.responses.len(),
        resumed: usage.resumed,
        computed_tokens: usage.computed_tokens,
        plain_tokens: usage.plain_tokens,
        tokens_per_second: usage.computed_tokens as f64 / engine_seconds.max(1e-9),
    }
}
