//! A merge as command line and manifest both describe it.

use std::path::{Path, PathBuf};

use super::{How, is_gguf, quantization_of, quantize, write_merged};
use crate::cli::machine;
use crate::error::Failure;
use crate::kernel::Isa;
use crate::model;
use crate::model::export::{self, Changes, Stored};
use crate::provenance::{
    Content, InputFiles, Job, Licences, MergeSettings, Output, OutputRole, Role, licence_of_model,
};
use crate::quantize::Recipe;
use crate::tensor::{self, StagedDir};

/// What decides the output's bytes.
pub struct MergeJob {
    pub settings: MergeSettings,
    /// The base as the user wrote it, and where it is.
    pub given: String,
    pub base: PathBuf,
    pub adapter: PathBuf,
}

impl MergeJob {
    /// Errors on a type that there is not.
    pub fn new(
        given: &str,
        base: PathBuf,
        adapter: &Path,
        quantization: Option<&str>,
    ) -> Result<MergeJob, Failure> {
        let recipe = quantization.map(Recipe::by_name).transpose()?;
        let is_named = recipe.is_some() && !is_gguf(&base);
        let directory = is_named.then(|| directory_name(&base)).flatten();
        let settings = MergeSettings { r#type: recipe.map(|recipe| recipe.name.to_owned()), directory };
        Ok(MergeJob { settings, given: given.to_owned(), base, adapter: adapter.to_owned() })
    }

    /// Returns whether the output is a file; otherwise it is a directory.
    pub fn makes_file(&self) -> bool {
        self.settings.r#type.is_some() || is_gguf(&self.base)
    }

    /// Reads the adapter.
    ///
    /// Errors if it cannot be, if the base is nothing to add it to, and on a type that there is not.
    pub fn changes(&self, isa: Isa) -> Result<Changes, Failure> {
        self.settings.r#type.as_deref().map(Recipe::by_name).transpose()?;
        if !is_gguf(&self.base) {
            export::check_base(&self.base)?;
        }
        Ok(Changes::open(&self.adapter, isa)?)
    }

    /// Merges into a file or a directory; one that is there is replaced.
    pub fn write(&self, output: &Path, changes: &Changes, how: &How<'_>) -> Result<(), Failure> {
        let isa = machine::isa(how.isa)?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(machine::threads(how.threads)).build();
        let pool =
            pool.map_err(std::io::Error::other).map_err(export::Error::io(output, "start threads for"))?;
        pool.install(|| match &self.settings.r#type {
            None => Ok(write_merged(output, &self.base, changes, Stored::Own, isa)?),
            Some(quantization) => self.write_quantized(output, changes, quantization, how, isa),
        })
    }

    fn write_quantized(
        &self,
        output: &Path,
        changes: &Changes,
        quantization: &str,
        how: &How<'_>,
        isa: Isa,
    ) -> Result<(), Failure> {
        let work = StagedDir::create_output(output).map_err(export::Error::io(output, "write"))?;
        let merged = work.file(self.settings.directory.as_deref().unwrap_or("merged"));
        // an interrupt is named by what the user asked for
        let interrupted =
            |error: export::Error| tensor::check_interrupted(output).err().map_or(error, Into::into);
        write_merged(&merged, &self.base, changes, Stored::F32, isa).map_err(interrupted)?;
        quantize(&merged, quantization, output, how).map_err(|failure| {
            if tensor::check_interrupted(output).is_err() {
                return failure;
            }
            // what is wrong with the base, too, is said of its own files: those quantized are gone by now
            quantization_of(&self.base, quantization).prepare(false).err().unwrap_or(failure)
        })
    }

    /// Returns what a manifest says of the settings.
    pub fn record(&self) -> Job {
        Job::Merge(self.settings.clone())
    }

    /// Returns the files that it reads.
    pub fn inputs(&self) -> Result<Vec<InputFiles>, Failure> {
        let mut inputs = InputFiles::of_model(&self.given, &self.base, [Role::Model, Role::ModelFiles])?;
        inputs.push(InputFiles::of_adapter(&self.adapter));
        Ok(inputs)
    }

    /// Returns what a manifest says of the output: of a directory config.json, the weights, and those of the other files that
    /// decide results.
    pub fn outputs(&self, output: &Path) -> Result<Vec<Output>, Failure> {
        let given = output.display().to_string();
        let mut outputs = Vec::new();
        for files in InputFiles::of_model(&given, output, [Role::Model, Role::ModelFiles])? {
            outputs.extend(files.with_digests()?.files.into_iter().map(|file| Output {
                role: OutputRole::Model,
                path: file.path.display().to_string(),
                content: Content::File,
                // computed in the line above
                sha256: file.sha256.unwrap_or_default(),
            }));
        }
        Ok(outputs)
    }

    /// Returns the licences of what it reads.
    pub fn licences(&self) -> Licences {
        let adapter = Some(licence_of_model(&self.adapter));
        Licences { base: licence_of_model(&self.base), adapter, data: Vec::new() }
    }
}

/// Returns the name of a checkpoint's directory, from which `general.name` may come.
fn directory_name(base: &Path) -> Option<String> {
    Some(model::directory_name(&base.canonicalize().ok()?)).filter(|name| !name.is_empty())
}
