//! `lctl demo`: the whole story on the model inside the program, by the commands that a user would type.

mod page;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser as _;
use serde_json::Value as Json;

use super::term;
use crate::demo;
use crate::error::{Diagnostic, Failure};
use crate::tensor::{AtomicFile, cleanup_partial_files};

const AFTER_HELP: &str = "\
If a step fails or is interrupted, what the finished ones wrote stays.

Examples:
  lctl demo
  lctl demo --out /tmp/demo --threads 2";

/// See everything at work, on a model inside the program
///
/// Quantizes the model, measures it, teaches it a task, and lets the gate pass one candidate and catch another. Every step
/// shows the command that does it. All files stay in one directory, with a report to open in a browser.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Directory to make, for everything that is written
    #[arg(short, long, value_name = "DIR", default_value = "lctl-demo")]
    out: PathBuf,

    /// Threads; results do not depend on it [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{} is there already", .path.display())]
    Exists { path: PathBuf },

    #[error("{}: cannot {action}", .path.display())]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: std::io::Error,
    },

    #[error("`{command}` ended with another exit status than {expected}")]
    Status { command: String, expected: u8 },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Exists { .. } => Some("remove it, or name another directory with --out".into()),
            Error::Io { .. } => None,
            Error::Status { .. } => {
                Some("the model inside the program, or a command, is not what it should be".into())
            }
        }
    }
}

/// A step of the story.
struct Step {
    title: &'static str,
    commands: &'static [Command],
}

struct Command {
    /// Behind `lctl`, with single spaces.
    words: &'static str,
    /// Exit status.
    expected: u8,
    takes_threads: bool,
}

const fn quick(words: &'static str) -> Command {
    Command { words, expected: 0, takes_threads: false }
}

const fn work(words: &'static str) -> Command {
    Command { words, expected: 0, takes_threads: true }
}

/// The story. Files are below the demonstration's directory.
static STEPS: &[Step] = &[
    Step { title: "What is in the model?", commands: &[quick("inspect base")] },
    Step {
        title: "Make it smaller: 8 bits and 4 bits per weight",
        commands: &[
            work("quantize base --type q8_0 --output int8.gguf"),
            work("quantize base --type q4_0 --output int4.gguf"),
        ],
    },
    Step {
        title: "What do they know? One suite it was trained for, one it was not",
        commands: &[
            work(
                "eval base --suite evalsuites/demo-soc.yaml --suite evalsuites/demo-queue.yaml --out runs/base",
            ),
            work(
                "eval int8.gguf --suite evalsuites/demo-soc.yaml --suite evalsuites/demo-queue.yaml --out runs/int8",
            ),
            work(
                "eval int4.gguf --suite evalsuites/demo-soc.yaml --suite evalsuites/demo-queue.yaml --out runs/int4",
            ),
        ],
    },
    Step {
        title: "Right answers can hide a loss: how far did predictions move? (told at the end)",
        commands: &[
            work("eval int8.gguf --kl-base base --text texts/demo-soc.txt --quiet --out runs/int8-kl"),
            work("eval int4.gguf --kl-base base --text texts/demo-soc.txt --quiet --out runs/int4-kl"),
        ],
    },
    Step {
        title: "Teach it the second one: LoRA",
        commands: &[work("finetune recipes/demo-queue.yaml --out tuned")],
    },
    Step {
        title: "Has it learned? Has it forgotten?",
        commands: &[work(
            "eval base --adapter tuned/result/adapter --suite evalsuites/demo-soc.yaml --suite evalsuites/demo-queue.yaml --out runs/tuned",
        )],
    },
    Step {
        title: "Add the adapter to the weights, and quantize the sum",
        commands: &[
            work("merge base tuned/result/adapter --type q8_0 --output tuned-int8.gguf"),
            work("merge base tuned/result/adapter --type q2_k --output tuned-int2.gguf"),
        ],
    },
    Step {
        title: "Measure what would be shipped",
        commands: &[
            work(
                "eval tuned-int8.gguf --suite evalsuites/demo-soc.yaml --suite evalsuites/demo-queue.yaml --out runs/tuned-int8",
            ),
            work(
                "eval tuned-int2.gguf --suite evalsuites/demo-soc.yaml --suite evalsuites/demo-queue.yaml --out runs/tuned-int2",
            ),
        ],
    },
    Step {
        title: "May it replace the model in use? 8 bits pass, 2 bits are caught",
        commands: &[
            quick("gate runs/base runs/tuned-int8 --html gate-int8.html"),
            Command { expected: 3, ..quick("gate runs/base runs/tuned-int2 --html gate-int2.html") },
        ],
    },
];

