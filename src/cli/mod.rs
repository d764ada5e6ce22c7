//! The command line: per command, raw arguments -> job -> run -> print.

mod completions;
mod demo;
mod device;
mod divergence;
mod doctor;
mod eval;
mod finetune;
mod gate;
mod generate;
mod gpu_check;
mod help;
mod imatrix;
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
mod tokenizer;
mod verbose;
mod version;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::Failure;
use device::DeviceChoice;

#[derive(Parser)]
#[command(name = "lctl", version, long_version = version::LONG.as_str(), propagate_version = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Say on stderr what runs, and at the end what time and memory it took
    #[arg(short, long, global = true)]
    verbose: bool,

    /// What to compute on: auto, cpu, cuda:N (docs/cuda.md says which commands can)
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto", value_parser = device::parse)]
    device: device::DeviceChoice,
}

#[derive(Subcommand)]
enum Command {
    Completions(completions::Args),
    Demo(demo::Args),
    Doctor(doctor::Args),
    Finetune(finetune::Args),
    Merge(merge::Args),
    Quantize(quantize::Args),
    Imatrix(imatrix::Args),
    Recipe(recipe::Args),
    Inspect(inspect::Args),
    Eval(Box<eval::Args>),
    Gate(gate::Args),
    Generate(generate::Args),
    #[command(hide = true)]
    GpuCheck(gpu_check::Args),
    Pull(pull::Args),
    Replay(replay::Args),
    Report(report::Args),
    Suite(suite::Args),
    Tokenizer(tokenizer::Args),
}

/// Returns the whole command line, as help, completions and tests see it.
fn command() -> clap::Command {
    help::with_overview(Cli::command())
}

/// Parses the command line, runs the command, and returns the exit status (docs/cli.md).
pub fn main() -> ExitCode {
    let matches = command().get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Command::Finetune(args) = &mut cli.command {
        args.begin(cli.verbose);
    }
    answer_to_a_size_limit();
    let watch = cli.verbose.then(verbose::Watch::begin);
    // clap asks for a command
    let name = matches.subcommand_name().unwrap_or_default();
    let code = run(cli.command, name, cli.device).unwrap_or_else(|failure| {
        term::say(&failure.to_string());
        ExitCode::from(failure.exit_code())
    });
    if let Some(watch) = watch {
        watch.end();
    }
    code
}

/// Writing beyond `ulimit -f` becomes an error that is said; the signal's default ends the process without a word.
fn answer_to_a_size_limit() {
    #[cfg(unix)]
    // SAFETY: no handler runs; no thread was started yet.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

fn run(command: Command, name: &str, device: DeviceChoice) -> Result<ExitCode, Failure> {
    let uses_devices = matches!(
        command,
        Command::Finetune(_)
            | Command::GpuCheck(_)
            | Command::Eval(_)
            | Command::Gate(_)
            | Command::Generate(_)
            | Command::Imatrix(_)
            | Command::Replay(_)
    );
    if !uses_devices {
        device::require_cpu(name, device)?;
    }
    match command {
        Command::Completions(args) => completions::run(&args)?,
        Command::Demo(args) => return demo::run(&args),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Finetune(args) => return finetune::run(args, device),
        Command::Merge(args) => merge::run(&args)?,
        Command::Quantize(args) => quantize::run(args)?,
        Command::Imatrix(args) => imatrix::run(&args, device)?,
        Command::Recipe(args) => recipe::run(&args)?,
        Command::GpuCheck(args) => return gpu_check::run(&args, device),
        Command::Inspect(args) => return inspect::run(args),
        Command::Eval(args) => return eval::run(&eval::Args { device, ..*args }),
        Command::Gate(args) => return gate::run(&args, device),
        Command::Generate(args) => generate::run(&args, device)?,
        Command::Pull(args) => pull::run(args)?,
        Command::Replay(args) => return replay::run(&args, device),
        Command::Report(args) => report::run(&args)?,
        Command::Suite(args) => return suite::run(args),
        Command::Tokenizer(args) => tokenizer::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
