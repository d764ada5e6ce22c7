//! What a run leaves behind: OUT/result, all of it or nothing.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::Args;
use super::gate::{self, Candidate};
use super::prepare::Prepared;
use crate::cli::device::recorded;
use crate::cli::{machine, merge, term};
use crate::error::Failure;
use crate::finetune::recipe::{Export, Quantization};
use crate::finetune::run::Outcome;
use crate::model::export::{self, Stored};
use crate::provenance::{
    self, Content, DataLicence, Draft, FinetuneSettings, Licences, OutputRole, Started, licence_beside,
    licence_of_model, sha256_of_file,
};
use crate::tensor::{StagedDir, remove_dir_whole};

/// What was written.
pub struct Exported {
    pub paths: Vec<PathBuf>,
    /// What `eval.gate` said.
    pub verdict: Option<String>,
    pub code: ExitCode,
}

/// Names in OUT/result.
const ADAPTER: &str = "adapter";
const GGUF_ADAPTER: &str = "adapter.gguf";
const MERGED: &str = "merged";
/// Holds a [`MERGED`] whose sums are not rounded yet, to be quantized.
const UNROUNDED: &str = "unrounded";

/// Writes what the recipe exports; with a gate, only if the result passes.
pub fn export(
    args: &Args,
    prepared: &Prepared,
    outcome: &Outcome,
    dir: &Path,
    started: Started,
) -> Result<Exported, Failure> {
    let path = dir.join("result");
    let threads = machine::threads(args.threads);
    let isa = machine::isa(args.isa.as_deref())?;
    let draft = match args.no_manifest {
        true => None,
        false => {
            let settings = FinetuneSettings {
                recipe: prepared.recipe.to_yaml(),
                world_size: outcome.identity.world_size,
                device: prepared.device.as_ref().map(recorded),
            };
            let job = provenance::Job::Finetune(settings);
            Some(Draft::begin(&path, true, job, prepared.inputs.clone(), started, threads)?)
        }
    };
    let io = || export::Error::io(&path, "write");
    let staged = StagedDir::create(&path).map_err(io())?;
    let names = write(args, prepared, outcome, &staged)?;
    if let (Quantization::Blocks(format), false) = (prepared.recipe.model.quantization, args.quiet) {
        let (format, base) = (format.name(), term::printable(&prepared.recipe.model.path));
        term::say(&format!(
            "note: trained on {base} in {format}; what is exported stands beside, or is merged into, its own dense weights"
        ));
    }
    let (mut verdict, mut code) = (None, ExitCode::SUCCESS);
    if let Some(gate) = &prepared.recipe.eval.gate {
        let candidate = candidate(prepared, outcome, &staged)?;
        let name = if prepared.spec.is_some() { ADAPTER } else { MERGED };
        let judged = gate::judge(args, prepared, gate, (&candidate, &path.join(name)), dir)?;
        if !judged.passed || !names.iter().any(|kept| kept == name) {
            gate::forget_candidate(dir)?;
        }
        (verdict, code) = (Some(judged.verdict), judged.code);
        if !judged.passed {
            drop_result(&path)?;
            return Ok(Exported { paths: Vec::new(), verdict, code });
        }
    }
    // what was made for the gate or to be quantized
    for name in [ADAPTER, MERGED, UNROUNDED].into_iter().filter(|name| !names.iter().any(|kept| kept == name))
    {
        let path = staged.file(name);
        if path.is_file() {
            std::fs::remove_file(&path).map_err(io())?;
        } else if path.exists() {
            std::fs::remove_dir_all(&path).map_err(io())?;
        }
    }
    // a manifest that stands beside a result is its own
    remove_file(&provenance::manifest_path(&path))?;
    staged.commit().map_err(io())?;
    let paths: Vec<PathBuf> = names.iter().map(|name| path.join(name)).collect();
    if let Some(draft) = draft {
        let finish = || -> Result<Vec<String>, Failure> {
            Ok(draft.finish(provenance::Finished {
                outputs: outputs(&paths)?,
                samples: None,
                licences: licences(prepared),
                threads,
                isa: isa.name(),
            })?)
        };
        let notes = match finish() {
            Ok(notes) => notes,
            Err(failure) => {
                // it is made again from the last checkpoint
                drop_result(&path)?;
                return Err(failure);
            }
        };
        for note in notes.iter().filter(|_| !args.quiet) {
            term::say(&format!("note: {}", term::printable(note)));
        }
    }
    Ok(Exported { paths, verdict, code })
}

/// Removes the result that passed before, and its manifest: what is in OUT/result has passed.
fn drop_result(path: &Path) -> Result<(), Failure> {
    if path.symlink_metadata().is_ok() {
        remove_dir_whole(path).map_err(export::Error::io(path, "remove"))?;
    }
    remove_file(&provenance::manifest_path(path))
}

