//! Tokenizers: reading a checkpoint's vocabulary and writing it as GGUF keys.
