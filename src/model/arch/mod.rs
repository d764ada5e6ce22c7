//! One file per model family, each a table of rows: HF name, role, GGUF name, transform.
