//! Directories that commands write to: are they there, can they be written, what room is left.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::tensor::available_bytes;

/// A directory that commands write to.
#[derive(Debug, Serialize)]
pub struct Place {
    pub what: &'static str,
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
        let nearest = path.ancestors().find(|dir| dir.is_dir()).map_or(Path::new("."), |dir| dir);
        let refusal = match path.exists() && !path.is_dir() {
            true => Some("is no directory".to_owned()),
            false => try_to_write(nearest).err().map(|error| error.to_string()),
        };
        let (exists, free_bytes) = (path.is_dir(), available_bytes(nearest));
        Place { what, exists, writable: refusal.is_none(), refusal, free_bytes, path }
    }
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
    }
}
