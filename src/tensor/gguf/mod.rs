//! GGUF version 2 and 3: a hardened reader and a streaming writer (spec: ggml/docs/gguf.md).

mod value;

pub use value::{Array, Metadata, Value};
