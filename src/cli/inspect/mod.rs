//! `lctl inspect`.

mod text;

use std::io::IsTerminal;
use std::process::ExitCode;

use serde_json::json;

use super::source::model_path;
use super::term;
use crate::error::{Diagnostic, Failure, printable};
use crate::inspect::{Model, Report, Verdict, Wanted, cross_check, diff};

const AFTER_HELP: &str = "\
Examples:
  lctl inspect model.gguf
  lctl inspect ./Qwen3-8B --tensors --ctx 32768
  lctl inspect model.gguf --chat-template
  lctl inspect model.gguf --diff other.gguf --digest
  lctl inspect model.gguf --cross-check --json";

/// Show what a model file or directory holds
///
/// Reads headers only, unless --digest asks for the data. With --diff the exit status is 1 if the models
/// differ; with --cross-check it is 2 if another GGUF reader reads the file differently.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// A .gguf or .safetensors file, a checkpoint directory, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,

    /// List every tensor: name, type, shape, bytes, offset
    #[arg(long)]
    tensors: bool,

    /// Print the chat template whole, and nothing else
    #[arg(long, conflicts_with_all = ["tensors", "json", "diff", "cross_check"])]
    chat_template: bool,

    /// Estimate memory at this many tokens of context [default: the model's, at most 4096]
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["chat_template", "diff"],
          value_parser = clap::value_parser!(u64).range(1..))]
    ctx: Option<u64>,

    /// SHA-256 of every tensor's data; with --diff, compare the data too (reads the whole model)
    #[arg(long, conflicts_with = "chat_template")]
    digest: bool,

    /// Compare with another model: keys, tensor names, types and shapes; exit status 1 if they differ
    #[arg(long, value_name = "OTHER", conflicts_with_all = ["tensors", "cross_check"])]
    diff: Option<String>,

    /// Parse the GGUF again with two other readers; any disagreement is an error
    #[arg(long)]
    cross_check: bool,

    /// Print JSON (docs/inspect.md)
    #[arg(long)]
    json: bool,

    /// Open no connection when MODEL is a hub id
    #[arg(long)]
    offline: bool,
}

/// The readers of a GGUF do not agree, or none of the others could read it.
#[derive(Debug, thiserror::Error)]
enum CrossError {
    #[error("{file}: readers of GGUF disagree about this file")]
    Disagree { file: String },
    #[error("{file}: no other reader could read it, so nothing was compared")]
    NothingCompared { file: String },
}

impl Diagnostic for CrossError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            CrossError::Disagree { .. } => {
                "do not load it: what you inspect here may not be what runs elsewhere".into()
            }
            CrossError::NothingCompared { .. } => {
                "leave out --cross-check to inspect it by our reader alone".into()
            }
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{path}: no chat template")]
struct NoTemplate {
    path: String,
}

impl Diagnostic for NoTemplate {
    fn hint(&self) -> Option<String> {
        Some("base models have none; the template of an instruct model is in its tokenizer_config.json or chat_template.jinja".into())
    }
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let model = Model::open(&model_path(&args.model, args.offline, false)?)?;
    if let Some(other) = &args.diff {
        let other = Model::open(&model_path(other, args.offline, false)?)?;
        return show_diff(&args, &model, &other);
    }
    let wanted = Wanted { tensors: args.tensors, digests: args.digest, context: args.ctx };
    let report = model.report(wanted)?;
    if args.chat_template {
        return show_template(&report);
    }
    let checks = if args.cross_check { cross_check(&model)? } else { Vec::new() };
    if args.json {
        let mut value = json!(report);
        if args.cross_check {
            value["cross_check"] = json!(checks);
        }
        term::out_json(&value)?;
    } else {
        term::out(&text::report(&report))?;
        term::out(&text::cross_checks(&checks))?;
    }
    for check in &checks {
        let file = check.file.clone();
        if check.readers.iter().any(|(_, verdict)| matches!(verdict, Verdict::Differs { .. })) {
            return Err(CrossError::Disagree { file }.into());
        }
        if !check.passes() {
            return Err(CrossError::NothingCompared { file }.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_template(report: &Report) -> Result<ExitCode, Failure> {
    let template = report.chat_template.as_ref();
    let template = template.ok_or_else(|| NoTemplate { path: report.path.clone() })?;
    let template = template.trim_end_matches('\n');
    // a program gets it as it is
    let shown = match std::io::stdout().is_terminal() {
        true => printable(template),
        false => template.into(),
    };
    term::out(&format!("{shown}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn show_diff(args: &Args, a: &Model, b: &Model) -> Result<ExitCode, Failure> {
    let found = diff(a, b, args.digest)?;
    let names = [a, b].map(|model| model.source().path().display().to_string());
    match args.json {
        true => term::out_json(
            &json!({"before": names[0], "after": names[1], "differs": !found.is_empty(), "diff": found}),
        )?,
        false => term::out(&text::diff(&names, &found))?,
    }
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
