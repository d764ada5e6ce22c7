//! `lctl quantize`.

use crate::error::Failure;

/// Turn a checkpoint into a quantized GGUF file
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<(), Failure> {
    Ok(())
}
