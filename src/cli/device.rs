//! `--device`: what a command computes on.

use std::sync::Arc;

use super::term;
use crate::cuda::probe::{self, DeviceFacts};
use crate::cuda::{CudaError, Device};
use crate::error::{Diagnostic, Failure};
use crate::provenance::OnDevice;

/// The value of `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best that the command can use.
    Auto,
    /// What commands that start one another compute on unless they say otherwise.
    #[default]
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

    #[error("`lctl gate` has nothing to compute on {device} without models and a text")]
    NothingToCompute { device: DeviceChoice },
}

impl Diagnostic for DeviceError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            DeviceError::CpuAlone { .. } => "leave --device out, or say --device cpu (docs/cuda.md)".into(),
            DeviceError::NoGpu { .. } => "say which with --device cuda:N".into(),
            DeviceError::NothingToCompute { .. } => {
                "leave --device out, or give --baseline-model, --candidate-model and --text".into()
            }
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

/// Errors if a device is named to a comparison that runs no model.
pub fn require_models(device: DeviceChoice) -> Result<(), DeviceError> {
    require_cpu("gate", device).map_err(|_| DeviceError::NothingToCompute { device })
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
    /// Whether it was left to us.
    is_auto: bool,
}

/// Returns what a command computes on that can use a GPU: `auto` is one that can be used, else the CPU, and says which. By the
/// `number` of this process among those of the machine that one is the first, the second, ..
///
/// Errors if the device that is named does not open.
pub fn choose(device: DeviceChoice, number: usize) -> Result<Chosen, CudaError> {
    if device != DeviceChoice::Auto {
        return Ok(Chosen { device: open_named(device)?, note: None, is_auto: false });
    }
    let cpu = Chosen { device: None, note: None, is_auto: true };
    let Some(index) = usable(number) else { return Ok(cpu) };
    Ok(match Device::open(index) {
        Ok(device) => {
            Chosen { device: Some(device), note: Some(format!("computes on cuda:{index}")), is_auto: true }
        }
        Err(error) => Chosen { note: Some(on_cpu(&error)), ..cpu },
    })
}

impl Chosen {
    /// Returns the CPU instead if the device was not named and cannot do what is asked of it.
    ///
    /// Errors with what it cannot do if it was named.
    pub fn unless<E: std::fmt::Display>(self, obstacle: Option<E>) -> Result<Chosen, E> {
        match obstacle.filter(|_| self.device.is_some()) {
            None => Ok(self),
            Some(error) if self.is_auto => Ok(Chosen { device: None, note: Some(on_cpu(&error)), ..self }),
            Some(error) => Err(error),
        }
    }
}

/// What the models of a command are computed on: one device for all of them.
#[derive(Clone, Default)]
pub struct Shared {
    /// The CPU if there is none.
    pub device: Option<Arc<Device>>,
    /// Whether the CPU may take what the device cannot.
    pub is_auto: bool,
}

impl Shared {
    /// Returns what [`choose`] returns for models that are run; says what the user should know unless `quiet`.
    ///
    /// Errors if the device that is named does not open.
    pub fn choose(device: DeviceChoice, quiet: bool) -> Result<Shared, CudaError> {
        let Chosen { device, note, is_auto } = choose(device, 0)?;
        if let Some(note) = note.filter(|_| !quiet) {
            term::say(&format!("note: {note}"));
        }
        Ok(Shared { device: device.map(Arc::new), is_auto })
    }
}

/// Returns what a manifest says of a device.
pub fn recorded(device: &Device) -> OnDevice {
    let facts = device.facts();
    OnDevice {
        name: facts.name.clone(),
        precision: None,
        driver: facts.driver.clone(),
        // without one no product is computed
        cublas: facts.cublas.clone().unwrap_or_else(|| "none".to_owned()),
    }
}

/// Returns what is said where `auto` takes the CPU though there is a GPU.
pub fn on_cpu(why: &dyn std::fmt::Display) -> String {
    format!("computes on the CPU, not on a GPU: {why}")
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
            require_cpu("merge", DeviceChoice::Auto).is_ok()
                && require_cpu("merge", DeviceChoice::Cpu).is_ok()
        );
        let error = require_cpu("merge", DeviceChoice::Cuda(1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`lctl merge` cannot compute on cuda:1: it runs on the CPU alone so far"
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
            driver: "580.82.07, CUDA 13.0".into(),
            cublas: Some("13.0.2".into()),
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

    #[cfg(feature = "cuda-host")]
    #[test]
    fn what_a_device_cannot_do_is_an_error_only_if_it_was_named() {
        let host = || choose(DeviceChoice::Host(None), 0).unwrap();
        assert!(host().unless(None::<String>).unwrap().device.is_some());
        assert_eq!(host().unless(Some("too small")).err(), Some("too small"));
        let auto = Chosen { is_auto: true, ..host() };
        let settled = auto.unless(Some("too small")).unwrap();
        assert!(settled.device.is_none());
        assert_eq!(settled.note.as_deref(), Some("computes on the CPU, not on a GPU: too small"));
        let cpu = choose(DeviceChoice::Cpu, 0).unwrap().unless(Some("too small")).unwrap();
        assert!(cpu.device.is_none() && cpu.note.is_none());
    }
}
