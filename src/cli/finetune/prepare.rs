//! Everything a run needs, opened and checked before the first step.

use std::path::{Path, PathBuf};

use super::Args;
use crate::cli::device::{Chosen, DeviceChoice, Shared, choose};
use crate::cli::gate::open_policy;
use crate::cli::model::{LoadedModel, ModelArgs, WeightsArg};
use crate::cli::source::{find_hub_files, model_path};
use crate::cli::{machine, merge, recipe, term};
use crate::cuda::Device;
use crate::data;
use crate::data::encode::Encoder;
use crate::error::{Diagnostic, Failure, unread_hint};
use crate::eval::run::{DataSets, Purpose, RunOptions, data_names};
use crate::eval::suite::Suite;
use crate::finetune::recipe::{
    AdapterKind, Checkpointing, Compute, Export, Gate, Init, Kind, LowRank, Quantization, Recipe, Targets,
    Template,
};
use crate::finetune::run::{Corpus, Error as RunError};
use crate::kernel::ComputeMode;
use crate::model::export;
use crate::model::train::{self, LowRankSpec, Method, TargetModules, Trainable};
use crate::model::{LoadOptions, Residence};
use crate::provenance::{InputFiles, Role};
use crate::read::{read_text, refuse_endless};
use crate::text::{EncodeOptions, Tokenizer};

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("`{key}`: {}: cannot read", .path.display())]
    Read {
        key: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("`export`: `merged-safetensors` of {}, a GGUF", .base.display())]
    NoCheckpoint { base: PathBuf },

    #[error("{place}: {tokens} tokens, and the model has a context of {context}")]
    TooLong { place: String, tokens: usize, context: usize },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Read { path, source, .. } => unread_hint(path, source).or_else(|| {
                Some("paths are taken from the current directory; --set changes one for now".into())
            }),
            Error::NoCheckpoint { .. } => {
                Some("take `{merged-gguf: TYPE}`, or the checkpoint that the GGUF was made of".into())
            }
            Error::TooLong { context, .. } => Some(format!("set `data.max_seq_len` to at most {context}")),
        }
    }
}

/// What a run is made of.
pub struct Prepared {
    pub recipe: Recipe,
    pub model: Trainable,
    /// What it is trained on; the CPU if there is none.
    pub device: Option<Device>,
    /// What computes the models that a gate measures.
    pub gate_on: DeviceChoice,
    pub corpus: Corpus,
    pub general: Option<Vec<Vec<u32>>>,
    /// Where the model lies.
    pub base: PathBuf,
    /// SHA-256 of config.json and weights.
    pub model_sha256: String,
    /// What a manifest says was read.
    pub inputs: Vec<InputFiles>,
    /// Of an adapter.
    pub spec: Option<LowRankSpec>,
}

