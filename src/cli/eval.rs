//! `lctl eval`: arguments -> one of three measurements (suites, perplexity, divergence) -> report.

mod interrupt;
mod kld;
mod manifest;
pub mod paths;
mod perplexity;
mod progress;
mod suite;
mod text;

pub use interrupt::Interrupt;
pub use kld::check_same;
pub use manifest::{Places, UnknownSetting, args_of, licences};
pub use progress::EvalProgress;
pub use suite::data_files;
pub use text::TextFile;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, ValueEnum};

use super::device::DeviceChoice;
use super::model::WeightsArg;
use super::render;
use crate::error::Failure;
use crate::kernel::ComputeMode;

const AFTER_HELP: &str = "\
Give one of --suite, --perplexity, --kl-base and --base-logits. Suites and reports are described in docs/eval.md.

Examples:
  lctl eval model.gguf --suite evalsuites/cybermetric.yaml --data cybermetric=CyberMetric-500-v1.json
  lctl eval ./Qwen3-8B --suite suite.yaml --few-shot 5 --out results/qwen3-8b
  lctl eval model-q4.gguf --suite suite.yaml --baseline results/f16 --html report.html
  lctl eval model-q4.gguf --perplexity wiki.test.raw
  lctl eval model-q4.gguf --kl-base model-f16.gguf --text wiki.test.raw
  lctl eval model-f16.gguf --perplexity wiki.test.raw --save-logits f16.logits
  lctl eval model-q4.gguf --base-logits f16.logits";

/// What excludes options of suites.
const TEXT_MODES: [&str; 3] = ["perplexity", "kl_base", "base_logits"];

/// Score a model on suites, or over a text
///
/// Suites of tasks; perplexity of a text; divergence of a model's predictions from another's.
#[derive(Clone, Default, clap::Args)]
#[command(after_help = AFTER_HELP)]
#[command(group = ArgGroup::new("mode").required(true).args(["suite", "perplexity", "kl_base", "base_logits"]))]
pub struct Args {
    /// A checkpoint's directory, a .gguf file (of a split model the first shard), or a hub id
    /// ORG/NAME[@REVISION]
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// Run the tasks of a suite (YAML); repeatable
    #[arg(long, value_name = "FILE")]
    pub suite: Vec<PathBuf>,

    /// Measure the perplexity of a text file, cut into chunks of --context tokens
    #[arg(long, value_name = "FILE", conflicts_with_all = render::OPTIONS)]
    pub perplexity: Option<PathBuf>,

    /// Compare the next-token distributions with this model's, over --text
    #[arg(long, value_name = "MODEL", requires = "text", conflicts_with_all = render::OPTIONS)]
    pub kl_base: Option<String>,

    /// The text file of --kl-base
    #[arg(long, value_name = "FILE", requires = "kl_base", conflicts_with_all = ["suite", "perplexity", "base_logits"])]
    pub text: Option<PathBuf>,

    /// Write the logits of every scored token of --perplexity, for --base-logits
    #[arg(long, value_name = "FILE", requires = "perplexity", conflicts_with_all = ["suite", "kl_base", "base_logits"])]
    pub save_logits: Option<PathBuf>,

    /// Compare the next-token distributions with a base model's logits that --save-logits wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["context", "limit", "markdown", "html", "junit", "junit_cases"])]
    pub base_logits: Option<PathBuf>,

    /// Read a suite's data set NAME from this file; repeatable
    #[arg(long, value_name = "NAME=FILE", conflicts_with_all = TEXT_MODES)]
    pub data: Vec<String>,

    /// Solved examples before each question, instead of what the suite says
    #[arg(long, value_name = "N", conflicts_with_all = TEXT_MODES)]
    pub few_shot: Option<usize>,

    /// Wrap prompts in the model's chat template; auto is what the suite says
    #[arg(long, value_name = "WHEN", default_value = "auto", conflicts_with_all = TEXT_MODES)]
    pub chat_template: ChatTemplateUse,

    /// Evaluate only the first N documents of each task (chunks of a text)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,

