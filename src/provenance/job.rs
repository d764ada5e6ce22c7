//! What decides a result besides the bytes of its inputs: the settings of a command, normalized.
//!
//! A command line becomes one of these before it becomes work, and `lctl replay` begins with the one it reads.

use serde::{Deserialize, Serialize};

/// A command and its settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", content = "settings", rename_all = "snake_case", deny_unknown_fields)]
pub enum Job {
    Quantize(QuantizeSettings),
    Imatrix(ImatrixSettings),
    Eval(EvalSettings),
    Gate(GateSettings),
    Finetune(FinetuneSettings),
    Merge(MergeSettings),
}

impl Job {
    /// Returns the command's name.
    pub fn command(&self) -> &'static str {
        match self {
            Job::Quantize(_) => "quantize",
            Job::Imatrix(_) => "imatrix",
            Job::Eval(_) => "eval",
            Job::Gate(_) => "gate",
            Job::Finetune(_) => "finetune",
            Job::Merge(_) => "merge",
        }
    }

    /// Returns the GPU that computed; nothing for the CPU.
    pub fn device(&self) -> Option<&OnDevice> {
        match self {
            Job::Quantize(_) | Job::Merge(_) => None,
            Job::Imatrix(settings) => settings.device.as_ref(),
            Job::Eval(settings) => settings.device.as_ref(),
            Job::Gate(settings) => settings.device.as_ref(),
            Job::Finetune(settings) => settings.device.as_ref(),
        }
    }
}

/// A GPU that computed, and what its bits may depend on: as a report has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnDevice {
    pub name: String,
    /// The type of activations, `f32` or `bf16`, where the other settings do not decide it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// The versions of driver and cuBLAS.
    pub driver: String,
    pub cublas: String,
}

/// Settings of `lctl quantize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizeSettings {
    /// The recipe's own name, whatever alias was given.
    pub r#type: String,
    /// In the order given: the first match counts.
    pub tensor_types: Vec<TensorType>,
    pub output_tensor_type: Option<String>,
    pub token_embedding_type: Option<String>,
    pub pure: bool,
    pub leave_output_tensor: bool,
    pub allow_requantize: bool,
    /// `KEY=TYPE:VALUE`, in the order given.
    pub override_kv: Vec<String>,
    pub pre: Option<String>,
    /// Most bytes of tensor data per shard.
    pub split_max_bytes: Option<u64>,
    /// Name of a checkpoint's directory, from which `general.name` may come.
    pub directory: Option<String>,
}

impl QuantizeSettings {
    /// Returns the settings that make this type and leave everything else as it is by default.
    pub fn new(r#type: &str) -> QuantizeSettings {
        QuantizeSettings {
            r#type: r#type.to_owned(),
            tensor_types: Vec::new(),
            output_tensor_type: None,
            token_embedding_type: None,
            pure: false,
            leave_output_tensor: false,
            allow_requantize: false,
            override_kv: Vec::new(),
            pre: None,
            split_max_bytes: None,
            directory: None,
        }
    }
}

/// A `--tensor-type`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorType {
    pub pattern: String,
    pub format: String,
}

/// Settings of `lctl imatrix`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImatrixSettings {
    /// `gguf` or `dat`.
    pub format: String,
    /// `--context`, if it was given.
    pub context: Option<u32>,
    /// Most chunks.
    pub chunks: Option<u64>,
    /// Chunks left out at the text's beginning.
    pub from_chunk: u64,
    pub process_output: bool,
    pub parse_special: bool,
    /// `auto`, `f32`, `bf16` or `int8`.
    pub compute: String,
    /// The GPU that the model ran on; none of the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<OnDevice>,
}

/// Settings of `lctl eval`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalSettings {
    pub mode: EvalMode,
    /// `auto`, `f32`, `bf16` or `int8`.
    pub compute: String,
    /// `--context`, if it was given.
    pub context: Option<u32>,
    pub seed: u64,
    pub limit: Option<u64>,
    pub few_shot: Option<usize>,
    /// `auto`, `on` or `off`.
    pub chat_template: String,
    /// The day that chat templates see, YYYY-MM-DD; of suites alone.
    pub date: Option<String>,
    /// The GPU that it was measured on; none of the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<OnDevice>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvalMode {
    Suite,
    Perplexity,
    KlBase,
    BaseLogits,
}

/// Settings of `lctl gate`: everything stands in its policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateSettings {
    /// The GPU on which both models predicted a text; none of the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<OnDevice>,
}

/// Settings of `lctl finetune`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneSettings {
    /// The recipe as YAML, with what was set on the command line and every default written out.
    pub recipe: String,
    /// Processes that trained together: another number sums gradients in another order.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub world_size: usize,
    /// The GPU that it was trained on; none of the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<OnDevice>,
}

/// Settings of `lctl merge`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeSettings {
    /// The recipe's own name, whatever alias was given; none if what changes keeps its type.
    pub r#type: Option<String>,
    /// Name of a checkpoint's directory, from which `general.name` may come; of a quantized result alone.
    pub directory: Option<String>,
}

fn one() -> usize {
    1
}

fn is_one(world_size: &usize) -> bool {
    *world_size == 1
}
