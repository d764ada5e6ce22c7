//! A recipe's data: loaded as a run would load it, and counted.

use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::SetArgs;
use super::avoided::avoided;
use crate::cli::source::model_path;
use crate::cli::term;
use crate::data::encode::Encoder;
use crate::data::{FileCounts, Loaded, Make, Unit, load};
use crate::error::Failure;
use crate::finetune::recipe::{Kind, Recipe};
use crate::layout;
use crate::text::Tokenizer;

/// Findings of a scan that are shown; the rest is counted.
const SHOWN: usize = 20;

/// Load a recipe's data as a run would: check every row, scan, count tokens and what of them is trained
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lctl recipe data my.yaml
  lctl recipe data recipes/soc-triage.yaml --set model.path=./Llama-3.2-1B --json")]
pub struct Args {
    recipe: PathBuf,

    #[command(flatten)]
    set: SetArgs,

    /// Never use the network
    #[arg(long)]
    offline: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Loads a recipe's data with a tokenizer; what scans found that only warns, and notes, go to stderr.
pub fn loaded<'a, T: Unit>(
    recipe: &Recipe,
    tokenizer: &'a Tokenizer,
    make: Make<'a, T>,
    offline: bool,
) -> Result<Loaded<T>, Failure> {
    let encoder = Encoder::new(tokenizer, &recipe.data.settings()?)?;
    let suites = avoided(&recipe.data.scan, false, offline)?;
    let (suites, mut notes) = suites.map_or((None, Vec::new()), |(suites, notes)| (Some(suites), notes));
    let loaded = load(&recipe.data.spec(recipe.train.seed), &encoder, make, suites.as_ref())?;
    notes.extend(loaded.notes.iter().cloned());
    for note in notes {
        term::say(&format!("note: {}", term::printable(&note)));
    }
    for findings in &loaded.findings {
        term::say(&format!("warning: {}", findings.summary()));
        for finding in findings.findings.iter().take(SHOWN) {
            term::say(&format!("  {}", term::printable(&finding.to_string())));
        }
        if findings.findings.len() > SHOWN {
            term::say(&format!("  and {} more", findings.findings.len() - SHOWN));
        }
    }
    Ok(loaded)
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let recipe = super::open(&args.recipe, &args.set)?;
    let tokenizer = Tokenizer::open(&model_path(&recipe.model.path, args.offline, false)?)?;
    match recipe.kind {
        Kind::Finetune => show(&loaded(&recipe, &tokenizer, Encoder::example, args.offline)?, args.json),
        Kind::Dpo => show(&loaded(&recipe, &tokenizer, Encoder::pair, args.offline)?, args.json),
    }
}

fn show<T: Unit>(loaded: &Loaded<T>, as_json: bool) -> Result<(), Failure> {
    let longest = loaded.train.iter().map(Unit::longest).max().unwrap_or(0);
    if as_json {
        return term::out_json(&json!({
            "files": serde_json::to_value(&loaded.files).unwrap_or(Json::Null),
            "epoch": loaded.mixture.epoch_len(),
            "validation": loaded.validation.len(),
            "longest": longest,
        }));
    }
    let header =
        ["file", "format", "rows", "held out", "dropped", "cut", "examples", "tokens", "trained", "share"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(loaded.files.iter().map(row));
    let mut text = layout::table(&rows, |column| column < 2, None);
    text.push_str(&format!(
        "\n{} examples an epoch, {} to validate on, the longest of {longest} tokens\n",
        loaded.mixture.epoch_len(),
        loaded.validation.len()
    ));
    term::out(&text)
}

fn row(file: &FileCounts) -> [String; 10] {
    let share = 100.0 * file.targets as f64 / file.tokens.max(1) as f64;
    let name = term::printable(&file.path.display().to_string());
    [
        if file.is_validation { format!("{name} (validation)") } else { name },
        file.format.to_owned(),
        file.rows.to_string(),
        file.held_out.to_string(),
        file.dropped.to_string(),
        file.cut.to_string(),
        file.examples.to_string(),
        file.tokens.to_string(),
        file.targets.to_string(),
        format!("{share:.1} %"),
    ]
}
