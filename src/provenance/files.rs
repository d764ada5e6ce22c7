//! Which files an input is made of, and the manifest that lies beside it.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::digest::{Error, NamedDigest, sha256_of_file, sha256_of_named};
use super::manifest::{Content, Input, Licences, Manifest, ManifestError, Role};
use super::manifest_path;
use crate::tensor::{self, Opened};

/// Files of a checkpoint's directory that decide results, besides config.json and weights.
const MODEL_FILES: [&str; 13] = [
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Templates beside the default one.
const TEMPLATES: &str = "additional_chat_templates";

/// An input, as the files that will be read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFiles {
    pub role: Role,
    pub name: Option<String>,
    /// As it was given.
    pub path: String,
    pub files: Vec<InputFile>,
}

/// A file of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFile {
    /// Within the input's directory, or beside its path.
    pub name: String,
    pub path: PathBuf,
    /// If it is known already.
    pub sha256: Option<String>,
}

impl InputFile {
    fn new(path: PathBuf) -> InputFile {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        InputFile { name, path, sha256: None }
    }
}

impl InputFiles {
    /// Returns a model as an input of the first role, and what else there is in its directory as one of the second.
    ///
    /// `given` is what the user wrote, `path` where that is. Errors if the model's headers cannot be read.
    pub fn of_model(given: &str, path: &Path, roles: [Role; 2]) -> Result<Vec<InputFiles>, tensor::Error> {
        let opened = tensor::open(path)?;
        let dir = match (&opened, path.is_dir()) {
            (Opened::Gguf(_), _) => None,
            (Opened::SafeTensors(_), true) => Some(path.to_owned()),
            (Opened::SafeTensors(_), false) => Some(directory_of(path).to_owned()),
        };
        let mut weights = Vec::from_iter(dir.as_ref().map(|dir| InputFile::new(dir.join("config.json"))));
        weights.extend(opened.as_source().files().iter().cloned().map(InputFile::new));
        let others = dir.as_deref().map(other_files).unwrap_or_default();
        let input = |role, files| InputFiles { role, name: None, path: given.to_owned(), files };
        let all = [input(roles[0], weights), input(roles[1], others)];
        Ok(all.into_iter().filter(|input| !input.files.is_empty()).collect())
    }

    /// Returns a model that began with random weights as an input of the first role, its config.json, and what else there is
    /// in its directory as one of the second.
    pub fn of_untrained(given: &str, dir: &Path, roles: [Role; 2]) -> Vec<InputFiles> {
        let input = |role, files| InputFiles { role, name: None, path: given.to_owned(), files };
        let config = vec![InputFile::new(dir.join("config.json"))];
        let all = [input(roles[0], config), input(roles[1], other_files(dir))];
        all.into_iter().filter(|input| !input.files.is_empty()).collect()
    }

    /// Returns an adapter: a PEFT directory or a GGUF file.
    pub fn of_adapter(path: &Path) -> InputFiles {
        let paths = match path.is_dir() {
            true => ["adapter_config.json", "adapter_model.safetensors"].map(|name| path.join(name)).into(),
            false => vec![path.to_owned()],
        };
        InputFiles::of_paths(Role::Adapter, None, path, paths)
    }

    /// Returns what `lctl eval --out` wrote, named by its directory or its report.
    pub fn of_run(role: Role, path: &Path) -> InputFiles {
        let report = if path.is_dir() { path.join("report.json") } else { path.to_owned() };
        let samples = report.with_file_name("samples.jsonl");
        InputFiles::of_paths(role, None, path, vec![report, samples])
    }

    /// Returns one file.
    pub fn of_file(role: Role, name: Option<String>, path: &Path) -> InputFiles {
        InputFiles::of_paths(role, name, path, vec![path.to_owned()])
    }

    /// Returns files of a directory, by their places in it.
    pub fn of_files_in(role: Role, dir: &Path, paths: Vec<PathBuf>) -> InputFiles {
        let mut input = InputFiles::of_paths(role, None, dir, paths);
        for file in &mut input.files {
            let place = file.path.strip_prefix(dir).unwrap_or(&file.path);
            file.name = place.display().to_string();
        }
        input
    }

    fn of_paths(role: Role, name: Option<String>, path: &Path, paths: Vec<PathBuf>) -> InputFiles {
        let files = paths.into_iter().map(InputFile::new).collect();
        InputFiles { role, name, path: path.display().to_string(), files }
    }

    /// Returns it with the digest of its only file, which its reader knows.
    pub fn with_sha256(mut self, sha256: &str) -> InputFiles {
        if let [file] = self.files.as_mut_slice() {
            file.sha256 = Some(sha256.to_owned());
        }
        self
    }

    /// Returns it with every digest, computed in parallel where it is not known.
    pub fn with_digests(mut self) -> Result<InputFiles, Error> {
        self.files.par_iter_mut().filter(|file| file.sha256.is_none()).try_for_each(|file| {
            file.sha256 = Some(sha256_of_file(&file.path)?);
            Ok(())
        })?;
        Ok(self)
    }

