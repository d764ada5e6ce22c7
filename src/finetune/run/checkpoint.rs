//! Checkpoints: directories with all that a run needs to go on as if it had not ended.
//!
//! ```text
//! checkpoints/step-00000040/
//!     parameters.safetensors   by their names, as an adapter has them
//!     moments.safetensors      of the optimizer, flat: moment.0, moment.1
//!     state.json               step, place in the data, best so far, lengths of the logs, what run it is
//! ```
//!
//! A directory gets its name when all of it is on the disk. Random numbers are drawn by counters, so they have no state.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::error::Error;
use super::identity::Identity;
use crate::data::hex;
use crate::finetune::OptimizerState;
use crate::kernel::Isa;
use crate::model::train::{ParameterInfo, Parameters, Trainable};
use crate::tensor::safetensors::SafeTensors;
use crate::tensor::{StagedDir, TensorSource, remove_dir_whole, remove_partial_dirs};

const VERSION: u32 = 2;
const PARAMETERS: &str = "parameters.safetensors";
const MOMENTS: &str = "moments.safetensors";
const STATE: &str = "state.json";

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub version: u32,
    /// Steps done.
    pub step: u64,
    /// The epoch of the next step, and its number in it.
    pub epoch: u32,
    pub step_in_epoch: usize,
    pub best: Option<Best>,
    /// What validation has to beat, and how often it has not.
    pub to_beat: Option<Exact>,
    pub misses: u32,
    /// The validation that followed this step, if one did.
    pub validation: Option<Exact>,
    /// Loss on the general text before the first step.
    pub general_before: Option<Exact>,
    /// Bytes of each log.
    pub logs: BTreeMap<String, u64>,
    pub identity: Identity,
    #[serde(default)]
    pub digests: Digests,
}

/// SHA-256 of a checkpoint's files, lower-case hex.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Digests {
    pub parameters: String,
    pub moments: String,
}

/// The step with the lowest validation loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub loss: Exact,
}

/// A number written by its bits: what is read back is the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
pub struct Exact(pub f64);

impl From<u64> for Exact {
    fn from(bits: u64) -> Exact {
        Exact(f64::from_bits(bits))
    }
}

impl From<Exact> for u64 {
    fn from(exact: Exact) -> u64 {
        exact.0.to_bits()
    }
}

impl State {
    /// Returns the state before the first step.
    pub fn new(identity: Identity) -> State {
        State {
            version: VERSION,
            step: 0,
            epoch: 0,
            step_in_epoch: 0,
            best: None,
            to_beat: None,
            misses: 0,
            validation: None,
            general_before: None,
            logs: BTreeMap::new(),
            identity,
            digests: Digests::default(),
        }
    }
}

