//! `lctl gpu-check`: every kernel of a GPU beside the CPU's operation and an f64 form, then timings. Hidden: `.ci/gpu-check.sh` runs it.

#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod bench;
#[cfg(feature = "cuda")]
mod formats;
#[cfg(feature = "cuda")]
mod loss;
#[cfg(feature = "cuda")]
mod optimizer;
#[cfg(feature = "cuda")]
mod reference;
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "filled by the checks of a build with CUDA"))]
mod report;
#[cfg(feature = "cuda")]
mod run;
#[cfg(feature = "cuda")]
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

use super::device::{DeviceChoice, require_gpu};
use crate::error::Failure;

const AFTER_HELP: &str = "\
Exit status:
  0  every kernel is within what is allowed
  1  some are not; each is said
  2  no GPU that the kernels run on

Examples:
  lctl gpu-check --json gpu.json
  lctl gpu-check --device cuda:1 --no-timings";

/// Check every kernel of a GPU against the CPU and f64, and time it
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Write what was found as JSON (docs/cuda.md)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Check alone
    #[arg(long)]
    no_timings: bool,
}

/// Checks the GPU that `--device` names, the first by default.
pub fn run(args: &Args, device: DeviceChoice) -> Result<ExitCode, Failure> {
    let index = require_gpu(device)?;
    #[cfg(feature = "cuda")]
    return run::run(args, index);
    #[cfg(not(feature = "cuda"))]
    {
        let Args { json: _, no_timings: _ } = args;
        let _ = index;
        Err(crate::cuda::CudaError::NotBuilt.into())
    }
}
