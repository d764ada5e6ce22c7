//! The files that a run writes: none may be one that it reads, or be written twice.

use std::path::{Path, PathBuf};

use crate::error::{Diagnostic, Failure};
use crate::tensor::AtomicFile;
use crate::tensor::gguf::shared_by_shards;

/// Files of a model's directory that are read, besides weights.
const OF_A_MODEL: [&str; 12] = [
    "adapter_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

#[derive(Debug, thiserror::Error)]
pub enum PathError {
    #[error("{path}: {option} would replace a file that the run reads ({reads})")]
    IsInput { path: PathBuf, option: &'static str, reads: &'static str },

    #[error("{path}: {first} and {second} both write it")]
    Twice { path: PathBuf, first: &'static str, second: &'static str },
}

impl Diagnostic for PathError {
    fn hint(&self) -> Option<String> {
        Some("give another name".into())
    }
}

/// A path, and the option that names it.
pub type Named = (&'static str, PathBuf);

/// Errors if one of the files to write is a file to read, is written twice, or cannot be made where it is to be:
/// better now than after hours.
pub fn check(written: &[Named], read: &[Named]) -> Result<(), Failure> {
    for (index, (option, path)) in written.iter().enumerate() {
        let Some(place) = place(path) else { continue };
        for (first, other) in &written[..index] {
            if self::place(other).as_ref() == Some(&place) {
                return Err(PathError::Twice { path: path.clone(), first, second: option }.into());
            }
        }
        if let Some((reads, _)) = read.iter().find(|(_, input)| is_read(&place, input)) {
            return Err(PathError::IsInput { path: path.clone(), option, reads }.into());
        }
    }
    for (_, path) in written {
        // makes its temporary file and removes it again
        AtomicFile::create(path, None, false)?;
    }
    Ok(())
}

/// Returns the one path that a file has, whether it exists or not; `None` if its directory does not exist.
fn place(path: &Path) -> Option<PathBuf> {
    if let Ok(place) = path.canonicalize() {
        return Some(place);
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(parent.canonicalize().ok()?.join(path.file_name()?))
}

fn is_read(place: &Path, input: &Path) -> bool {
    let Ok(input) = input.canonicalize() else { return false };
    let name_of =
        |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let (name, of_input) = (name_of(place), name_of(&input));
    let name = name.as_str();
    if !input.is_dir() {
        let is_shard = |of: Option<(&str, &str)>| of.is_some() && of == shared_by_shards(&of_input);
        let is_beside = place.parent() == input.parent() && place.exists();
        return input == place || is_beside && is_shard(shared_by_shards(name));
    }
    let is_of_a_model = OF_A_MODEL.contains(&name)
        || [".safetensors", ".gguf", ".index.json"].iter().any(|end| name.ends_with(end));
    place.parent() == Some(&input) && is_of_a_model && place.exists()
}
