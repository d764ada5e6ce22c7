//! Whether this machine computes the bits that every machine must.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::kernel::product::matmul_all;
use crate::kernel::{Arithmetic, Compute, Isa, Matrix};
use crate::provenance::hex;
use crate::tensor::{RowMap, format};

/// SHA-256 of what [`digest`] goes over.
pub const EXPECTED: &str = "c793bd17d3f0dbef2594d2b0f04e4bedbbf922ad629b0c7c7cae8468e296c3fb";

const ROWS: usize = 32;
const COLS: usize = 512;

/// Returns the SHA-256 of encoded weights and of products with them, on that level; the same on all.
///
/// Errors if the system gives no threads.
pub fn digest(isa: Isa, threads: usize) -> Result<String, std::io::Error> {
    let compute = Compute::new(isa, threads)?;
    let (w, x) = (values(1, ROWS * COLS), values(2, 3 * COLS));
    let mut digest = Sha256::new();
    for (name, arithmetic) in [
        ("F32", Arithmetic::F32),
        ("BF16", Arithmetic::Bf16),
        ("Q8_0", Arithmetic::Int8),
        ("Q4_K", Arithmetic::Int8),
        ("Q6_K", Arithmetic::Int8),
    ] {
        // all five stand in the registry; a test goes over them
        let Some(dtype) = format::by_name(name) else { continue };
        let mut bytes = vec![0; w.len() / dtype.block_len() * dtype.block_bytes()];
        dtype.encode(isa, &w, COLS, None, &mut bytes);
        digest.update(&bytes);
        let matrix = Matrix::new(Arc::new(bytes), 0, dtype, ROWS, COLS, RowMap::Identity);
        for y in matmul_all(&compute, &x, &[(&matrix, arithmetic)]) {
            digest.update(y.to_bits().to_le_bytes());
        }
    }
    Ok(hex(&digest.finalize()))
}

/// Returns numbers between -1 and 1 that look random: the high bits of a linear congruence (Knuth's MMIX).
fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // 24 bits are exact in f32
        ((state >> 40) as f32) / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_the_expected_bits() {
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert_eq!(digest(isa, threads).unwrap(), EXPECTED, "{} {threads}", isa.name());
            }
        }
        assert_ne!(values(1, 8), values(2, 8));
    }
}
