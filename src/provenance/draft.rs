//! A manifest on its way: begun before a command works, written when its artefact is complete.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use super::digest::{self, Digests, sha256_of_file};
use super::files::{InputFiles, Parent, parent_of};
use super::host::RunFacts;
use super::job::Job;
use super::licence::UNKNOWN;
use super::manifest::{Input, Licences, Manifest, Output, Program, Role, Samples, VERSION};
use crate::error::Diagnostic;
use crate::tensor::{self, AtomicFile, is_same_file};

/// Why there is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    #[error("{path}: exists already")]
    Exists { path: PathBuf },

    #[error("{path}: the manifest would replace a file that the run reads ({input})")]
    IsInput { path: PathBuf, input: &'static str },

    #[error("{path}: cannot remove the manifest of what was replaced: {source}")]
    Remove { path: PathBuf, source: std::io::Error },

    #[error(transparent)]
    Digest(#[from] digest::Error),

    #[error(transparent)]
    Write(#[from] tensor::Error),
}

impl Diagnostic for DraftError {
    fn hint(&self) -> Option<String> {
        match self {
            DraftError::Exists { .. } => Some("--force replaces it; --no-manifest writes none".into()),
            DraftError::IsInput { .. } => Some("give the output another name".into()),
            DraftError::Remove { .. } => Some("remove it: it speaks of other bytes".into()),
            DraftError::Digest(error) => error.hint(),
            DraftError::Write(error) => error.hint(),
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            DraftError::Write(error) => error.exit_code(),
            _ => 2,
        }
    }
}

/// Returns where the manifest of an artefact lies: `FILE.manifest.json`.
pub fn manifest_path(artefact: &Path) -> PathBuf {
    let mut path = OsString::from(artefact.components().as_path());
    path.push(".manifest.json");
    path.into()
}

/// Returns the file that stands where an artefact's manifest would, and may not be replaced.
///
/// A manifest whose artefact is gone speaks of nothing and may.
pub fn blocking_manifest(artefact: &Path, force: bool) -> Option<PathBuf> {
    let path = manifest_path(artefact);
    // a split model has no file of the artefact's name: its shards are outputs
    let is_there = |output: &Output| {
        Path::new(&output.path).file_name().is_some_and(|name| path.with_file_name(name).exists())
    };
    let speaks_of_nothing = || {
        let manifest = Manifest::open(&path);
        !artefact.exists() && manifest.is_ok_and(|manifest| !manifest.outputs.iter().any(is_there))
    };
    let is_free = force || path.symlink_metadata().is_err() || speaks_of_nothing();
    (!is_free).then_some(path)
}

/// Takes away the manifest of an artefact that was replaced by one without.
///
/// A file of that name that is no manifest stays. Errors if the manifest cannot be removed.
pub fn remove_manifest(artefact: &Path) -> Result<(), DraftError> {
    let path = manifest_path(artefact);
    match Manifest::open(&path) {
        Ok(_) => std::fs::remove_file(&path).map_err(|source| DraftError::Remove { path, source }),
        Err(_) => Ok(()),
    }
}

/// When a run began.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    time: SystemTime,
    clock: Instant,
}

impl Started {
    pub fn now() -> Started {
        Started { time: SystemTime::now(), clock: Instant::now() }
    }
}

/// A manifest that lacks what only the finished run knows.
pub struct Draft {
    path: PathBuf,
    force: bool,
    started: Started,
    job: Job,
    inputs: Vec<InputFiles>,
    digests: Digests,
    program: JoinHandle<Option<String>>,
}

/// What a finished run adds.
pub struct Finished<'a> {
    pub outputs: Vec<Output>,
    pub samples: Option<Samples>,
    pub licences: Licences,
    pub threads: usize,
    pub isa: &'a str,
}

impl Draft {
    /// Begins a manifest: what is read is digested in the background from here on.
    ///
    /// Errors if a manifest is there and `force` is not given, or its file is one of the inputs.
    pub fn begin(
        artefact: &Path,
        force: bool,
        job: Job,
        inputs: Vec<InputFiles>,
        started: Started,
        n_threads: usize,
    ) -> Result<Draft, DraftError> {
        let path = manifest_path(artefact);
        if let Some(path) = blocking_manifest(artefact, force) {
            return Err(DraftError::Exists { path });
        }
        for input in &inputs {
            if input.files.iter().any(|file| is_same_file(&file.path, &path)) {
                return Err(DraftError::IsInput { path, input: input.role.name() });
            }
        }
        // makes its temporary file and removes it again: better an error now than after the work
        AtomicFile::create(&path, None, false)?;
        let unknown = inputs.iter().flat_map(|input| &input.files).filter(|file| file.sha256.is_none());
        let digests = Digests::begin(unknown.map(|file| file.path.clone()).collect(), n_threads);
        let program = std::thread::spawn(program_sha256);
        // without it the manifest that is there, if any, has no artefact
        let force = force || path.exists();
        Ok(Draft { path, force, started, job, inputs, digests, program })
    }