    /// Returns the one digest of its files, which must be known.
    pub fn sha256(&self) -> String {
        sha256_of_named(&self.digests())
    }

    /// Returns the digests of its files, empty texts for those not known.
    pub fn digests(&self) -> Vec<NamedDigest> {
        let named = |file: &InputFile| NamedDigest {
            name: file.name.clone(),
            sha256: file.sha256.clone().unwrap_or_default(),
        };
        self.files.iter().map(named).collect()
    }

    /// Returns what a manifest says of it; the digests must be known.
    pub(super) fn record(&self, manifest: Option<String>) -> Input {
        Input {
            role: self.role,
            name: self.name.clone(),
            path: self.path.clone(),
            sha256: self.sha256(),
            manifest,
            files: self.digests(),
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns what there is of [`MODEL_FILES`] and templates, in the order of their names.
fn other_files(dir: &Path) -> Vec<InputFile> {
    let is_there = |file: &InputFile| file.path.is_file();
    let mut files: Vec<InputFile> =
        MODEL_FILES.iter().map(|name| InputFile::new(dir.join(name))).filter(is_there).collect();
    let entries = std::fs::read_dir(dir.join(TEMPLATES)).into_iter().flatten().flatten();
    let mut templates: Vec<InputFile> = entries
        .map(|entry| InputFile::new(entry.path()))
        .filter(|file| file.name.ends_with(".jinja") && is_there(file))
        .collect();
    templates.sort_by(|a, b| a.name.cmp(&b.name));
    for mut file in templates {
        file.name = format!("{TEMPLATES}/{}", file.name);
        files.push(file);
    }
    files
}

/// The manifest of an input: what it was made of.
#[derive(Clone, Debug)]
pub struct Parent {
    pub path: PathBuf,
    pub digest: String,
    pub licences: Licences,
}

/// Returns the manifest beside an input, if there is one and it speaks of these very bytes.
///
/// Errors with one that cannot be read, or that is of other bytes: what the user should know, no more.
pub fn parent_of(input: &InputFiles) -> Option<Result<Parent, String>> {
    let path = candidates(Path::new(&input.files.first()?.path), &input.path).find(|path| path.is_file())?;
    Some(match Manifest::open(&path) {
        Ok(manifest) if speaks_of(&manifest, input) => {
            let (digest, licences) = (manifest.digest(), manifest.licences);
            Ok(Parent { path, digest, licences })
        }
        Ok(_) => Err(format!("{}: is the manifest of other bytes, and left out", path.display())),
        Err(error @ ManifestError::OtherVersion { .. }) => Err(format!("{error}; it is left out")),
        Err(error) => Err(format!("{error}: the manifest is left out")),
    })
}

/// Returns where the manifest of an input may lie: beside its first file, beside its directory, and for the first shard
/// of a split model beside the name it was made by.
fn candidates(first: &Path, given: &str) -> impl Iterator<Item = PathBuf> {
    let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-of-"));
    let whole = stem.and_then(|(stem, _)| stem.strip_suffix("-00001"));
    let whole = whole.map(|stem| manifest_path(&first.with_file_name(format!("{stem}.gguf"))));
    [Some(manifest_path(first)), whole, Some(manifest_path(Path::new(given)))].into_iter().flatten()
}

fn speaks_of(manifest: &Manifest, input: &InputFiles) -> bool {
    let is_output = |file: &InputFile| {
        manifest.outputs.iter().any(|output| match output.content {
            Content::File => Some(&output.sha256) == file.sha256.as_ref(),
            Content::JsonWithoutRun => {
                let json =
                    std::fs::read(&file.path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
                json.is_some_and(|json| super::manifest::without_run_sha256(json) == output.sha256)
            }
        })
    };
    input.files.iter().all(is_output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shards_manifest_lies_beside_the_name_it_was_made_by() {
        let of = |name: &str| -> Vec<String> {
            candidates(Path::new(name), name).map(|path| path.display().to_string()).collect()
        };
        assert!(of("d/m-00001-of-00003.gguf").contains(&"d/m.gguf.manifest.json".to_owned()));
        assert_eq!(of("d/m.gguf"), ["d/m.gguf.manifest.json"; 2]);
    }

    #[test]
    fn a_models_other_files_are_those_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(TEMPLATES)).unwrap();
        let names = ["tokenizer.json", "README.md", "notes.txt", "additional_chat_templates/b.jinja"];
        for name in
            names.iter().chain(&["additional_chat_templates/a.jinja", "additional_chat_templates/a.txt"])
        {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let found: Vec<String> = other_files(dir.path()).into_iter().map(|file| file.name).collect();
        let expected = ["README.md", "tokenizer.json", "additional_chat_templates/a.jinja"];
        assert_eq!(found, [&expected[..], &["additional_chat_templates/b.jinja"]].concat());
    }
}