/// The models in the order of the story: file or directory, run, run that compared it with base.
const MODELS: [(&str, &str, Option<&str>); 6] = [
    ("base", "base", None),
    ("int8.gguf", "int8", Some("int8-kl")),
    ("int4.gguf", "int4", Some("int4-kl")),
    ("base + tuned/result/adapter", "tuned", None),
    ("tuned-int8.gguf", "tuned-int8", None),
    ("tuned-int2.gguf", "tuned-int2", None),
];

/// What a command took.
struct Done {
    command: String,
    status: u8,
    seconds: f64,
}

/// A model's scores.
struct Scored {
    model: &'static str,
    bytes: u64,
    /// Shares from 0 to 1: the suite it was trained for, the other.
    soc: f64,
    queue: f64,
    /// Mean KL divergence of its predictions from those of base, in nats per token.
    kld: Option<f64>,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    let dir = &args.out;
    if dir.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: dir.clone() }.into());
    }
    lay_out(dir)?;
    let told = tell(args, started);
    if let Err(failure) = told {
        term::say(&failure.to_string());
        term::say(&what_stays(dir));
        return Ok(ExitCode::from(failure.exit_code()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the directory with the first files in it, or nothing; from then on Ctrl-C says what stays.
fn lay_out(dir: &Path) -> Result<(), Failure> {
    let io = |action| move |source| Error::Io { path: dir.to_owned(), action, source };
    let is_there = |parent: &&Path| parent.is_dir();
    let beside = dir.ancestors().skip(1).find(is_there).unwrap_or(Path::new("."));
    let staging = tempfile::Builder::new().prefix(".lctl-demo.").suffix(".partial").tempdir_in(beside);
    let staging = staging.map_err(io("be made"))?;
    let whole = std::path::absolute(dir).map_err(io("be made"))?;
    // the handlers that commands install come too late then: each would only know of its own work
    let _ = ctrlc::set_handler({
        let (dir, partial) = (dir.to_owned(), staging.path().to_owned());
        let partial = std::path::absolute(&partial).unwrap_or(partial);
        move || {
            cleanup_partial_files();
            // there until the directory has its name
            let _ = std::fs::remove_dir_all(&partial);
            term::say("\ninterrupted");
            if whole.exists() {
                term::say(&what_stays(&dir));
            }
            std::process::exit(130);
        }
    });
    // a directory below: the temporary one itself is for this user alone
    let first = staging.path().join("files");
    demo::write(&first).map_err(|(path, source)| {
        let path = path.strip_prefix(&first).map_or(path.clone(), |name| dir.join(name));
        Error::Io { path, action: "write", source }
    })?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(io("make the directory"))?;
    }
    Ok(std::fs::rename(&first, dir).map_err(io("make the directory"))?)
}

/// Returns what a user who tries again must know.
fn what_stays(dir: &Path) -> String {
    let dir = term::printable(&dir.display().to_string());
    format!(
        "note: {dir} has what the finished steps wrote; before the next try remove it, or name another with --out"
    )
}

/// Goes through the steps in the directory, and writes the report.
fn tell(args: &Args, started: Instant) -> Result<(), Failure> {
    let dir = &args.out;
    let shown = term::printable(&dir.display().to_string());
    term::out(&format!(
        "A small model that lctl trained itself goes through everything lctl does.\n\
         Files are in {shown}; the commands are those you would type there:\n\n  cd {shown}\n"
    ))?;
    // what a user would type is relative to the directory
    std::env::set_current_dir(dir).map_err(|source| Error::Io {
        path: dir.clone(),
        action: "go into it",
        source,
    })?;
    let mut done = Vec::new();
    for (index, step) in STEPS.iter().enumerate() {
        term::out(&format!("\n{}", heading(&format!("{}/{}  {}", index + 1, STEPS.len(), step.title))))?;
        for command in step.commands {
            done.push(execute(command, args.threads)?);
        }
    }
    let scored = MODELS.iter().map(|&(model, run, kl)| scored(model, run, kl));
    let scored = scored.collect::<Result<Vec<_>, Failure>>()?;
    let seconds = started.elapsed().as_secs_f64();
    let mut file = AtomicFile::create(Path::new("report.html"), None, false)?;
    file.write_all(page::html(&done, &scored).as_bytes())?;
    file.commit()?;
    term::out(&format!(
        "\n{}\n{}\nIt took {seconds:.0} s. Open {shown}/report.html in a browser.\n\
         Next: the same commands with your own model; `lctl --help` lists them.\n",
        heading("What came of it"),
        table(&scored)
    ))
}

fn heading(text: &str) -> String {
    match term::out_has_colour() {
        true => format!("\x1b[1m{text}\x1b[0m\n"),
        false => format!("{text}\n"),
    }
}

/// Returns a command's words, the program's name first.
fn words(command: &Command, threads: Option<u16>) -> Vec<String> {
    let mut words: Vec<String> =
        std::iter::once("lctl").chain(command.words.split(' ')).map(str::to_owned).collect();
    if let Some(threads) = threads.filter(|_| command.takes_threads) {
        words.extend(["--threads".to_owned(), threads.to_string()]);
    }
    words
}

/// Runs a command as the program's own command line would.
fn execute(command: &Command, threads: Option<u16>) -> Result<Done, Failure> {
    let words = words(command, threads);
    let typed = words.join(" ");
    term::out(&format!("\n$ {typed}\n"))?;
    let started = Instant::now();
    let failed = || Error::Status { command: typed.clone(), expected: command.expected };
    let cli = super::Cli::try_parse_from(&words).map_err(|_| failed())?;
    let name = command.words.split(' ').next().unwrap_or_default();
    let status = super::run(cli.command, name, cli.device)?;
    if status != ExitCode::from(command.expected) {
        return Err(failed().into());
    }
    Ok(Done { status: command.expected, seconds: started.elapsed().as_secs_f64(), command: typed })
}

fn scored(model: &'static str, run: &str, kl: Option<&str>) -> Result<Scored, Failure> {
    let report = report_of(run)?;
    let value = |suite: usize| figure(run, &report["suites"][suite]["tasks"][0]["metrics"][0]["value"]);
    let kld =
        kl.map(|run| figure(run, &report_of(run)?["divergence"]["kld"]["mean"]["value"])).transpose()?;
    let file = if model.ends_with(".gguf") { model } else { "base/model.safetensors" };
    let io = |source| Error::Io { path: file.into(), action: "read", source };
    let bytes = std::fs::metadata(file).map_err(io)?.len();
    Ok(Scored { model, bytes, soc: value(0)?, queue: value(1)?, kld })
}

fn report_path(run: &str) -> PathBuf {
    Path::new("runs").join(run).join("report.json")
}

fn report_of(run: &str) -> Result<Json, Failure> {
    let io = |source| Error::Io { path: report_path(run), action: "read", source };
    let text = std::fs::read_to_string(report_path(run)).map_err(io)?;
    Ok(serde_json::from_str(&text).map_err(|error| io(error.into()))?)
}

fn figure(run: &str, value: &Json) -> Result<f64, Failure> {
    let source = || std::io::Error::other("no figure");
    let missing = || Error::Io { path: report_path(run), action: "read", source: source() };
    Ok(value.as_f64().ok_or_else(missing)?)
}

fn table(scored: &[Scored]) -> String {
    let mut text =
        format!("{:28} {:>9} {:>10} {:>10} {:>10}\n", "model", "KB", "demo-soc", "demo-queue", "mean KL");
    for row in scored {
        let (soc, queue) = (100.0 * row.soc, 100.0 * row.queue);
        text += &format!("{:28} {:>9} {soc:>8.1} % {queue:>8.1} %", row.model, row.bytes / 1000);
        text += &row.kld.map_or("\n".to_owned(), |kld| format!(" {kld:>10.6}\n"));
    }
    text + "\nmean KL: how far the predictions are from those of base, in nats per token.\n\
            The gate let tuned-int8.gguf pass and caught tuned-int2.gguf.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_story_parses() {
        let commands: Vec<&Command> = STEPS.iter().flat_map(|step| step.commands).collect();
        for command in &commands {
            for threads in [None, Some(2)] {
                let words = words(command, threads);
                if let Err(error) = crate::cli::Cli::try_parse_from(&words) {
                    panic!("{}\n{error}", words.join(" "));
                }
                let takes_threads = threads.is_some() && command.takes_threads;
                assert_eq!(words.ends_with(&["--threads".to_owned(), "2".to_owned()]), takes_threads);
            }
        }
        let typed: Vec<&str> = commands.iter().map(|command| command.words).collect();
        for run in MODELS.iter().flat_map(|(_, run, kl)| [Some(*run), *kl]).flatten() {
            let option = format!(" --out runs/{run}");
            assert!(typed.iter().any(|words| words.ends_with(&option)), "nothing writes runs/{run}");
        }
        let text = format!(" --text {}", demo::TEXT);
        assert_eq!(typed.iter().filter(|words| words.contains(&text)).count(), 2);
    }

    #[test]
    fn the_table_has_the_divergence_of_those_that_were_compared() {
        let row = |model, kld| Scored { model, bytes: 1000, soc: 0.5, queue: 0.0, kld };
        let table = table(&[row("base", None), row("int4.gguf", Some(0.012_345_6))]);
        let rows: Vec<&str> = table.lines().collect();
        assert!(rows[0].ends_with("mean KL") && rows[1].ends_with("0.0 %"), "{table}");
        assert!(rows[2].ends_with("0.0 %   0.012346") && rows[2].len() == rows[0].len(), "{table}");
    }
}
