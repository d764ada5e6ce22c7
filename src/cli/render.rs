//! Reports as files: Markdown, JUnit XML, an HTML page; `eval`, `gate` and `report` share the options.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::eval::paths::{self, Named};
use crate::error::{Diagnostic, Failure};
use crate::eval::gate::{Run, Verdict};
use crate::eval::report::{self, Cases};
use crate::provenance::{blocking_manifest, manifest_path, remove_manifest};
use crate::tensor::AtomicFile;

/// Names of the options in [`RenderArgs`], for what excludes them.
pub const OPTIONS: [&str; 4] = ["markdown", "html", "junit", "junit_cases"];

/// Files to make of a report.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RenderArgs {
    /// Write the report as Markdown, for a step summary or a comment
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,

    /// Write the report as one HTML page that needs no network: scores, matrices, calibration, samples
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Write the report as JUnit XML, for a CI system
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,

    /// What a test case of --junit is; a document fails if its answer is not right
    #[arg(long, value_name = "WHAT", requires = "junit", default_value = "tasks")]
    pub junit_cases: CasesArg,
}

/// [`Cases`] as an argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CasesArg {
    #[default]
    Tasks,
    Documents,
}

impl From<CasesArg> for Cases {
    fn from(arg: CasesArg) -> Cases {
        match arg {
            CasesArg::Tasks => Cases::Tasks,
            CasesArg::Documents => Cases::Documents,
        }
    }
}

/// A file that is there already.
#[derive(Debug, thiserror::Error)]
#[error("{path}: exists already")]
struct Exists {
    path: PathBuf,
}

impl Diagnostic for Exists {
    fn hint(&self) -> Option<String> {
        Some(hint_of_existing(&self.path))
    }
}

/// Returns what to do where a file is to be written that is there already.
pub fn hint_of_existing(path: &Path) -> String {
    match path.is_dir() {
        true => "it is a directory: name a file".to_owned(),
        false => "--force replaces it".to_owned(),
    }
}

/// Files that were written. They belong to a command that ends well: dropped without [`Written::keep`], they are removed, so
/// that no verdict is left of a command that failed.
#[must_use]
#[derive(Debug, Default)]
pub struct Written {
    files: Vec<PathBuf>,
    /// The Markdown, if it is one of them.
    pub markdown: Option<String>,
}

impl Written {
    /// Leaves the files where they are.
    pub fn keep(mut self) {
        self.files.clear();
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        for path in &self.files {
            // what cannot be removed stays; the failure that led here is said already
            let _ = std::fs::remove_file(path);
        }
    }
}

impl RenderArgs {
    /// Returns the files to write, and the options that name them.
    pub fn files(&self) -> Vec<Named> {
        let named = [("--markdown", &self.markdown), ("--html", &self.html), ("--junit", &self.junit)];
        named.into_iter().filter_map(|(option, path)| Some((option, path.clone()?))).collect()
    }

    /// Errors if a file to write exists and `force` is not given, or is one of a run in `runs` or of `others` that are read;
    /// the manifest beside `artefact` is a file to write, too, and that of a verdict which is replaced one to remove.
    pub fn check(
        &self,
        force: bool,
        runs: &[&Path],
        others: &[Named],
        artefact: Option<&Path>,
    ) -> Result<(), Failure> {
        let mut files = self.files();
        let existing = files.iter().map(|(_, path)| path).find(|path| !force && path.exists()).cloned();
        let blocking = || blocking_manifest(artefact?, force);
        if let Some(path) = existing.or_else(blocking) {
            return Err(Exists { path }.into());
        }
        let replaced = self.markdown.as_deref().filter(|_| force);
        files.extend(artefact.or(replaced).map(|path| ("the manifest", manifest_path(path))));
        let of_runs = runs.iter().flat_map(|run| of_a_run(run));
        let read: Vec<Named> = of_runs.chain(others.iter().cloned()).collect();
        paths::check(&files, &read)
    }

