//! The divergence of two models whose reports are compared.

use std::path::PathBuf;

use clap::ValueEnum;

use super::job::How;
use crate::cli::divergence::Pair;
use crate::cli::eval::{ComputeArg, EvalProgress, TextFile, check_same};
use crate::cli::model::{LoadedModel, ModelArgs, WeightsArg};
use crate::cli::source::model_path;
use crate::error::{Diagnostic, Failure};
use crate::eval::gate::{ChunkMeans, Divergence, Run};
use crate::eval::kld::DivergenceSoFar;
use crate::eval::perplexity::ChunkDone;
use crate::eval::{Chunks, Computer, EngineOptions, Error as EvalError};
use crate::provenance::{InputFiles, Role, hex};

/// Tokens per chunk, less for a model with less context.
const CHUNK_LEN: usize = 512;

/// Most chunks of a text or of prompts: 16,320 scored tokens.
const MOST_CHUNKS: usize = 64;

/// A model that was measured.
#[derive(Clone, Debug)]
pub struct Place {
    pub model: String,
    pub adapter: Option<PathBuf>,
}

/// Why a divergence cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: SHA-256 is {found}, but the report was measured on {expected}")]
    NotTheModel { path: String, found: String, expected: String },

    #[error("the report of {model} was measured with the adapter {name}")]
    NoAdapter { model: String, name: String },

    #[error("the report of {model} was measured without an adapter")]
    NoSuchAdapter { model: String },

    #[error("the report was measured with `--compute {found}`")]
    UnknownCompute { found: String },

    #[error("--text: {name} has {found} tokens; 2 chunks of {chunk_len} need {needed}")]
    ShortText { name: String, found: usize, needed: usize, chunk_len: usize },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NotTheModel { .. } => "give the models that the reports speak of".into(),
            Error::NoAdapter { .. } => "give it with --baseline-adapter or --candidate-adapter".into(),
            Error::NoSuchAdapter { .. } => "leave the adapter out".into(),
            Error::ShortText { .. } => "give a longer text".into(),
            Error::UnknownCompute { .. } => {
                "was the report edited, or written by another version of lctl?".into()
            }
        })
    }
}

impl Place {
    /// Opens the model as it was measured.
    pub fn open(&self, run: &Run, how: &How) -> Result<LoadedModel, Failure> {
        let found = &run.settings.compute;
        let compute = ComputeArg::from_str(found, false);
        LoadedModel::open(&ModelArgs {
            model: &self.model,
            offline: how.offline,
            adapter: self.adapter.as_deref(),
            compute: compute.map_err(|_| Error::UnknownCompute { found: found.clone() })?.into(),
            context: None,
            threads: how.threads,
            isa: how.isa,
            weights: WeightsArg::Auto,
            on: how.on,
            batch_tokens: None,
            quiet: how.quiet,
            observed: false,
            digests: false,
        })
    }
}

/// Returns the files of a model whose report that is, as those of a baseline; reads them all.
///
/// Errors if they are not what was measured.
pub fn check_measured(place: &Place, run: &Run, how: &How) -> Result<Vec<InputFiles>, Failure> {
    let path = model_path(&place.model, how.offline, how.quiet)?;
    let mut inputs = InputFiles::of_model(&place.model, &path, [Role::Base, Role::BaseFiles])?;
    let model = || run.model.name.clone();
    match (&place.adapter, &run.model.adapter) {
        (None, Some(adapter)) => {
            return Err(Error::NoAdapter { model: model(), name: adapter.name.clone() }.into());
        }
        (Some(_), None) => return Err(Error::NoSuchAdapter { model: model() }.into()),
        (Some(path), Some(_)) => {
            inputs.push(InputFiles { role: Role::BaseAdapter, ..InputFiles::of_adapter(path) });
        }
        (None, None) => {}
    }
    let inputs = inputs.into_iter().map(InputFiles::with_digests).collect::<Result<Vec<_>, _>>()?;
    let expected = |role| match role {
        Role::Base => Some(&run.model.sha256),
        Role::BaseAdapter => run.model.adapter.as_ref().map(|adapter| &adapter.sha256),
        _ => None,
    };
    for input in &inputs {
        let found = input.sha256();
        if let Some(expected) = expected(input.role).filter(|expected| **expected != found) {
            let (path, expected) = (input.path.clone(), expected.clone());
            return Err(Error::NotTheModel { path, found, expected }.into());
        }
    }
    Ok(inputs)
}

