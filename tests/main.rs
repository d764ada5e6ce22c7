//! Integration tests: one module per command or shared layer.

mod chat;
mod cli;
mod common;
mod convert;
mod datasets;
mod decoder;
mod demo;
mod device;
mod engine;
mod finetune;
mod gate;
mod generate;
#[cfg(feature = "hub")]
mod hub;
mod imatrix;
mod inspect;
mod mistakes;
mod nn;
mod provenance;
mod quantize;
mod recipe;
mod reference;
mod refusal;
mod report;
mod reproduce;
mod suites;
mod tensor;
mod tokenizer;
mod train;
mod vocab;