    /// Writes the files, all of them whole or none.
    pub fn write(
        &self,
        force: bool,
        run: &Run,
        comparison: Option<(&Run, &Verdict)>,
    ) -> Result<Written, Failure> {
        let verdict = comparison.map(|(_, verdict)| verdict);
        let markdown = self.markdown.as_ref().map(|_| report::markdown(run, verdict));
        let mut files = Vec::new();
        if let (Some(path), Some(text)) = (&self.markdown, &markdown) {
            files.push(begun(path, text, force)?);
        }
        if let Some(path) = &self.junit {
            files.push(begun(path, &report::junit(run, verdict, self.junit_cases.into()), force)?);
        }
        if let Some(path) = &self.html {
            files.push(begun(path, &report::html(run, comparison)?, force)?);
        }
        let written = files.iter().map(|file| file.path().to_owned()).collect();
        AtomicFile::commit_all(files)?;
        if let Some(path) = self.markdown.as_deref().filter(|_| force) {
            // of an earlier verdict
            remove_manifest(path)?;
        }
        Ok(Written { files: written, markdown })
    }
}

/// Returns the files that a run is read from.
pub fn of_a_run(path: &Path) -> Vec<Named> {
    let report = Run::report_path(path);
    let samples = report.with_file_name("samples.jsonl");
    vec![("a report", report), ("a report's samples", samples)]
}

/// Writes a file, whole or not at all; one that exists is replaced if `force`.
pub fn write_whole(path: &Path, text: &str, force: bool) -> Result<(), Failure> {
    begun(path, text, force)?.commit()?;
    Ok(())
}

/// Returns a file with its text, which has its name once it is committed.
fn begun(path: &Path, text: &str, force: bool) -> Result<AtomicFile, Failure> {
    let mut file = AtomicFile::create(path, None, false)?;
    file.set_replace(force);
    file.write_all(text.as_bytes())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// Returns a run of one task of one document.
    fn run() -> Run {
        let samples = "{\"suite\":\"s\",\"task\":\"t\",\"document\":0,\"line\":1,\"target\":0,\"prediction\":0,\"scores\":{\"acc\":1.0}}\n";
        let report = json!({
            "lctl_report": report::VERSION, "lctl": "0.1.0",
            "model": {"name": "m", "sha256": "00", "adapter": null, "tokenizer_sha256": "11", "chat_template": null},
            "settings": {"compute": "f32", "context": 8, "seed": 0, "limit": null, "few_shot": null, "chat_template": "auto"},
            "suites": [{"name": "s", "description": "", "sha256": "22", "tasks": [{
                "id": "t", "type": "multiple_choice", "description": "", "data": {"file": null, "sha256": "33"},
                "few_shot": null, "chat": false, "documents": 1, "errors": 0, "truncated": 0,
                "gate": {"critical": false, "margin": null, "zero_tolerance": false},
                "task_sha256": "44", "prompts_sha256": "55",
                "samples_sha256": crate::provenance::hex(&Sha256::digest(samples)),
                "metrics": [{"name": "acc", "value": 1.0, "stderr": null, "n": 1, "higher_is_better": true}],
                "first_prompt": null,
            }]}],
        });
        Run::read(Path::new("report.json"), &report.to_string(), Path::new("samples.jsonl"), samples).unwrap()
    }

    #[test]
    fn files_are_written_together_and_stay_if_the_command_ends_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(dir.path().join(name));
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        let good = RenderArgs {
            markdown: path("r.md"),
            html: path("r.html"),
            junit: path("r.xml"),
            junit_cases: CasesArg::Tasks,
        };
        // the page is written last, and cannot be
        let bad = RenderArgs { html: path("absent/r.html"), ..good.clone() };
        assert!(bad.write(false, &run(), None).is_err());
        assert_eq!(names(), 0);
        let written = good.write(false, &run(), None).unwrap();
        assert!(names() == 3 && written.markdown.as_ref().is_some_and(|text| text.contains("acc")));
        drop(written);
        assert_eq!(names(), 0);
        good.write(false, &run(), None).unwrap().keep();
        assert_eq!(names(), 3);
    }
}
