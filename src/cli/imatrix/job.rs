//! An importance matrix as command line and manifest both describe it.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::cli::device::Shared;
use crate::cli::eval::{ComputeArg, EvalProgress, TextFile, UnknownSetting, licences};
use crate::cli::model::{LoadedModel, ModelArgs, WeightsArg};
use crate::cli::quantize::ImportanceFile;
use crate::error::Failure;
use crate::eval::collect::{Extent, Observable, collect};
use crate::eval::{self, Chunks, EngineOptions, report};
use crate::model::observe::{Input, SiteSums, SiteTensors, sites};
use crate::provenance::{
    Content, ImatrixSettings, InputFiles, Licences, Output, OutputRole, Role, UNKNOWN, inherit,
};
use crate::quantize::importance::{Form, ImportanceSums};
use crate::tensor::WrittenFile;

/// Tokens per chunk unless --context says otherwise, as in llama-imatrix; less for a model with less context.
const CHUNK_LEN: usize = 512;

/// What decides the output's bytes.
pub struct ImatrixJob {
    pub settings: ImatrixSettings,
    /// Without it files are added up.
    pub source: Option<Source>,
    pub in_files: Vec<ImportanceFile>,
}

/// A model, and the text it is run over.
pub struct Source {
    /// As the user wrote it.
    pub model: String,
    pub adapter: Option<PathBuf>,
    pub text: PathBuf,
    /// The text's path as the output names it.
    pub dataset: String,
}

/// How to compute; the result does not depend on it, but for the bits of a GPU.
pub struct How<'a> {
    pub on: &'a Shared,
    pub threads: Option<u16>,
    pub isa: Option<&'a str>,
    pub weights: WeightsArg,
    pub offline: bool,
    pub quiet: bool,
    /// The digests of the model's files will be asked for.
    pub digests: bool,
}

/// What it came to.
pub struct Made {
    pub sums: ImportanceSums,
    pub n_tokens: usize,
    source: Option<(LoadedModel, TextFile)>,
    /// The files that were added, with their digests if they were asked for.
    in_files: Vec<InputFiles>,
}

impl ImatrixJob {
    /// Reads the files to add, runs the model over the text, and adds everything up.
    ///
    /// Errors on a text without a whole chunk, a file that is of another model, and inputs of products that are no numbers.
    pub fn make(&self, how: &How) -> Result<Made, Failure> {
        let Some(source) = &self.source else {
            let (sums, in_files) = self.added(self.chunk_len(usize::MAX), None, how)?;
            return Ok(Made { sums, n_tokens: 0, source: None, in_files });
        };
        let settings = &self.settings;
        let text = TextFile::read(&source.text)?;
        let model = self.open(source, how)?;
        let decoder = &model.decoder;
        let sites = sites(decoder.config());
        let chunk_len = self.chunk_len(decoder.context_length());
        let (mut sums, in_files) = self.added(chunk_len, Some(&sites), how)?;
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let extent =
            Extent { chunk_len, from_chunk: number(settings.from_chunk), limit: settings.chunks.map(number) };
        let (tokens, bos) = text.tokens(&model, settings.parse_special)?;
        let chunks = extent.cut(tokens, bos)?;
        let is_wanted =
            |tensors: &SiteTensors| settings.process_output || tensors.site.input != Input::Output;
        let wanted = sites.into_iter().filter(is_wanted).collect();
        let summed = summed(&model, wanted, (&chunks, extent.from_chunk), how.quiet)?;
        let device = model.on_device().map(|device| format!("{}, {}", device.name, device.precision));
        let of_text = ImportanceSums::of_sites(summed, source.dataset.clone(), chunk_len, device);
        sums.add(of_text, &source.text)?;
        let n_tokens = chunks.n_chunks() * chunk_len;
        Ok(Made { sums, n_tokens, source: Some((model, text)), in_files })
    }

    /// Returns the form of the file.
    pub fn form(&self) -> Result<Form, UnknownSetting> {
        match self.settings.format.as_str() {
            "gguf" => Ok(Form::Gguf),
            "dat" => Ok(Form::Legacy),
            other => Err(UnknownSetting::new("format", other)),
        }
    }

    fn open(&self, source: &Source, how: &How) -> Result<LoadedModel, Failure> {
        let compute = ComputeArg::from_str(&self.settings.compute, false)
            .map_err(|_| UnknownSetting::new("compute", &self.settings.compute))?;
        LoadedModel::open(&ModelArgs {
            model: &source.model,
            offline: how.offline,
            adapter: source.adapter.as_deref(),
            compute: compute.into(),
            context: self.settings.context,
            threads: how.threads,
            isa: how.isa,
            weights: how.weights,
            on: how.on,
            batch_tokens: None,
            observed: true,
            quiet: how.quiet,
            digests: how.digests,
        })
    }

