//! Directories that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::sink::{PARTIAL_FILES, Registry};

/// A directory on its way: files are written beside its final place, and [`StagedDir::commit`] gives it its name once
/// they are on the disk. Dropped before that, it leaves nothing.
pub struct StagedDir {
    path: PathBuf,
    staging: Option<PathBuf>,
    /// The number that an interrupt knows it by.
    listed: Option<(&'static Registry, u64)>,
}

/// Ends the name of a directory on its way.
const SUFFIX: &str = ".partial";

impl StagedDir {
    /// Begins a directory that will be `path`; parents are made. An interrupt leaves it alone: what a run saves as it ends is
    /// written after one.
    pub fn create(path: &Path) -> io::Result<StagedDir> {
        let staging = StagedDir::free_place(path)?;
        fs::create_dir(&staging)?;
        Ok(StagedDir { path: path.to_owned(), staging: Some(staging), listed: None })
    }

    /// Begins a directory that will be `path`, and that [`super::cleanup_partial_files`] removes; parents are made.
    ///
    /// Errors, as [`StagedDir::commit`] then does, with [`io::ErrorKind::Interrupted`] after an interrupt.
    pub fn create_output(path: &Path) -> io::Result<StagedDir> {
        StagedDir::create_in(&PARTIAL_FILES, path)
    }

    fn create_in(registry: &'static Registry, path: &Path) -> io::Result<StagedDir> {
        let staging = StagedDir::free_place(path)?;
        let id = registry.create_dir(&staging)?;
        Ok(StagedDir { path: path.to_owned(), staging: Some(staging), listed: Some((registry, id)) })
    }

    /// Returns where a directory is staged, with nothing there.
    fn free_place(path: &Path) -> io::Result<PathBuf> {
        let name =
            path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "has no name"))?;
        let parent = parent(path);
        fs::create_dir_all(parent)?;
        let staging = parent.join(format!(".{}{SUFFIX}", name.to_string_lossy()));
        remove(&staging)?;
        Ok(staging)
    }

    /// Returns where a file of that name is to be written.
    pub fn file(&self, name: &str) -> PathBuf {
        // it is there until commit, which takes self
        self.staging.as_deref().unwrap_or(&self.path).join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(self.file(name))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Writes a safetensors file of f32; returns the file's SHA-256.
    pub fn write_tensors<'a>(
        &self,
        name: &str,
        tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [f32])>,
    ) -> io::Result<String> {
        let tensors: Vec<_> = tensors.collect();
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut at = 0;
        for (name, shape, values) in &tensors {
            let end = at + 4 * values.len();
            header.insert(
                (*name).to_owned(),
                json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}),
            );
            at = end;
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut digest = Sha256::new();
        let file = File::create(self.file(name))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let mut write = |bytes: &[u8]| {
            digest.update(bytes);
            file.write_all(bytes)
        };
        write(&(header.len() as u64).to_le_bytes())?;
        write(&header)?;
        let mut buffer = Vec::new();
        for (_, _, values) in &tensors {
            for chunk in values.chunks(1 << 16) {
                buffer.clear();
                buffer.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
                write(&buffer)?;
            }
        }
        file.flush()?;
        file.get_ref().sync_all()?;
        Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Makes all durable and gives the directory its name; one that has it is replaced.
    pub fn commit(mut self) -> io::Result<()> {
        let Some(staging) = self.staging.clone() else { return Ok(()) };
        for entry in fs::read_dir(&staging)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(&staging)?.sync_all()?;
        let rename = || give_name(&staging, &self.path);
        let replaced = match self.listed.take() {
            Some((registry, id)) => {
                let renamed = registry.rename_dir(id, rename);
                registry.forget(id);
                renamed?
            }
            None => rename()?,
        };
        self.staging = None;
        File::open(parent(&self.path))?.sync_all()?;
        replaced.map_or(Ok(()), |replaced| remove(&replaced))
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        // what stays is taken away by the next one of the name
        self.staging.iter().for_each(|staging| drop(fs::remove_dir_all(staging)));
        self.listed.iter().for_each(|(registry, id)| registry.forget(*id));
    }
}

/// Renames a directory; returns where one that had the name is now.
fn give_name(staging: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    if path.symlink_metadata().is_err() {
        return fs::rename(staging, path).map(|()| None);
    }
    let gone = gone(path);
    remove(&gone)?;
    fs::rename(path, &gone)?;
    if let Err(error) = fs::rename(staging, path) {
        // the error at hand matters more than one from taking it back
        let _ = fs::rename(&gone, path);
        return Err(error);
    }
    Ok(Some(gone))
}

/// Returns where a directory is on its way out.
fn gone(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    parent(path).join(format!(".{name}.gone{SUFFIX}"))
}

/// Removes a directory so that none of its name is ever there in part.
pub fn remove_dir_whole(path: &Path) -> io::Result<()> {
    let gone = gone(path);
    remove(&gone)?;
    fs::rename(path, &gone)?;
    remove(&gone)
}

/// Removes what ended processes left unfinished in a directory.
pub fn remove_partial_dirs(dir: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(SUFFIX) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_removes_a_staged_output_and_no_checkpoint() {
        let registry: &'static Registry = Box::leak(Box::new(Registry::new()));
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let whole = StagedDir::create_in(registry, &path("whole")).unwrap();
        whole.write("a", b"1").unwrap();
        whole.commit().unwrap();
        let saved = StagedDir::create(&path("saved")).unwrap();
        let half = StagedDir::create_in(registry, &path("whole")).unwrap();
        half.write("a", b"2").unwrap();
        assert_eq!(registry.shut(), 1);
        assert!(!path(".whole.partial").exists());
        // what has its name stays, and nothing new gets one
        let error = half.commit().unwrap_err();
        assert!(!path(".whole.partial").exists(), "{error}");
        assert_eq!(fs::read_to_string(path("whole/a")).unwrap(), "1");
        let error = StagedDir::create_in(registry, &path("new")).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        saved.write("a", b"3").unwrap();
        saved.commit().unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["saved", "whole"]);
    }

    #[test]
    fn a_directory_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/out");
        let staged = StagedDir::create(&path).unwrap();
        staged.write("a", b"1").unwrap();
        assert!(!path.exists());
        drop(staged);
        assert_eq!(fs::read_dir(dir.path().join("deep")).unwrap().count(), 0);
        for text in ["2", "3"] {
            let staged = StagedDir::create(&path).unwrap();
            staged.write("a", text.as_bytes()).unwrap();
            staged.commit().unwrap();
            assert_eq!(fs::read_to_string(path.join("a")).unwrap(), text);
        }
        // as a killed process leaves it
        fs::create_dir(dir.path().join("deep/.out.partial")).unwrap();
        remove_partial_dirs(&dir.path().join("deep")).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("deep")).unwrap().count(), 1);
    }
}
