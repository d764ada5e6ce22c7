//! Broken tokenizers: each fault a typed error that names the file and the values, never a panic.
