//! The command line: per command, raw arguments -> job -> run -> print.

mod eval;
mod finetune;
mod gate;
mod generate;
mod inspect;
mod machine;
mod merge;
mod model;
mod progress;
mod pull;
mod quantize;
mod recipe;
mod render;
mod replay;
mod report;
pub(crate) mod source;
mod suite;
pub(crate) mod term;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Failure;

const AFTER_HELP: &str = "\
MODEL is a checkpoint directory, a .safetensors or .gguf file, or a hub id ORG/NAME[@REVISION].

Results go to stdout, everything else to stderr.

Exit status:
  0    success
  1    `inspect --diff`: the models differ; `suite overlap`: documents were found
  2    bad input or usage
  3, 4, 5  `gate`, `eval --baseline`: a regression, undecided, not comparable; 3 `replay`: the bits differ
  130  interrupted

Environment:
  HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE  the hub and its cache (docs/pull.md)
  NO_COLOR                                                      no colour on stderr\n";

#[derive(Parser)]
#[command(name = "lctl", version, about, propagate_version = true, after_help = AFTER_HELP)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Finetune(finetune::Args),
    Merge(merge::Args),
    Quantize(quantize::Args),
    Recipe(recipe::Args),
    Inspect(inspect::Args),
    Eval(Box<eval::Args>),
    Gate(gate::Args),
    Generate(generate::Args),
    Pull(pull::Args),
    Replay(replay::Args),
    Report(report::Args),
    Suite(suite::Args),
}

/// Parses the command line, runs the command, and returns the exit status:
/// 0 success, 1 models that differ, 2 bad input or usage, 3 to 5 what a gate or a replay says, 130 interrupted.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            term::say(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Finetune(args) => return finetune::run(&args),
        Command::Merge(args) => merge::run(&args)?,
        Command::Quantize(args) => quantize::run(args)?,
        Command::Recipe(args) => recipe::run(&args)?,
        Command::Inspect(args) => return inspect::run(args),
        Command::Eval(args) => return eval::run(&args),
        Command::Gate(args) => return gate::run(&args),
        Command::Generate(args) => generate::run(&args)?,
        Command::Pull(args) => pull::run(args)?,
        Command::Replay(args) => return replay::run(&args),
        Command::Report(args) => report::run(&args)?,
        Command::Suite(args) => return suite::run(args),
    }
    Ok(ExitCode::SUCCESS)
}
