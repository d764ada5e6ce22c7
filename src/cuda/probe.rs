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
        }
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
