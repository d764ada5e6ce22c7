//! `lctl tokenizer`.

use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use super::term;
use crate::data::{self, format::Record};
use crate::error::{Diagnostic, Failure};
use crate::read::read_template;
use crate::tensor::AtomicFile;
use crate::text::chat::{self, ChatTemplate};
use crate::text::train::{CHATML, TrainSpec, Trained, Words, check_written};

/// Learn a tokenizer, for a model trained from nothing
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Train(TrainArgs),
}

const AFTER_HELP: &str = "\
Examples:
  lctl tokenizer train corpus.txt --vocab-size 8192 -o models/mine
  lctl tokenizer train datasets/demo-soc-train.jsonl --vocab-size 512 -o models/tiny --json";

/// Learn a byte-level BPE from files of text or training data
///
/// Writes tokenizer.json and tokenizer_config.json, which transformers reads, too. The same texts give the same files,
/// whatever their order: the most frequent pair is merged first, of equally frequent ones the one whose tokens were
/// learned first (docs/tokenizer.md).
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
struct TrainArgs {
    /// Text files, or training data of any kind and format that recipes take
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Directory to write to; it is made if it is not there
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Tokens in all: special ones, 256 bytes, merges
    #[arg(long, value_name = "N")]
    vocab_size: usize,

    /// Special tokens, which get the ids from 0 on (repeatable)
    #[arg(long, value_name = "TOKEN", default_values = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])]
    special: Vec<String>,

    /// Special token that is put in front of every text
    #[arg(long, value_name = "TOKEN")]
    bos: Option<String>,

    /// Special token that ends a generation
    #[arg(long, value_name = "TOKEN", default_value = "<|im_end|>")]
    eos: String,

    /// Special token to pad with
    #[arg(long, value_name = "TOKEN")]
    pad: Option<String>,

    /// How text is split into words: qwen2 (digits stand alone), llama-bpe, gpt-4o, gpt-2 (numbers whole)
    #[arg(long, value_name = "NAME", default_value = "qwen2")]
    pre: String,

    /// Merge only pairs that stand in the texts at least so often
    #[arg(long, value_name = "N", default_value_t = 2)]
    min_frequency: u64,

    /// Chat template: chatml, none, or a file
    #[arg(long, value_name = "TEMPLATE", default_value = "chatml")]
    chat_template: String,

    /// Replace a tokenizer that is there
    #[arg(short, long)]
    force: bool,

    /// Print what was made as JSON
    #[arg(long)]
    json: bool,

    /// Print nothing but errors, and JSON if asked for
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: cannot {action}", .path.display())]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: std::io::Error,
    },

    #[error("{} is there already", .path.display())]
    Exists { path: PathBuf },

    #[error("{}: no chat template", .path.display())]
    Template {
        path: PathBuf,
        #[source]
        source: chat::Error,
    },

    #[error("{source}")]
    Kind { source: data::Error },

    #[error("{}: nothing is written, since what was learned would be read as something else", .path.display())]
    Unread {
        path: PathBuf,
        #[source]
        source: Box<crate::text::Error>,
    },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Exists { .. } => Some("--force replaces it".to_owned()),
            Error::Template { source, .. } => source.hint(),
            // there is no option that says it
            Error::Kind { .. } => {
                let endings = data::container::CONTAINERS.iter().flat_map(|kind| kind.extensions);
                let endings: Vec<String> = endings.map(|ending| format!(".{ending}")).collect();
                Some(format!(
                    "a file's kind is told by its name: rename it to end in one of {}",
                    endings.join(", ")
                ))
            }
            Error::Unread { .. } => Some("choose other special tokens".to_owned()),
            Error::Io { .. } => None,
        }
    }
}

const FILES: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