    fn chunk_len(&self, context_length: usize) -> usize {
        self.settings.context.map_or(CHUNK_LEN.min(context_length), |n| n as usize)
    }

    /// Returns the tokens per chunk of a file that does not say: --context, else what the other files say, else `otherwise`.
    fn in_file_chunk_len(&self, otherwise: usize) -> Result<usize, Failure> {
        let paths: Vec<&Path> = self.in_files.iter().map(|file| file.path.as_path()).collect();
        match self.settings.context {
            None if paths.len() > 1 => Ok(ImportanceSums::legacy_chunk_len(&paths, otherwise)?),
            _ => Ok(otherwise),
        }
    }

    /// Returns the sum of the files, which are to be of the model of these sites, and which files they were.
    fn added(
        &self,
        chunk_len: usize,
        sites: Option<&[SiteTensors]>,
        how: &How,
    ) -> Result<(ImportanceSums, Vec<InputFiles>), Failure> {
        let chunk_len = self.in_file_chunk_len(chunk_len)?;
        let mut sums = ImportanceSums::default();
        let mut inputs = Vec::new();
        for ImportanceFile { path, named } in &self.in_files {
            let of_file = ImportanceSums::open(path, chunk_len)?;
            if let Some(sites) = sites {
                of_file.check(named, sites)?;
            }
            sums.add(of_file, named)?;
            let path_given = named.display().to_string();
            let input = InputFiles { path: path_given, ..InputFiles::of_file(Role::Importance, None, path) };
            inputs.push(if how.digests { input.with_digests()? } else { input });
        }
        Ok((sums, inputs))
    }
}

impl Made {
    /// Returns what was read, with the digests that are known.
    pub fn inputs(&self) -> Result<Vec<InputFiles>, Failure> {
        let mut inputs = Vec::new();
        if let Some((model, text)) = &self.source {
            inputs.extend_from_slice(model.inputs()?);
            inputs.push(text.input());
        }
        inputs.extend_from_slice(&self.in_files);
        Ok(inputs)
    }

    /// Returns the device that computed, and in which precision; nothing for the CPU, and where files alone were added up.
    pub fn on_device(&self) -> Option<report::Device> {
        self.source.as_ref().and_then(|(model, _)| model.on_device())
    }

    /// Returns what is known of the licences of model, adapter and text.
    pub fn licences(&self) -> Result<Licences, Failure> {
        if let Some((model, text)) = &self.source {
            return licences(model, &[text.input()]);
        }
        let mut found = Licences { base: UNKNOWN.to_owned(), adapter: None, data: Vec::new() };
        inherit(&mut found, &self.in_files);
        Ok(found)
    }

    /// Returns what the user should know, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let idle: Vec<(&str, usize)> = self.sums.with_idle_experts().collect();
        let Some((name, n_experts)) = idle.first() else { return Vec::new() };
        vec![format!(
            "experts of {} tensors have seen no token, first {n_experts} of `{name}`: all their columns weigh the same",
            idle.len()
        )]
    }
}

/// Runs a model over chunks of a text, from that one on, where it is computed; returns the sums at these sites.
fn summed(
    model: &LoadedModel,
    sites: Vec<SiteTensors>,
    (chunks, from_chunk): (&Chunks, usize),
    quiet: bool,
) -> Result<Vec<SiteSums>, Failure> {
    let computer = model.computer()?;
    let mut sums = computer.new_sums(sites)?;
    // behind the sums: what is free decides about the cache
    let options = EngineOptions::new(&computer);
    let n_tokens = chunks.n_chunks() * chunks.chunk_len();
    let mut progress = EvalProgress::new(quiet);
    let mut on_chunks = |n_chunks: usize| progress.show(n_chunks * chunks.chunk_len(), n_tokens, "");
    collect(&computer, &options, chunks, &mut sums, &mut on_chunks)
        .map_err(|error| in_text(error, from_chunk))?;
    progress.finish(n_tokens);
    Ok(computer.read_sums(sums)?)
}

/// Counts chunks from the text's begin, not from the first that was computed.
fn in_text(error: eval::Error, from_chunk: usize) -> eval::Error {
    match error {
        eval::Error::InputNotFinite { chunk, found } => {
            eval::Error::InputNotFinite { chunk: chunk.saturating_add(from_chunk), found }
        }
        other => other,
    }
}

/// Returns what a manifest says of the file written.
pub fn output(file: &WrittenFile) -> Output {
    Output {
        role: OutputRole::Importance,
        path: file.path.display().to_string(),
        content: Content::File,
        // the writer digests unless told not to, and nobody tells it
        sha256: file.sha256_hex().unwrap_or_default(),
    }
}
