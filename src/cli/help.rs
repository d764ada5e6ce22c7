//! What `lctl --help` prints: the commands in groups, on one screen of 80 columns and 24 lines.

use std::fmt::Write as _;

use clap::Command;

/// The commands in the order in which a newcomer meets them.
const GROUPS: [(&str, &[&str]); 5] = [
    ("First", &["demo", "doctor"]),
    ("Models", &["inspect", "pull", "imatrix", "quantize", "generate", "tokenizer"]),
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
        "Quantize, fine-tune and evaluate open-weight language models, offline\n{usage-heading} {usage}\n\n",
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
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        let command = command();
        for name in command.get_subcommands().filter(|c| !c.is_hide_set()).map(Command::get_name) {
            assert_eq!(grouped.iter().filter(|grouped| **grouped == name).count(), 1, "{name}");
        }
    }

    /// Splits a command line at blanks outside quotes, and cuts what the shell does with the output.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        for c in line.chars() {
            match (c, quote) {
                ('\'' | '"', None) => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (c, Some(open)) if c == open => quote = None,
                (' ', None) => words.extend(word.take()),
                (c, _) => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        let end = words.iter().position(|word| [">", ">>", "||", "&&", "#", "|"].contains(&word.as_str()));
        words.truncate(end.unwrap_or(words.len()));
        words
    }

    fn assert_parses(line: &str, place: &str) {
        match command().try_get_matches_from(words(line)) {
            Ok(_) => {}
            Err(error) => assert!(!error.use_stderr(), "{place}: {line}\n{error}"),
        }
    }

    fn check_examples(command: &Command, path: &str) -> usize {
        let subcommands: Vec<_> = command.get_subcommands().collect();
        let help = command.clone().term_width(0).render_long_help().to_string();
        let mut n = 0;
        if path != "lctl" {
            let (_, examples) =
                help.split_once("Examples:\n").unwrap_or_else(|| panic!("{path}: no examples"));
            for line in examples.lines().map(str::trim).take_while(|line| line.starts_with("lctl ")) {
                assert!(line.starts_with(path), "{path}: {line}");
                assert_parses(line, path);
                n += 1;
            }
            assert!(n > 0, "{path}: no examples");
        }
        for subcommand in subcommands {
            n += check_examples(subcommand, &format!("{path} {}", subcommand.get_name()));
        }
        n
    }

    #[test]
    fn every_command_has_examples_that_parse() {
        assert!(check_examples(&command(), "lctl") > 40);
    }

    /// Command lines of a text: indented, alone on their lines, continued behind a backslash, without placeholders.
    fn command_lines(text: &str) -> Vec<String> {
        let joined = text.replace("\\\n", " ");
        let lines = joined.lines().filter(|line| line.starts_with("    ")).map(str::trim);
        lines
            .filter(|line| line.starts_with("lctl "))
            .filter(|line| !line.contains(['[', '<', '`', '$', '…']) && !line.contains(".."))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn commands_in_the_documentation_parse() {
        let root = crate::testing::root();
        let pages = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let mut n = 0;
        for page in pages.chain([root.join("README.md")]) {
            if page.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            for line in command_lines(&std::fs::read_to_string(&page).unwrap()) {
                assert_parses(&line, &page.display().to_string());
                n += 1;
            }
        }
        assert!(n > 20, "{n}");
    }
}
