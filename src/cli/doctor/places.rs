//! Directories that commands write to: are they there, can they be written, what room is left.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::tensor::available_bytes;

/// A directory that commands write to.
#[derive(Debug, Serialize)]
pub struct Place {
    pub what: &'static str,
    /// In JSON with U+FFFD for what is not UTF-8.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    pub exists: bool,
    /// A file could be made in it; in its nearest parent if it does not exist.
    pub writable: bool,
    /// What the system says against it.
    pub refusal: Option<String>,
    /// Left for this user, where the system says it.
    pub free_bytes: Option<u64>,
}

impl Place {
    /// Looks at a directory, by a file that is gone afterwards.
    pub fn examine(what: &'static str, path: PathBuf) -> Place {
        // a link to nothing stands in the way, too
        let is_there = |dir: &&Path| !dir.as_os_str().is_empty() && dir.symlink_metadata().is_ok();
        let nearest = path.ancestors().find(is_there).unwrap_or(Path::new("."));
        let refusal = match nearest.is_dir() {
            true => try_to_write(nearest).err().map(|error| error.to_string()),
            false if nearest == path => Some("is no directory".to_owned()),
            false => Some(format!("{} is no directory", nearest.display())),
        };
        let (exists, free_bytes) = (path.is_dir(), available_bytes(nearest));
        Place { what, exists, writable: refusal.is_none(), refusal, free_bytes, path }
    }

    /// As [`Place::examine`], of a directory that nothing makes: one that is not there cannot be written.
    pub fn examine_existing(what: &'static str, path: PathBuf) -> Place {
        let mut place = Place::examine(what, path);
        if !place.exists && place.refusal.is_none() {
            (place.writable, place.refusal) = (false, Some("is not there".to_owned()));
        }
        place
    }
}

fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn try_to_write(dir: &Path) -> std::io::Result<()> {
    // a file without a name where the system has that, else one that goes at once
    let mut file = tempfile::tempfile_in(dir)?;
    file.write_all(b"lctl")?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_to_come_is_judged_by_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::examine("x", dir.path().join("a/b"));
        assert!(!place.exists && place.writable && place.refusal.is_none(), "{place:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::write(dir.path().join("file"), "").unwrap();
        let place = Place::examine("x", dir.path().join("file"));
        assert!(!place.writable, "{place:?}");
        assert_eq!(place.refusal.as_deref(), Some("is no directory"));
        let place = Place::examine("x", dir.path().join("file/hub"));
        assert!(!place.exists && !place.writable, "{place:?}");
        let refusal = format!("{} is no directory", dir.path().join("file").display());
        assert_eq!(place.refusal, Some(refusal));
    }

    #[test]
    fn a_directory_that_nothing_makes_is_there_or_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::examine_existing("x", dir.path().to_owned());
        assert!(place.exists && place.writable && place.refusal.is_none(), "{place:?}");
        let place = Place::examine_existing("x", dir.path().join("a"));
        assert!(!place.exists && !place.writable, "{place:?}");
        assert_eq!(place.refusal.as_deref(), Some("is not there"));
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_no_text_is_said_all_the_same() {
        use std::os::unix::ffi::OsStrExt as _;
        let dir = tempfile::tempdir().unwrap();
        let place = Place::examine("x", dir.path().join(std::ffi::OsStr::from_bytes(b"a\xff")));
        let json = serde_json::to_value(&place).unwrap();
        assert!(json["path"].as_str().unwrap().ends_with("/a\u{fffd}"), "{json}");
    }
}
