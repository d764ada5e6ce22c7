//! Integration tests: one module per command or shared layer.

mod convert;
#[cfg(feature = "hub")]
mod hub;
mod tensor;
mod vocab;
