//! What can be wrong with a checkpoint as a model.

use std::path::PathBuf;

use crate::error::Diagnostic;

/// A checkpoint or GGUF that cannot be understood as a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tensor(#[from] crate::tensor::Error),

    #[error("{path}: cannot read")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("{path}: not valid JSON")]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },

    #[error("{path}: the YAML front matter is not valid")]
    ModelCard {
        path: PathBuf,
        #[source]
        source: serde_yaml::Error,
    },

    #[error("{path}: `{key}` is missing")]
    MissingKey { path: PathBuf, key: String },

    #[error("{path}: `{key}` is {found}, expected {expected}")]
    BadValue { path: PathBuf, key: String, found: String, expected: &'static str },

    #[error("{path}: unknown architecture `{name}`")]
    UnknownArchitecture { path: PathBuf, name: String, nearest: Option<String>, known: Vec<&'static str> },

    #[error("{path}: no config.json beside the weights")]
    NoConfig { path: PathBuf },

    #[error("{path}: rope scaling `{kind}` is not one the decoder knows")]
    RopeKind { path: PathBuf, kind: String },

    #[error("{path}: `{name}` adapts no linear layer of this model")]
    AdapterTarget { path: PathBuf, name: String },

    #[error("{path}: `{name}` has shape {found:?}, but the model and the adapter's rank imply {expected:?}")]
    AdapterShape { path: PathBuf, name: String, found: Vec<usize>, expected: Vec<usize> },

    #[error("{path}: the adapter is for `{adapter}`, the model is `{base}`")]
    AdapterArch { path: PathBuf, adapter: String, base: &'static str },

    #[error("{path}: `{key}` is {found}: its pairs are right only beside a base that PEFT changed")]
    AdapterInit { path: PathBuf, key: &'static str, found: String },

    #[error("{path}: `{name}` is left out by the adapter_config.json beside it: its `{key}` is {found}")]
    AdapterReach { path: PathBuf, name: String, key: &'static str, found: String },

    #[error("{path}: holds nothing of `{name}`, which `{key}` of the adapter_config.json beside it names")]
    AdapterUnsaved { path: PathBuf, name: String, key: &'static str },

    #[error("{path}: `{name}` lies beside a pair of the same module")]
    AdapterBeside { path: PathBuf, name: String },

    #[error("{path}: `{name}`: magnitudes of an embedding are not applied")]
    AdapterMagnitude { path: PathBuf, name: String },

    #[error("a sequence of {length} tokens is longer than the context of {context}")]
    ContextOverflow { length: usize, context: usize },

    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange { token: u32, vocab_size: usize },

    #[error(transparent)]
    Cache(#[from] crate::kernel::kv_cache::Error),

    #[error(transparent)]
    Device(#[from] crate::cuda::CudaError),

    #[error("{what}: not on a GPU yet")]
    NotOnDevice { what: &'static str, instead: &'static str },

    #[error("no threads to compute with")]
    Threads {
        #[source]
        source: std::io::Error,
    },

    #[error("{}: no memory to keep the weights in", .path.display())]
    Memory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error(
        "the squared inputs of `{}` add up to {} at column {}, with row {}",
        .0.tensor, .0.value, .0.column, .0.row
    )]
    InputNotFinite(super::observe::NotFinite),

    #[error("a tensor operation failed")]
    Operation(#[from] candle_core::Error),

    #[error("{path}: the checkpoint is already quantized ({method})")]
    Quantized { path: PathBuf, method: String },

    #[error("{path}: tensor `{name}` is missing{detail}")]
    MissingTensor { path: PathBuf, name: String, detail: String },

    #[error("{path}: {count} unexpected tensor(s) for architecture `{arch}`, first `{first}`")]
    UnexpectedTensors { path: PathBuf, arch: &'static str, count: usize, first: String },

    #[error("{path}: `{first}` and `{second}` both are `{gguf}`")]
    DuplicateTensor { path: PathBuf, first: String, second: String, gguf: String },

    #[error("{path}: `{name}` has shape {found:?}, but config.json implies {expected:?}")]
    Shape { path: PathBuf, name: String, found: Vec<usize>, expected: Vec<usize> },

    #[error("{path}: `{name}` names {what} {index}, but config.json has {count}")]
    IndexOutOfRange { path: PathBuf, name: String, what: &'static str, index: usize, count: usize },

    #[error("{path}: `{name}` is stored as {dtype}, which holds no weights lctl can read")]
    UnreadableDtype { path: PathBuf, name: String, dtype: String },

    #[error("`{name}` is no float type of a whole file; known: F32, F16, BF16")]
    NotAFloatType { name: String },

    #[error(
        "{path}: scale `{name}` has shape {found:?}, which fits no layout of a weight of shape {weight:?}"
    )]
    ScaleShape { path: PathBuf, name: String, found: Vec<usize>, weight: Vec<usize> },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Tensor(error) => error.hint(),
            Error::Io { path, .. } if path.ends_with("adapter_config.json") => Some(
                "an adapter is a directory in PEFT's form, as `lctl finetune` writes it: RUN/result/adapter"
                    .to_owned(),
            ),
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Some(
                "a Hugging Face checkpoint is a directory with config.json and *.safetensors".to_owned(),
            ),
            Error::UnknownArchitecture { nearest: Some(nearest), .. } => {
                Some(format!("did you mean `{nearest}`? `architectures` in config.json decides"))
            }
            Error::UnknownArchitecture { known, .. } => Some(format!("known: {}", known.join(", "))),
            Error::NoConfig { .. } => {
                Some("name the directory that holds config.json and the weights, or a GGUF file".to_owned())
            }
            Error::AdapterTarget { .. } | Error::AdapterShape { .. } | Error::AdapterArch { .. } => {
                Some("the adapter may have been trained on another base model".to_owned())
            }
            Error::AdapterInit { .. } => Some(
                "save it converted to LoRA: PEFT's save_pretrained(.., path_initial_model_for_weight_conversion=..)"
                    .to_owned(),
            ),
            Error::AdapterReach { .. } => Some(
                "PEFT passes over such a tensor; take the adapter_config.json that was saved with the tensors".to_owned(),
            ),
            Error::AdapterBeside { .. } => Some(
                "PEFT passes over such a tensor; what a pair is added to is saved as `.base_layer.weight`".to_owned(),
            ),
            Error::AdapterMagnitude { .. } => {
                Some("merge the adapter with PEFT (merge_and_unload), or train the embedding without DoRA".to_owned())
            }
            Error::AdapterUnsaved { .. } => {
                Some("the two files may be of different adapters; what was trained whole is saved with the pairs".to_owned())
            }
            Error::Memory { .. } => Some("`--weights mapped` reads them where they lie in the file".to_owned()),
            Error::RopeKind { .. } => Some("known: default, linear, llama3, yarn, longrope".to_owned()),
            Error::ContextOverflow { .. } => {
                Some("shorten the prompt, or open the model for a longer context".to_owned())
            }
            Error::TokenOutOfRange { .. } => {
                Some("the tokenizer may belong to another model".to_owned())
            }
            Error::Cache(error) => error.hint(),
            Error::InputNotFinite(_) => {
                Some("the weights are damaged: some product is NaN or infinite".to_owned())
            }
            Error::Device(error) => error.hint(),
            Error::NotOnDevice { instead, .. } => Some((*instead).to_owned()),
            Error::Quantized { .. } => {
                Some("quantize the original checkpoint, with weights in F32, F16, BF16 or FP8".to_owned())
            }
            Error::MissingTensor { name, .. } if name == "lm_head.weight" => Some(
                "if output and input embedding are shared, config.json must say \"tie_word_embeddings\": true"
                    .to_owned(),
            ),
            Error::MissingTensor { .. } => Some("the download may be incomplete".to_owned()),
            Error::UnexpectedTensors { .. } => Some(
                "the checkpoint may be a variant of its architecture (an adapter, a classifier, a quantized one)"
                    .to_owned(),
            ),
            Error::Shape { .. } | Error::IndexOutOfRange { .. } => {
                Some("config.json and the weights may belong to different models".to_owned())
            }
            Error::ScaleShape { .. } => Some(
                "known: one value, one per row, or one per block (`weight_block_size` in quantization_config)"
                    .to_owned(),
            ),
            Error::Json { .. } | Error::MissingKey { .. } | Error::BadValue { .. } => {
                Some("compare the file with the original checkpoint's, or download it again".to_owned())
            }
            _ => None,
        }
    }
}
