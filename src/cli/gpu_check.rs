//! `lctl gpu-check`: every kernel of a GPU beside the CPU's operation and an f64 form, then timings. Hidden: `.ci/gpu-check.sh` runs it.

#[cfg(gpu)]
mod attention;
#[cfg(gpu)]
mod bench;
#[cfg(gpu)]
mod curves;
#[cfg(gpu)]
mod differences;
#[cfg(gpu)]
mod evaluate;
#[cfg(gpu)]
mod formats;
#[cfg(gpu)]
mod loss;
#[cfg(gpu)]
mod moments;
#[cfg(gpu)]
mod optimizer;
#[cfg(gpu)]
mod reference;
#[cfg_attr(not(gpu), allow(dead_code, reason = "filled by the checks of a build with CUDA"))]
mod report;
#[cfg(gpu)]
mod routing;
#[cfg(gpu)]
mod run;
#[cfg(gpu)]
mod steps;
#[cfg(gpu)]
mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use super::device::{DeviceChoice, open_gpu};
use crate::error::Failure;

const AFTER_HELP: &str = "\
Exit status:
  0  every kernel is within what is allowed
  1  some are not; each is said
  2  no GPU that the kernels run on

Examples:
  lctl gpu-check --json gpu.json
  lctl gpu-check --device cuda:1 --no-timings
  lctl gpu-check --only attention,training --small";

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

    /// Run these stages alone, a comma between them: a stage's name, `checks`, `timings`
    #[arg(long, value_name = "STAGE", value_delimiter = ',', value_parser = stage)]
    only: Vec<String>,

    /// Leave these out
    #[arg(long, value_name = "STAGE", value_delimiter = ',', value_parser = stage)]
    skip: Vec<String>,

    /// Check few and small shapes, as under a sanitizer
    #[arg(long)]
    small: bool,

    /// Train curves of so many steps
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(4..=10_000))]
    steps: u32,
}

/// Reads what stages are called.
fn stage(text: &str) -> Result<String, String> {
    #[cfg(gpu)]
    run::known(text)?;
    Ok(text.to_owned())
}

/// Checks the GPU that `--device` names, the first by default.
pub fn run(args: &Args, device: DeviceChoice) -> Result<ExitCode, Failure> {
    let device = open_gpu(device)?;
    #[cfg(gpu)]
    return run::run(args, &device);
    #[cfg(not(gpu))]
    {
        let Args { json: _, no_timings: _, only: _, skip: _, small: _, steps: _ } = args;
        match device {}
    }
}
