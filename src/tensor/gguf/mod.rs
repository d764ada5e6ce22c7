//! GGUF version 2 and 3: a hardened reader and a streaming writer (spec: ggml/docs/gguf.md).

mod cursor;
mod header;
mod read;
mod split;
#[cfg(test)]
mod tests;
mod value;
mod write;

pub use header::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Header, HeaderError, MAX_ALIGNMENT, MAX_DIMS, MAX_NAME_BYTES,
    parse_header,
};
pub use read::Gguf;
pub use split::{SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, shared_by_shards};
pub use value::{Array, Metadata, Value};
pub use write::{GgufWriter, Split, WriteOptions};