pub fn run(args: &Args) -> Result<(), Failure> {
    let Command::Train(args) = &args.command;
    let spec = spec(args)?;
    spec.check()?;
    for path in FILES.map(|name| args.output.join(name)) {
        if path.symlink_metadata().is_ok() && !args.force {
            return Err(Error::Exists { path }.into());
        }
    }
    let mut words = Words::new(&spec.pre)?;
    for path in &args.files {
        let records = data::records(path).map_err(|error| match error {
            source @ data::Error::UnknownContainer { .. } => Failure::from(Error::Kind { source }),
            other => other.into(),
        })?;
        for record in records {
            add(&mut words, &record)?;
        }
    }
    let trained = words.train(&spec)?;
    write(args, &spec, &trained)?;
    let (n_tokens, n_merges) = (trained.vocab_size(), trained.n_merges());
    if n_tokens < spec.vocab_size && !args.quiet {
        term::say(&format!(
            "note: {n_tokens} tokens, not {}: no other pair stands in the texts {} times",
            spec.vocab_size, spec.min_frequency
        ));
    }
    if args.json {
        return term::out_json(&json!({
            "path": args.output.display().to_string(), "vocab_size": n_tokens, "merges": n_merges,
            "special": spec.special, "pre": spec.pre, "bytes": words.n_bytes(), "words": words.distinct(),
        }));
    }
    if !args.quiet {
        let dir = term::printable(&args.output.display().to_string());
        let (bytes, words) = (words.n_bytes(), words.distinct());
        term::say(&format!(
            "wrote {dir}: {n_tokens} tokens, {n_merges} merges, from {bytes} bytes, {words} words"
        ));
    }
    Ok(())
}

fn spec(args: &TrainArgs) -> Result<TrainSpec, Failure> {
    let chat_template = match args.chat_template.as_str() {
        "none" => None,
        "chatml" => Some(CHATML.to_owned()),
        path => {
            let text = read_template(Path::new(path))?;
            let bad = |source| Error::Template { path: path.into(), source };
            ChatTemplate::new(&text, &Map::new()).map_err(bad)?;
            Some(text)
        }
    };
    Ok(TrainSpec {
        vocab_size: args.vocab_size,
        special: args.special.clone(),
        pre: args.pre.clone(),
        min_frequency: args.min_frequency,
        bos: args.bos.clone(),
        eos: Some(args.eos.clone()),
        pad: args.pad.clone(),
        chat_template,
    })
}

/// Adds a record's texts; of a conversation its roles, too, which chat templates write.
fn add(words: &mut Words, record: &Record) -> Result<(), Failure> {
    if let Record::Chat(chat) = record {
        for role in chat.messages.iter().filter_map(|message| message.get("role")?.as_str()) {
            words.add(role)?;
        }
    }
    for text in record.texts() {
        words.add(text)?;
    }
    Ok(())
}

/// Writes both files, or none; a directory that was made for them goes again then.
fn write(args: &TrainArgs, spec: &TrainSpec, trained: &Trained) -> Result<(), Failure> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && dir.symlink_metadata().is_err();
    let made: Vec<&Path> = args.output.ancestors().take_while(is_missing).collect();
    let written = write_both(args, spec, trained);
    if written.is_err() {
        // the innermost first; one that somebody else put a file into stays
        made.iter().for_each(|dir| drop(std::fs::remove_dir(dir)));
    }
    written
}

fn write_both(args: &TrainArgs, spec: &TrainSpec, trained: &Trained) -> Result<(), Failure> {
    let dir = &args.output;
    let io = |action| move |source| Error::Io { path: dir.clone(), action, source };
    std::fs::create_dir_all(dir).map_err(io("make the directory"))?;
    let texts = [trained.tokenizer_json(), trained.config_json()].map(|json| format!("{json:#}\n"));
    // read back from a directory of their own, before anything that is there is replaced
    let tried = tempfile::Builder::new().prefix(".tokenizer.").suffix(".partial").tempdir_in(dir);
    let tried = tried.map_err(io("make a directory in it"))?;
    for (name, text) in FILES.iter().zip(&texts) {
        std::fs::write(tried.path().join(name), text).map_err(io("write into it"))?;
    }
    let unread = |source| Error::Unread { path: dir.clone(), source: Box::new(source) };
    check_written(tried.path(), spec).map_err(unread)?;
    let mut files = Vec::new();
    for (name, text) in FILES.iter().zip(&texts) {
        let mut file = AtomicFile::create(&dir.join(name), None, false)?;
        file.set_replace(args.force);
        file.write_all(text.as_bytes())?;
        files.push(file);
    }
    AtomicFile::commit_all(files)?;
    Ok(())
}
