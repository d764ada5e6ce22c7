//! Where a decoder's weights stay: packed in memory, or mapped from their file.

use std::sync::Arc;

use super::weights::{FeedForward, Linear, Weights};
use crate::kernel::{Arena, Arithmetic, Compute, ComputeMode, Matrix};

/// Where the matrices of a decoder stay. It changes no bit of any result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// Packed where they leave a quarter of the free memory, else mapped.
    #[default]
    Auto,
    /// Copied once, in the order that products read them in: generation runs at the speed of memory. Takes as much memory
    /// as the file has weights; the pages they were read from are given back.
    Packed,
    /// Read where they lie in the file: takes no memory but what the system caches, and opens at once.
    Mapped,
}

impl Residence {
    pub const ALL: [Residence; 3] = [Residence::Auto, Residence::Packed, Residence::Mapped];

    /// Returns the name used by `--weights`.
    pub fn name(self) -> &'static str {
        match self {
            Residence::Auto => "auto",
            Residence::Packed => "packed",
            Residence::Mapped => "mapped",
        }
    }
}

/// Packs the matrices that products in `mode` gain from. The embedding stays mapped: few of its rows are read.
///
/// Errors if the system has no such address space.
pub(super) fn settle(
    weights: &mut Weights,
    residence: Residence,
    mode: ComputeMode,
    compute: &Compute,
) -> Result<(), std::io::Error> {
    let mut bytes = 0;
    for_each_matrix(weights, mode, &mut |matrix| bytes += matrix.packed_bytes().next_multiple_of(64));
    let packs = match residence {
        Residence::Packed => true,
        Residence::Mapped => false,
        Residence::Auto => free_memory().is_none_or(|free| bytes as u64 <= free / 4 * 3),
    };
    if packs {
        let mut arena = Arena::new(bytes)?;
        for_each_matrix(weights, mode, &mut |matrix| *matrix = matrix.packed(compute, &mut arena));
    }
    Ok(())
}

/// Calls `each` with the matrices that gain from being packed.
fn for_each_matrix(weights: &mut Weights, mode: ComputeMode, each: &mut dyn FnMut(&mut Matrix)) {
    let mut of = |linear: &mut Linear| {
        if linear.weight.packs_for(mode.arithmetic(linear.weight.dtype())) {
            each(&mut linear.weight);
        }
        // a pair belongs to one linear layer, which alone has its pointer
        if let Some(pair) = linear.low_rank.as_mut().and_then(Arc::get_mut) {
            pair.matrices().into_iter().filter(|w| w.packs_for(Arithmetic::F32)).for_each(&mut *each);
        }
    };
    of(&mut weights.output);
    for layer in &mut weights.layers {
        [&mut layer.q, &mut layer.k, &mut layer.v, &mut layer.o].into_iter().for_each(&mut of);
        let mlps = match &mut layer.ffn {
            FeedForward::Dense(mlp) => std::slice::from_mut(&mut **mlp),
            FeedForward::Experts { experts, .. } => experts.as_mut_slice(),
        };
        for mlp in mlps {
            [&mut mlp.gate, &mut mlp.up, &mut mlp.down].into_iter().for_each(&mut of);
        }
    }
}

/// Returns the bytes of memory that can be had without swapping, if the system says.
pub fn free_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let available = read("/proc/meminfo").and_then(|text| available_of(&text));
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    available.into_iter().chain(limit).min()
}

/// Returns the bytes of the line `MemAvailable` of proc(5)'s meminfo.
fn available_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read_from_meminfo() {
        let text = "MemTotal:       24689764 kB\nMemFree:         1000 kB\nMemAvailable:   20000001 kB\n";
        assert_eq!(available_of(text), Some(20_000_001 * 1024));
        assert_eq!(available_of("MemTotal: 1 kB\n"), None);
        assert_eq!(available_of("MemAvailable: many kB\n"), None);
    }
}
