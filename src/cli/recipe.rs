//! `lctl recipe`.

mod avoided;
mod data;

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::term;
use crate::error::{Diagnostic, Failure, nearest};
use crate::finetune::recipe::{PRESETS, Recipe};
use crate::quantize;
use crate::read::refuse_endless;
use crate::tensor::AtomicFile;

pub use avoided::{avoided, suite_input};

const AFTER_HELP: &str = "\
Recipes are described in docs/recipes.md.

Examples:
  lctl recipe new
  lctl recipe new 1b-lora -o my.yaml
  lctl recipe validate my.yaml
  lctl recipe show my.yaml --set train.lr=1e-4
  lctl recipe data my.yaml";

/// Write, check and show recipes of fine-tuning runs
///
/// And load their data, to see what would be trained.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    New(NewArgs),
    Validate(ValidateArgs),
    Show(ShowArgs),
    Data(data::Args),
}

/// Write a commented recipe, or list those there are
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lctl recipe new\n  lctl recipe new 8b-lora -o my.yaml")]
struct NewArgs {
    /// What to begin with; without it the choices are listed
    #[arg(value_name = "PRESET")]
    preset: Option<String>,

    /// File to write instead of standard output
    #[arg(short, long, value_name = "FILE", requires = "preset")]
    output: Option<PathBuf>,

    /// Replace a file that exists
    #[arg(short, long, requires = "output")]
    force: bool,
}

/// Say everything that is wrong with recipes
///
/// Wrong are keys, values and combinations of them, and files of data, suites, policies and templates that are not there.
/// Exits with 2 if anything is.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lctl recipe validate my.yaml
  lctl recipe validate recipes/soc-triage.yaml recipes/phishing.yaml --schema-only
  lctl recipe validate my.yaml --set train.lr=1e-4 --json")]
struct ValidateArgs {
    #[arg(required = true)]
    recipes: Vec<PathBuf>,

    #[command(flatten)]
    set: SetArgs,

    /// Don't look whether the files that a recipe names are there
    #[arg(long)]
    schema_only: bool,

    /// Print JSON (docs/cli.md)
    #[arg(long)]
    json: bool,
}

/// Print a recipe with every default written out
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lctl recipe show my.yaml\n  lctl recipe show my.yaml --set adapter.r=8 --json"
)]
struct ShowArgs {
    recipe: PathBuf,

    #[command(flatten)]
    set: SetArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Values that take the place of a recipe's.
#[derive(clap::Args)]
pub struct SetArgs {
    /// Set a value, as in train.lr=1e-4 or data.train.0.path=rows.jsonl
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("unknown preset `{name}`")]
    UnknownPreset { name: String },

    #[error("{}", .0.join("\n"))]
    MissingFiles(Vec<String>),

    #[error("{wrong} of {of} recipes are wrong")]
    Wrong { wrong: usize, of: usize },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::UnknownPreset { name } => {
                let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
                match nearest(name, names.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are: {}", names.join(", ")),
                }
            }
            Error::Wrong { .. } => return None,
            Error::MissingFiles(_) => {
                "paths are taken from the current directory; --set changes one for now".to_owned()
            }
        })
    }
}

pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::New(args) => new(args),
        Command::Validate(args) => validate(args),
        Command::Show(args) => show(args),
        Command::Data(args) => data::run(args),
    }
}

/// Reads a recipe with what was set on the command line.
pub fn open(path: &Path, set: &SetArgs) -> Result<Recipe, Failure> {
    let quantizations: Vec<&str> = quantize::Recipe::names().collect();
    Ok(Recipe::open(path, &set.set, &quantizations)?)
}

fn new(args: &NewArgs) -> Result<(), Failure> {
    let Some(name) = &args.preset else {
        let width = PRESETS.iter().map(|preset| preset.name.len()).max().unwrap_or(0);
        let row =
            |preset: &crate::finetune::recipe::Preset| format!("{:width$}  {}\n", preset.name, preset.about);
        return term::out(&PRESETS.iter().map(row).collect::<String>());
    };
    let preset = PRESETS.iter().find(|preset| preset.name == name);
    let preset = preset.ok_or_else(|| Error::UnknownPreset { name: name.clone() })?;
    let Some(path) = &args.output else { return term::out(preset.text) };
    let mut file = AtomicFile::create(path, None, false)?;
    file.set_replace(args.force);
    file.write_all(preset.text.as_bytes())?;
    file.commit()?;
    term::say(&format!(
        "wrote {}: edit `model.path` and `data`, then `lctl recipe validate`",
        path.display()
    ));
    Ok(())
}

fn validate(args: &ValidateArgs) -> Result<(), Failure> {
    let (mut wrong, of) = (0, args.recipes.len());
    if args.json {
        let results: Vec<_> = args.recipes.iter().map(|path| (path, check(path, args))).collect();
        let rows: Vec<_> = results.iter().map(|(path, result)| validated(path, result)).collect();
        term::out_json(&json!(rows))?;
        wrong = results.iter().filter(|(_, result)| result.is_err()).count();
        return if wrong == 0 { Ok(()) } else { Err(Error::Wrong { wrong, of }.into()) };
    }
    for path in &args.recipes {
        match check(path, args) {
            Ok(()) => {
                term::out(&format!("{}: nothing wrong\n", term::printable(&path.display().to_string())))?;
            }
            Err(failure) if of == 1 => return Err(failure),
            Err(failure) => {
                term::say(&failure.to_string());
                wrong += 1;
            }
        }
    }
    match wrong {
        0 => Ok(()),
        wrong => Err(Error::Wrong { wrong, of }.into()),
    }
}

/// Returns what `validate` found of a recipe, as JSON.
fn validated(path: &Path, result: &Result<(), Failure>) -> Json {
    let failure = result.as_ref().err();
    json!({
        "recipe": path.display().to_string(),
        "valid": failure.is_none(),
        "error": failure.map(Failure::to_string),
    })
}

fn check(path: &Path, args: &ValidateArgs) -> Result<(), Failure> {
    let recipe = open(path, &args.set)?;
    if args.schema_only {
        return Ok(());
    }
    let missing = recipe.files().into_iter().filter(|(_, file)| !file.exists());
    let missing: Vec<String> = missing
        .map(|(key, file)| format!("{}: `{key}`: {} is not there", path.display(), file.display()))
        .collect();
    if !missing.is_empty() {
        return Err(Error::MissingFiles(missing).into());
    }
    for (_, file) in recipe.files() {
        refuse_endless(file)?;
    }
    Ok(())
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let recipe = open(&args.recipe, &args.set)?;
    match args.json {
        true => term::out_json(&serde_json::to_value(&recipe).unwrap_or_default()),
        false => term::out(&super::gate::printable_lines(&recipe.to_yaml())),
    }
}
