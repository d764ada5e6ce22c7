//! `lctl inspect`.

use super::source::model_path;
use crate::error::Failure;

/// Show what a model file or directory holds
#[derive(clap::Args)]
pub struct Args {
    /// A .gguf or .safetensors file, a checkpoint directory, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,

    /// Open no connection when MODEL is a hub id
    #[arg(long)]
    offline: bool,
}

pub fn run(args: Args) -> Result<(), Failure> {
    model_path(&args.model, args.offline)?;
    Ok(())
}
