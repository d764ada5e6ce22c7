//! The files of a run's data sets.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Error, RunOptions};
use crate::eval::data::{self, DataSet};
use crate::eval::suite::Suite;

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
        let path = match options.data.get(name) {
            Some(path) => path.clone(),
            None => {
                inside(suite, name, spec.file(suite.directory()).ok_or_else(|| no_file(name.to_owned()))?)?
            }
        };
        let part = |part: &&'static str| {
            let name = part_name(name, part);
            let path = options.data.get(&name).cloned();
            Ok((*part, path.ok_or_else(|| no_file(name))?))
        };
        let parts = spec.format.parts.iter().map(part).collect::<Result<Vec<(&str, PathBuf)>, Error>>()?;
        let key = format!("{path:?} {parts:?} {spec:?}");
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let read = Arc::new(data::read_with_parts(&path, spec.format, &spec.options, &parts)?);
        self.known.insert(key, read.clone());
        Ok(read)
    }
}

/// Returns the file that a suite names; errors if links lead it out of where a suite's data may lie.
fn inside(suite: &Suite, name: &str, path: PathBuf) -> Result<PathBuf, Error> {
    let root = match suite.data[name].path {
        Some(_) => suite.directory().join("."),
        None => suite.directory().join("..").join("datasets"),
    };
    match (root.canonicalize(), path.canonicalize()) {
        (Ok(root), Ok(target)) if !target.starts_with(&root) => {
            Err(Error::Outside { path, target, name: name.to_owned() })
        }
        _ => Ok(path),
    }
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
        known.extend(spec.format.parts.iter().map(|part| part_name(name, part)));
    }
    let mut given: Vec<&String> = options.data.keys().collect();
    given.sort();
    match given.into_iter().find(|name| !known.contains(name)) {
        Some(name) => Err(Error::UnknownData { name: name.clone(), known }),
        None => Ok(()),
    }
}