/// The checkpoints of a run.
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    /// Returns those of the run in `dir`; what a killed process left unfinished is removed.
    pub fn open(dir: &Path) -> Result<Checkpoints, Error> {
        let checkpoints = Checkpoints::at(dir);
        let dir = &checkpoints.dir;
        remove_partial_dirs(dir).map_err(Error::io(dir, "remove what is unfinished in it"))?;
        Ok(checkpoints)
    }

    /// Returns those of the run in `dir`, to be read.
    pub fn at(dir: &Path) -> Checkpoints {
        Checkpoints { dir: dir.join("checkpoints") }
    }

    /// Returns the directory of a step.
    pub fn path(&self, step: u64) -> PathBuf {
        self.dir.join(name_of(step))
    }

    /// Returns the steps that have one, ascending.
    pub fn steps(&self) -> Result<Vec<u64>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(&self.dir, "read")(error)),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::io(&self.dir, "read"))?.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok());
            // `step-7` is not ours
            steps.extend(step.filter(|step| name.to_str() == Some(name_of(*step).as_str())));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes a checkpoint of that state; returns its directory.
    pub fn write(
        &self,
        state: &State,
        parameters: &[ParameterInfo],
        params: &[f32],
        optimizer: &OptimizerState,
    ) -> Result<PathBuf, Error> {
        let path = self.path(state.step);
        let io = || Error::io(&path, "write");
        let staged = StagedDir::create(&path).map_err(io())?;
        let tensors =
            parameters.iter().map(|info| (info.name.as_str(), &info.shape[..], &params[info.range.clone()]));
        let digests = Digests {
            parameters: staged.write_tensors(PARAMETERS, tensors).map_err(io())?,
            moments: {
                let names: Vec<String> =
                    (0..optimizer.moments.len()).map(|i| format!("moment.{i}")).collect();
                let shape = [params.len()];
                let moments = names.iter().zip(&optimizer.moments);
                let tensors = moments.map(|(name, values)| (name.as_str(), &shape[..], &values[..]));
                staged.write_tensors(MOMENTS, tensors).map_err(io())?
            },
        };
        let state = State { digests, ..state.clone() };
        // numbers and texts under keys that are texts
        let text = serde_json::to_string_pretty(&state).unwrap_or_default();
        staged.write(STATE, text.as_bytes()).map_err(io())?;
        staged.commit().map_err(io())?;
        Ok(path)
    }

    /// Reads the last checkpoint that a run can go on from; `None` if there is none. Its files are as they were written, and, if
    /// the run keeps the best (`keeps_best`), so are those of the best so far. Notes say which were passed over.
    ///
    /// Errors with [`Error::BestDamaged`] if only the best stands in the way, with [`Error::AllDamaged`] if none of those there
    /// are can be read: nothing is begun anew over them.
    pub fn last(
        &self,
        model: &Trainable,
        keeps_best: bool,
        notes: &mut Vec<String>,
    ) -> Result<Option<Restored>, Error> {
        let (mut best_damaged, mut newest_damaged) = (None, None);
        for step in self.steps()?.into_iter().rev() {
            let found = self.read(step, model).and_then(|restored| {
                let best = restored.state.best.filter(|best| keeps_best && best.step != step);
                best.map_or(Ok(()), |best| self.check_best(best.step))?;
                Ok(restored)
            });
            match found {
                Ok(restored) => return Ok(Some(restored)),
                Err(Error::Damaged { path, why }) => {
                    notes.push(format!("{}: passed over: {why}", path.display()));
                    newest_damaged.get_or_insert(Error::AllDamaged { path, why });
                }
                Err(error @ Error::BestDamaged { .. }) => {
                    notes.push(format!("{}: passed over: {error}", self.path(step).display()));
                    best_damaged.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        best_damaged.or(newest_damaged).map_or(Ok(None), Err)
    }

    /// Errors if the checkpoint of the best step is not as it was written.
    fn check_best(&self, step: u64) -> Result<(), Error> {
        self.state(step).and_then(|state| self.check_files(&state)).map_err(Error::of_best)
    }

    /// Returns the state of a step's checkpoint.
    pub fn state(&self, step: u64) -> Result<State, Error> {
        let path = self.path(step);
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        let text = fs::read(path.join(STATE)).map_err(|error| unread(&path, STATE, error))?;
        let value: Value =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("{STATE}: {error}")))?;
        // another version may have other keys
        if let Some(found) = value.get("version").and_then(Value::as_u64).filter(|v| *v != u64::from(VERSION))
        {
            return Err(Error::OtherVersion { path, found, expected: VERSION });
        }
        let state: State =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("{STATE}: {error}")))?;
        if state.step != step {
            return Err(damaged(format!("{STATE} is of step {}, expected {step}", state.step)));
        }
        Ok(state)
    }

    /// Reads a step's checkpoint.
    pub fn read(&self, step: u64, model: &Trainable) -> Result<Restored, Error> {
        let state = self.state(step)?;
        self.check_files(&state)?;
        let path = self.path(step);
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        let params =
            model.read_parameters(&path.join(PARAMETERS)).map_err(|error| damaged(error.to_string()))?;
        let moments = read_moments(&path.join(MOMENTS), params.len()).map_err(damaged)?;
        Ok(Restored { optimizer: OptimizerState { step: state.step, moments }, state, params })
    }

    /// Errors if a file has not the digest in the state.
    fn check_files(&self, state: &State) -> Result<(), Error> {
        let path = self.path(state.step);
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        for (name, expected) in [(PARAMETERS, &state.digests.parameters), (MOMENTS, &state.digests.moments)] {
            let found = sha256_of(&path.join(name)).map_err(|error| unread(&path, name, error))?;
            if found != *expected {
                return Err(damaged(format!("{name} has SHA-256 {found}, was {expected}")));
            }
        }
        Ok(())
    }

    /// Removes those of later steps: the run goes on from `step`, and its logs have been cut to that.
    pub fn remove_after(&self, step: u64) -> Result<(), Error> {
        for later in self.steps()?.into_iter().filter(|later| *later > step) {
            let path = self.path(later);
            remove_dir_whole(&path).map_err(Error::io(&path, "remove"))?;
        }
        Ok(())
    }

    /// Removes all but the latest `keep`, and, if the run keeps the best (`keeps_best`), those that were the best so far at one
    /// of these: a run that has to go on from an older one needs its best, too.
    pub fn prune(&self, keep: usize, keeps_best: bool) -> Result<(), Error> {
        let steps = self.steps()?;
        let (old, latest) = steps.split_at(steps.len().saturating_sub(keep.max(1)));
        let best_at = |step: &u64| self.state(*step).ok()?.best.map(|best| best.step);
        let bests: Vec<u64> = latest.iter().filter(|_| keeps_best).filter_map(best_at).collect();
        for step in old.iter().filter(|step| !bests.contains(step)) {
            let path = self.path(*step);
            remove_dir_whole(&path).map_err(Error::io(&path, "remove"))?;
        }
        Ok(())
    }
}

/// Returns the name of a step's directory.
fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

/// A checkpoint in memory.
pub struct Restored {
    pub state: State,
    pub params: Parameters,
    pub optimizer: OptimizerState,
}

/// A file that is not there is damage; what the system refuses now it may give later, so nothing is passed over for that.
fn unread(path: &Path, name: &str, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::Damaged { path: path.to_owned(), why: format!("{name}: {error}") }
        }
        _ => Error::io(&path.join(name), "read")(error),
    }
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&digest.finalize())),
            n => digest.update(&buffer[..n]),
        }
    }
}

fn read_moments(path: &Path, n: usize) -> Result<Vec<Vec<f32>>, String> {
    let source = SafeTensors::open_file(path).map_err(|error| error.to_string())?;
    let mut moments = Vec::new();
    while let Some(info) = source.find(&format!("moment.{}", moments.len())) {
        if info.n_elements() != n || info.dtype.name() != "F32" {
            return Err(format!(
                "{MOMENTS}: {} values of {}, expected {n} of F32",
                info.n_elements(),
                info.dtype
            ));
        }
        let mut values = vec![0.0; n];
        let bytes = source.bytes(info).map_err(|error| error.to_string())?;
        info.dtype.decode(Isa::Portable, bytes, &mut values);
        moments.push(values);
    }
    Ok(moments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_other_names_are_no_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["step-00000003", "step-3", "step-+0000004", "step-0000000005", "step-x", "step-123456789"]
        {
            fs::create_dir_all(dir.path().join("checkpoints").join(name)).unwrap();
        }
        assert_eq!(Checkpoints::open(dir.path()).unwrap().steps().unwrap(), [3, 123_456_789]);
    }
}