impl Prepared {
    /// Opens model and data; what the user should know goes to stderr. `number` is this process's among those of the machine.
    pub fn new(args: &Args, device: DeviceChoice, number: usize) -> Result<Prepared, Failure> {
        let mut set = recipe::SetArgs { set: args.set.set.clone() };
        set.set.extend(args.compute.as_ref().map(|mode| format!("model.compute={mode}")));
        let recipe = recipe::open(&args.recipe, &set)?;
        for (key, path) in recipe.files() {
            if let Err(source) = path.metadata() {
                return Err(Error::Read { key, path: path.to_owned(), source }.into());
            }
            refuse_endless(path)?;
        }
        if let Some(gate) = &recipe.eval.gate {
            check_gate(gate, args.quiet, args.offline)?;
        }
        let (asked, chosen) = (device, choose(device, number)?);
        let opened = Opened::new(args, &recipe)?;
        let Chosen { device, note, .. } = chosen.unless(fits_device(&opened.model).err())?;
        let gate_on = if device.is_some() { asked } else { DeviceChoice::Cpu };
        if let Some(note) = note.filter(|_| !args.quiet) {
            term::say(&format!("note: {note}"));
        }
        let corpus = corpus(&recipe, &opened.tokenizer, args.quiet, args.offline)?;
        let context = opened.model.decoder().context_length();
        let general = general(&recipe, &opened.tokenizer, context)?;
        check_lengths(&corpus, context)?;
        let Opened { model, base, inputs, spec, .. } = opened;
        check_exports(&recipe, &model, &base, spec.as_ref())?;
        let of_model = inputs.iter().find(|input| input.role == Role::Model);
        let model_sha256 = of_model.map(InputFiles::sha256).unwrap_or_default();
        let inputs = [inputs, read_files(args, &recipe, &corpus)?].concat();
        let checkpointing = match recipe.train.gradient_checkpointing {
            Checkpointing::On => train::Checkpointing::Blocks,
            Checkpointing::Off => train::Checkpointing::None,
            Checkpointing::Auto => super::plan::checkpointing(&recipe, &model, &corpus, device.as_ref()),
        };
        let model = model.with_checkpointing(checkpointing);
        Ok(Prepared { recipe, model, device, gate_on, corpus, general, base, model_sha256, inputs, spec })
    }
}

/// Errors if the model, or what is trained of it, has no place on a device.
fn fits_device(model: &Trainable) -> Result<(), train::Error> {
    #[cfg(gpu)]
    return train::check_on_device(model);
    #[cfg(not(gpu))]
    {
        let _ = model;
        Ok(())
    }
}

/// A model to be trained.
struct Opened {
    model: Trainable,
    tokenizer: Tokenizer,
    base: PathBuf,
    inputs: Vec<InputFiles>,
    spec: Option<LowRankSpec>,
}

impl Opened {
    fn new(args: &Args, recipe: &Recipe) -> Result<Opened, Failure> {
        let compute = match recipe.model.compute {
            Compute::Auto => ComputeMode::Auto,
            Compute::F32 => ComputeMode::F32,
            Compute::Bf16 => ComputeMode::Bf16,
        };
        if recipe.model.init == Init::Random {
            return Opened::random(args, recipe, compute);
        }
        let loaded = LoadedModel::open(&ModelArgs {
            model: &recipe.model.path,
            offline: args.offline,
            adapter: None,
            compute,
            context: None,
            threads: args.threads,
            isa: args.isa.as_deref(),
            // the gradients of inputs read the rows, which packed weights have no more
            weights: WeightsArg::Mapped,
            on: &Shared::default(),
            batch_tokens: None,
            observed: false,
            digests: true,
            quiet: args.quiet,
        })?;
        if recipe.export.contains(&Export::MergedSafetensors) && merge::is_gguf(&loaded.path) {
            return Err(Error::NoCheckpoint { base: loaded.path }.into());
        }
        let inputs = loaded.inputs()?.to_vec();
        let LoadedModel { decoder, tokenizer, path: base, .. } = loaded;
        let spec =
            recipe.adapter.low_rank.as_ref().map(|low_rank| low_rank_spec(low_rank, recipe.adapter.kind));
        let method = spec.clone().map_or(Method::Full, Method::LowRank);
        let format = match recipe.model.quantization {
            Quantization::None => None,
            Quantization::Blocks(format) => Some(format),
        };
        if let Some(format) = format {
            super::plan::check_opens(Trainable::quantized_bytes(&decoder, format))?;
        }
        let model = Trainable::with_base(decoder, &method, format)?;
        Ok(Opened { model, tokenizer, base, inputs, spec })
    }

