//! What `lctl --help` prints: the commands in groups, on one screen of 80 columns and 24 lines.

use std::fmt::Write as _;

use clap::Command;

/// The commands in the order in which a newcomer meets them.
const GROUPS: [(&str, &[&str]); 5] = [
    ("First", &["demo", "doctor"]),
    ("Models", &["inspect", "pull", "quantize", "generate", "tokenizer"]),
    ("Training", &["recipe", "finetune", "merge"]),
    ("Evaluation", &["suite", "eval", "report", "gate", "replay"]),
    ("Shell", &["completions"]),
];

const FOOT: &str = "\
Options: -h, --help; -v, --verbose; -V and, with more to read, --version
Exit status: 0 done, 1 differs, 2 error, 3 to 5 verdicts, 130 interrupted
`lctl COMMAND --help` has a command's options, and examples.";

/// Returns `command` with an overview of its commands as its help.
pub fn with_overview(command: Command) -> Command {
    let overview = overview(&command);
    command.help_template(overview)
}

fn overview(command: &Command) -> String {
    let bold = command.get_styles().get_header();
    let mut text = String::from(
        "Quantize, fine-tune and evaluate open-weight language models, offline\n\n{usage-heading} {usage}\n\n",
    );
    for (group, names) in GROUPS {
        let mut title = group;
        for name in names {
            let Some(subcommand) = command.find_subcommand(name) else { continue };
            let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
            // writing to a String cannot fail
            let _ = writeln!(text, "{bold}{title}{bold:#}{:1$}{name:<13}{about}", "", 12 - title.len());
            title = "";
        }
    }
    text + "\n" + FOOT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    #[test]
    fn the_overview_fits_a_screen() {
        let text = command().term_width(80).render_long_help().to_string();
        assert!(text.lines().count() <= 24, "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert_eq!(text, command().term_width(80).render_help().to_string());
    }

    #[test]
    fn every_command_is_in_one_group() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        grouped.sort_unstable();
        let command = command();
        let mut names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
        names.sort_unstable();
        assert_eq!(names, grouped);
    }
}
