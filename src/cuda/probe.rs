//! What the machine has of GPUs, found out without using them: for `lctl doctor`.

use serde::Serialize;

use super::CudaError;

/// A GPU, as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceFacts {
    pub index: usize,
    pub name: String,
    pub compute_capability: (u32, u32),
    pub memory_bytes: u64,
    /// The driver's version, and the newest CUDA that it knows: `580.82.07, CUDA 13.0`, or the latter alone where it does not say more.
    pub driver: String,
    /// The version of the cuBLAS that would be used: `13.0.2`. `None` if there is none.
    pub cublas: Option<String>,
}

impl DeviceFacts {
    /// Whether the kernels run on it.
    pub fn is_usable(&self) -> bool {
        self.compute_capability >= (8, 0)
    }
}

/// The driver and its devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The newest CUDA that the driver knows: 13000 is 13.0.
    pub cuda_version: u32,
    /// The oldest that the kernels run with.
    pub cuda_version_needed: u32,
    /// Where cuBLAS lies, if it is there; empty where the system does not say.
    pub cublas: Option<String>,
    pub devices: Vec<DeviceFacts>,
}

/// Returns what [`DeviceFacts::driver`] is: of the CUDA that the driver knows, and what the kernel says of its module, if it does.
#[cfg(any(feature = "cuda", test))]
pub(super) fn driver_version(cuda_version: u32, module: Option<&str>) -> String {
    let cuda = format!("CUDA {}", super::error::version(cuda_version));
    let is_version = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match module.map(str::trim).filter(is_version) {
        Some(version) => format!("{version}, {cuda}"),
        None => cuda,
    }
}

impl Found {
    /// Returns why no device can be used, or `None` if one can.
    pub fn obstacle(&self) -> Option<CudaError> {
        if self.cuda_version < self.cuda_version_needed {
            return Some(CudaError::DriverTooOld {
                found: self.cuda_version,
                needed: self.cuda_version_needed,
            });
        }
        let Some(first) = self.devices.first() else {
            return Some(CudaError::NoSuchDevice { index: 0, count: 0 });
        };
        if !self.devices.iter().any(DeviceFacts::is_usable) {
            let (name, capability) = (first.name.clone(), first.compute_capability);
            return Some(CudaError::TooOld { index: 0, name, capability });
        }
        self.cublas.is_none().then_some(CudaError::NoLibrary { library: "libcublas.so.13" })
    }
}

/// Returns what is there.
///
/// Errors if this build has no CUDA, there is no driver, or it does not start.
pub fn probe() -> Result<Found, CudaError> {
    #[cfg(feature = "cuda")]
    return super::driver::probe();
    #[cfg(not(feature = "cuda"))]
    Err(CudaError::NotBuilt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: usize, capability: (u32, u32)) -> DeviceFacts {
        DeviceFacts {
            index,
            name: format!("GPU {index}"),
            compute_capability: capability,
            memory_bytes: 1 << 30,
            driver: "580.82.07, CUDA 13.0".to_owned(),
            cublas: Some("13.0.2".to_owned()),
        }
    }

    #[test]
    fn drivers_are_told_apart_as_far_as_they_say() {
        assert_eq!(driver_version(13_000, Some("580.82.07\n")), "580.82.07, CUDA 13.0");
        assert_eq!(driver_version(13_010, None), "CUDA 13.1");
        // no version is not printed as one
        assert_eq!(driver_version(13_000, Some("")), "CUDA 13.0");
        assert_eq!(driver_version(13_000, Some("1\u{1b}[2J")), "CUDA 13.0");
    }

    fn found(devices: Vec<DeviceFacts>) -> Found {
        Found { cuda_version: 13_000, cuda_version_needed: 13_000, cublas: Some(String::new()), devices }
    }

    #[test]
    fn one_usable_device_is_enough() {
        assert!(found(vec![device(0, (7, 5)), device(1, (9, 0))]).obstacle().is_none());
        assert!(found(vec![device(0, (12, 0))]).obstacle().is_none());
    }

    #[test]
    fn what_stands_in_the_way_is_told_apart() {
        assert!(matches!(found(vec![]).obstacle(), Some(CudaError::NoSuchDevice { count: 0, .. })));
        let old = found(vec![device(0, (7, 5))]);
        assert!(matches!(old.obstacle(), Some(CudaError::TooOld { capability: (7, 5), .. })));
        let driver = Found { cuda_version: 12_080, ..found(vec![device(0, (9, 0))]) };
        assert!(matches!(driver.obstacle(), Some(CudaError::DriverTooOld { found: 12_080, .. })));
        let library = Found { cublas: None, ..found(vec![device(0, (9, 0))]) };
        assert!(matches!(library.obstacle(), Some(CudaError::NoLibrary { .. })));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        assert!(matches!(probe(), Err(CudaError::NotBuilt)));
    }
}
