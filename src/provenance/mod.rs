//! Digests of what was read and written.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::error::Diagnostic;

/// A file that could not be read for its digest.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot read")]
pub struct Error {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl Diagnostic for Error {}

/// Returns the SHA-256 of a file's bytes, lower-case hexadecimal.
pub fn sha256_of_file(path: &Path) -> Result<String, Error> {
    let error = |source| Error { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(error)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(error)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Returns one digest of several files: of one file its SHA-256, of more the SHA-256 of what `sha256sum` prints
/// for them in this order, by their names without directories.
pub fn sha256_of_files(paths: &[PathBuf]) -> Result<String, Error> {
    let digests: Vec<String> =
        paths.par_iter().map(|path| sha256_of_file(path)).collect::<Result<_, Error>>()?;
    if let [digest] = digests.as_slice() {
        return Ok(digest.clone());
    }
    let mut hasher = Sha256::new();
    for (path, digest) in paths.iter().zip(&digests) {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        hasher.update(format!("{digest}  {name}\n"));
    }
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_sha256sums() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a"), "abc").unwrap();
        std::fs::write(path("b"), "").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_of_files(&[path("a")]).unwrap(), abc);
        // (cd dir; sha256sum a b) | sha256sum
        let both = "09c7e0b8a02d027d95ec0375a600ed4ad4d6b26a1c93f16d9150cab5fec761a6";
        assert_eq!(sha256_of_files(&[path("a"), path("b")]).unwrap(), both);
        assert!(
            sha256_of_files(&[path("a"), path("c")]).unwrap_err().to_string().ends_with("c: cannot read")
        );
    }
}
