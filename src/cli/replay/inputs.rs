//! Where a manifest's inputs are now, and whether they are what they were.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::ReplayError;
use super::train::begins_random;
use crate::cli::recipe::suite_input;
use crate::cli::source::{may_be_id, model_path};
use crate::error::Failure;
use crate::eval::suite::{DataSpec, Suite};
use crate::hub;
use crate::provenance::{Input, InputFiles, Job, Manifest, NamedDigest, Role};

/// Inputs by the paths that a manifest gives them.
pub struct Places {
    /// As a user would write them now.
    given: HashMap<String, String>,
    /// Of models, resolved.
    models: HashMap<String, PathBuf>,
}

/// An input's file that is not what it was.
#[derive(Debug)]
pub struct Change {
    /// The input's role, and its name if it has one.
    what: String,
    path: String,
    file: String,
    /// SHA-256 then and now; absent for a file that was or is not there.
    then: Option<String>,
    now: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { what, path, file, then, now } = self;
        let path = if path.ends_with(file.as_str()) { path.clone() } else { format!("{path} ({file})") };
        match (then, now) {
            (Some(then), Some(now)) => write!(f, "{what} {path}: SHA-256 is {now}, in the manifest {then}"),
            (Some(then), None) => write!(f, "{what} {path}: is not there, in the manifest {then}"),
            (_, now) => {
                write!(
                    f,
                    "{what} {path}: SHA-256 is {}, in the manifest it is not there",
                    now.as_deref().unwrap_or("-")
                )
            }
        }
    }
}

impl Places {
    /// Finds every input. Nothing is downloaded: a hub id is looked up in the cache.
    ///
    /// Errors if one is not there, or `--input` names one that the manifest does not have.
    pub fn find(
        manifest: &Manifest,
        model: Option<&str>,
        given: &[String],
        quiet: bool,
    ) -> Result<Places, Failure> {
        let mut moved: HashMap<&str, &str> = HashMap::new();
        for pair in given {
            let (old, new) =
                pair.split_once('=').ok_or_else(|| ReplayError::NotAPair { given: pair.clone() })?;
            if !manifest.inputs.iter().any(|input| input.path == old) {
                let mut known: Vec<String> = manifest.inputs.iter().map(|input| input.path.clone()).collect();
                known.dedup();
                return Err(ReplayError::NoSuchInput { old: old.to_owned(), known }.into());
            }
            // a path may be both given and named by a suite
            if manifest.inputs.iter().all(|input| input.path != old || input.role == Role::SuiteData) {
                return Err(ReplayError::OfASuite { old: old.to_owned() }.into());
            }
            moved.insert(old, new);
        }
        let mut places = Places { given: HashMap::new(), models: HashMap::new() };
        for input in &manifest.inputs {
            let mut now = moved.get(input.path.as_str()).copied().unwrap_or(&input.path);
            let is_model = matches!(input.role, Role::Model | Role::ModelFiles);
            if let Some(model) = model.filter(|_| is_model) {
                now = model;
            }
            if is_model || matches!(input.role, Role::Base | Role::BaseFiles) {
                if !Path::new(now).exists() && !may_be_id(now) {
                    return Err(missing(now, input.role));
                }
                places.models.insert(key(input), model_path(now, true, quiet)?);
            } else if input.role != Role::SuiteData && !Path::new(now).exists() {
                return Err(missing(now, input.role));
            }
            places.given.insert(key(input), now.to_owned());
        }
        Ok(places)
    }

    /// Returns what a user would write for an input now.
    pub fn given(&self, input: &Input) -> String {
        self.given.get(&key(input)).unwrap_or(&input.path).clone()
    }

    /// Returns where a model is.
    pub fn model(&self, input: &Input) -> PathBuf {
        self.models.get(&key(input)).cloned().unwrap_or_else(|| input.path.clone().into())
    }

    /// Errors with every file that is not what it was.
    pub fn check(&self, manifest: &Manifest) -> Result<(), Failure> {
        let suites = manifest.inputs_of(Role::Suite).map(|input| Suite::open(Path::new(&self.given(input))));
        // a suite that cannot be read has changed, and says so itself
        let suites: Vec<Suite> = suites.filter_map(Result::ok).collect();
        let now = self.now(manifest, &suites)?;
        let now: Vec<InputFiles> =
            now.into_par_iter().map(InputFiles::with_digests).collect::<Result<_, _>>()?;
        let changes = changes(manifest, &now);
        match changes.is_empty() {
            true => Ok(()),
            false => Err(ReplayError::Changed(changes).into()),
        }
    }

    /// Returns the inputs as they are now.
    fn now(&self, manifest: &Manifest, suites: &[Suite]) -> Result<Vec<InputFiles>, Failure> {
        let is_untrained = match &manifest.job {
            Job::Finetune(settings) => begins_random(settings)?,
            _ => false,
        };
        let mut now = Vec::new();
        for input in &manifest.inputs {
            let given = self.given(input);
            let path = Path::new(&given);
            match input.role {
                Role::Model if is_untrained => {
                    let roles = [Role::Model, Role::ModelFiles];
                    now.extend(InputFiles::of_untrained(&given, &self.model(input), roles));
                }
                Role::Model => {
                    let roles = [Role::Model, Role::ModelFiles];
                    now.extend(InputFiles::of_model(&given, &self.model(input), roles)?);
                }
                Role::Base => {
                    let roles = [Role::Base, Role::BaseFiles];
                    now.extend(InputFiles::of_model(&given, &self.model(input), roles)?);
                }
                // come with the model
                Role::ModelFiles | Role::BaseFiles => {}
                Role::Adapter | Role::BaseAdapter => {
                    now.push(InputFiles { role: input.role, ..InputFiles::of_adapter(path) });
                }
                Role::Baseline | Role::Candidate => now.push(InputFiles::of_run(input.role, path)),
                Role::SuiteData => {
                    if let Some(path) = suite_data(input, suites)? {
                        now.push(InputFiles::of_file(input.role, input.name.clone(), &path));
                    }
                }
                Role::Suite => {
                    now.push(InputFiles { name: input.name.clone(), ..suite_input(path)? });
                }
                _ => now.push(InputFiles::of_file(input.role, input.name.clone(), path)),
            }
        }
        Ok(now)
    }
}

