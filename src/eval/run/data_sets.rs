//! The files of a run's data sets.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Error, RunOptions};
use crate::eval::data::{self, DataSet};
use crate::eval::suite::{Source, Suite, TaskSpec};
use crate::hub::DatasetFile;

/// Data sets by file, format and options, each read once.
#[derive(Default)]
pub struct DataSets {
    known: HashMap<String, Arc<DataSet>>,
}

impl DataSets {
    /// Returns the data set of that name, which the suite has.
    pub fn get(&mut self, suite: &Suite, name: &str, options: &RunOptions) -> Result<Arc<DataSet>, Error> {
        // The suite's reader checked that its names exist.
        let spec = &suite.data[name];
        let no_file = |name: String| Error::NoFile { suite: suite.path.clone(), name };
        let mut how = Cow::Borrowed(&spec.options);
        let format = spec.format_of(&options.data, name);
        let path = match (options.data.get(name), &spec.source) {
            (Some(path), _) => path.clone(),
            (None, Source::Hub(hub)) => {
                how.to_mut().sha256 = Some(hub.file.sha256.clone());
                options.hub.get(&hub.file).cloned().ok_or_else(|| no_file(name.to_owned()))?
            }
            (None, _) => {
                inside(suite, name, spec.file(suite.directory()).ok_or_else(|| no_file(name.to_owned()))?)?
            }
        };
        let part = |part: &&'static str| {
            let name = part_name(name, part);
            let path = options.data.get(&name).cloned();
            Ok((*part, path.ok_or_else(|| no_file(name))?))
        };
        let parts = format.parts.iter().map(part).collect::<Result<Vec<(&str, PathBuf)>, Error>>()?;
        let key = format!("{path:?} {parts:?} {spec:?}");
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let read = Arc::new(data::read_with_parts(&path, format, &how, &parts)?);
        self.known.insert(key, read.clone());
        Ok(read)
    }
}

/// Returns the file that a suite names; errors if links lead it out of where a suite's data may lie.
fn inside(suite: &Suite, name: &str, path: PathBuf) -> Result<PathBuf, Error> {
    let root = match suite.data[name].source {
        Source::Shipped(_) => suite.directory().join("..").join("datasets"),
        _ => suite.directory().join("."),
    };
    match (root.canonicalize(), path.canonicalize()) {
        (Ok(root), Ok(target)) if !target.starts_with(&root) => {
            Err(Error::Outside { path, target, name: name.to_owned() })
        }
        _ => Ok(path),
    }
}

/// What suites are read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To ask a model: examples are read if there are any before a question.
    Run,
    /// To look at them: examples are read if a task names any.
    Look,
}

/// Returns the files on a hub that the suites' tasks read, each once, those that the user gives left out.
pub fn hub_files(suites: &[Suite], options: &RunOptions, purpose: Purpose) -> Vec<DatasetFile> {
    let mut files: Vec<DatasetFile> = Vec::new();
    for suite in suites {
        for name in suite.tasks.iter().flat_map(|task| data_names(task, options, purpose)) {
            let hub = suite.data[name].on_hub().filter(|_| !options.data.contains_key(name));
            files.extend(hub.map(|hub| hub.file.clone()).filter(|file| !files.contains(file)));
        }
    }
    files
}

/// Returns the names of the data sets that a task reads.
pub fn data_names<'s>(task: &'s TaskSpec, options: &RunOptions, purpose: Purpose) -> Vec<&'s str> {
    let mut names = vec![task.data.as_str()];
    if let Some(shots) = task.prompting.as_ref().map(|prompting| &prompting.few_shot)
        && (purpose == Purpose::Look || options.few_shot.unwrap_or(shots.n) > 0)
    {
        names.extend(shots.from.as_deref());
    }
    names
}

/// Returns what `--data` calls a further file of a data set.
fn part_name(name: &str, part: &str) -> String {
    format!("{name}.{part}")
}

/// Every file given with --data must be one that a suite asks for, and a suite's name its own.
pub fn check_names(suites: &[Suite], options: &RunOptions) -> Result<(), Error> {
    for (index, suite) in suites.iter().enumerate() {
        if let Some(other) = suites[..index].iter().find(|other| other.name == suite.name) {
            let (name, path, other) = (suite.name.clone(), suite.path.clone(), other.path.clone());
            return Err(Error::SameSuite { path, other, name });
        }
    }
    let mut known: Vec<String> = Vec::new();
    for (name, spec) in suites.iter().flat_map(|suite| &suite.data) {
        known.push(name.clone());
        let parts = spec.format_of(&options.data, name).parts;
        known.extend(parts.iter().map(|part| part_name(name, part)));
    }
    let mut given: Vec<&String> = options.data.keys().collect();
    given.sort();
    match given.into_iter().find(|name| !known.contains(name)) {
        Some(name) => Err(Error::UnknownData { name: name.clone(), known }),
        None => Ok(()),
    }
}
