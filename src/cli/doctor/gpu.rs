//! What there is of GPUs, and whether this build can use it.

use std::path::Path;

use serde::Serialize;

use crate::cli::term;
use crate::cuda::probe::{DeviceFacts, Found, probe};
use crate::cuda::{CudaError, error};
use crate::error::Diagnostic as _;

/// What was found; its form is documented in docs/cli.md.
#[derive(Serialize)]
pub struct Gpu {
    /// Whether this build has feature `cuda`.
    pub built_in: bool,
    /// Whether a command would compute on one by itself: fine-tuning does, if one can be used.
    pub used: bool,
    pub driver_present: bool,
    /// The newest CUDA of the driver, and the oldest that the kernels run with: 13000 is 13.0. Null where it was not asked.
    pub cuda_version: Option<u32>,
    pub cuda_version_needed: Option<u32>,
    pub cublas_present: Option<bool>,
    /// Its file; null where it is not there, or the system does not say.
    pub cublas_path: Option<String>,
    pub devices: Vec<DeviceFacts>,
    /// Why none can be used; null if one can.
    pub obstacle: Option<String>,
}

impl Gpu {
    /// Looks at the driver and its devices, and notes what keeps a build with CUDA from them.
    pub fn look(notes: &mut Vec<String>) -> Gpu {
        let gpu = Gpu::of(probe(), Path::new("/proc/driver/nvidia/version").exists());
        if let (Some(obstacle), true) = (&gpu.obstacle, gpu.built_in && gpu.driver_present) {
            notes.push(format!("no GPU can be used: {obstacle}"));
        }
        gpu
    }

    fn of(found: Result<Found, CudaError>, driver_present: bool) -> Gpu {
        let built_in = !matches!(found, Err(CudaError::NotBuilt));
        let said = |error: &CudaError| match error.hint() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        };
        let none = Gpu {
            built_in,
            used: false,
            driver_present,
            cuda_version: None,
            cuda_version_needed: None,
            cublas_present: None,
            cublas_path: None,
            devices: Vec::new(),
            obstacle: None,
        };
        match found {
            Ok(found) => Gpu {
                driver_present: true,
                cuda_version: Some(found.cuda_version),
                cuda_version_needed: Some(found.cuda_version_needed),
                cublas_present: Some(found.cublas.is_some()),
                used: found.obstacle().is_none(),
                obstacle: found.obstacle().as_ref().map(said),
                cublas_path: found.cublas.filter(|path| !path.is_empty()),
                devices: found.devices,
                ..none
            },
            Err(error) => Gpu { obstacle: Some(said(&error)), ..none },
        }
    }

    /// Returns one line.
    pub fn text(&self) -> String {
        let version = |n: Option<u32>| n.map_or("unknown".to_owned(), error::version);
        match (self.built_in, &self.devices[..]) {
            (false, _) if self.driver_present => {
                "not used: this build has no CUDA (an NVIDIA driver is there)".to_owned()
            }
            (false, _) => "not used: this build has no CUDA".to_owned(),
            (true, []) => match self.cuda_version {
                Some(_) => format!("none found; the driver knows CUDA {}", version(self.cuda_version)),
                None => "no NVIDIA driver".to_owned(),
            },
            (true, devices) => {
                let each = devices.iter().map(|device| {
                    let (major, minor) = device.compute_capability;
                    let memory = term::bytes(device.memory_bytes);
                    format!("cuda:{} {}, {memory}, capability {major}.{minor}", device.index, device.name)
                });
                let each: Vec<String> = each.collect();
                let driver = version(self.cuda_version);
                let taken =
                    if self.used { "fine-tuning takes the first that can be used" } else { "not used" };
                let cublas =
                    self.cublas_path.as_ref().map_or(String::new(), |path| format!("; cuBLAS at {path}"));
                format!("{}; the driver knows CUDA {driver}{cublas}; {taken}", each.join("; "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(capability: (u32, u32)) -> Found {
        let device = DeviceFacts {
            index: 0,
            name: "NVIDIA H200".into(),
            compute_capability: capability,
            memory_bytes: 141 << 30,
            driver: "580.82.07, CUDA 13.0".into(),
            cublas: Some("13.0.2".into()),
        };
        Found {
            cuda_version: 13_000,
            cuda_version_needed: 13_000,
            cublas: Some("/opt/cuda/lib64/libcublas.so.13".into()),
            devices: vec![device],
        }
    }

    #[test]
    fn builds_drivers_and_devices_are_told_apart() {
        let text = |found, driver_present| Gpu::of(found, driver_present).text();
        assert_eq!(text(Err(CudaError::NotBuilt), false), "not used: this build has no CUDA");
        assert!(text(Err(CudaError::NotBuilt), true).ends_with("(an NVIDIA driver is there)"));
        assert_eq!(text(Err(CudaError::NoDriver), false), "no NVIDIA driver");
        let seen = text(Ok(found((9, 0))), true);
        assert!(seen.starts_with("cuda:0 NVIDIA H200, ") && seen.contains("capability 9.0"), "{seen}");
        let taken =
            "; cuBLAS at /opt/cuda/lib64/libcublas.so.13; fine-tuning takes the first that can be used";
        assert!(seen.ends_with(taken), "{seen}");
        assert!(text(Ok(found((7, 5))), true).ends_with("; not used"));
        let empty = Found { devices: Vec::new(), ..found((9, 0)) };
        assert_eq!(text(Ok(empty), true), "none found; the driver knows CUDA 13.0");
    }

    #[test]
    fn an_obstacle_comes_with_a_way_on() {
        let old = Gpu::of(Ok(found((7, 5))), true).obstacle.unwrap();
        assert!(old.contains("capability 7.5; 8.0 is needed; "), "{old}");
        assert!(Gpu::of(Ok(found((8, 9))), true).obstacle.is_none());
        let none = Gpu::of(Err(CudaError::NoDriver), false).obstacle.unwrap();
        assert!(none.contains("--device cpu"), "{none}");
    }
}
