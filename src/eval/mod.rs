//! Evaluation: suites become documents, documents requests, requests responses, responses scores.
//!
//! A task never sees the model, the engine never sees a document: between them are [`request`]'s types.

pub mod data;
mod language_model;
pub mod request;
pub mod template;

pub use language_model::{LanguageModel, SequenceCache};