    /// Seed of sampling and of seeded few-shot examples
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = TEXT_MODES)]
    pub seed: u64,

    /// Day that chat templates see, YYYY-MM-DD [default: 2026-01-01]
    #[arg(long, value_name = "DAY", conflicts_with_all = TEXT_MODES)]
    pub date: Option<String>,

    /// What the matrix products take: bf16 and int8 round, f32 does not; auto follows the weights' formats
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub compute: ComputeArg,

    /// Where weights stay: packed in memory is faster, mapped takes no memory of its own; auto packs what fits
    #[arg(long, value_name = "WHERE", default_value = "auto")]
    pub weights: WeightsArg,

    /// Apply a LoRA adapter: a PEFT directory or a GGUF file
    #[arg(long, value_name = "PATH")]
    pub adapter: Option<PathBuf>,

    /// Longest sequence in tokens [default: what the model was trained for; 512 for --perplexity and --kl-base]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub context: Option<u32>,

    /// Tokens computed at once; speed and memory depend on it, results do not [default: chosen by size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_tokens: Option<u32>,

    /// Compute what prompts share anew for each of them; results do not depend on it
    #[arg(long, conflicts_with_all = TEXT_MODES)]
    pub no_prefix_cache: bool,

    /// Write report.json and samples.jsonl into this directory
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Write one JSON line per document into this file
    #[arg(long, value_name = "FILE", conflicts_with_all = TEXT_MODES)]
    pub samples: Option<PathBuf>,

    /// Record responses in this file as they come [default with --out: DIR/journal.jsonl]
    #[arg(long, value_name = "FILE", conflicts_with_all = TEXT_MODES)]
    pub journal: Option<PathBuf>,

    /// Take the responses that the journal of an interrupted run holds
    #[arg(long, conflicts_with_all = TEXT_MODES)]
    pub resume: bool,

    /// Compare with an earlier run's results in this directory, as `lctl gate` does, and exit as it would
    #[arg(long, value_name = "DIR", conflicts_with_all = TEXT_MODES)]
    pub baseline: Option<PathBuf>,

    /// What --baseline demands, as YAML (recipes/gate.yaml has every key)
    #[arg(long, value_name = "FILE", requires = "baseline")]
    pub policy: Option<PathBuf>,

    /// The model of --baseline: say how far its predictions are from MODEL's, over the suites' prompts
    #[arg(long, value_name = "MODEL", requires = "baseline")]
    pub baseline_model: Option<String>,

    /// The adapter of --baseline, if it was measured with one
    #[arg(long, value_name = "PATH", requires = "baseline_model")]
    pub baseline_adapter: Option<PathBuf>,

    #[command(flatten)]
    pub render: render::RenderArgs,

    /// Do not write report.json.manifest.json, which says what the report was made of (docs/provenance.md)
    #[arg(long)]
    pub no_manifest: bool,

    /// Replace results that exist
    #[arg(short, long)]
    pub force: bool,

    /// Threads; results do not depend on it [default: one per core]
    #[arg(long, value_name = "N", value_parser = crate::cli::machine::thread_count)]
    pub threads: Option<u16>,

    /// Instruction set: portable, avx2, avx512; results do not depend on it [default: LCTL_ISA, or the best
    /// there is]
    #[arg(long, value_name = "NAME")]
    pub isa: Option<String>,

    /// Take a hub id from the cache only, never from the network
    #[arg(long)]
    pub offline: bool,

    /// Print the report as JSON (docs/eval.md)
    #[arg(long)]
    pub json: bool,

    /// Print nothing but errors, and JSON if asked for
    #[arg(short, long)]
    pub quiet: bool,

    /// Leave stdout to `lctl replay`
    #[arg(skip)]
    pub is_replay: bool,

    /// Under which path a manifest names the adapter, or without one the model: where it will be found
    #[arg(skip)]
    pub named: Option<PathBuf>,

    /// What `--device` says of the command
    #[arg(skip)]
    pub device: DeviceChoice,
}

/// Whether prompts go through the model's chat template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ChatTemplateUse {
    #[default]
    Auto,
    On,
    Off,
}

/// [`ComputeMode`] as an argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ComputeArg {
    #[default]
    Auto,
    F32,
    Bf16,
    Int8,
}

impl ChatTemplateUse {
    /// Returns the name in reports.
    pub fn name(self) -> &'static str {
        match self {
            ChatTemplateUse::Auto => "auto",
            ChatTemplateUse::On => "on",
            ChatTemplateUse::Off => "off",
        }
    }
}

impl ComputeArg {
    /// Returns the name in reports.
    pub fn name(self) -> &'static str {
        match self {
            ComputeArg::Auto => "auto",
            ComputeArg::F32 => "f32",
            ComputeArg::Bf16 => "bf16",
            ComputeArg::Int8 => "int8",
        }
    }
}

impl From<ComputeArg> for ComputeMode {
    fn from(arg: ComputeArg) -> Self {
        match arg {
            ComputeArg::Auto => ComputeMode::Auto,
            ComputeArg::F32 => ComputeMode::F32,
            ComputeArg::Bf16 => ComputeMode::Bf16,
            ComputeArg::Int8 => ComputeMode::Int8,
        }
    }
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    measure(args, &Interrupt::install())
}

/// Measures what the arguments say.
pub fn measure(args: &Args, interrupt: &Interrupt) -> Result<ExitCode, Failure> {
    match args {
        Args { perplexity: Some(text), .. } => perplexity::run(args, text)?,
        // clap asks for --text with --kl-base
        Args { kl_base: Some(base), text: Some(text), .. } => kld::run(args, base, text)?,
        Args { base_logits: Some(logits), .. } => kld::run_saved(args, logits)?,
        _ => return suite::run(args, interrupt),
    }
    Ok(ExitCode::SUCCESS)
}
