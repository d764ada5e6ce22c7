//! Documents of evaluation suites that a training set must not hold.

use std::path::{Path, PathBuf};

use crate::cli::source::find_hub_files;
use crate::cli::suite::{asked, suites_under};
use crate::data::scan::{Level, Suites};
use crate::data::shingles::texts_of;
use crate::error::{Diagnostic, Failure};
use crate::eval::run::{DataSets, Purpose, RunOptions};
use crate::eval::suite::Suite;
use crate::finetune::recipe::Scan;
use crate::provenance::{InputFiles, Role};

#[derive(Debug, thiserror::Error)]
#[error("`data.scan.suites`: {path}: has no suite in it")]
struct NoSuites {
    path: PathBuf,
}

impl Diagnostic for NoSuites {
    fn hint(&self) -> Option<String> {
        Some("name a suite's file, or a directory with suites (.yaml)".into())
    }
}

/// Returns the documents of the suites that a recipe names, and what the user should know of them; `None` if the scan for
/// overlap is off.
///
/// Errors if a suite or its data cannot be read, or a directory has no suite. Suites found in a directory whose data does not come with them are left
/// out, which a note says.
pub fn avoided(scan: &Scan, quiet: bool, offline: bool) -> Result<Option<(Suites, Vec<String>)>, Failure> {
    if scan.eval_overlap == Level::Off {
        return Ok(None);
    }
    let (mut suites, mut notes) = (Suites::default(), Vec::new());
    for named in &scan.suites {
        for path in suite_files(named)? {
            let suite = Suite::open(&path)?;
            let has_data = suite.data.values().all(|spec| spec.file(suite.directory()).is_some());
            match has_data || !named.is_dir() {
                true => add(&suite, &mut suites, quiet, offline)?,
                false => {
                    notes.push(format!("{}: its data does not come with it: not compared", path.display()))
                }
            }
        }
    }
    if suites.untold > 0 {
        let (untold, n) = (suites.untold, suites.len());
        notes.push(format!(
            "{untold} of {n} documents of evaluation suites are too short to be found in training data"
        ));
    }
    Ok(Some((suites, notes)))
}

/// Returns what a manifest says of a suite, or of a directory of suites, that training data was compared with.
///
/// Errors as [`avoided`].
pub fn suite_input(named: &Path) -> Result<InputFiles, Failure> {
    Ok(match named.is_dir() {
        true => InputFiles::of_files_in(Role::Suite, named, suite_files(named)?),
        false => InputFiles::of_file(Role::Suite, None, named),
    })
}

/// Returns the suite itself, or those in a directory by their names.
fn suite_files(named: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !named.is_dir() {
        return Ok(vec![named.to_owned()]);
    }
    let mut paths = Vec::new();
    suites_under(named, &mut paths)?;
    paths.sort();
    match paths.is_empty() {
        true => Err(NoSuites { path: named.to_owned() }.into()),
        false => Ok(paths),
    }
}

fn add(suite: &Suite, suites: &mut Suites, quiet: bool, offline: bool) -> Result<(), Failure> {
    let mut options = RunOptions { few_shot: Some(0), ..RunOptions::default() };
    find_hub_files(std::slice::from_ref(suite), &mut options, Purpose::Run, offline, quiet)?;
    let mut sets = DataSets::default();
    for name in asked(suite) {
        let data = sets.get(suite, name, &options)?;
        for document in &data.documents {
            suites.add(format!("{} ({})", document.place, suite.name), texts_of(&document.fields));
        }
    }
    Ok(())
}