    fn random(args: &Args, recipe: &Recipe, mode: ComputeMode) -> Result<Opened, Failure> {
        let base = model_path(&recipe.model.path, args.offline, args.quiet)?;
        let options = LoadOptions {
            mode,
            isa: machine::isa(args.isa.as_deref())?,
            threads: machine::threads(args.threads),
            adapter: None,
            context: None,
            residence: Residence::Mapped,
        };
        let tokenizer = Tokenizer::open(&base)?;
        super::plan::check_opens(Trainable::random_bytes(&base.join("config.json"))?)?;
        let model = Trainable::random(&base.join("config.json"), recipe.train.seed, &options)?;
        tokenizer.check_vocab(model.decoder().config().vocab_size, &base)?;
        let roles = [Role::Model, Role::ModelFiles];
        let inputs = InputFiles::of_untrained(&recipe.model.path, &base, roles);
        let inputs = inputs.into_iter().map(InputFiles::with_digests).collect::<Result<_, _>>()?;
        Ok(Opened { model, tokenizer, base, inputs, spec: None })
    }
}

fn low_rank_spec(low_rank: &LowRank, kind: AdapterKind) -> LowRankSpec {
    LowRankSpec {
        r: low_rank.r as usize,
        lora_alpha: low_rank.alpha,
        lora_dropout: low_rank.dropout as f32,
        target_modules: match &low_rank.target_modules {
            Targets::AllLinear => TargetModules::AllLinear,
            Targets::Names(names) => TargetModules::Names(names.clone()),
            Targets::Regex(pattern) => TargetModules::Matching(pattern.clone()),
        },
        modules_to_save: low_rank.modules_to_save.clone(),
        rank_pattern: low_rank.rank_pattern.iter().map(|(name, r)| (name.clone(), *r as usize)).collect(),
        alpha_pattern: low_rank.alpha_pattern.iter().map(|(name, alpha)| (name.clone(), *alpha)).collect(),
        use_rslora: kind == AdapterKind::Rslora,
        use_dora: kind == AdapterKind::Dora,
    }
}

fn corpus(recipe: &Recipe, tokenizer: &Tokenizer, quiet: bool, offline: bool) -> Result<Corpus, Failure> {
    let data = &recipe.data;
    let encoder = Encoder::new(tokenizer, &data.settings()?)?;
    let avoided = recipe::avoided(&data.scan, quiet, offline)?;
    let (suites, mut notes) = avoided.map_or((None, Vec::new()), |(suites, notes)| (Some(suites), notes));
    let spec = data.spec(recipe.train.seed);
    let (corpus, findings, more) = match recipe.kind {
        Kind::Finetune => {
            let mut loaded = data::load(&spec, &encoder, Encoder::example, suites.as_ref())?;
            let (findings, notes) = (std::mem::take(&mut loaded.findings), std::mem::take(&mut loaded.notes));
            (Corpus::Examples(loaded), findings, notes)
        }
        Kind::Dpo => {
            let mut loaded = data::load(&spec, &encoder, Encoder::pair, suites.as_ref())?;
            let (findings, notes) = (std::mem::take(&mut loaded.findings), std::mem::take(&mut loaded.notes));
            (Corpus::Pairs(loaded), findings, notes)
        }
    };
    notes.extend(more);
    if !quiet {
        notes.iter().for_each(|note| term::say(&format!("note: {}", term::printable(note))));
        findings
            .iter()
            .for_each(|found| term::say(&format!("warning: {}", term::printable(&found.summary()))));
        corpus.files().iter().for_each(say_counts);
    }
    Ok(corpus)
}

fn say_counts(file: &data::FileCounts) {
    let path = term::printable(&file.path.display().to_string());
    let what = if file.is_validation { "to validate on" } else { "to train on" };
    let held = if file.held_out > 0 { format!(", {} held out", file.held_out) } else { String::new() };
    let left =
        if file.dropped > 0 { format!(", {} too long and left out", file.dropped) } else { String::new() };
    term::say(&format!(
        "{path}: {} rows ({}){held}{left}; {} sequences {what}, {} tokens, {} of them trained",
        file.rows, file.format, file.examples, file.tokens, file.targets
    ));
}

