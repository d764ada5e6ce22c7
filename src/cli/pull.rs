//! `lctl pull`.

use serde_json::json;

use super::progress::PullProgress;
use super::term;
use crate::error::Failure;
use crate::hub::{self, Options, RepoId, Selection};

const AFTER_HELP: &str = "\
Examples:
  lctl pull Qwen/Qwen3-0.6B
  lctl pull Qwen/Qwen3-0.6B@main --exclude '*.md'
  lctl pull bartowski/Llama-3.2-1B-Instruct-GGUF --include '*Q4_K_M*'
  lctl pull Qwen/Qwen3-0.6B --offline --json";

/// Download a model or a data set into the local cache
///
/// Takes the safetensors weights, the configuration and the tokenizer; of a data set (datasets/ORG/NAME) the JSON, CSV, TSV,
/// Parquet and text files and the card; never pickle files (.bin, .pt, ...), which run code when they are loaded. Interrupted downloads resume; every file's digest is checked.
/// Prints the snapshot directory on stdout.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Model on the hub, or a data set as datasets/ORG/NAME; without @REVISION its branch `main`
    #[arg(value_name = "ORG/NAME[@REVISION]")]
    id: String,

    /// Take only files that match this pattern, instead of the default set (repeatable; `*` crosses `/`)
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,

    /// Leave out files that match this pattern (repeatable)
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,

    /// Open no connection: report the snapshot from the cache, or say what it lacks (also HF_HUB_OFFLINE=1)
    #[arg(long)]
    offline: bool,

    /// Hash again what the cache already holds, and fetch it anew if it is damaged
    #[arg(long, conflicts_with = "offline")]
    verify: bool,

    /// Print the result as JSON (docs/pull.md)
    #[arg(long)]
    json: bool,

    /// Print nothing but errors, and the result
    #[arg(short, long)]
    quiet: bool,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let id: RepoId = args.id.parse()?;
    let selection = Selection::new(&args.include, &args.exclude)?;
    let mut options = Options::from_env();
    options.offline |= args.offline;
    options.verify_cached = args.verify;

    let mut progress = PullProgress::new(&id.to_string(), args.quiet);
    let pulled = hub::pull(&id, &selection, &options, &mut |event| progress.show(event))?;
    progress.finish(&pulled);

    if args.json {
        term::out_json(&json!(pulled))
    } else {
        term::out(&format!("{}\n", pulled.snapshot.display()))
    }
}
