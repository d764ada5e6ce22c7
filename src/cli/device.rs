//! `--device`: what a command computes on.

use crate::error::Diagnostic;

/// The value of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best that the command can use: the CPU, until it can use a GPU.
    Auto,
    Cpu,
    /// The GPU of that number, as the driver counts.
    Cuda(usize),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Auto => write!(f, "auto"),
            DeviceChoice::Cpu => write!(f, "cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
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
        "cuda" | "gpu" => return Err("say which: cuda:0 is the first".to_owned()),
        _ => {}
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
        DeviceChoice::Cuda(_) => Err(DeviceError::CpuAlone { command: command.to_owned(), device }),
    }
}

/// Returns the index of the GPU to check: the first unless another is named.
pub fn require_gpu(device: DeviceChoice) -> Result<usize, DeviceError> {
    match device {
        DeviceChoice::Auto => Ok(0),
        DeviceChoice::Cuda(index) => Ok(index),
        DeviceChoice::Cpu => Err(DeviceError::NoGpu { device }),
    }
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
    fn a_check_takes_the_first_gpu_unless_told() {
        assert_eq!(require_gpu(DeviceChoice::Auto).unwrap(), 0);
        assert_eq!(require_gpu(DeviceChoice::Cuda(3)).unwrap(), 3);
        assert!(require_gpu(DeviceChoice::Cpu).is_err());
    }
}