/// Errors if a form that is wanted, or that the gate measures, cannot be written of this base.
fn check_exports(
    recipe: &Recipe,
    model: &Trainable,
    base: &Path,
    spec: Option<&LowRankSpec>,
) -> Result<(), Failure> {
    let is_merged = |form: &Export| matches!(form, Export::MergedSafetensors | Export::MergedGguf(_));
    if recipe.export.iter().any(is_merged) || (recipe.eval.gate.is_some() && spec.is_none()) {
        export::check_merge(base, spec, model.parameters())?;
    }
    if let Some(spec) = spec.filter(|_| recipe.export.contains(&Export::GgufLora)) {
        export::check_gguf_adapter(model.decoder().config(), spec, model.parameters())?;
    }
    Ok(())
}

/// Reads the suite with its data and examples, and the policy: a gate that cannot be asked is told now, not after the run.
fn check_gate(gate: &Gate, quiet: bool, offline: bool) -> Result<(), Failure> {
    let suite = Suite::open(&gate.suite)?;
    let mut options = RunOptions::default();
    find_hub_files(std::slice::from_ref(&suite), &mut options, Purpose::Run, offline, quiet)?;
    let mut sets = DataSets::default();
    for name in suite.tasks.iter().flat_map(|task| data_names(task, &options, Purpose::Run)) {
        sets.get(&suite, name, &options)?;
    }
    open_policy(gate.policy.as_deref())?;
    Ok(())
}

/// Returns the general text as documents of at most `max_seq_len` tokens, and of no more than the model's context.
fn general(recipe: &Recipe, tokenizer: &Tokenizer, context: usize) -> Result<Option<Vec<Vec<u32>>>, Failure> {
    let Some(guard) = &recipe.eval.forgetting else { return Ok(None) };
    let text = read_text(&guard.text)?;
    let options = EncodeOptions { add_special: true, ..EncodeOptions::default() };
    let mut tokens = tokenizer.encode(&text, options)?;
    tokens.truncate(guard.max_tokens);
    let documents: Vec<Vec<u32>> = tokens
        .chunks(recipe.data.max_seq_len.min(context))
        .filter(|chunk| chunk.len() > 1)
        .map(<[u32]>::to_vec)
        .collect();
    match documents.is_empty() {
        true => Err(RunError::ShortText { path: guard.text.clone(), tokens: tokens.len() }.into()),
        false => Ok(Some(documents)),
    }
}

/// Errors on a sequence longer than the model's context, before the first step.
fn check_lengths(corpus: &Corpus, context: usize) -> Result<(), Failure> {
    for units in [corpus.train(), corpus.validation()] {
        for unit in 0..units.len() {
            let longest = units.documents(&[unit]).iter().map(|document| document.tokens.len()).max();
            let tokens = longest.unwrap_or(0);
            if tokens > context {
                return Err(Error::TooLong { place: units.place(unit).to_string(), tokens, context }.into());
            }
        }
    }
    Ok(())
}

/// Returns what a manifest says was read besides the model.
fn read_files(args: &Args, recipe: &Recipe, corpus: &Corpus) -> Result<Vec<InputFiles>, Failure> {
    let mut inputs = vec![InputFiles::of_file(Role::Recipe, None, &args.recipe).with_sha256(&recipe.sha256)];
    inputs.extend(
        corpus
            .files()
            .iter()
            .map(|file| InputFiles::of_file(Role::Data, None, &file.path).with_sha256(&file.sha256)),
    );
    if let Template::File(path) = &recipe.data.chat_template {
        inputs.push(InputFiles::of_file(Role::Template, None, path));
    }
    if let Some(guard) = &recipe.eval.forgetting {
        inputs.push(InputFiles::of_file(Role::Text, None, &guard.text));
    }
    for suite in &recipe.data.scan.suites {
        inputs.push(recipe::suite_input(suite)?);
    }
    Ok(inputs)
}
