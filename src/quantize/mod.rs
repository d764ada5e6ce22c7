//! From a checkpoint to GGUF in one pass: plan (pure), then run.
