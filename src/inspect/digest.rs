//! SHA-256 of tensor data.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::Error;
use crate::tensor::{TensorInfo, TensorSource};

/// Bytes read at a time, per thread.
const SLAB: usize = 4 << 20;

/// Returns the SHA-256 (lower-case hex) of each tensor's stored bytes; reads with pread, in parallel.
pub fn sha256_of_tensors(source: &dyn TensorSource, infos: &[&TensorInfo]) -> Result<Vec<String>, Error> {
    infos.par_iter().map(|info| sha256(source, info)).collect()
}

fn sha256(source: &dyn TensorSource, info: &TensorInfo) -> Result<String, Error> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; SLAB.min(usize::try_from(info.n_bytes).unwrap_or(SLAB))];
    let mut offset = 0;
    while offset < info.n_bytes {
        let count = usize::try_from(info.n_bytes - offset).unwrap_or(SLAB).min(SLAB);
        source.read_at(info, offset, &mut buffer[..count])?;
        hasher.update(&buffer[..count]);
        offset += count as u64;
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
