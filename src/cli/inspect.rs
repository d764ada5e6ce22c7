//! `lctl inspect`.

use crate::error::Failure;

/// Show what a model file or directory holds
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<(), Failure> {
    Ok(())
}
