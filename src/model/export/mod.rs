//! What training leaves for others to use: adapters as PEFT and llama.cpp read them, merged models.

mod changes;
mod check;
mod error;
mod finite;
mod gguf_lora;
mod gguf_merge;
mod merge;
mod peft;

pub use changes::Changes;
pub use check::{check_gguf_adapter, check_merge};
pub use error::Error;
pub use gguf_lora::write_gguf_adapter;
pub use gguf_merge::{Stored, write_merged_gguf};
pub use merge::{check_base, tensor_files, write_merged};
pub use peft::{peft_config, write_peft};
