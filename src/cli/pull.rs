//! `lctl pull`.

use crate::error::Failure;

/// Download a model into the local cache
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<(), Failure> {
    Ok(())
}
