//! Integration tests: one module per command or shared layer.

#[cfg(feature = "hub")]
mod hub;
mod tensor;
