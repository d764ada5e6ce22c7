//! Evaluation: suites become documents, documents requests, requests responses, responses scores.
//!
//! A task never sees the model, the engine never sees a document: between them are [`request`]'s types.

pub mod audit;
mod chunks;
pub mod collect;
pub mod computer;
pub mod contamination;
pub mod cvss;
pub mod data;
mod decoder;
#[cfg(gpu)]
mod device;
pub mod encode;
mod engine;
mod error;
pub mod gate;
pub mod generate;
pub mod journal;
pub mod kld;
mod language_model;
mod logits_file;
pub mod perplexity;
mod plan;
pub mod prompt;
pub mod refusal;
pub mod report;
pub mod request;
pub mod run;
mod run_tree;
pub mod sampling;
mod schedule;
pub mod score;
pub mod stats;
mod stop;
pub mod suite;
pub mod task;
pub mod template;
#[cfg(test)]
pub(crate) mod testing;

pub use chunks::Chunks;
pub use computer::Computer;
#[cfg(gpu)]
pub use device::BATCH_TOKENS as DEVICE_BATCH_TOKENS;
pub use engine::{Engine, EngineOptions, Outcome, Progress, Usage};
pub use error::Error;
pub use journal::{Journal, JournalKey};
pub use language_model::{LanguageModel, SequenceCache};
pub use logits_file::{LogitsWriter, SavedLogits};
