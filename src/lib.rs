//! lctl: quantize, fine-tune and evaluate open-weight language models, offline and to the bit.
//!
//! Dependencies point one way:
//! `cli -> quantize, finetune, eval, inspect -> data, model, text -> nn, kernel, tensor -> layout, read, error` (docs/architecture.md).

pub mod cli;
pub mod cuda;
pub mod data;
pub mod demo;
pub mod error;
pub mod eval;
pub mod finetune;
pub mod hub;
pub mod inspect;
pub mod kernel;
pub mod layout;
pub mod model;
pub mod nn;
pub mod provenance;
pub mod quantize;
pub mod read;
pub mod tensor;
#[cfg(test)]
mod testing;
pub mod text;
pub mod yaml;
