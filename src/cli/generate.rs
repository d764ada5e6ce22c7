//! `lctl generate`: arguments -> a prompt or a conversation -> text, streamed.

mod conversation;
mod output;
mod prompt;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ArgGroup;

use super::device::{DeviceChoice, Shared};
use super::eval::ComputeArg;
use super::model::{LoadedModel, ModelArgs, WeightsArg};
use super::term;
use crate::error::{Diagnostic, Failure};
use crate::eval::LanguageModel;
use crate::eval::generate::Session;
use crate::eval::request::{GenerateRequest, Sampling};

const AFTER_HELP: &str = "\
On the CPU the same model, prompt and options give the same text on every machine, with any number of threads.

Examples:
  lctl generate model.gguf -p 'Once upon a time' -n 100
  lctl generate ./Qwen3-8B --chat
  lctl generate ./Qwen3-8B --chat --system 'Answer in one sentence.' -p 'What is a salt in hashing?'
  lctl generate model.gguf --prompt-file draft.txt --temp 0.8 --top-p 0.95 --seed 7 --json";

/// Write text with a model, or hold a conversation
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
#[command(group = ArgGroup::new("input").args(["prompt", "prompt_file"]))]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["prompt", "prompt_file", "chat"]))]
pub struct Args {
    /// A checkpoint's directory, a .gguf file (of a split model the first shard), or a hub id
    /// ORG/NAME[@REVISION]
    #[arg(value_name = "MODEL")]
    model: String,

    /// The text to go on with; with --chat, the user's one message
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,

    /// Read the prompt from a file, `-` for standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,

    /// Converse through the model's chat template: on the terminal, or one turn with a prompt
    #[arg(long)]
    chat: bool,

    /// The conversation's system message
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,

    /// Use the Jinja chat template in this file, not the model's
    #[arg(long, value_name = "FILE", requires = "chat")]
    template: Option<PathBuf>,

    /// Set a variable of the chat template, e.g. enable_thinking=false; repeatable
    #[arg(long, value_name = "NAME=JSON", requires = "chat")]
    template_var: Vec<String>,

    /// The date and time that chat templates see, YYYY-MM-DDTHH:MM:SS [default: now]
    #[arg(long, value_name = "TIME", requires = "chat")]
    now: Option<chrono::NaiveDateTime>,

    /// Take the prompt's special tokens (`<s>`, `<|im_end|>`) for plain text
    #[arg(long, conflicts_with = "chat")]
    raw: bool,

    /// Temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = at_least_zero)]
    temp: f32,

    /// Draw from the K most likely tokens only; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,

    /// Draw from the fewest most likely tokens whose probabilities reach P
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = fraction)]
    top_p: f32,

    /// Draw from tokens at least P times as likely as the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = fraction)]
    min_p: f32,

    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Most tokens to write, of each answer in a conversation
    #[arg(short = 'n', long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,

    /// End the text before this string; repeatable
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,

    /// Apply a LoRA adapter: a PEFT directory or a GGUF file
    #[arg(long, value_name = "PATH")]
    adapter: Option<PathBuf>,

    /// What the matrix products take: bf16 and int8 round, f32 does not; auto follows the weights' formats
    #[arg(long, value_name = "MODE", default_value = "auto")]
    compute: ComputeArg,

    /// Where weights stay: packed in memory is faster, mapped takes no memory of its own; auto packs what fits
    #[arg(long, value_name = "WHERE", default_value = "auto")]
    weights: WeightsArg,

    /// Longest sequence in tokens, prompt and text [default: what the model was trained for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,

    /// Threads; the text does not depend on it [default: one per core]
    #[arg(long, value_name = "N", value_parser = crate::cli::machine::thread_count)]
    threads: Option<u16>,

    /// Instruction set: portable, avx2, avx512; the text does not depend on it [default: LCTL_ISA, or the
    /// best there is]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,

    /// Take a hub id from the cache only, never from the network
    #[arg(long)]
    offline: bool,

    /// Print one JSON object instead of the text (docs/generate.md)
    #[arg(long, requires = "input")]
    json: bool,

    /// Print nothing but the text, and errors
    #[arg(short, long)]
    quiet: bool,
}

fn at_least_zero(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a number, 0 or more".into()),
    }
}

fn fraction(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("expected a number between 0 and 1".into()),
    }
}

/// The user ended it.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

impl Diagnostic for Interrupted {
    fn exit_code(&self) -> u8 {
        130
    }
}

pub fn run(args: &Args, device: DeviceChoice) -> Result<(), Failure> {
    // what needs no model fails before the model is read
    let prompt = prompt::read(args)?;
    let variables = prompt::template_variables(args)?;
    if args.temp == 0.0 && (args.top_k > 0 || args.top_p < 1.0 || args.min_p > 0.0) && !args.quiet {
        term::say(
            "note: --top-k, --top-p and --min-p do nothing at --temp 0, which takes the most likely token",
        );
    }
    let on = Shared::choose(device, args.quiet)?;
    let model = LoadedModel::open(&ModelArgs {
        model: &args.model,
        offline: args.offline,
        adapter: args.adapter.as_deref(),
        compute: args.compute.into(),
        context: args.context,
        threads: args.threads,
        isa: args.isa.as_deref(),
        weights: args.weights,
        on: &on,
        batch_tokens: None,
        quiet: args.quiet,
        observed: false,
        digests: args.json,
    })?;
    let computer = model.computer()?;
    let mut session = Session::new(&computer, &model.tokenizer, computer.batch_tokens())?;
    let interrupt = Interrupt::install();
    match (args.chat, prompt) {
        (false, prompt) => {
            output::complete(args, &model, &mut session, &prompt.unwrap_or_default(), &interrupt)
        }
        (true, Some(prompt)) => {
            conversation::one_turn(args, &model, &mut session, variables, &prompt, &interrupt)
        }
        (true, None) => conversation::on_terminal(args, &model, &mut session, variables, &interrupt),
    }
}

impl Args {
    fn request(&self, prompt: Vec<u32>) -> GenerateRequest {
        GenerateRequest {
            prompt,
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            sampling: Sampling {
                temperature: self.temp,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
            },
            seed: self.seed,
            index: 0,
        }
    }
}

/// Ctrl-C: it ends the text that is being written, or else the process.
struct Interrupt {
    is_set: Arc<AtomicBool>,
    is_writing: Arc<AtomicBool>,
}

impl Interrupt {
    fn install() -> Self {
        let flags = Interrupt { is_set: Arc::default(), is_writing: Arc::default() };
        let (is_set, is_writing) = (flags.is_set.clone(), flags.is_writing.clone());
        // a handler can only be there already if a library user set one: theirs then decides
        let _ = ctrlc::set_handler(move || {
            if is_set.swap(true, Ordering::SeqCst) || !is_writing.load(Ordering::SeqCst) {
                std::process::exit(130);
            }
        });
        flags
    }

    fn begin(&self) {
        self.is_set.store(false, Ordering::SeqCst);
        self.is_writing.store(true, Ordering::SeqCst);
    }

    /// Returns whether it was interrupted since it began.
    fn end(&self) -> bool {
        self.is_writing.store(false, Ordering::SeqCst);
        self.is_set.swap(false, Ordering::SeqCst)
    }

    fn is_set(&self) -> bool {
        self.is_set.load(Ordering::SeqCst)
    }
}