/// Returns an input of the baseline's model as one of the candidate's.
pub fn as_candidate(input: InputFiles) -> InputFiles {
    let role = match input.role {
        Role::Base => Role::Model,
        Role::BaseFiles => Role::ModelFiles,
        Role::BaseAdapter => Role::Adapter,
        other => other,
    };
    InputFiles { role, ..input }
}

fn chunk_len(model: &LoadedModel, base: &LoadedModel) -> usize {
    CHUNK_LEN.min(model.decoder.context_length()).min(base.decoder.context_length())
}

/// Measures over a text, at most [`MOST_CHUNKS`] chunks of it. Neither model is on a device yet.
pub fn over_text(
    model: &LoadedModel,
    base: &LoadedModel,
    text: &TextFile,
    alpha: f64,
    quiet: bool,
) -> Result<Divergence, Failure> {
    let len = chunk_len(model, base);
    let chunks = cut(text, model, len)?;
    check_same(&chunks, &cut(text, base, len)?)?;
    measure(model, base, &chunks, text.name(), alpha, quiet)
}

/// Returns the chunks of a text, whose length is no option here.
fn cut(text: &TextFile, model: &LoadedModel, chunk_len: usize) -> Result<Chunks, Failure> {
    let (tokens, bos) = text.tokens(model, false)?;
    match Chunks::new(tokens, chunk_len, bos, Some(MOST_CHUNKS)) {
        Err(EvalError::TextTooShort { found, needed, chunk_len }) => {
            Err(Error::ShortText { name: text.name(), found, needed, chunk_len }.into())
        }
        chunks => Ok(chunks?),
    }
}

/// Measures over prompts, as many as [`MOST_CHUNKS`] chunks hold; `None` if they fill no two chunks. As [`over_text`] otherwise.
pub fn over_prompts(
    model: &LoadedModel,
    base: &LoadedModel,
    prompts: impl Fn(usize) -> Vec<u32>,
    alpha: f64,
    quiet: bool,
) -> Result<Option<Divergence>, Failure> {
    let len = chunk_len(model, base);
    let tokens = prompts(MOST_CHUNKS * len);
    if tokens.len() < 2 * len {
        return Ok(None);
    }
    let bos = model.tokenizer.bos().filter(|_| model.tokenizer.adds_bos());
    let chunks = Chunks::new(tokens, len, bos, Some(MOST_CHUNKS))?;
    measure(model, base, &chunks, "the suites' prompts".to_owned(), alpha, quiet).map(Some)
}

fn measure(
    model: &LoadedModel,
    base: &LoadedModel,
    chunks: &Chunks,
    over: String,
    alpha: f64,
    quiet: bool,
) -> Result<Divergence, Failure> {
    let mut progress = EvalProgress::new(quiet);
    let mut means = ChunkMeans::default();
    let mut on_chunk = |done: &ChunkDone<DivergenceSoFar>| {
        means.add(done);
        let more = format!(", KLD {:.6}", done.so_far.kld.value);
        progress.show(done.tokens_done, done.tokens_total, &more);
    };
    let pair = Pair { model, base, batch_tokens: None, quiet };
    let found =
        pair.divergence(chunks, &|computer: &Computer<'_>| EngineOptions::new(computer), &mut on_chunk)?;
    progress.finish(chunks.n_chunks() * chunks.n_inputs());
    let (mean_kl, same_top) = means.finish(alpha);
    Ok(Divergence {
        over,
        tokens_sha256: hex(&chunks.digest()),
        chunks: found.n_chunks,
        chunk_len: found.chunk_len,
        tokens: found.n_tokens,
        mean_kl,
        same_top,
    })
}
