//! The command line: per command, raw arguments -> job -> run -> print.

mod inspect;
mod progress;
mod pull;
mod quantize;
pub(crate) mod source;
pub(crate) mod term;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Failure;

#[derive(Parser)]
#[command(name = "lctl", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Quantize(quantize::Args),
    Inspect(inspect::Args),
    Pull(pull::Args),
}

/// Parses the command line, runs the command, and returns the exit status:
/// 0 success, 2 bad input or usage, 130 interrupted.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            term::say(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Quantize(args) => quantize::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Pull(args) => pull::run(args),
    }
}