    /// Waits for the digests and writes the manifest; returns what the user should know, a sentence each.
    ///
    /// Errors if an input cannot be read any more or the manifest cannot be written.
    pub fn finish(self, finished: Finished) -> Result<Vec<String>, DraftError> {
        let (file, notes) = self.write(finished)?;
        file.commit()?;
        Ok(notes)
    }

    /// As [`Draft::finish`], but the manifest, which is returned first, has no name yet.
    pub fn write(self, finished: Finished) -> Result<(AtomicFile, Vec<String>), DraftError> {
        let Draft { path, force, started, job, mut inputs, digests, program } = self;
        let digests = digests.finish()?;
        for file in inputs.iter_mut().flat_map(|input| &mut input.files) {
            if file.sha256.is_none() {
                file.sha256 = digests.get(&file.path).cloned();
            }
        }
        let mut notes = Vec::new();
        let mut licences = finished.licences;
        let records = inputs.iter().map(|input| record(input, &mut licences, &mut notes)).collect();
        let run = RunFacts::new(started.time, started.clock.elapsed(), finished.threads, finished.isa);
        let manifest = Manifest {
            lctl_manifest: VERSION,
            lctl: Program { sha256: program.join().ok().flatten(), ..Program::current() },
            job,
            inputs: records,
            outputs: finished.outputs,
            samples: finished.samples,
            licences,
            // numbers and texts under keys that are texts
            run: serde_json::to_value(run).unwrap_or_default(),
        };
        let mut file = AtomicFile::create(&path, None, false)?;
        file.set_replace(force);
        file.write_all(manifest.text().as_bytes())?;
        Ok((file, notes))
    }
}

/// Returns what the manifest says of an input, and takes over what its own manifest knows of licences.
fn record(input: &InputFiles, licences: &mut Licences, notes: &mut Vec<String>) -> Input {
    let parent = match parent_of(input) {
        Some(Ok(parent)) => Some(parent),
        Some(Err(note)) => {
            notes.push(note);
            None
        }
        None => None,
    };
    if let Some(parent) = &parent
        && hands_on(input.role)
    {
        take_over(licences, parent);
    }
    input.record(parent.map(|parent| parent.digest))
}

/// Adds what the manifests of model and adapter know of licences.
pub fn inherit(licences: &mut Licences, inputs: &[InputFiles]) {
    let parents = inputs.iter().filter(|input| hands_on(input.role)).filter_map(parent_of);
    parents.filter_map(Result::ok).for_each(|parent| take_over(licences, &parent));
}

fn hands_on(role: Role) -> bool {
    matches!(role, Role::Model | Role::Adapter)
}

fn take_over(licences: &mut Licences, parent: &Parent) {
    if licences.base == UNKNOWN {
        licences.base.clone_from(&parent.licences.base);
    }
    if licences.adapter.as_deref().is_none_or(|licence| licence == UNKNOWN)
        && parent.licences.adapter.is_some()
    {
        licences.adapter.clone_from(&parent.licences.adapter);
    }
    for data in &parent.licences.data {
        if !licences.data.contains(data) {
            licences.data.push(data.clone());
        }
    }
}