/// Removes a file, if it is there.
pub fn remove_file(path: &Path) -> Result<(), Failure> {
    match path.symlink_metadata() {
        Ok(_) => Ok(std::fs::remove_file(path).map_err(export::Error::io(path, "remove"))?),
        Err(_) => Ok(()),
    }
}

/// Writes every form that is wanted; returns their names.
fn write(
    args: &Args,
    prepared: &Prepared,
    outcome: &Outcome,
    staged: &StagedDir,
) -> Result<Vec<String>, Failure> {
    let (recipe, model) = (&prepared.recipe, &prepared.model);
    let mut names = Vec::new();
    for form in &recipe.export {
        match (form, &prepared.spec) {
            (Export::Peft, Some(_)) => {
                write_adapter(prepared, outcome, staged)?;
                names.push(ADAPTER.to_owned());
            }
            (Export::GgufLora, Some(spec)) => {
                let path = staged.file(GGUF_ADAPTER);
                export::write_gguf_adapter(
                    &path,
                    model.decoder().config(),
                    spec,
                    model.parameters(),
                    &outcome.params,
                )?;
                names.push(GGUF_ADAPTER.to_owned());
            }
            (Export::MergedSafetensors, _) => {
                write_merged(prepared, outcome, staged, Stored::Own)?;
                names.push(MERGED.to_owned());
            }
            (Export::MergedGguf(quantization), _) => {
                let name = format!("model-{}.gguf", quantization.to_lowercase());
                let how = merge::How { threads: args.threads, isa: args.isa.as_deref(), quiet: args.quiet };
                let merged = write_merged(prepared, outcome, staged, Stored::F32)?;
                merge::quantize(&merged, quantization, &staged.file(&name), &how)?;
                names.push(name);
            }
            // the recipe's reader lets no adapter be exported that there is not
            (Export::Peft | Export::GgufLora, None) => {}
        }
    }
    Ok(names)
}

/// Writes the adapter unless it is there.
fn write_adapter(prepared: &Prepared, outcome: &Outcome, staged: &StagedDir) -> Result<PathBuf, Failure> {
    let path = staged.file(ADAPTER);
    if let Some(spec) = prepared.spec.as_ref().filter(|_| !path.exists()) {
        let parameters = prepared.model.parameters();
        export::write_peft(&path, &prepared.recipe.model.path, spec, parameters, &outcome.params)?;
    }
    Ok(path)
}

/// Writes the merged model unless it is there: a checkpoint's directory, or of a GGUF a GGUF.
fn write_merged(
    prepared: &Prepared,
    outcome: &Outcome,
    staged: &StagedDir,
    stored: Stored,
) -> Result<PathBuf, Failure> {
    let path = match stored {
        Stored::Own => staged.file(MERGED),
        // a quantized model may be named after the directory
        Stored::F32 => staged.file(UNROUNDED).join(MERGED),
    };
    if path.exists() {
        return Ok(path);
    }
    let (model, isa) = (&prepared.model, prepared.model.decoder().compute().isa);
    let changes = match &prepared.spec {
        Some(spec) => export::Changes::of_adapter(spec, model.parameters(), &outcome.params)?,
        None => export::Changes::of_weights(model.parameters(), &outcome.params),
    };
    if stored == Stored::F32 {
        let dir = staged.file(UNROUNDED);
        std::fs::create_dir_all(&dir).map_err(export::Error::io(&dir, "write"))?;
    }
    merge::write_merged(&path, &prepared.base, &changes, stored, isa)?;
    Ok(path)
}

/// Returns what the gate measures: the adapter, or the model all of whose weights were trained.
fn candidate(prepared: &Prepared, outcome: &Outcome, staged: &StagedDir) -> Result<Candidate, Failure> {
    // of a GGUF nothing merged is exported but what is quantized from this
    let stored = if merge::is_gguf(&prepared.base) { Stored::F32 } else { Stored::Own };
    Ok(match prepared.spec {
        Some(_) => Candidate::Adapter(write_adapter(prepared, outcome, staged)?),
        None => Candidate::Model(write_merged(prepared, outcome, staged, stored)?),
    })
}

/// Returns what a manifest says of the files written: of directories the tensors.
pub fn outputs(paths: &[PathBuf]) -> Result<Vec<provenance::Output>, Failure> {
    let mut outputs = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default();
        let is_adapter = name == ADAPTER || name == GGUF_ADAPTER;
        let role = if is_adapter { OutputRole::Adapter } else { OutputRole::Model };
        for file in export::tensor_files(path)? {
            let sha256 = sha256_of_file(&file)?;
            outputs.push(provenance::Output {
                role,
                path: file.display().to_string(),
                content: Content::File,
                sha256,
            });
        }
    }
    Ok(outputs)
}

fn licences(prepared: &Prepared) -> Licences {
    let data = prepared.corpus.files().iter().map(|file| DataLicence {
        name: file.path.display().to_string(),
        licence: licence_beside(&file.path),
    });
    Licences { base: licence_of_model(&prepared.base), adapter: None, data: data.collect() }
}
