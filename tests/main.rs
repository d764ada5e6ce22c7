//! Integration tests: one module per command or shared layer.

mod tensor;
