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

/// See everything at work, on a small model inside the program
///
/// Quantizes the model, measures it, teaches it a task, and lets the gate pass one candidate and catch another. Every step
/// shows the command that does it. All files stay in one directory, with a report to open in a browser.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lctl demo\n  lctl demo --out /tmp/demo --threads 2")]
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

/// The models in the order of the story: file or directory, run.
const MODELS: [(&str, &str); 6] = [
    ("base", "base"),
    ("int8.gguf", "int8"),
    ("int4.gguf", "int4"),
    ("base + tuned/result/adapter", "tuned"),
    ("tuned-int8.gguf", "tuned-int8"),
    ("tuned-int2.gguf", "tuned-int2"),
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
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    let dir = &args.out;
    if dir.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: dir.clone() }.into());
    }
    demo::write(dir).map_err(|(path, source)| Error::Io { path, action: "write", source })?;
    let shown = term::printable(&dir.display().to_string());
    term::out(&format!(
        "A small model that lctl trained itself goes through everything lctl does. Files are in {shown};\n\
         the commands are those you would type there:\n\n  cd {shown}\n"
    ))?;
    // the handlers that commands install come too late then: each would only know of its own work
    let _ = ctrlc::set_handler(|| {
        cleanup_partial_files();
        term::say("\ninterrupted");
        std::process::exit(130);
    });
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
    let scored = MODELS.iter().map(|(model, run)| scored(model, run)).collect::<Result<Vec<_>, Failure>>()?;
    let seconds = started.elapsed().as_secs_f64();
    let mut file = AtomicFile::create(Path::new("report.html"), None, false)?;
    file.write_all(page::html(&done, &scored).as_bytes())?;
    file.commit()?;
    term::out(&format!(
        "\n{}\n{}\nIt took {seconds:.0} s. Open {shown}/report.html in a browser.\n\
         Next: the same commands with your own model; `lctl --help` lists them.\n",
        heading("What came of it"),
        table(&scored)
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn heading(text: &str) -> String {
    match term::out_has_colour() {
        true => format!("\x1b[1m{text}\x1b[0m\n"),
        false => format!("{text}\n"),
    }
}

/// Runs a command as the program's own command line would.
fn execute(command: &Command, threads: Option<u16>) -> Result<Done, Failure> {
    let mut words: Vec<String> =
        std::iter::once("lctl").chain(command.words.split(' ')).map(str::to_owned).collect();
    if let Some(threads) = threads.filter(|_| command.takes_threads) {
        words.extend(["--threads".to_owned(), threads.to_string()]);
    }
    let typed = words.join(" ");
    term::out(&format!("\n$ {typed}\n"))?;
    let started = Instant::now();
    let failed = || Error::Status { command: typed.clone(), expected: command.expected };
    let cli = super::Cli::try_parse_from(&words).map_err(|_| failed())?;
    let status = super::run(cli.command)?;
    if status != ExitCode::from(command.expected) {
        return Err(failed().into());
    }
    Ok(Done { status: command.expected, seconds: started.elapsed().as_secs_f64(), command: typed })
}

fn scored(model: &'static str, run: &str) -> Result<Scored, Failure> {
    let path = Path::new("runs").join(run).join("report.json");
    let io = |source| Error::Io { path: path.clone(), action: "read", source };
    let text = std::fs::read_to_string(&path).map_err(io)?;
    let report: Json = serde_json::from_str(&text).map_err(|error| io(std::io::Error::other(error)))?;
    let value = |suite: usize| {
        let value = report["suites"][suite]["tasks"][0]["metrics"][0]["value"].as_f64();
        value.ok_or_else(|| io(std::io::Error::other("no figure")))
    };
    let file = if model.ends_with(".gguf") { model } else { "base/model.safetensors" };
    let bytes = std::fs::metadata(file).map_err(io)?.len();
    Ok(Scored { model, bytes, soc: value(0)?, queue: value(1)? })
}

fn table(scored: &[Scored]) -> String {
    let mut text = format!("{:28} {:>9} {:>10} {:>10}\n", "model", "KB", "demo-soc", "demo-queue");
    for row in scored {
        let (soc, queue) = (100.0 * row.soc, 100.0 * row.queue);
        text += &format!("{:28} {:>9} {soc:>8.1} % {queue:>8.1} %\n", row.model, row.bytes / 1000);
    }
    text + "\nThe gate let tuned-int8.gguf pass and caught tuned-int2.gguf.\n"
}