/// An input's path alone is not enough: a file may be both given and named by a suite.
fn key(input: &Input) -> String {
    format!("{} {} {}", input.role.name(), input.name.as_deref().unwrap_or_default(), input.path)
}

fn missing(path: &str, role: Role) -> Failure {
    ReplayError::Missing { path: path.into(), role: role.name() }.into()
}

/// Returns where the suite, wherever it is now, has the data set (on a hub: where the cache does); `None` if the suite cannot
/// be read.
fn suite_data(input: &Input, suites: &[Suite]) -> Result<Option<PathBuf>, Failure> {
    let name = input.name.as_deref().unwrap_or_default();
    let (suite_name, set) = name.split_once('/').unwrap_or((name, ""));
    let Some(suite) = suites.iter().find(|suite| suite.name == suite_name) else { return Ok(None) };
    let spec = suite.data.get(set);
    if let Some(hub) = spec.and_then(DataSpec::on_hub) {
        let options = hub::Options { offline: true, ..hub::Options::from_env() };
        // bytes that changed are said with all others that did
        return Ok(Some(match hub.file.cached(&options)? {
            Some(path) => path,
            None => hub.file.resolve(&options, &mut |_| ())?,
        }));
    }
    let path = spec.and_then(|spec| spec.file(suite.directory()));
    let no_data = || ReplayError::NoSuchData {
        path: input.path.clone(),
        suite: suite_name.to_owned(),
        set: set.to_owned(),
    };
    Ok(Some(path.ok_or_else(no_data)?))
}

/// Returns every file that differs, in the manifest's order; then those that the manifest does not know.
fn changes(manifest: &Manifest, now: &[InputFiles]) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut seen = vec![false; now.len()];
    for then in &manifest.inputs {
        let what = match &then.name {
            Some(name) => format!("{} `{name}`", then.role.name()),
            None => then.role.name().to_owned(),
        };
        // equal ones (two suites without names) are met in their order
        let at = (0..now.len()).find(|at| {
            let other = &now[*at];
            !seen[*at] && other.role == then.role && (other.name == then.name || other.role == Role::Suite)
        });
        let files = at.map(|at| now[at].digests()).unwrap_or_default();
        let path = at.map_or(&then.path, |at| &now[at].path);
        at.into_iter().for_each(|at| seen[at] = true);
        changes.extend(changed_files(&what, path, &then.files, &files));
    }
    for (input, _) in now.iter().zip(&seen).filter(|(_, seen)| !**seen) {
        changes.extend(changed_files(input.role.name(), &input.path, &[], &input.digests()));
    }
    changes
}

/// Files of one input: of a single one the name does not matter, of several it does.
fn changed_files(what: &str, path: &str, then: &[NamedDigest], now: &[NamedDigest]) -> Vec<Change> {
    let change = |file: &str, then: Option<&NamedDigest>, now: Option<&NamedDigest>| {
        let digest = |of: Option<&NamedDigest>| of.map(|of| of.sha256.clone());
        (digest(then) != digest(now)).then(|| Change {
            what: what.to_owned(),
            path: path.to_owned(),
            file: file.to_owned(),
            then: digest(then),
            now: digest(now),
        })
    };
    if let ([then], [now]) = (then, now) {
        return change(&now.name, Some(then), Some(now)).into_iter().collect();
    }
    let find = |files: &[NamedDigest], name: &str| files.iter().position(|file| file.name == name);
    let known =
        then.iter().map(|file| change(&file.name, Some(file), find(now, &file.name).map(|at| &now[at])));
    let new = now.iter().filter(|file| find(then, &file.name).is_none());
    known.chain(new.map(|file| change(&file.name, None, Some(file)))).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, digit: char) -> NamedDigest {
        NamedDigest { name: name.into(), sha256: digit.to_string().repeat(4) }
    }

    #[test]
    fn every_file_that_changed_came_or_went_is_named() {
        let then = [file("config.json", '1'), file("a.safetensors", '2'), file("b.safetensors", '3')];
        let now = [file("config.json", '1'), file("a.safetensors", '9'), file("c.safetensors", '4')];
        let shown: Vec<String> =
            changed_files("model", "dir", &then, &now).iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "model dir (a.safetensors): SHA-256 is 9999, in the manifest 2222",
                "model dir (b.safetensors): is not there, in the manifest 3333",
                "model dir (c.safetensors): SHA-256 is 4444, in the manifest it is not there",
            ]
        );
        assert!(changed_files("model", "dir", &then, &then).is_empty());
        // a single file may have another name
        assert!(changed_files("text", "x/b", &[file("a", '1')], &[file("b", '1')]).is_empty());
        let changed = changed_files("text", "x/b", &[file("a", '1')], &[file("b", '2')]);
        assert_eq!(changed[0].to_string(), "text x/b: SHA-256 is 2222, in the manifest 1111");
    }
}
