//! What can go wrong between us and a GPU.

use crate::error::Diagnostic;

/// An error of a device, its driver or its libraries.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error("this build has no CUDA")]
    NotBuilt,

    #[error("there is no NVIDIA driver: libcuda.so.1 cannot be opened")]
    NoDriver,

    #[error("the NVIDIA driver knows CUDA {}, the kernels need {}", version(*.found), version(*.needed))]
    DriverTooOld { found: u32, needed: u32 },

    #[error("the NVIDIA driver does not start: {reason}")]
    DriverFails { reason: String },

    #[error("there is no device cuda:{index}; {}", devices(*.count))]
    NoSuchDevice { index: usize, count: usize },

    #[error("cuda:{index} ({name}) has compute capability {}.{}; 8.0 is needed", .capability.0, .capability.1)]
    TooOld { index: usize, name: String, capability: (u32, u32) },

    #[error(
        "out of memory on cuda:{index}: {} asked for, {} of {} free",
        bytes(*.wanted), bytes(*.free), bytes(*.total)
    )]
    OutOfMemory { index: usize, wanted: u64, free: u64, total: u64 },

    #[error("cuda:{index} was lost while {doing}: {reason}")]
    Lost { index: usize, doing: String, reason: String },

    #[error("cuda:{index} refused {doing}: {reason}")]
    Refused { index: usize, doing: String, reason: String },

    #[error("{library} cannot be opened")]
    NoLibrary { library: &'static str },
}

impl Diagnostic for CudaError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            CudaError::NotBuilt => "build with `cargo build --release --features cuda` (docs/cuda.md), or use --device cpu".into(),
            CudaError::NoDriver => "install NVIDIA's driver (in a container: start it with the GPU), or use --device cpu".into(),
            CudaError::DriverTooOld { needed, .. } if *needed == 13_000 => "driver 580 or newer is needed".into(),
            CudaError::DriverTooOld { .. } => "install a newer driver, or build with an older nvcc".into(),
            CudaError::DriverFails { .. } => "`nvidia-smi` should run first".into(),
            CudaError::NoSuchDevice { count: 0, .. } => "is CUDA_VISIBLE_DEVICES empty? Use --device cpu otherwise".into(),
            CudaError::NoSuchDevice { count: 1, .. } => "use cuda:0".into(),
            CudaError::NoSuchDevice { count, .. } => format!("use cuda:0 to cuda:{}", count - 1),
            CudaError::TooOld { .. } => "Ampere (A100, A30, RTX 30) is the first that the kernels run on".into(),
            CudaError::OutOfMemory { .. } => "shorter sequences, a smaller micro-batch or a quantized base need less; `nvidia-smi` says who else is there".into(),
            CudaError::Lost { .. } => "what was saved before is whole; `nvidia-smi` and `dmesg` say more, a restart of the process is needed".into(),
            CudaError::Refused { .. } => "please report this: it should not happen".into(),
            CudaError::NoLibrary { library } => {
                format!("put the folder of {library} on LD_LIBRARY_PATH: of a CUDA 13 toolkit, or of the wheel nvidia-cublas")
            }
        })
    }
}

/// `13.0` for 13000, as the driver counts.
pub(crate) fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

fn devices(count: usize) -> String {
    match count {
        0 => "the driver sees none".to_owned(),
        1 => "the driver sees one".to_owned(),
        _ => format!("the driver sees {count}"),
    }
}

#[allow(clippy::cast_precision_loss, reason = "for reading")]
fn bytes(n: u64) -> String {
    match n {
        0..0x10_0000 => format!("{n} bytes"),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", n as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", n as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_says_numbers_and_a_way_on() {
        let memory = CudaError::OutOfMemory { index: 1, wanted: 3 << 30, free: 5 << 20, total: 80 << 30 };
        assert_eq!(
            memory.to_string(),
            "out of memory on cuda:1: 3.00 GiB asked for, 5.0 MiB of 80.00 GiB free"
        );
        let old = CudaError::DriverTooOld { found: 12_040, needed: 13_000 };
        assert_eq!(old.to_string(), "the NVIDIA driver knows CUDA 12.4, the kernels need 13.0");
        assert_eq!(old.hint().unwrap(), "driver 580 or newer is needed");
        let none = CudaError::NoSuchDevice { index: 2, count: 0 };
        assert_eq!(none.to_string(), "there is no device cuda:2; the driver sees none");
        let one = CudaError::NoSuchDevice { index: 2, count: 1 };
        assert_eq!(one.hint().unwrap(), "use cuda:0");
        let many = CudaError::NoSuchDevice { index: 9, count: 4 };
        assert_eq!(many.hint().unwrap(), "use cuda:0 to cuda:3");
        let small = CudaError::TooOld { index: 0, name: "Tesla T4".into(), capability: (7, 5) };
        assert_eq!(small.to_string(), "cuda:0 (Tesla T4) has compute capability 7.5; 8.0 is needed");
        assert_eq!(small.exit_code(), 2);
    }
}
