//! `--device`: what a command computes on.

use crate::cuda::probe::{self, DeviceFacts};
use crate::cuda::{CudaError, Device};
use crate::error::{Diagnostic, Failure};

/// The value of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best that the command can use.
    Auto,
    Cpu,
    /// The GPU of that number, as the driver counts.
    Cuda(usize),
    /// What stands in for one in tests, lost behind so many launches.
    #[cfg(feature = "cuda-host")]
    Host(Option<u64>),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Auto => write!(f, "auto"),
            DeviceChoice::Cpu => write!(f, "cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
            #[cfg(feature = "cuda-host")]
            DeviceChoice::Host(None) => write!(f, "host"),
            #[cfg(feature = "cuda-host")]
            DeviceChoice::Host(Some(lost_after)) => write!(f, "host:{lost_after}"),
        }
    }
}

/// Reads the value of `--device`.
pub fn parse(text: &str) -> Result<DeviceChoice, String> {
    /// More than any machine has.
    const MOST: usize = 1024;
    match text {
        "auto" => return Ok(DeviceChoice::Auto),
        "cpu" => return Ok(DeviceChoice::Cpu),
        #[cfg(feature = "cuda-host")]
        "host" => return Ok(DeviceChoice::Host(None)),
        "cuda" | "gpu" => return Err("say which: cuda:0 is the first".to_owned()),
        _ => {}
    }
    #[cfg(feature = "cuda-host")]
    if let Some(Ok(lost_after)) = text.strip_prefix("host:").map(str::parse) {
        return Ok(DeviceChoice::Host(Some(lost_after)));
    }
    let digits = text.strip_prefix("cuda:").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let index = digits.and_then(|digits| digits.parse().ok()).filter(|index| *index < MOST);
    index.map(DeviceChoice::Cuda).ok_or_else(|| "expected auto, cpu, or cuda:N with N from 0".to_owned())
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("`lctl {command}` cannot compute on {device}: it runs on the CPU alone so far")]
    CpuAlone { command: String, device: DeviceChoice },

    #[error("`lctl gpu-check` checks a GPU, not {device}")]
    NoGpu { device: DeviceChoice },
}

impl Diagnostic for DeviceError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            DeviceError::CpuAlone { .. } => "leave --device out, or say --device cpu (docs/cuda.md)".into(),
            DeviceError::NoGpu { .. } => "say which with --device cuda:N".into(),
        })
    }
}

/// Errors if the device is not one that `command`, which computes on the CPU alone, can use.
pub fn require_cpu(command: &str, device: DeviceChoice) -> Result<(), DeviceError> {
    match device {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(()),
        _ => Err(DeviceError::CpuAlone { command: command.to_owned(), device }),
    }
}

/// Returns the GPU to check: the first unless another is named.
///
/// Errors if it is not one, or does not open.
pub fn open_gpu(device: DeviceChoice) -> Result<Device, Failure> {
    match device {
        DeviceChoice::Auto => Ok(Device::open(0)?),
        DeviceChoice::Cpu => Err(DeviceError::NoGpu { device }.into()),
        named => open_named(named)?.ok_or_else(|| DeviceError::NoGpu { device }.into()),
    }
}

/// Returns the device that is named, or nothing if that is the CPU.
fn open_named(device: DeviceChoice) -> Result<Option<Device>, CudaError> {
    match device {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(None),
        DeviceChoice::Cuda(index) => Device::open(index).map(Some),
        #[cfg(feature = "cuda-host")]
        DeviceChoice::Host(lost_after) => {
            let options = crate::cuda::host::Options { lost_after, ..Default::default() };
            Ok(Some(Device::host(options)))
        }
    }
}

/// What a command computes on.
pub struct Chosen {
    /// The CPU if there is none.
    pub device: Option<Device>,
    /// What the user should know of the choice.
    pub note: Option<String>,
}

