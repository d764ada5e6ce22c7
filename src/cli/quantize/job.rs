//! A quantization as command line and manifest both describe it.

use std::path::{Path, PathBuf};

use super::options;
use crate::error::Failure;
use crate::kernel::Isa;
use crate::model;
use crate::provenance::{InputFiles, Job, Licences, QuantizeSettings, Role, licence_of_model};
use crate::quantize::{Importance, Kind, Output, Override, Prepared, Request, Source};
use crate::tensor::gguf::Split;

/// What decides the output's bytes.
pub struct QuantizeJob {
    pub settings: QuantizeSettings,
    /// As the user wrote it.
    pub given: String,
    pub model: PathBuf,
    pub importance: Option<ImportanceFile>,
}

/// An importance matrix.
pub struct ImportanceFile {
    pub path: PathBuf,
    /// The path that the output names.
    pub named: PathBuf,
}

impl QuantizeJob {
    /// Plans and checks; only headers are read.
    pub fn prepare(&self, is_dry_run: bool) -> Result<Prepared, Failure> {
        let settings = &self.settings;
        let overrides = settings.override_kv.iter().map(|text| Override::parse(text));
        let importance = self
            .importance
            .as_ref()
            .map(|file| Importance::open(&file.path).map(|importance| importance.named(&file.named)));
        let request = Request {
            options: options::plan_options(settings, self.importance.is_some())?,
            allow_requantize: settings.allow_requantize,
            overrides: overrides.collect::<Result<Vec<_>, _>>()?,
            importance: importance.transpose()?,
        };
        let source = Source::open(&self.model, request.options.recipe, settings.pre.as_deref())?;
        Ok(Prepared::new(source, request, is_dry_run)?)
    }

    /// Returns where and how to write.
    pub fn output<'a>(&self, path: &'a Path, isa: Isa, n_threads: usize) -> Output<'a> {
        let split = self.settings.split_max_bytes.map(Split::MaxBytes);
        Output { path, force: false, split, isa, n_threads, with_stats: false }
    }

    /// Returns what a manifest says of the settings.
    pub fn record(&self, prepared: &Prepared) -> Job {
        let is_checkpoint = prepared.source.kind == Kind::Checkpoint;
        let directory = is_checkpoint.then(|| directory_name(&self.model)).flatten();
        Job::Quantize(QuantizeSettings { directory, ..self.settings.clone() })
    }

    /// Returns the files that it reads.
    pub fn inputs(&self) -> Result<Vec<InputFiles>, Failure> {
        let mut inputs = InputFiles::of_model(&self.given, &self.model, [Role::Model, Role::ModelFiles])?;
        if let Some(ImportanceFile { path, named }) = &self.importance {
            let named = named.display().to_string();
            inputs.push(InputFiles { path: named, ..InputFiles::of_file(Role::Importance, None, path) });
        }
        Ok(inputs)
    }

    /// Returns the licence of what it reads.
    pub fn licences(&self) -> Licences {
        Licences { base: licence_of_model(&self.model), adapter: None, data: Vec::new() }
    }
}

/// Returns the name of the directory that a checkpoint lies in, as [`model::directory_name`] tells it.
fn directory_name(path: &Path) -> Option<String> {
    let dir = if path.is_dir() { path } else { path.parent()? };
    Some(model::directory_name(dir)).filter(|name| !name.is_empty())
}