/// Returns the digest of this program's file, if the system says which it is.
pub fn program_sha256() -> Option<String> {
    // the link leads to the file that runs, even if another has its name by now
    let link = Path::new("/proc/self/exe");
    let path = if link.exists() { link.to_owned() } else { std::env::current_exe().ok()? };
    sha256_of_file(&path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provenance::{Content, EvalMode, EvalSettings, MergeSettings, OutputRole, QuantizeSettings};

    fn job() -> Job {
        Job::Quantize(QuantizeSettings::new("Q8_0"))
    }

    fn finished(output: &Path) -> Finished<'static> {
        let text = std::fs::read_to_string(output).unwrap();
        Finished {
            outputs: vec![Output::of_text(OutputRole::Model, output, &text)],
            samples: None,
            licences: Licences { base: UNKNOWN.into(), adapter: None, data: Vec::new() },
            threads: 1,
            isa: "portable",
        }
    }

    fn make(input: &Path, output: &Path) -> Vec<String> {
        let inputs = vec![InputFiles::of_file(Role::Model, None, input)];
        let draft = Draft::begin(output, true, job(), inputs, Started::now(), 2).unwrap();
        std::fs::write(output, format!("of {}", input.display())).unwrap();
        draft.finish(finished(output)).unwrap()
    }

    #[test]
    fn manifests_chain_and_hand_licences_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a"), "a").unwrap();
        assert!(make(&path("a"), &path("b")).is_empty());
        let mut first = Manifest::open(&manifest_path(&path("b"))).unwrap();
        assert_eq!((first.inputs[0].manifest.as_deref(), first.outputs[0].content), (None, Content::File));
        first.licences.base = "mit".into();
        std::fs::write(manifest_path(&path("b")), first.text()).unwrap();

        assert!(make(&path("b"), &path("c")).is_empty());
        let second = Manifest::open(&manifest_path(&path("c"))).unwrap();
        assert_eq!(second.inputs[0].manifest, Some(first.digest()));
        assert_eq!(second.licences.base, "mit");
        // of other bytes it is no parent
        std::fs::write(path("b"), "changed").unwrap();
        let notes = make(&path("b"), &path("c"));
        assert!(
            notes[0].ends_with("b.manifest.json: is the manifest of other bytes, and left out"),
            "{notes:?}"
        );
        let second = Manifest::open(&manifest_path(&path("c"))).unwrap();
        assert_eq!((second.inputs[0].manifest.as_deref(), second.licences.base.as_str()), (None, UNKNOWN));
    }

    #[test]
    fn everything_but_the_run_is_the_same_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a"), "a").unwrap();
        let read = || Manifest::open(&manifest_path(&path("b"))).unwrap();
        make(&path("a"), &path("b"));
        let first = read();
        make(&path("a"), &path("b"));
        let second = read();
        assert_eq!(first.digest(), second.digest());
        assert_eq!(Manifest { run: second.run.clone(), ..first }, second);
        assert!(second.run["cpu_features"].is_array() && second.lctl.sha256.is_some());
    }

    #[test]
    fn a_manifest_replaces_neither_an_input_nor_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("o.manifest.json"), "x").unwrap();
        let begin = |force, input: &Path| {
            let inputs = vec![InputFiles::of_file(Role::Policy, None, input)];
            Draft::begin(&path("o"), force, job(), inputs, Started::now(), 1).map(|_| ()).unwrap_err()
        };
        assert!(matches!(begin(false, &path("a")), DraftError::Exists { .. }));
        let error = begin(true, &path("o.manifest.json"));
        assert!(matches!(error, DraftError::IsInput { input: "policy", .. }), "{error}");
        assert_eq!(manifest_path(Path::new("out/")), Path::new("out.manifest.json"));
    }

    #[test]
    fn a_manifest_of_shards_speaks_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a"), "a").unwrap();
        let shard = path("s-00001-of-00001.gguf");
        let inputs = vec![InputFiles::of_file(Role::Model, None, &path("a"))];
        let draft = Draft::begin(&path("s.gguf"), false, job(), inputs, Started::now(), 1).unwrap();
        std::fs::write(&shard, "of a").unwrap();
        draft.finish(finished(&shard)).unwrap();
        assert_eq!(blocking_manifest(&path("s.gguf"), false), Some(path("s.gguf.manifest.json")));
        assert_eq!(blocking_manifest(&path("s.gguf"), true), None);
        std::fs::remove_file(&shard).unwrap();
        assert_eq!(blocking_manifest(&path("s.gguf"), false), None);
    }

    #[test]
    fn settings_of_all_commands_are_read_back() {
        let eval = EvalSettings {
            mode: EvalMode::Suite,
            compute: "auto".into(),
            context: Some(512),
            seed: u64::MAX,
            limit: None,
            few_shot: Some(0),
            chat_template: "off".into(),
            date: Some("2026-01-01".into()),
            device: Some(crate::provenance::OnDevice {
                name: "NVIDIA H100 80GB HBM3".into(),
                precision: Some("bf16".into()),
                driver: "580.82.07, CUDA 13.0".into(),
                cublas: "13.0.2".into(),
            }),
        };
        let merge = MergeSettings { r#type: Some("Q4_K_M".into()), directory: Some("base".into()) };
        let merges = [Job::Merge(merge), Job::Merge(Default::default())];
        for job in [job(), Job::Eval(eval), Job::Gate(Default::default())].into_iter().chain(merges) {
            let text = serde_json::to_string(&job).unwrap();
            assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job, "{text}");
        }
    }
}