/// Returns what a command computes on that can use a GPU. `auto` is a GPU that can be used if `fits` does not object, else the
/// CPU, and says which: the first, or by the `number` of this process among those of the machine the one whose turn it is. A device
/// that is named and cannot be used is an error.
///
/// Errors as `fits`, and if the device does not open.
pub fn choose<E>(
    device: DeviceChoice,
    number: usize,
    fits: impl Fn() -> Result<(), E>,
) -> Result<Chosen, Failure>
where
    E: std::fmt::Display,
    Failure: From<E>,
{
    if device != DeviceChoice::Auto {
        let opened = open_named(device)?;
        if opened.is_some() {
            fits()?;
        }
        return Ok(Chosen { device: opened, note: None });
    }
    let Some(index) = usable(number) else { return Ok(Chosen { device: None, note: None }) };
    let cpu = |why: &dyn std::fmt::Display| Chosen {
        device: None,
        note: Some(format!("computes on the CPU, not on cuda:{index}: {why}")),
    };
    if let Err(error) = fits() {
        return Ok(cpu(&error));
    }
    Ok(match Device::open(index) {
        Ok(device) => Chosen { device: Some(device), note: Some(format!("computes on cuda:{index}")) },
        Err(error) => cpu(&error),
    })
}

/// Returns the GPU that is for process `number` of the machine.
fn usable(number: usize) -> Option<usize> {
    let found = probe::probe().ok().filter(|found| found.obstacle().is_none())?;
    in_turn(&found.devices, number)
}

/// Returns one of the devices that can be used: they are dealt out in turn. A process that sees no other than its own gets that.
fn in_turn(devices: &[DeviceFacts], number: usize) -> Option<usize> {
    let usable: Vec<usize> =
        devices.iter().filter(|device| device.is_usable()).map(|device| device.index).collect();
    usable.get(number.checked_rem(usable.len())?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_printed() {
        for device in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Cuda(15)] {
            assert_eq!(parse(&device.to_string()), Ok(device));
        }
    }

    #[test]
    fn what_names_no_device_is_refused() {
        for text in [
            "",
            "CPU",
            "cuda",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:1x",
            "cuda:99999",
            "cuda: 0",
            "metal",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("cuda").unwrap_err().contains("cuda:0"));
        assert!(parse("cuda:99999999999999999999999").is_err());
    }

    #[test]
    fn a_command_of_the_cpu_refuses_a_gpu() {
        assert!(
            require_cpu("eval", DeviceChoice::Auto).is_ok() && require_cpu("eval", DeviceChoice::Cpu).is_ok()
        );
        let error = require_cpu("eval", DeviceChoice::Cuda(1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`lctl eval` cannot compute on cuda:1: it runs on the CPU alone so far"
        );
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn processes_of_a_machine_take_its_gpus_in_turn() {
        let gpu = |index, compute_capability| DeviceFacts {
            index,
            name: "GPU".to_owned(),
            compute_capability,
            memory_bytes: 1 << 30,
        };
        let devices = [gpu(0, (8, 0)), gpu(1, (7, 5)), gpu(2, (9, 0))];
        let taken = |devices: &[DeviceFacts]| [0, 1, 2].map(|number| in_turn(devices, number));
        assert_eq!(taken(&devices), [Some(0), Some(2), Some(0)]);
        assert_eq!(taken(&devices[2..]), [Some(2); 3]);
        assert_eq!(taken(&devices[1..2]), [None; 3]);
    }

    #[test]
    fn a_check_takes_the_first_gpu_unless_told() {
        let refused = |device| open_gpu(device).err().map(|failure| failure.to_string()).unwrap_or_default();
        assert!(refused(DeviceChoice::Cpu).contains("not cpu"));
        // on a machine without a GPU nothing opens, for other reasons
        assert!(!refused(DeviceChoice::Auto).contains("not auto"));
        assert!(!refused(DeviceChoice::Cuda(3)).contains("not cuda:3"));
    }
}
