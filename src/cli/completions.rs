//! `lctl completions`.

use clap_complete::Shell;

use super::term;
use crate::error::Failure;

const AFTER_HELP: &str = "\
Examples:
  lctl completions bash > ~/.local/share/bash-completion/completions/lctl
  lctl completions zsh > ~/.zfunc/_lctl
  lctl completions fish > ~/.config/fish/completions/lctl.fish
  lctl completions powershell >> $PROFILE";

/// Print completions for a shell
///
/// A new shell reads them. For zsh, the directory must be in `fpath` before `compinit` runs.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "lctl", &mut script);
    term::out(&String::from_utf8_lossy(&script))
}
